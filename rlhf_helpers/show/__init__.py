"""What a reader looks at: tables and figures, drawn from files.

Nothing here computes a result or imports torch: numbers come from the files of a run, or as
arguments.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": ["Folded", "Table", "wrapped"],
        "samples_table": ["SamplesTable"],
        "plot_style": ["save_figure"],
        "figures": [
            "LiveCurves", "memory_bar", "paired_change_plot", "reward_curve",
            "reward_histogram", "series", "training_curves",
        ],
        "diagrams": ["draw_diagrams"],
        "lesson_figures": [
            "clipping_plot", "few_points_figure", "next_token_plot", "rank_and_layers_plot",
        ],
        "ppo_figures": ["practice_plot", "rounds_plot"],
        "preference_figures": [
            "accuracy_plot", "parting_plot", "price_plot", "read_best_of_n", "read_courses",
        ],
        "verifiable_figures": [
            "fooled_plot", "learning_plot", "pass_at_k_plot", "right_steps_table", "steps_plot",
        ],
        "run_figures": ["headline_figure", "semantics_figure"],
        "study_figures": ["course_figure", "frontier_figure", "judge_figure", "read_table"],
        "results_tables": [
            "finished_runs", "runs_by_semantics", "semantics_rows", "without_penalty_run",
        ],
    },
)

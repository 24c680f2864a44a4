"""The commands of this room. Whatever takes time to import is imported inside them."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("plan", metavar="PLAN.yml")
@click.option("--out", help="Where tables go.", show_default="figures/study/<the plan's name>")
@click.option("--only", metavar="TEXT", help="Only rows whose name has this in it.")
@click.option("--first", metavar="N", type=int, help="Only the plan's first N rows.")
def study(plan, out, only, first) -> None:
    """Run a plan of configurations and seeds (see rlhf_helpers/studies/plan.py).

    A study that was stopped goes on where it was. Its table is up to date after every row.
    """
    from rlhf_helpers.config.checks import integer, optional, wrong
    from rlhf_helpers.config.paths import repo_root, resolve_run_dir
    from rlhf_helpers.progress import printable

    from .plan import load_plan
    from .study import run_study

    optional(integer(1))("--first", first)
    loaded = load_plan(plan)
    rows = [row for row in loaded.rows[:first] if only is None or only in row.name]
    if not rows:
        raise wrong("--only", only, "no row of the plan has that in its name")
    table = run_study(loaded, resolve_run_dir(out or f"figures/study/{loaded.name}"), rows)
    shown = table.relative_to(repo_root()) if table.is_relative_to(repo_root()) else table
    print(printable(str(shown)))


@click.command()
@click.argument("plan", metavar="PLAN.yml", default="figures/study/preferences.yml")
@click.option("--out", help="Where files go.", show_default="where those of this plan are kept")
@click.option("--only", metavar="TEXT", help="Only rows whose name has this in it.")
@click.option("--models-only", is_flag=True, help="Stop when the reward models are made.")
def preferences(plan, out, only, models_only) -> None:
    """Pairs, annotator, reward models by size and seed, PPO and DPO against them.

    Leaves preferences.jsonl, reward_model.json, best_of_n.csv, overoptimisation.csv, table.csv,
    rows/ and the adapters that the plan names. What was stopped goes on where it was: texts by
    the batch, reward models and PPO from their checkpoints, finished models and rows are kept.
    """
    from rlhf_helpers.config.checks import wrong
    from rlhf_helpers.config.paths import resolve_run_dir
    from rlhf_helpers.progress import printable
    from rlhf_helpers.runs.files import made_directory, refuse_link, writing_to

    from .plan import load_plan
    from .preference_tables import kept_folder
    from .study import Bench, run_study

    loaded = load_plan(plan)
    folder = resolve_run_dir(out) if out else kept_folder(loaded.name)
    rows = [row for row in loaded.rows if only is None or only in row.name]
    if not rows:
        raise wrong("--only", only, "no row of the plan has that in its name")
    refuse_link(folder)
    made_directory(folder)
    with writing_to(folder, "start it again: what is finished is kept"):
        bench = Bench(loaded)
        if loaded.preferences["keep_pairs"]:
            bench.preferences.write_pairs(folder)
        print(printable(str(bench.preferences.make_reward_models(folder))), flush=True)
        bench.preferences.write_best_of_pool(folder)
        if models_only:
            return
        run_study(loaded, folder, rows, bench)
        bench.preferences.keep_adapters(folder)
    print(printable(str(folder / "overoptimisation.csv")))


@click.command()
@click.option("--work", help="Where runs go.", default="runs/arithmetic")
@click.option("--out", help="Where files go.", default="figures/reference_runs/arithmetic")
@click.option("--only", metavar="TEXT", help="Only runs whose name has this in it.")
def arithmetic(work, out, only) -> None:
    """Tune the base model of notebook 07 with RLOO, GRPO and PPO, three seeds each.

    One run more is paid by a sloppy verifier. Leaves evaluation.json (pass@k by run),
    metrics.jsonl and samples.jsonl. What was stopped goes on where it was.
    """
    from rlhf_helpers.config.checks import wrong
    from rlhf_helpers.config.paths import repo_root, resolve_run_dir
    from rlhf_helpers.progress import printable
    from rlhf_helpers.runs.files import made_directory, refuse_link, writing_to

    from .verifiable import RUNS, make_runs, write_reference_run
    from .verifiable_report import rewrite_page

    if only is not None and not any(only in run.name for run in RUNS):
        raise wrong("--only", only, "no run has that in its name")
    place, folder = resolve_run_dir(work), resolve_run_dir(out)
    for path in (place, folder):
        refuse_link(path)
        made_directory(path)
    made_directory(place / "rows")
    with writing_to(place, "start it again: what is finished is kept"):
        make_runs(place, only=only)
        print(printable(str(write_reference_run(place, folder))))
    page = repo_root() / "docs" / "verifiable_rewards.md"
    if page.exists() and folder == repo_root() / "figures" / "reference_runs" / "arithmetic":
        rewrite_page(page, folder)


@click.command()
@click.argument("sweep", metavar="SWEEP.yml")
@click.argument("script", metavar="SCRIPT.py")
@click.option("--out", default="sweeps", help="Where results go.")
@click.option("--cpus", type=int, default=1, help="Cores of one trial.")
@click.option("--gpus", type=float, default=0, help="GPUs of one trial.")
def sweep(sweep, script, out, cpus, gpus) -> None:
    """Search over configuration fields with Ray Tune.

    SWEEP.yml has fields, strategies and tune_config, as trlX's sweeps do; SCRIPT.py has
    main(hparams).
    """
    from rlhf_helpers.config.checks import integer, number
    from rlhf_helpers.progress import printable
    from rlhf_helpers.runs.files import writing_to

    from .sweep import run_sweep

    integer(1, 100_000)("--cpus", cpus)
    number(0.0, 100_000)("--gpus", gpus)
    with writing_to(out):
        results = run_sweep(sweep, script, out, cpus, gpus)
    best = results.get_best_result()
    drawn = ", ".join(f"{k} = {v}" for k, v in best.config.items())
    print(printable(f"Best of {len(results)} trials: {drawn}"))
    print(f"Its metrics: {best.metrics_dataframe.iloc[-1].get('reward/mean')} reward/mean")
    print(f"Every trial: {Path(out) / Path(sweep).stem / 'trials.csv'}")

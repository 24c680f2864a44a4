"""The command of this room. Whatever takes time to import is imported inside it."""

from __future__ import annotations

import click


@click.command()
@click.argument("run_dirs", nargs=-1, required=True, metavar="RUN_DIR...")
@click.option("--n-prompts", type=int, default=1000, help="Held-out prompts.")
@click.option(
    "--samples-per-opening", type=int, default=8,
    help="Samples of each hostile and each neutral opening.",
)  # fmt: skip
@click.option("--seed", type=int, default=1000, help="Of the random streams.")
def evaluate(run_dirs, n_prompts, samples_per_opening, seed) -> None:
    """Evaluate finished runs on more prompts than the tutorial has time for."""
    from .evaluate_run import evaluate_runs

    evaluate_runs(run_dirs, n_prompts, samples_per_opening, seed)

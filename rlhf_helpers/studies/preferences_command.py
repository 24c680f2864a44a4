"""The command `preferences`: from pairs to reward models to policies, in one directory.

Whatever takes time to import is imported inside it.
"""

from __future__ import annotations

import click


@click.command()
@click.argument("plan", metavar="PLAN.yml", default="figures/study/preferences.yml")
@click.option("--out", help="Where files go.", default="figures/reference_runs/preferences")
@click.option("--only", metavar="TEXT", help="Only rows whose name has this in it.")
@click.option("--models-only", is_flag=True, help="Stop when the reward models are made.")
def preferences(plan, out, only, models_only) -> None:
    """Pairs, annotator, reward models by size and seed, PPO and DPO against them.

    Leaves preferences.jsonl, reward_model.json, overoptimisation.csv, table.csv, rows/ and the
    adapters that the plan names. What was stopped goes on where it was: texts by the batch,
    reward models and PPO from their checkpoints, finished models and rows are kept.
    """
    from rlhf_helpers.config.trl_config import ConfigError, resolve_run_dir

    from .plan import load_plan
    from .study import Bench, run_study

    loaded, folder = load_plan(plan), resolve_run_dir(out)
    rows = [row for row in loaded.rows if only is None or only in row.name]
    if not rows:
        raise ConfigError(f"--only is {only!r}: no row of the plan has that in its name.")
    bench = Bench(loaded)
    bench.preferences.write_pairs(folder)
    print(bench.preferences.make_reward_models(folder), flush=True)
    if not models_only:
        run_study(loaded, folder, rows, bench)
        bench.preferences.keep_adapters(folder)
        print(folder / "overoptimisation.csv")

"""The commands of this room. Whatever takes time to import is imported inside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click


def profile_options(command: Callable) -> Callable:
    """What every command that reads a profile offers: --profile, --seed, --set."""
    options = [
        click.option("--profile", default="cpu", help="A profile's name or YAML file."),
        click.option("--seed", type=int, help="Replaces the profile's train.seed."),
        click.option(
            "--set", "overrides", metavar="KEY=VALUE", multiple=True,
            help="A configuration field, e.g. --set method.ppo_epochs=2; may be repeated.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@profile_options
@click.option("--run-dir", help="Where results go.", show_default="runs/<profile>")
@click.option(
    "--notebook", "notebooks", multiple=True, metavar="NAME",
    help="Only this one, by name or number; may be repeated.",
)  # fmt: skip
@click.option("--reference-run", is_flag=True, help="Show the committed results of the profile.")
def run(profile, seed, overrides, run_dir, notebooks, reference_run) -> None:
    """Run the notebooks, one after another; at the end, the results in brief."""
    from rlhf_helpers.config.files import parse_overrides
    from rlhf_helpers.config.paths import resolve_run_dir
    from rlhf_helpers.runs.files import RunDir

    from .pipeline import run_pipeline
    from .summary import run_summary

    run_dir = run_dir or f"runs/{Path(profile).stem}"
    run_pipeline(
        profile=profile,
        run_dir=run_dir,
        seed=seed,
        overrides=parse_overrides(overrides),
        notebooks=list(notebooks) or None,
        reference_run=reference_run,
    )
    print("\n" + run_summary(RunDir(resolve_run_dir(run_dir))))


@click.command()
@profile_options
@click.option("--run-dir", help="Where results would go.", show_default="runs/<profile>")
def doctor(profile, seed, overrides, run_dir) -> int:
    """Check this machine and say what to do. Ends with 1 where something has to be mended."""
    from rlhf_helpers.config.files import parse_overrides
    from rlhf_helpers.config.profiles import load_profile

    from .doctor import examine, table_text

    settings = load_profile(profile, parse_overrides(overrides), seed)
    findings = examine(settings, run_dir or f"runs/{settings.name}")
    print(table_text(findings))
    return 1 if any(finding.status == "fail" for finding in findings) else 0


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
def notebooks(names) -> None:
    """Execute the committed notebooks in place, with their own parameters.

    NAME is a notebook's name or number; without one, all are executed.
    """
    from .costs import rewrite_cost_table
    from .pipeline import execute_in_place, notebook_paths

    paths = notebook_paths(list(names) or None)
    for path in paths:
        rewrite_cost_table(path)
    execute_in_place(paths)


@click.command()
def badges() -> None:
    """Copy the repository's address from pyproject.toml to where it is shown."""
    from rlhf_helpers.config.paths import clone_root, repo_root

    from .badges import rewrite_badges

    changed = rewrite_badges(clone_root("The command badges"))
    print("\n".join(str(path.relative_to(repo_root())) for path in changed) or "nothing to change")


@click.command()
@click.argument("run_dir")
@click.option(
    "--as-seed", is_flag=True,
    help="One more seed (figures/seeds), not the profile's reference run.",
)  # fmt: skip
@click.option(
    "--without-penalty", is_flag=True,
    help="The run with method.init_kl_coef=0 that notebook 05 ends with (figures/without_penalty).",
)  # fmt: skip
def keep(run_dir, as_seed, without_penalty) -> None:
    """Copy a finished run, e.g. runs/cpu, to the committed ones under figures/."""
    from rlhf_helpers.progress import printable

    from .committed_runs import keep_run

    print(printable(str(keep_run(run_dir, as_seed, without_penalty=without_penalty))))


@click.command()
def figures() -> None:
    """Draw the README's figures and tables, and those of docs/, from the committed runs."""
    from rlhf_helpers.config.paths import clone_root, repo_root
    from rlhf_helpers.runs.files import writing_to
    from rlhf_helpers.show.diagrams import draw_diagrams
    from rlhf_helpers.show.results_tables import rewrite_tables
    from rlhf_helpers.studies.report import draw_study_figures, rewrite_study_doc

    from .committed_runs import draw_readme_figures

    with writing_to(clone_root("The command figures")):
        for path in [*draw_readme_figures(), *draw_study_figures(), *draw_diagrams()]:
            print(path.relative_to(repo_root()))
        for page in ("README.md", "docs/running.md", "docs/coming_from_trlx.md", "docs/speed.md"):
            rewrite_tables(repo_root() / page)
        rewrite_study_doc(repo_root() / "docs" / "study.md")

"""The commands: python -m rlhf_helpers run | doctor | pretrain | train-reward | badges | ..."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 the run failed, 2 something given was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in argv if not word.startswith("-")), None)
    arguments = build_parser(chosen).parse_args(argv)
    if arguments.traceback:
        return arguments.command(arguments)
    try:
        return arguments.command(arguments)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(error, file=sys.stderr)
        return code


def _exit_code(error: Exception) -> int | None:
    """Exit code of an error that explains itself; None for one that needs its traceback."""
    from rlhf_helpers.config.trl_config import ConfigError
    from rlhf_helpers.runs.files import CannotWriteError, MissingRunFileError

    # Looked up, not imported: these classes exist only if their module was needed by the command.
    def is_a(module: str, name: str) -> bool:
        loaded = sys.modules.get(f"rlhf_helpers.{module}")
        return loaded is not None and isinstance(error, getattr(loaded, name))

    if isinstance(error, CannotWriteError) or is_a("notebook.pipeline", "PipelineError"):
        return 1
    if is_a("training.watchdog", "WatchdogError"):
        return 1
    if isinstance(error, ConfigError | MissingRunFileError):
        return 2
    return 2 if is_a("data.assets", "AssetError") or is_a("rewards.reward", "RewardError") else None


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """All commands. Only the module of the `chosen` one is asked for its options.

    Importing them all would load torch to print a line of help.
    """
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_helpers", description=sys.modules["rlhf_helpers"].__doc__
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_doctor(commands)
    _add_notebooks(commands)
    _add_badges(commands)
    _add_keep(commands)
    _add_results(commands)
    _add_pretrain(commands)
    # These modules bring their own options: add_arguments(parser) and main(arguments).
    for name, module, text in (
        ("train-reward", "making.train_reward", "train the sentiment reward model again"),
        ("bench", "lab.bench_command", "measure one PPO iteration"),
        ("memory", "lab.memory_command", "predict, and measure, the memory of a run"),
        ("study", "studies.study", "run a plan of configurations and seeds"),
        ("sweep", "studies.sweep", "search over configuration fields with Ray Tune"),
        ("evaluate", "evaluation.evaluate_run", "evaluate finished runs on a thousand prompts"),
    ):
        if _offers_a_command(module):
            _add_module(commands, name, module, text, with_options=name == chosen)
    return parser


def _command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    return parser


def _add_profile_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="cpu", help="a profile's name or YAML file (cpu)")
    parser.add_argument("--seed", type=int, help="replaces the profile's train.seed")
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[],
        help="a configuration field, e.g. --set method.ppo_epochs=2; may be repeated",
    )  # fmt: skip


def _add_run(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "run", "run the notebooks, one after another")
    _add_profile_options(parser)
    parser.add_argument("--run-dir", help="where results go (runs/<profile>)")
    parser.add_argument(
        "--notebook", dest="notebooks", action="append", metavar="NAME",
        help="only this one, by name or number; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--reference-run", action="store_true", help="show the committed results of the profile"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from rlhf_helpers.config.trl_config import parse_overrides, resolve_run_dir
    from rlhf_helpers.notebook.pipeline import run_pipeline
    from rlhf_helpers.notebook.summary import run_summary
    from rlhf_helpers.runs.files import RunDir

    run_dir = arguments.run_dir or f"runs/{Path(arguments.profile).stem}"
    run_pipeline(
        profile=arguments.profile,
        run_dir=run_dir,
        seed=arguments.seed,
        overrides=parse_overrides(arguments.overrides),
        notebooks=arguments.notebooks,
        reference_run=arguments.reference_run,
    )
    print("\n" + run_summary(RunDir(resolve_run_dir(run_dir))))
    return 0


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "doctor", "check this machine and say what to do")
    _add_profile_options(parser)
    parser.add_argument("--run-dir", help="where results would go (runs/<profile>)")
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from rlhf_helpers.config.trl_config import load_profile, parse_overrides
    from rlhf_helpers.notebook.doctor import examine, table_text

    profile = load_profile(arguments.profile, parse_overrides(arguments.overrides), arguments.seed)
    findings = examine(profile, arguments.run_dir or f"runs/{profile.name}")
    print(table_text(findings))
    return 1 if any(finding.status == "fail" for finding in findings) else 0


def _add_notebooks(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands, "notebooks", "execute the committed notebooks in place, with their own parameters"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="by name or number (all)")
    parser.set_defaults(command=_notebooks)


def _notebooks(arguments: argparse.Namespace) -> int:
    from rlhf_helpers.notebook.costs import rewrite_cost_table
    from rlhf_helpers.notebook.pipeline import execute_in_place, notebook_paths

    paths = notebook_paths(arguments.names or None)
    for path in paths:
        rewrite_cost_table(path)
    execute_in_place(paths)
    return 0


def _add_badges(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands, "badges", "copy the repository's address from pyproject.toml to where it is shown"
    )
    parser.set_defaults(command=_badges)


def _badges(arguments: argparse.Namespace) -> int:
    from rlhf_helpers.config.trl_config import repo_root
    from rlhf_helpers.notebook.badges import rewrite_badges

    changed = rewrite_badges(repo_root())
    print("\n".join(str(path.relative_to(repo_root())) for path in changed) or "nothing to change")
    return 0


def _add_keep(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "keep", "copy a finished run to the committed ones under figures/")
    parser.add_argument("run_dir", help="the finished run, e.g. runs/cpu")
    parser.add_argument(
        "--as-seed", action="store_true",
        help="one more seed (figures/seeds), not the profile's reference run",
    )  # fmt: skip
    parser.set_defaults(command=_keep)


def _keep(arguments: argparse.Namespace) -> int:
    from rlhf_helpers.notebook.committed_runs import keep_run

    print(keep_run(arguments.run_dir, as_seed=arguments.as_seed))
    return 0


def _add_results(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands, "figures", "draw the README's figures and tables from the committed runs"
    )
    parser.set_defaults(command=_figures)


def _figures(arguments: argparse.Namespace) -> int:
    from rlhf_helpers.config.trl_config import repo_root
    from rlhf_helpers.notebook.committed_runs import draw_readme_figures
    from rlhf_helpers.show.results_tables import rewrite_tables
    from rlhf_helpers.studies.report import draw_study_figures, rewrite_study_doc

    for path in [*draw_readme_figures(), *draw_study_figures()]:
        print(path.relative_to(repo_root()))
    for page in ("README.md", "docs/coming_from_trlx.md"):
        rewrite_tables(repo_root() / page)
    rewrite_study_doc(repo_root() / "docs" / "study.md")
    return 0


def _add_pretrain(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "pretrain", "make the shipped policy tiny-opt-imdb again")
    parser.add_argument("--out", default="runs/pretrain", help="where it goes (runs/pretrain)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps (those of the shipped model)")
    parser.set_defaults(command=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> int:
    from rlhf_helpers.config.trl_config import resolve_run_dir
    from rlhf_helpers.making.pretrain import PretrainConfig, pretrain
    from rlhf_helpers.making.pretrain_report import publish

    given = {"seed": arguments.seed, "steps": arguments.steps}
    config = PretrainConfig(**{name: value for name, value in given.items() if value is not None})
    out_dir = resolve_run_dir(arguments.out)
    model, tokenizer = pretrain(out_dir, config)
    metrics = publish(out_dir, out_dir / "tiny-opt-imdb", model, tokenizer, config)
    print(f"{metrics['heldout']['bits_per_byte']:.3f} bits per byte; see {out_dir}/tiny-opt-imdb")
    return 0


def _offers_a_command(module: str) -> bool:
    """Whether the module exists and defines add_arguments; found out without importing it."""
    spec = importlib.util.find_spec(f"rlhf_helpers.{module}")
    if spec is None or spec.origin is None:
        return False
    return "\ndef add_arguments(" in Path(spec.origin).read_text(encoding="utf-8")


def _add_module(
    commands: argparse._SubParsersAction, name: str, module: str, text: str, with_options: bool
) -> None:
    parser = _command(commands, name, text)
    if with_options:
        importlib.import_module(f"rlhf_helpers.{module}").add_arguments(parser)

    def run(arguments: argparse.Namespace) -> int:
        return importlib.import_module(f"rlhf_helpers.{module}").main(arguments) or 0

    parser.set_defaults(command=run)


if __name__ == "__main__":
    sys.exit(main())

"""The command line: one table of names and functions, `python -m rlhf_helpers COMMAND`."""

from __future__ import annotations

import copy
import importlib
import io
import sys
from collections.abc import Sequence

import click

from rlhf_helpers.progress import printable

# Name -> where its function is, and what it does. It is imported when it is called: a line of
# help must not wait for torch.
COMMANDS = {
    "run": ("notebook.commands:run", "run the notebooks, one after another"),
    "doctor": ("notebook.commands:doctor", "check this machine and say what to do"),
    "notebooks": ("notebook.commands:notebooks", "execute the committed notebooks in place"),
    "badges": ("notebook.commands:badges", "copy the repository's address to where it is shown"),
    "keep": ("notebook.commands:keep", "copy a finished run to the committed ones"),
    "figures": ("notebook.commands:figures", "draw figures and tables from the committed runs"),
    "evaluate": ("evaluation.commands:evaluate", "evaluate finished runs on a thousand prompts"),
    "study": ("studies.commands:study", "run a plan of configurations and seeds"),
    "preferences": ("studies.commands:preferences", "learn from preferences: pairs to policies"),
    "arithmetic": ("studies.commands:arithmetic", "make the runs of notebook 07"),
    "sweep": ("studies.commands:sweep", "search over configuration fields with Ray Tune"),
    "bench": ("lab.commands:bench", "measure one PPO iteration"),
    "memory": ("lab.commands:memory", "predict, and measure, the memory of a run"),
    "pretrain": ("making.commands:pretrain", "make the shipped policy tiny-opt-imdb again"),
    "fine-tune": ("making.commands:fine_tune", "teach a model to write reviews, before PPO"),
    "merge": ("making.commands:merge", "write a tuned policy as a plain model"),
    "pretrain-arithmetic": (
        "making.commands:pretrain_arithmetic", "make the base model of notebook 07 again"
    ),
    "train-reward": ("making.commands:train_reward", "train the sentiment reward model again"),
    "train-judge": ("making.commands:train_judge", "train the independent judge again"),
}

# Errors that explain themselves in one sentence: 1 the run failed, 2 something given was wrong.
# By name, so that no module is imported for its error; every other error shows its traceback.
EXIT_CODES = {
    "notebook.pipeline:PipelineError": 1,
    "runs.files:CannotWriteError": 1,
    "training.watchdog:WatchdogError": 1,
    "models.finite_logits:NotFiniteError": 1,
    "config.checks:ConfigError": 2,
    "config.reading:UnreadableFileError": 2,
    "data.assets:AssetError": 2,
    "evaluation.before_after:EvaluationError": 2,
    "models.opendelta_import:LoraBackendError": 2,
    "rewards.calling:UserFunctionError": 2,
    "rewards.judge:JudgeError": 2,
    "rewards.reward:RewardError": 2,
    "runs.files:MissingRunFileError": 2,
}

TRACEBACK = click.Option(
    ["--traceback"], is_flag=True, expose_value=False, help="Show where an error arose."
)


class CommandTable(click.Group):
    """COMMANDS as click has its groups."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, function = COMMANDS[name][0].partition(":")
        found = getattr(importlib.import_module(f"rlhf_helpers.{module}"), function)
        command = copy.copy(found)  # its own parameters stay as they are
        command.params = [*found.params, TRACEBACK]
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


cli = CommandTable(
    help="PPO for language models with a plain Python reward function, LoRA and one device.",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 the run failed, 2 something given was wrong, 130 interrupted. What was wrong is said
    in one sentence on stderr; with --traceback the error is raised as it came.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with cli.make_context("python -m rlhf_helpers", list(words)) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as end:  # after --help
        return end.exit_code
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        print(printable(said.getvalue()), file=sys.stderr, end="")  # it repeats what was given
        return error.exit_code
    except (KeyboardInterrupt, Exception) as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else exit_code(error)
        if code is None or "--traceback" in words:
            raise
        print("Interrupted." if code == 130 else error, file=sys.stderr)
        return code


def exit_code(error: Exception) -> int | None:
    """Exit code of an error that explains itself; None for one that needs its traceback."""
    for kind in type(error).__mro__:
        name = f"{kind.__module__.removeprefix('rlhf_helpers.')}:{kind.__name__}"
        if name in EXIT_CODES:
            return EXIT_CODES[name]
    return None


if __name__ == "__main__":
    sys.exit(main())

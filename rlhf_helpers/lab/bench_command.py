"""`python -m rlhf_helpers bench`: its options, and which measurement they ask for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rlhf_helpers.config.trl_config import ConfigError, resolve_run_dir
from rlhf_helpers.runs.files import made_directory, writing_to

from .bench import VARIED, bench, vary
from .bench_iteration import CLOCKS, Case
from .shapes import SHAPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--profile", help="a profile's model, prompts and reward (cpu)")
    what.add_argument("--shape", choices=list(SHAPES), help="random weights, no text")
    what.add_argument(
        "--gpu-report", action="store_true", help="every figure that needs a GPU, one after another"
    )
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--batch", help="rollouts of an optimizer step", **number)
    parser.add_argument("--rollouts", help="of an iteration", **number)
    parser.add_argument("--chunk", help="prompts sampled at once (all rollouts, 128)", **number)
    parser.add_argument("--new-tokens", help="of a response", **number)
    parser.add_argument("--unfrozen", help="top layers with LoRA", **number)
    parser.add_argument("--layers", help="of the shape, instead of its own number", **number)
    parser.add_argument("--threads", help="of the CPU", **number)
    parser.add_argument("--iterations", default=5, help="measured, of each engine (5)", **number)
    parser.add_argument(
        "--naive", nargs="?", const="beside", default="beside", choices=["beside", "off"],
        help="the same with every shortcut off, in turn with the fast one (default), or not",
    )  # fmt: skip
    parser.add_argument("--semantics", choices=["trlx", "corrected"], help="of the PPO method")
    parser.add_argument("--reward", choices=["distilbert"], help="a random model in the loop")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="seconds of what")
    parser.add_argument(
        "--static-cache", action="store_true", help="decode compiled, with a static cache (CUDA)"
    )
    parser.add_argument("--vary", choices=list(VARIED), help="measure how cost grows with it")
    parser.add_argument("--values", help="of what varies, e.g. 4,8,16")
    parser.add_argument(
        "--beside-trlx", metavar="PYTHON",
        help="the shape's run under the real trlX too, by that interpreter",
    )  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="hardly any width: tries the code")
    parser.add_argument("--out", default="runs/bench", help="where files go (runs/bench)")


def main(arguments: argparse.Namespace) -> int:
    """Measure, write JSON and figure, print a table and, as the last line, one JSON object."""
    out = made_directory(resolve_run_dir(arguments.out))
    with writing_to(out):
        return _measured(arguments, out)


def _measured(arguments: argparse.Namespace, out: Path) -> int:
    if arguments.gpu_report:
        from .bench_gpu import gpu_report

        print(json.dumps(gpu_report(out, tiny=arguments.tiny)))
        return 0
    case = case_of(arguments)
    if arguments.beside_trlx:
        from .bench_trlx import beside_trlx

        result = beside_trlx(case, arguments.beside_trlx, out)
    elif arguments.vary:
        result = vary(case, arguments.vary, _values(arguments), out)
    else:
        result = bench(case, out)
    print(json.dumps(result))
    return 0


def case_of(arguments: argparse.Namespace) -> Case:
    """The case that the options describe; ConfigError where they contradict each other."""
    names = set(Case.__dataclass_fields__) - {"naive", "memory_of"}
    case = Case(**{name: getattr(arguments, name) for name in names})
    case.naive = arguments.naive != "off"
    if case.shape is None and case.profile is None:
        case.profile = "cpu"
    for name in ("batch", "rollouts", "chunk", "new_tokens", "layers", "threads", "iterations"):
        value = getattr(case, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}: give a positive number.")
    if case.profile and (case.layers or case.tiny or case.reward):
        raise ConfigError("--layers, --tiny and --reward go with --shape only.")
    return case


def _values(arguments: argparse.Namespace) -> Sequence[int]:
    if arguments.values is None:
        return VARIED[arguments.vary][1]
    try:
        return [int(value) for value in arguments.values.split(",")]
    except ValueError:
        raise ConfigError(f"--values is {arguments.values!r}: give numbers, as 4,8,16.") from None

"""The commands of this room. Whatever takes time to import is imported inside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .bench_case import CLOCKS, VARIED, Case
from .shapes import SHAPES


@click.command()
@click.option("--profile", help="A profile's model, prompts and reward.", show_default="cpu")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="Random weights, no text.")
@click.option("--gpu-report", is_flag=True, help="Every figure that needs a GPU, in turn.")
@click.option("--batch", type=int, help="Rollouts of an optimizer step.")
@click.option("--rollouts", type=int, help="Of an iteration.")
@click.option(
    "--chunk", type=int, help="Prompts sampled at once.", show_default="all rollouts, 128"
)
@click.option("--new-tokens", type=int, help="Of a response.")
@click.option("--unfrozen", type=int, help="Top layers with LoRA.")
@click.option("--layers", type=int, help="Of the shape, instead of its own number.")
@click.option("--threads", type=int, help="Of the CPU.")
@click.option("--iterations", type=int, default=Case.iterations, help="Measured, of each engine.")
@click.option(
    "--naive", type=click.Choice(["beside", "off"]), is_flag=False, flag_value="beside",
    default="beside", help="The same with every shortcut off, in turn with the fast one, or not.",
)  # fmt: skip
@click.option("--semantics", type=click.Choice(["trlx", "corrected"]), help="Of the PPO method.")
@click.option("--reward", type=click.Choice(["distilbert"]), help="A random model in the loop.")
@click.option("--clock", type=click.Choice(CLOCKS), default=Case.clock, help="Seconds of what.")
@click.option("--static-cache", is_flag=True, help="Decode compiled, with a static cache (CUDA).")
@click.option("--vary", type=click.Choice(list(VARIED)), help="Measure how cost grows with it.")
@click.option("--values", help="Of what varies, e.g. 4,8,16.")
@click.option(
    "--beside-trlx", metavar="PYTHON",
    help="The shape's run under the real trlX too, by that interpreter.",
)  # fmt: skip
@click.option("--tiny", is_flag=True, help="Hardly any width: tries the code.")
@click.option("--out", default="runs/bench", help="Where files go.")
def bench(out, gpu_report, beside_trlx, vary, values, **options) -> None:
    """Measure one PPO iteration; the last line printed is one JSON object.

    Give a profile or a shape. JSON and figures go to --out.
    """
    from rlhf_helpers.config.paths import resolve_run_dir
    from rlhf_helpers.runs.files import made_directory, writing_to

    if sum(map(bool, (options["profile"], options["shape"], gpu_report))) > 1:
        raise click.UsageError("Give one of --profile, --shape and --gpu-report.")
    numbers = _numbers(values)
    case = None if gpu_report else case_of(options)
    folder = made_directory(resolve_run_dir(out))
    with writing_to(folder):
        print(json.dumps(_measured(case, folder, gpu_report, beside_trlx, vary, numbers, options)))


def _measured(case, folder, gpu_report, beside_trlx, vary, numbers, options) -> dict:
    if gpu_report:
        from .bench_gpu import gpu_report as measure_all

        return measure_all(folder, tiny=options["tiny"])
    if beside_trlx:
        from .bench_trlx import beside_trlx as measure_both

        return measure_both(case, beside_trlx, folder)
    if vary:
        from .bench import vary as measure_growth

        return measure_growth(case, vary, numbers or VARIED[vary][1], folder)
    from .bench import bench as measure

    return measure(case, folder)


def case_of(options: Mapping[str, Any]) -> Case:
    """The case that the options describe; ConfigError where they contradict each other."""
    from rlhf_helpers.config.checks import ConfigError

    names = set(Case.__dataclass_fields__) - {"naive", "memory_of"}
    case = Case(**{name: options[name] for name in names}, naive=options["naive"] != "off")
    if case.shape is None and case.profile is None:
        case.profile = "cpu"
    for name in ("batch", "rollouts", "chunk", "new_tokens", "layers", "threads", "iterations"):
        value = getattr(case, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}: give a positive number.")
    if case.profile and (case.layers or case.tiny or case.reward):
        raise ConfigError("--layers, --tiny and --reward go with --shape only.")
    return case


def _numbers(values: str | None) -> Sequence[int] | None:
    from rlhf_helpers.config.checks import ConfigError

    try:
        return None if values is None else [int(value) for value in values.split(",")]
    except ValueError:
        raise ConfigError(f"--values is {values!r}: give numbers, as 4,8,16.") from None


@click.command()
@click.option("--profile", help="One profile, part by part.", show_default="all, in one table")
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), show_default="as this machine is")
@click.option("--table", is_flag=True, help="Measure and predict several sizes.")
@click.option("--out", default="runs/memory", help="Folder of the table.")
def memory(profile, settings, device, table, out) -> None:
    """Predict, and measure, the memory of a run."""
    from rlhf_helpers.config.checks import wrong
    from rlhf_helpers.config.files import parse_overrides
    from rlhf_helpers.config.paths import resolve_run_dir
    from rlhf_helpers.config.profiles import load_profile
    from rlhf_helpers.runs.files import made_directory, writing_to

    from .memory import predict_profile
    from .memory_table import measured_table, profile_rows, profile_text

    if settings and (table or not profile):
        raise wrong("--set", list(settings), "it goes with --profile, so name one")
    if table:
        folder = made_directory(resolve_run_dir(out))
        with writing_to(folder):
            print(measured_table(folder))
    elif profile:
        loaded = load_profile(profile, parse_overrides(settings))
        on_gpu = None if device is None else device == "gpu"
        print(profile_text(predict_profile(loaded, on_gpu)))
    else:
        for row in profile_rows():
            print(f"{row['profile']:18}{row['device']:5}{row['GB']:7.1f} GB   {row['largest']}")

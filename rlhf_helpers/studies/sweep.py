"""Sweeps over configuration fields with Ray Tune, from a file in trlX's sweep format.

    python -m rlhf_helpers sweep sweep.yml script.py

The script has `main(hparams)`, as trlX's examples do: it updates its configuration with the dict
of dotted names `hparams` and calls `train`. Ray draws the values, runs the trials and keeps the
table; nothing of that is ours. Ray is optional: `pip install "ray[tune]"`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import (
    ConfigError,
    closest,
    file_name,
    integer,
    mapping,
    number,
    one_of,
    shown,
    text,
    unknown,
)
from rlhf_helpers.config.files import read_yaml
from rlhf_helpers.config.reading import read_text
from rlhf_helpers.config.sections import setting_names
from rlhf_helpers.runs.files import atomic_write_text, made_directory
from rlhf_helpers.training.log import SWEEP_TRIAL

# Names in trlX's files and how many values each takes; all but `grid` are Ray's own.
STRATEGIES = {
    "uniform": {2}, "quniform": {3}, "loguniform": {2, 3}, "qloguniform": {3, 4}, "randn": {2},
    "qrandn": {3}, "randint": {2}, "qrandint": {3}, "lograndint": {2, 3}, "qlograndint": {3, 4},
    "choice": None, "grid": None,
}  # fmt: skip
TUNE_CONFIG = {
    "mode": one_of("max", "min"), "metric": text, "search_alg": text, "scheduler": text,
    "num_samples": integer(1, 100_000),
}  # fmt: skip


def ray_tune():
    """Ray's `tune` module; ConfigError where Ray is not installed."""
    try:
        from ray import tune
    except ImportError:
        raise ConfigError('sweeps need Ray Tune: pip install "ray[tune]".') from None
    return tune


def start_ray() -> None:
    """Start Ray, or join the one that RAY_ADDRESS names; ConfigError where it does not come up.

    Its web page stays off: Ray ends what has not answered within a few seconds, and on two busy
    cores the page's processes take them.
    """
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}))
    except Exception as error:  # Ray raises a bare Exception where one of its processes ended
        problem = shown(str(error), 200)
        raise ConfigError(
            f"Ray did not start ({problem}). It waits only seconds for its own processes: where "
            "other programs keep this machine busy, start the same command again when less runs."
        ) from error


def load_sweep(path: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The file's `tune_config` and its fields, {"dotted.name": {"strategy", "values"}}.

    Raises ConfigError naming what is wrong with which field.
    """
    path = Path(path)
    file_name("the sweep's file name", path.stem)
    fields = read_yaml(path)
    if not isinstance(fields.get("tune_config"), dict):
        raise ConfigError(f"{path} has no section tune_config, with metric, mode and num_samples.")
    tune_config = fields.pop("tune_config")
    strange = [key for key in mapping("tune_config", tune_config) if key not in TUNE_CONFIG]
    if strange:
        known = ", ".join(sorted(TUNE_CONFIG))
        raise ConfigError(f"tune_config.{min(strange)} is unknown: there are {known}.")
    for key, value in tune_config.items():
        TUNE_CONFIG[key](f"tune_config.{key}", value)
    if not fields:
        raise ConfigError(f"{path} names no field to sweep over: add one, with its values.")
    for name, field in fields.items():
        _check_field(name, field)
    return tune_config, fields


def _check_field(name: str, field: Any) -> None:
    # Names without a dot are the script's own.
    if "." in name and ".".join(name.split(".")[:2]) not in setting_names():
        raise unknown(name, closest(name, setting_names()))
    if not isinstance(field, dict) or field.keys() != {"strategy", "values"}:
        raise ConfigError(f"{name} is {shown(field)}: give it strategy and values.")
    strategy, values = field["strategy"], field["values"]
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise ConfigError(
            f"{name}.strategy is {shown(strategy)}: choose one of {', '.join(STRATEGIES)}."
        )
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name}.values is {shown(values)}: give a list.")
    if STRATEGIES[strategy]:  # bounds; 1e-4 is a text in YAML
        field["values"] = [number()(f"{name}.values[{i}]", v) for i, v in enumerate(values)]
    counts = STRATEGIES[strategy]
    if counts and len(values) not in counts:
        wanted = " or ".join(map(str, sorted(counts)))
        raise ConfigError(f"{name}.values has {len(values)} entries: {strategy} takes {wanted}.")


def search_space(fields: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ray's objects for the fields of `load_sweep`."""
    tune = ray_tune()
    ray_names = {"grid": "grid_search"}
    space = {}
    for name, field in fields.items():
        draw = getattr(tune, ray_names.get(field["strategy"], field["strategy"]))
        values = field["values"]
        space[name] = draw(values) if STRATEGIES[field["strategy"]] is None else draw(*values)
    return space


def run_trial(hparams: dict[str, Any], script: str, out: str) -> None:
    """One trial, in a process of its own and a directory of its own under `out`."""
    os.environ[SWEEP_TRIAL] = "1"
    os.environ["RLHF_QUIET_PROGRESS"] = "1"
    directory = Path(out) / ray_tune().get_context().get_trial_id()
    load_main(script)({**hparams, "train.checkpoint_dir": str(directory)})


def load_main(script: str | Path):
    """`main` of a Python file; ConfigError where the file has none."""
    spec = importlib.util.spec_from_file_location("sweep_script", script)
    if spec is None or not Path(script).is_file():
        raise ConfigError(f"{script} is no Python file.")
    read_text(script)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        problem = f"{type(error).__name__}: {shown(str(error), 200)}"
        raise ConfigError(f"{script} cannot be run ({problem}): mend it.") from error
    if not callable(getattr(module, "main", None)):
        raise ConfigError(f"{script} has no main(hparams), which a sweep calls for each trial.")
    return module.main


def run_sweep(
    sweep_file: str | Path, script: str | Path, out: str | Path = "sweeps", cpus: int = 1,
    gpus: float = 0,
):  # fmt: skip
    """Run every trial; Ray's ResultGrid. `cpus` and `gpus` are what one trial gets.

    Results and a table, trials.csv, are left under `out`. The same call goes on with a sweep that
    was stopped: finished trials stay, the others go on from their last checkpoints. Raises
    ConfigError on a bad file, or where `out` has another sweep of this name.
    """
    tune_config, fields = load_sweep(sweep_file)
    load_main(script)  # before Ray starts: a mistake shows at once
    tune = ray_tune()
    if tune_config.get("search_alg", "random") != "random":
        raise ConfigError("tune_config.search_alg: only random is offered; Ray has the others.")
    schedulers = {"fifo": None, "hyperband": tune.schedulers.HyperBandScheduler()}
    scheduler = tune_config.get("scheduler", "fifo")
    if scheduler not in schedulers:
        raise ConfigError(f"tune_config.scheduler is {shown(scheduler)}: choose fifo or hyperband.")
    out = made_directory(Path(out)).resolve()
    directory = out / Path(sweep_file).stem
    goes_on = _claim(directory, Path(sweep_file)) and tune.Tuner.can_restore(str(directory))
    trial = tune.with_parameters(
        run_trial, script=str(Path(script).resolve()), out=str(directory / "runs")
    )
    trial = tune.with_resources(trial, {"cpu": cpus, "gpu": gpus})
    space = search_space(fields)
    tuner = tune.Tuner.restore(
        str(directory), trainable=trial, param_space=space, resume_unfinished=True,
        restart_errored=True,
    ) if goes_on else tune.Tuner(
        trial,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=tune_config.get("metric", "reward/mean"), mode=tune_config.get("mode", "max"),
            num_samples=tune_config.get("num_samples", 1), scheduler=schedulers[scheduler],
        ),
        run_config=tune.RunConfig(name=Path(sweep_file).stem, storage_path=str(out)),
    )  # fmt: skip
    start_ray()
    results = tuner.fit()
    results.get_dataframe().to_csv(directory / "trials.csv", index=False)
    return results


def _claim(directory: Path, sweep_file: Path) -> bool:
    """Whether this very sweep was begun in `directory`; if none was, the file is kept there."""
    kept = directory / "sweep.yml"
    wanted = read_text(sweep_file)
    if not kept.exists():
        atomic_write_text(kept, wanted)
        return False
    if read_text(kept) != wanted:
        raise ConfigError(
            f"{directory} belongs to another sweep (its sweep.yml differs from {sweep_file}): "
            "choose another --out, or remove that directory."
        )
    return True

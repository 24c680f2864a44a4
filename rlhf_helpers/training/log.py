"""What a run writes while it learns: metrics.jsonl, eval_samples.jsonl, trackers, a callback."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from torch import Tensor

from rlhf_helpers.config.reading import open_regular, unreadable
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.rewards.calling import user_function_error
from rlhf_helpers.runs.files import (
    append_jsonl,
    atomic_write_text,
    fsync,
    open_to_append,
    write_jsonl,
)

from .processes import Processes

SWEEP_TRIAL = "RLHF_SWEEP_TRIAL"  # set in the process of a sweep's trial (studies/sweep.py)


class TrainingLog:
    """The log files of one run directory; the optimizer steps' statistics wait on the device."""

    def __init__(
        self,
        config: TRLConfig,
        directory: Path,
        callback: Callable[[dict[str, float]], None] | None = None,
    ):
        """No file is touched and no tracker started yet."""
        self.config = config
        self.metrics = directory / "metrics.jsonl"
        self.eval_samples = directory / "eval_samples.jsonl"
        self.callback = callback
        self.problem: Exception | None = None  # what the callback raised, once it did
        self.trackers: Trackers | None = None
        self.processes: Processes | None = None  # None: this process alone
        self.lines = {"metrics": 0, "eval_samples": 0}  # written so far
        self._waiting: list[tuple[int, dict[str, Tensor | float]]] = []

    def start_trackers(self) -> None:
        """Start the tracker that the configuration names, if any."""
        if self._writes:
            self.trackers = Trackers(self.config)

    @property
    def _writes(self) -> bool:
        return self.processes is None or self.processes.is_main

    def close(self) -> None:
        """End the tracker."""
        if self.trackers is not None:
            self.trackers.close()

    def start_over(self) -> None:
        """Empty log files, for a run that begins."""
        self.lines = {"metrics": 0, "eval_samples": 0}
        for path in (self.metrics, self.eval_samples) if self._writes else ():
            write_jsonl(path, [])

    def cut_back(self, lines: dict[str, int]) -> None:
        """Keep the first lines of each file, for a run that goes on from where it had so many."""
        self.lines = dict(lines)
        files = {"metrics": self.metrics, "eval_samples": self.eval_samples}
        for name, path in files.items() if self._writes else ():
            # Not decoded as a whole: what a crash left behind them may be anything.
            content: list[bytes] = []
            if os.path.lexists(path):
                with open_regular(path) as file:
                    content = file.read().split(b"\n")[:-1]
            if len(content) < lines[name]:
                warnings.warn(
                    f"{path} has {len(content)} lines where the checkpoint counts {lines[name]}: "
                    "somebody has removed some.", stacklevel=2,
                )  # fmt: skip
                self.lines[name] = len(content)
            kept = b"".join(line + b"\n" for line in content[: lines[name]])
            try:
                atomic_write_text(path, kept.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise unreadable(path, f"it is no text in UTF-8 (byte {error.start})") from None

    def sync(self) -> None:
        """Wait until all lines are on the disk: a checkpoint counts on them."""
        for path in (self.metrics, self.eval_samples):
            if path.exists():
                fsync(path)

    def write(self, step: int, stats: dict[str, float]) -> None:
        """One line of metrics; of several processes the means, written by the first."""
        if self.processes is not None:
            stats = self.processes.mean(stats)
        if not self._writes:
            return
        numbers = {name: float(value) for name, value in stats.items()}
        # JSON has no NaN; the standard deviation of a single score is one.
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in numbers.items()}}
        append_jsonl(self.metrics, record)
        self.lines["metrics"] += 1
        if self.trackers is not None:
            self.trackers.log(stats, step)
        report_to_sweep(record)
        self._call_back(record)

    def _call_back(self, record: dict[str, float]) -> None:
        """Hand a line to the user's callback; what it raises is kept until the run may stop."""
        if self.callback is None or self.problem is not None:
            return
        try:
            self.callback(dict(record))
        except Exception as error:
            self.problem = user_function_error("callback", error)
            self.problem.__cause__ = error

    def later(self, step: int, stats: dict[str, Tensor | float]) -> None:
        """Keep an optimizer step's statistics where they are until `flush`."""
        self._waiting.append((step, stats))

    def flush(self) -> list[tuple[int, dict[str, float]]]:
        """Bring the waiting statistics to the host, all at once, and write them; returns them."""
        waiting, self._waiting = self._waiting, []
        steps, stats = [step for step, _ in waiting], [stats for _, stats in waiting]
        arrived = list(zip(steps, on_the_host(stats), strict=True))
        for step, stats in arrived:
            self.write(step, stats)
        return arrived

    def samples(self, step: int, records: list[dict[str, Any]]) -> None:
        """Samples of an evaluation, a line each."""
        if not self._writes:
            return
        with open_to_append(self.eval_samples) as file:
            for record in records:
                file.write(json.dumps({"step": step, **record}, ensure_ascii=False) + "\n")
        self.lines["eval_samples"] += len(records)


def on_the_host(waiting: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
    """Statistics of several steps as numbers: all that lies on a device comes in one copy."""
    tensors = [x.float() for stats in waiting for x in stats.values() if isinstance(x, Tensor)]
    numbers = iter(torch.stack(tensors).tolist() if tensors else [])
    return [
        {name: next(numbers) if isinstance(x, Tensor) else x for name, x in stats.items()}
        for stats in waiting
    ]


def report_to_sweep(metrics: dict[str, float]) -> None:
    """Hand the metrics of an evaluation to Ray Tune where this process is a trial of a sweep."""
    if os.environ.get(SWEEP_TRIAL) and "reward/mean" in metrics:
        from ray import tune

        tune.report(dict(metrics))


class Trackers:
    """The tracker that `train.tracker` names, through accelerate's own classes, or none."""

    def __init__(self, config: TRLConfig):
        """Start it. The tracker's own package must be installed (validate_config checks)."""
        train = config.train
        self._tracker = None
        if train.tracker is None:
            return
        kwargs = {}
        if train.tracker == "tensorboard":
            kwargs["logging_dir"] = train.logging_dir or str(Path(train.checkpoint_dir) / "logs")
        if train.tracker == "wandb":
            kwargs = {"entity": train.entity_name, "group": train.group_name, "tags": train.tags}
        self._tracker = LOGGER_TYPE_TO_CLASS[train.tracker](train.project_name, **kwargs)
        if hasattr(self._tracker, "start"):
            self._tracker.start()
        if train.tracker != "tensorboard":  # it takes flat hyper-parameters only
            self._tracker.store_init_configuration(config.to_dict())

    def log(self, stats: dict[str, float], step: int) -> None:
        """Pass one line of metrics on."""
        if self._tracker is not None:
            self._tracker.log(stats, step=step)

    def close(self) -> None:
        """Finish writing."""
        if self._tracker is not None:
            self._tracker.finish()

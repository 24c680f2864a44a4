"""Hosted or local trackers beside metrics.jsonl, through accelerate's own classes."""

from __future__ import annotations

from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from rlhf_helpers.config.trl_config import TRLConfig


class Trackers:
    """The tracker that `train.tracker` names, or none."""

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

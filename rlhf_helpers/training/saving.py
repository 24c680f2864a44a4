"""What a trainer leaves in its run directory beside the logs: checkpoints and policies."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.runs.checkpoint import (
    check_same_config,
    checkpoint_name,
    load_newest,
    save_checkpoint,
)
from rlhf_helpers.runs.files import atomic_write_text, written_together

from .state import restore, state_of

CHECKPOINT_SECONDS = 60.0
CHECKPOINT_COST = 60  # an interval is so many times what writing takes at least: 1.6 % of a run


class Saving:
    """Writes and reads a trainer's checkpoints, and knows when the next one is due."""

    def __init__(self, trainer):
        """The clock of the first interval starts here."""
        self.trainer = trainer
        self._last, self._seconds = time.monotonic(), 0.0  # the last checkpoint, what it took

    def is_due(self) -> bool:
        """Whether the interval by time has passed: the configured one, or one that costs little."""
        seconds = self.trainer.config.train.checkpoint_seconds
        if seconds is None:
            seconds = max(CHECKPOINT_SECONDS, CHECKPOINT_COST * self._seconds)
        return time.monotonic() - self._last > seconds

    def checkpoint(self, root: Path) -> Path:
        """Write everything among the checkpoints in `root`; the logs it counts on come first."""
        trainer, started = self.trainer, time.monotonic()
        state = state_of(trainer)
        if trainer.processes.is_main:
            trainer.log.sync()
            scores = [] if trainer.store is None else trainer.store.scores
            score = sum(scores) / len(scores) if scores else None
            save_checkpoint(root, trainer.step, state, trainer.config.train.keep_checkpoints, score)
        trainer.processes.wait()
        self._last = time.monotonic()
        self._seconds = self._last - started
        return root / checkpoint_name(trainer.step)

    def policy(self, directory: Path, merge: bool = False) -> Path:
        """Write the policy, all of its files or none; with `merge` as a model without LoRA."""
        if self.trainer.processes.is_main:
            if merge:
                self.trainer.policy.save_merged(directory)
            else:
                self._write_policy(directory)
        self.trainer.processes.wait()
        return directory

    def _write_policy(self, directory: Path) -> None:
        config = self.trainer.config.to_dict()
        config["train"]["checkpoint_dir"] = "ckpts"  # a policy may travel, its directory's name not
        with written_together(directory) as temporary:
            self.trainer.policy.save(temporary, config["model"]["model_path"])
            atomic_write_text(temporary / "trl_config.json", json.dumps(config, indent=2) + "\n")

    def load(self, root: Path) -> bool:
        """The newest intact checkpoint under `root`, or the policy that lies there."""
        if (root / "trl_config.json").exists():
            self.trainer.policy.load(root)
            return True
        state = load_newest(root / "checkpoints" if (root / "checkpoints").is_dir() else root)
        if state is None:
            return False
        saved = TRLConfig.from_dict(state["config"]).to_dict()  # with fields newer than the file
        check_same_config(saved, self.trainer.config.to_dict(), root)
        restore(self.trainer, state)
        return True

    def resume(self) -> bool:
        """Go on where this directory's run was; False where there is nothing to go on from."""
        trainer = self.trainer
        if not trainer.load():
            return False
        trainer.log.cut_back(trainer.saved_lines)
        done = trainer.step >= trainer.total_steps
        place = f"{trainer.directory} holds a run at step {trainer.step} of {trainer.total_steps}"
        if trainer.processes.is_main:
            print(f"{place}, which is finished." if done else f"{place}: going on from there.")
        return True

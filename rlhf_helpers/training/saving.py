"""What a trainer leaves in its run directory beside the logs: checkpoints and policies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.progress import printable
from rlhf_helpers.runs.beginning import begin, has_checkpoint
from rlhf_helpers.runs.checkpoint import (
    check_same_config,
    checkpoint_name,
    load_newest,
    save_checkpoint,
)
from rlhf_helpers.runs.files import atomic_write_text, written_together

from .fingerprints import check_same_material, fingerprints
from .state import restore, state_of

CHECKPOINT_SECONDS = 60.0
CHECKPOINT_COST = 60  # an interval is so many times what writing takes at least: 1.6 % of a run


class Saving:
    """Writes and reads a trainer's checkpoints, and knows when the next one is due."""

    def __init__(self, trainer):
        """The clock of the first interval starts here."""
        self.trainer = trainer
        self._last, self._seconds = time.monotonic(), 0.0  # the last checkpoint, what it took
        self._fingerprints: dict[str, Any] | None = None  # they never change

    def is_due(self) -> bool:
        """Whether the interval by time has passed: the configured one, or one that costs little."""
        seconds = self.trainer.config.train.checkpoint_seconds
        if seconds is None:
            seconds = max(CHECKPOINT_SECONDS, CHECKPOINT_COST * self._seconds)
        return time.monotonic() - self._last > seconds

    def checkpoint(self, root: Path) -> Path:
        """Write everything among the checkpoints in `root`; the logs it counts on come first."""
        trainer, started = self.trainer, time.monotonic()
        made_of = [own for (own,) in trainer.processes.gather([self.fingerprints()])]
        state = state_of(trainer) | {"made_of": made_of}
        if trainer.processes.is_main:
            trainer.log.sync()
            scores = [] if trainer.store is None else trainer.store.scores
            score = sum(scores) / len(scores) if scores else None
            save_checkpoint(root, trainer.step, state, trainer.config.train.keep_checkpoints, score)
            if root == trainer.directory / "checkpoints":
                has_checkpoint(trainer.directory)
        trainer.processes.wait()
        self._last = time.monotonic()
        self._seconds = self._last - started
        return root / checkpoint_name(trainer.step)

    def fingerprints(self) -> dict[str, Any]:
        """What this process's run is made of."""
        if self._fingerprints is None:
            self._fingerprints = fingerprints(self.trainer)
        return self._fingerprints

    def policy(self, directory: Path, merge: bool = False) -> Path:
        """Write the policy, all of its files or none; with `merge` as a model without LoRA."""
        if self.trainer.processes.is_main:
            with written_together(directory) as temporary:
                if merge:
                    self.trainer.policy.save_merged(temporary)
                else:
                    self._write_policy(temporary)
        self.trainer.processes.wait()
        return directory

    def _write_policy(self, directory: Path) -> None:
        config = self.trainer.config.to_dict()
        config["train"]["checkpoint_dir"] = "ckpts"  # a policy may travel, its directory's name not
        self.trainer.policy.save(directory, config["model"]["model_path"])
        atomic_write_text(directory / "trl_config.json", json.dumps(config, indent=2) + "\n")

    def load(self, root: Path) -> bool:
        """The newest intact checkpoint under `root`, or the policy that lies there.

        ConfigError where it belongs to another configuration, other base weights or other prompts,
        where none of the checkpoints can be read, or where one does not hold what it should.
        """
        if (root / "trl_config.json").exists():
            self.trainer.policy.load(root)
            return True
        state = load_newest(root / "checkpoints" if (root / "checkpoints").is_dir() else root)
        if state is None:
            return False
        try:
            saved = TRLConfig.from_dict(state["config"]).to_dict()  # with newer fields
            check_same_config(saved, self.trainer.config.to_dict(), root)
            made_of = state.get("made_of", [])
            if len(made_of) == self.trainer.processes.number:
                own = made_of[self.trainer.processes.index]
                check_same_material(own, self.fingerprints(), root)
            restore(self.trainer, state)
        except ConfigError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"the checkpoint in {root} does not hold what this version writes "
                f"({type(error).__name__}: {shown(str(error))}): choose another directory, or go "
                "on with the version that wrote it."
            ) from error
        return True

    def resume(self) -> bool:
        """Go on where this directory's run was; False where there is nothing to go on from.

        ConfigError where there is not, and yet the directory holds what a run has made.
        """
        trainer = self.trainer
        if not trainer.load():
            if trainer.processes.is_main:
                begin(trainer.directory, trainer.config.to_dict())
            return False
        trainer.log.cut_back(trainer.saved_lines)
        done = trainer.step >= trainer.total_steps
        place = f"{trainer.directory} holds a run at step {trainer.step} of {trainer.total_steps}"
        if trainer.processes.is_main:
            has_checkpoint(trainer.directory)
            said = f"{place}, which is finished." if done else f"{place}: going on from there."
            print(printable(said))
        return True

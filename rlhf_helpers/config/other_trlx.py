"""Configurations of other trlX versions and methods: what is taken over, and what is said if not.

trlX 0.5, 0.6 and 0.7 have the six sections that are here too. 0.4 had the tokenizer's name among
the model's fields; 0.2 and 0.3 had the optimizer's and the scheduler's numbers in `train`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from .checks import ConfigError, ConfigWarning, text, wrong

# Fields of other trlX versions (0.3 to 0.7) that have no meaning here, and why.
FOREIGN_FIELDS: dict[str, dict[str, str]] = {
    "train": {
        "minibatch_size": "a batch is not split",
        "run_name": "the run is named by its directory",
        "save_optimizer": "checkpoints always hold the optimizer",
        "resume_from_checkpoint": "a run resumes from its own directory by itself",
        "orchestrator": "there is one way to make rollouts",
        "trackers": "see train.tracker",
    },
    "model": {
        "model_extra_configs": "see model.dtype and model.load_in_4bit",
        "model_type": "the trainer is chosen by method.name",
        "tokenizer_path": "see tokenizer.tokenizer_path",
    },
    "tokenizer": {"tokenizer_extra_configs": "the tokenizer is loaded as it is"},
    "optimizer": {},
    "scheduler": {},
    "method": {"num_value_layers_unfrozen": "the value head has no layers of its own"},
}

# Where the numbers stand that trlX 0.2 and 0.3 had in `train`.
MOVED_FROM_TRAIN = {
    "learning_rate_init": "optimizer.kwargs.lr",
    "lr_init": "optimizer.kwargs.lr",
    "learning_rate_target": "scheduler.kwargs.eta_min",
    "lr_target": "scheduler.kwargs.eta_min",
    "opt_betas": "optimizer.kwargs.betas",
    "opt_eps": "optimizer.kwargs.eps",
    "weight_decay": "optimizer.kwargs.weight_decay",
}


def warn_foreign(names: list[str]) -> None:
    """Name in one warning all fields that trlX knows and that have no effect here."""
    if not names:
        return
    described = ", ".join(
        f"{name} ({FOREIGN_FIELDS[name.split('.')[0]][name.split('.')[1]]})" for name in names
    )
    warnings.warn(f"these trlX fields have no effect here: {described}", ConfigWarning,
                  stacklevel=3)


def in_todays_sections(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of trlX 0.4 with its tokenizer in a section; any other as it is.

    Raises ConfigError for one of trlX 0.2 or 0.3, which says what to write where.
    """
    model, train = config.get("model"), config.get("train")
    if isinstance(train, Mapping) and "optimizer" not in config:
        moves = [f"train.{name} as {MOVED_FROM_TRAIN[name]}" for name in train
                 if name in MOVED_FROM_TRAIN]
        if moves:
            raise ConfigError(
                "section optimizer is missing, this is a configuration of trlX 0.2 or 0.3: write "
                f"{', '.join(moves)}, and the rest as docs/coming_from_trlx.md says."
            )
    tokenizer = config.get("tokenizer", {})
    if not isinstance(model, Mapping) or not isinstance(tokenizer, Mapping):
        return config
    if "tokenizer_path" not in model or "tokenizer_path" in tokenizer:
        return config
    model = dict(model)
    return {**config, "tokenizer": {"tokenizer_path": model.pop("tokenizer_path"), **tokenizer},
            "model": model}


def ppo_trainer(path: str, value: Any) -> str:
    """Accept the name of trlX's PPO trainer; trlX looks trainers up by name."""
    if text(path, value).lower() != "accelerateppotrainer":
        raise wrong(path, value, "give 'AcceleratePPOTrainer', as ILQL, SFT, rejection "
                                 "fine-tuning and NeMo are in trlX alone")
    return value


def causal(path: str, value: Any) -> str:
    """Accept "causal", the one architecture that is here."""
    if value != "causal":
        raise wrong(path, value, "give 'causal', as encoder-decoder models such as T5 are in trlX "
                                 "alone")
    return value

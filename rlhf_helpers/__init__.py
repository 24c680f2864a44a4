"""PPO for language models with a plain Python reward function, LoRA and one device.

    from rlhf_helpers import TRLConfig, default_ppo_config, train
"""

from __future__ import annotations

import importlib
from typing import Any

# Where each public name lives. They are looked up when asked for, so that commands which need no
# model do not wait for torch.
_PUBLIC = {
    "config.trl_config": (
        "ConfigError", "ModelConfig", "OptimizerConfig", "PPOConfig", "SchedulerConfig",
        "TRLConfig", "TokenizerConfig", "TrainConfig", "default_ppo_config", "load_profile",
    ),
    "models.loading": ("load_policy", "load_trained_policy"),
    "making.reward_model": ("RewardModelConfig", "train_reward_model"),
    "rewards.learned": ("load_reward_model",),
    "rewards.preferences": ("load_pairs",),
    "rewards.reward": ("RewardError", "sentiment_reward"),
    "training.trainer": ("train",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

"""Hands a call of `train` to the real trlX, where it can be imported.

For comparisons: the same configuration, prompts and reward function under trlX v0.6.0 itself,
which needs Python 3.11 or older and libraries of its time (docs/trlx-constraints.txt).
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from typing import Any

from rlhf_helpers.config.checks import wrong
from rlhf_helpers.config.sections import SECTIONS
from rlhf_helpers.config.trl_config import (
    ConfigError,
    ConfigWarning,
    GRPOConfig,
    RLOOConfig,
    TRLConfig,
    default_ppo_config,
)
from rlhf_helpers.data.assets import AssetError, find_asset

# Settings without which the run would be another one; the rest only say how it is carried out.
DECIDING = ("method.semantics", "model.peft_config", "model.dtype")


def train_with_trlx(config: TRLConfig | None, **arguments: Any) -> Any:
    """`trlx.train(config=…, **arguments)`; returns trlX's own trainer.

    ConfigError where trlX cannot be imported, or lacks a setting that decides what is computed.
    """
    trlx, configs, methods = _import_trlx()
    theirs = _their_config(config or default_ppo_config(), configs, methods)
    return trlx.train(config=theirs, **arguments)


def _import_trlx() -> tuple[Any, Any, Any]:
    names = ("trlx", "trlx.data.configs", "trlx.data.method_configs")
    try:
        trlx, configs, methods = (importlib.import_module(name) for name in names)
    except ImportError as error:
        raise ConfigError(
            f"engine='trlx' needs trlX itself, which cannot be imported here ({error}): install "
            "it as docs/coming_from_trlx.md says, or leave engine out."
        ) from error
    return trlx, configs, methods


def _their_config(config: TRLConfig, configs: Any, methods: Any) -> Any:
    """trlX's own TRLConfig with the same settings, as far as its classes have the fields."""
    ours = config.to_dict()
    if isinstance(config.method, RLOOConfig | GRPOConfig):
        raise wrong("method.name", ours["method"]["name"],
                    "give PPOConfig with engine='trlx', which has neither RLOO nor GRPO")
    classes = {
        "method": methods.get_method(ours["method"]["name"]),
        "model": configs.ModelConfig,
        "optimizer": configs.OptimizerConfig,
        "scheduler": configs.SchedulerConfig,
        "tokenizer": configs.TokenizerConfig,
        "train": configs.TrainConfig,
    }
    defaults = _defaults(config)
    sections: dict[str, dict[str, Any]] = {}
    dropped = []
    for name in SECTIONS:
        known = {field.name for field in dataclasses.fields(classes[name])}
        sections[name] = {key: value for key, value in ours[name].items() if key in known}
        for key in ours[name].keys() - known:
            if ours[name][key] != defaults[name][key]:
                dropped.append(f"{name}.{key}")
    _refuse_or_warn(sorted(dropped), ours)
    for section, key in (("model", "model_path"), ("tokenizer", "tokenizer_path")):
        sections[section][key] = _local_path(sections[section][key])
    return configs.TRLConfig.from_dict(sections)


def _defaults(config: TRLConfig) -> dict[str, dict[str, Any]]:
    """The default of every field that has one."""
    defaults = {}
    for name in SECTIONS:
        fields = dataclasses.fields(getattr(config, name))
        defaults[name] = {f.name: None if f.default is dataclasses.MISSING else f.default
                          for f in fields}  # fmt: skip
    return defaults


def _refuse_or_warn(dropped: list[str], ours: dict[str, dict[str, Any]]) -> None:
    for path in dropped:
        section, key = path.split(".")
        if path in DECIDING:
            raise ConfigError(
                f"{path} is {ours[section][key]!r}, which this trlX does not have: remove it, or "
                "leave engine out."
            )
    if dropped:
        warnings.warn(f"trlX does not have {', '.join(dropped)}", ConfigWarning, stacklevel=4)


def _local_path(name: str) -> str:
    """Assets of this project as directories; what only trlX's transformers can find, by name."""
    try:
        return str(find_asset(name).path)
    except AssetError:
        return name

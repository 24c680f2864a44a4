"""`train(...)`: trlX's one call, here or handed on to the real trlX, where that can be imported."""

from __future__ import annotations

import dataclasses
import importlib

# Settings without which the run would be another one; the rest only say how it is carried out.
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from rlhf_helpers.config.checks import ConfigError, ConfigWarning, wrong
from rlhf_helpers.config.sections import SECTIONS, GRPOConfig, RLOOConfig
from rlhf_helpers.config.trl_config import TRLConfig, default_ppo_config, validate_config
from rlhf_helpers.data.assets import AssetError, find_asset
from rlhf_helpers.data.prompts import (
    check_prompts,
    check_stop_sequences,
)
from rlhf_helpers.rewards.calling import check_function

from .trainer import PPOTrainer

DECIDING = ("method.semantics", "model.peft_config", "model.dtype")


def train(
    model_path: str | None = None,
    reward_fn: Callable[..., list[float]] | None = None,
    dataset: Iterable[tuple[str, float]] | None = None,
    samples: list[str] | None = None,
    rewards: list[float] | None = None,
    prompts: list[str] | None = None,
    eval_prompts: list[str] | None = None,
    metric_fn: Callable[..., dict[str, list[float]]] | None = None,
    config: TRLConfig | None = None,
    stop_sequences: list[str] | None = [],  # noqa: B006  (trlX's default; never changed)
    callback: Callable[[dict[str, float]], None] | None = None,
    engine: str | None = None,
) -> PPOTrainer:
    """Tune a causal language model with PPO against a plain Python reward function.

    The arguments are those of trlX v0.6.0, plus `callback`, which gets every line of metrics, and
    `engine`: "trlx" hands the call to the real trlX, where that can be imported.
    `reward_fn(samples, prompts, outputs, **metadata)` returns one number a sample (or a list of
    numbers, one a token). Prompts are texts, or dicts with a "prompt" and metadata. Everything is
    written under `config.train.checkpoint_dir`; a run that was interrupted goes on from there.

    Raises ConfigError on a bad configuration or where another run has the directory, RewardError
    on a bad reward, WatchdogError when the numbers of a run go wrong (train.watchdog) and
    CannotWriteError when the disk is full. What was reached until then is kept in each case.
    """
    if engine is not None:
        if engine != "trlx" or callback is not None:
            raise ConfigError(
                f"engine is {engine!r}: give 'trlx', without callback, for the real trlX, or leave "
                "it out."
            )
        return train_with_trlx(
            config, model_path=model_path, reward_fn=reward_fn, dataset=dataset, samples=samples,
            rewards=rewards, prompts=prompts, eval_prompts=eval_prompts, metric_fn=metric_fn,
            stop_sequences=stop_sequences,
        )  # fmt: skip
    if dataset is not None or samples is not None or rewards is not None:
        raise ConfigError(
            "train() tunes online with reward_fn only: dataset, samples and rewards belong to "
            "trlX's offline methods (ILQL, SFT), which this project does not have."
        )
    check_function("reward_fn", reward_fn, needed=True)
    check_function("metric_fn", metric_fn)
    check_function("callback", callback)
    stop_sequences = check_stop_sequences(stop_sequences)
    config = config or default_ppo_config()
    if model_path is not None:
        config = TRLConfig.update(config.to_dict(), {"model.model_path": model_path})
    validate_config(config)
    prompts = check_prompts("prompts", prompts)
    if eval_prompts is None:
        eval_prompts = prompts[: config.train.batch_size]
    eval_prompts = check_prompts("eval_prompts", eval_prompts)
    trainer = PPOTrainer(config, reward_fn, metric_fn, stop_sequences, callback)
    trainer.add_prompts(prompts, eval_prompts)
    trainer.learn()
    return trainer


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

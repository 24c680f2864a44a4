"""Configurations: trlX's classes and YAML format, and the profiles of this project.

A configuration of PPO on a causal language model that trlX v0.6.0 could train with works unchanged,
from Python or from YAML. A profile is such a file with a few sections more: `assets` (which policy,
reward model, data and judge), `evaluation` and `prompts`. Everything is checked when it is made; a
`ConfigError` is one sentence with the field, the value and the remedy. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import (
    ConfigError,
    ConfigWarning,
    closest,
    mapping,
    unknown,
    wrong,
)
from .files import (
    merge,
    nest_overrides,
    read_yaml,
)
from .kwargs import optimizer_class_path
from .other_trlx import FOREIGN_FIELDS, in_todays_sections, warn_foreign
from .sections import (
    SECTIONS,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    PPOConfig,
    SchedulerConfig,
    Section,
    TokenizerConfig,
    TrainConfig,
    closest_setting,
    get_method,
    setting_names,
)

# Sections that a profile has beside trlX's six.
PROFILE_SECTIONS = ("profile", "assets", "evaluation", "prompts", "reward")


@dataclass
class TRLConfig:
    """The whole configuration of a run, trlX's six sections."""

    method: MethodConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    tokenizer: TokenizerConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        self._validate()

    def _validate(self) -> None:
        for name, cls in SECTIONS.items():
            section = getattr(self, name)
            if not isinstance(section, cls):
                raise wrong(name, section, f"give a {cls.__name__}")
            section.validate()
        for key in ("gen_kwargs", "gen_experience_kwargs"):
            self._check_room_for_a_prompt(key)

    def _check_room_for_a_prompt(self, key: str) -> None:
        max_new_tokens = (getattr(self.method, key, None) or {}).get("max_new_tokens", 0)
        if max_new_tokens >= self.train.seq_length:
            raise wrong("train.seq_length", self.train.seq_length,
                        f"give more than method.{key}.max_new_tokens, which is {max_new_tokens}, "
                        "so that a prompt fits in")

    @classmethod
    def load_yaml(cls, yml_fp: str | Path) -> TRLConfig:
        """Load a YAML file of trlX's format, or a profile (its extra sections are skipped)."""
        return cls.from_dict(read_yaml(yml_fp))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TRLConfig:
        """Build from nested dicts, in trlX's sections of 0.5 to 0.7 or in those of 0.4.

        Fields of other trlX versions are named in one warning; ConfigError says what is missing.
        """
        config = {k: v for k, v in mapping("the configuration", config).items()
                  if k not in PROFILE_SECTIONS}
        for name in config:
            if name not in SECTIONS:
                raise unknown(name, closest(name, SECTIONS))
        config = in_todays_sections(config)
        fields = {name: _section_fields(config, name) for name in SECTIONS}
        foreign = [f"{section}.{name}" for section, given in fields.items() for name in given
                   if name in FOREIGN_FIELDS[section]]
        warn_foreign(foreign)
        known = {section: {k: v for k, v in given.items() if f"{section}.{k}" not in foreign}
                 for section, given in fields.items()}
        method = get_method(known["method"].get("name", "PPOConfig"))
        classes = {"train": SECTIONS["train"], **SECTIONS, "method": method}  # its trainer first
        return cls(**{name: section.from_dict(known[name]) for name, section in classes.items()})

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, in trlX's order; a copy."""
        return {name: getattr(self, name).to_dict() for name in SECTIONS}

    def evolve(self, **kwargs: Any) -> TRLConfig:
        """A changed copy: config.evolve(method=dict(gamma=0.99, gen_kwargs=dict(top_k=5)))."""
        return TRLConfig.update(self, kwargs)

    @classmethod
    def update(cls, baseconfig: TRLConfig | Mapping[str, Any],
               config: Mapping[str, Any]) -> TRLConfig:
        """A configuration with nested or dotted overrides, {"method.gamma": 0.99}, on a base.

        As in trlX an unknown parameter is an error; unlike there, at any depth.
        """
        base = baseconfig.to_dict() if isinstance(baseconfig, TRLConfig) else baseconfig
        overrides = nest_overrides(config)
        require_known_settings(overrides, base)
        return cls.from_dict(merge(base, overrides))

    def __str__(self) -> str:
        return json.dumps(self.to_dict(), indent=4)


def _section_fields(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name not in config:
        raise ConfigError(f"section {name} is missing: add it to the configuration.")
    value = config[name]
    return value.to_dict() if isinstance(value, Section) else mapping(name, value)


def require_known_settings(overrides: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """ConfigError for an override of a field that neither the base nor its class has."""
    names = set(setting_names())
    for section, fields in overrides.items():
        if section not in SECTIONS:
            is_field = isinstance(fields, Mapping) and fields
            path = f"{section}.{next(iter(fields))}" if is_field else str(section)
            raise unknown(path, closest_setting(path) if is_field else closest(section, SECTIONS))
        for name in mapping(section, fields):
            path = f"{section}.{name}"
            if path not in names and name not in mapping(section, base.get(section, {})):
                raise unknown(path, closest_setting(path))


def validate_config(config: TRLConfig) -> None:
    """Check everything again, and what only training needs. `train()` calls it.

    Fields may have been assigned since the configuration was made, and trlX's own YAML has
    settings that load (a length that counts the prompt) but that trlX cannot train with either.
    """
    if not isinstance(config, TRLConfig):
        raise wrong("config", config, "give a TRLConfig")
    config._validate()
    for key in ("gen_kwargs", "gen_experience_kwargs"):
        _check_lengths(f"method.{key}", getattr(config.method, key))
    if config.tokenizer.padding_side != "left":
        raise wrong("tokenizer.padding_side", config.tokenizer.padding_side,
                    "give 'left', so that all prompts of a batch end in the same column")
    for name in ("trainer_kwargs", "rollout_logging_dir"):
        if getattr(config.train, name):
            warnings.warn(f"train.{name} has no effect here", ConfigWarning, stacklevel=2)
    _require_package("train.tracker", config.train.tracker, config.train.tracker)
    if config.model.load_in_4bit:
        _require_package("model.load_in_4bit", True, "bitsandbytes")
    library = optimizer_class_path(config.optimizer.name).split(".")[0]
    _require_package("optimizer.name", config.optimizer.name, library)


def _check_lengths(path: str, gen_kwargs: Mapping[str, Any] | None) -> None:
    if gen_kwargs is None:
        return
    for name in ("max_length", "min_length"):
        if name in gen_kwargs:
            remedy = f"it counts the prompt, give {name.replace('length', 'new_tokens')} instead"
            raise wrong(f"{path}.{name}", gen_kwargs[name], remedy)
    if "max_new_tokens" not in gen_kwargs:
        raise ConfigError(f"{path}.max_new_tokens is missing: prompts are cut to train.seq_length "
                          "less that number of tokens, so give one.")


# Settings of generation that leave tokens out, with the value at which they leave out none; what
# transformers takes where none is given.
_TRUNCATION = {"top_k": (0, 50), "top_p": (1.0, 1.0), "min_p": (0.0, 0.0), "typical_p": (1.0, 1.0)}


def warn_of_truncation(method: MethodConfig, in_effect: Mapping[str, Any]) -> None:
    """ConfigWarning where rollouts are drawn from less than their log-probabilities are of.

    `in_effect`: the settings of rollouts, with those that the model brings along.
    """
    if not in_effect.get("do_sample"):
        return
    key = "gen_kwargs" if method.gen_experience_kwargs is None else "gen_experience_kwargs"
    for name, (off, default) in _TRUNCATION.items():
        value = in_effect.get(name, default)
        if value != off:
            is_models = name in in_effect and name not in getattr(method, key)
            whose = " by the model's generation_config" if is_models else ""
            warnings.warn(
                f"method.{key}.{name} is {value}{whose}: samples leave out tokens that their "
                f"log-probabilities count, which nothing makes up for; set it to {off} to sample "
                "from the whole policy.", ConfigWarning, stacklevel=3)


def _require_package(path: str, value: Any, package: str | None) -> None:
    if package is not None and importlib.util.find_spec(package) is None:
        raise wrong(path, value, f"install the package {package} or choose another value")


def default_ppo_config() -> TRLConfig:
    """trlX's `default_ppo_config()`, with its values (but no tracker)."""
    return TRLConfig(
        train=TrainConfig(
            seq_length=1024,
            epochs=100,
            total_steps=10000,
            batch_size=32,
            checkpoint_interval=10000,
            eval_interval=100,
            pipeline="PromptPipeline",
            trainer="AcceleratePPOTrainer",
        ),
        model=ModelConfig(model_path="lvwerra/gpt2-imdb", num_layers_unfrozen=2),
        tokenizer=TokenizerConfig(tokenizer_path="gpt2", truncation_side="right"),
        optimizer=OptimizerConfig(
            name="adamw",
            kwargs={"lr": 3e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-6},
        ),
        scheduler=SchedulerConfig(name="cosine_annealing", kwargs={"T_max": 1e12, "eta_min": 3e-5}),
        method=PPOConfig(name="PPOConfig"),
    )

"""Configurations: trlX's classes and YAML format, and the profiles of this project.

A configuration of PPO on a causal language model that trlX v0.6.0 could train with works unchanged,
from Python or from YAML. A profile is such a file with a few sections more: `assets` (which policy,
reward model, data and judge), `evaluation` and `prompts`. Everything is checked when it is made; a
`ConfigError` is one sentence with the field, the value and the remedy. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .checks import (
    Check,
    ConfigError,
    ConfigWarning,
    closest,
    entries,
    file_name,
    file_path,
    integer,
    mapping,
    one_of,
    shown,
    text,
    unknown,
    wrong,
)
from .files import (
    merge,
    nest_overrides,
    parse_overrides,
    read_yaml,
    write_whole,
)
from .kwargs import optimizer_class_path, scheduler_class_path
from .other_trlx import FOREIGN_FIELDS, in_todays_sections, warn_foreign
from .sections import (
    SECTIONS,
    GRPOConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    PPOConfig,
    RLOOConfig,
    SchedulerConfig,
    Section,
    TokenizerConfig,
    TrainConfig,
    closest_setting,
    get_method,
    register_method,
    setting_names,
)

__all__ = [
    "ConfigError", "ConfigWarning", "GRPOConfig", "MethodConfig", "ModelConfig", "OptimizerConfig",
    "PPOConfig", "Profile", "RLOOConfig", "SchedulerConfig", "TRLConfig", "TokenizerConfig",
    "TrainConfig", "check_run_dir", "clone_root", "default_ppo_config", "get_method",
    "load_profile", "optimizer_class_path", "parse_overrides", "profile_names", "register_method",
    "repo_root", "resolve_run_dir", "save_config", "scheduler_class_path", "validate_config",
    "warn_of_truncation",
]

PROFILES_DIR = Path(__file__).resolve().parents[1] / "profiles"
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
        _require_known_settings(overrides, base)
        return cls.from_dict(merge(base, overrides))

    def __str__(self) -> str:
        return json.dumps(self.to_dict(), indent=4)


def _section_fields(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name not in config:
        raise ConfigError(f"section {name} is missing: add it to the configuration.")
    value = config[name]
    return value.to_dict() if isinstance(value, Section) else mapping(name, value)


def _require_known_settings(overrides: Mapping[str, Any], base: Mapping[str, Any]) -> None:
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


def warn_of_truncation(method: MethodConfig) -> None:
    """ConfigWarning where rollouts are drawn from less than their log-probabilities are of."""
    key = "gen_kwargs" if method.gen_experience_kwargs is None else "gen_experience_kwargs"
    settings = getattr(method, key)
    if not settings.get("do_sample"):
        return
    for name, (off, default) in _TRUNCATION.items():
        value = settings.get(name, default)
        if value != off:
            warnings.warn(
                f"method.{key}.{name} is {value}: samples leave out tokens that their "
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


# --- profiles ---------------------------------------------------------------------------------

_ASSET_CHECKS: dict[str, Check] = dict.fromkeys(("policy", "reward", "data", "judge"), text)
_EVALUATION_CHECKS: dict[str, Check] = {
    "n_prompts": integer(2, 1_000_000),  # held-out prompts; an interval needs two
    "samples_per_post_prompt": integer(1, 10_000),  # for each of the post's four prompts
}


def _template(path: str, value: Any) -> str:
    if text(path, value).count("{opening}") != 1:
        raise wrong(path, value, "put {opening} where the review's first words go, once")
    return value


_PROMPT_CHECKS: dict[str, Check] = {
    "words": integer(1, 100),  # of a review, its opening
    "template": _template,  # the prompt around {opening}; without one it is the opening itself
}
_REWARD_CHECKS: dict[str, Check] = {
    "label": one_of("POSITIVE", "NEGATIVE"),  # whose probability is the reward
    "text": one_of("sample", "output"),  # what is scored: prompt and output, or the output alone
}
_PROFILE_CHECKS = {
    "assets": _ASSET_CHECKS, "evaluation": _EVALUATION_CHECKS, "prompts": _PROMPT_CHECKS,
    "reward": _REWARD_CHECKS,
}
_PROFILE_DEFAULTS = {
    "evaluation": {"n_prompts": 256, "samples_per_post_prompt": 16}, "prompts": {"words": 4},
    "reward": {"label": "POSITIVE", "text": "sample"},
}


@dataclass
class Profile:
    """A complete run: trlX's configuration, the assets it uses, how it is evaluated."""

    name: str
    config: TRLConfig
    assets: dict[str, str]  # policy, reward, data, judge -> asset name or path
    evaluation: dict[str, int]  # n_prompts, samples_per_post_prompt
    prompts: dict[str, Any]  # words, and perhaps template
    reward: dict[str, str]  # label, text

    def to_dict(self) -> dict[str, Any]:
        """What config.yml holds.

        train.checkpoint_dir has trlX's default there: where a run lies is said by where its
        config.yml lies, and a run directory can be moved.
        """
        config = self.config.to_dict()
        config["train"]["checkpoint_dir"] = TrainConfig.checkpoint_dir
        return {"profile": self.name, **config, "assets": dict(self.assets),
                "evaluation": dict(self.evaluation), "prompts": dict(self.prompts),
                "reward": dict(self.reward)}


def profile_names() -> list[str]:
    """The names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES_DIR.glob("*.yml"))


def load_profile(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None,
                 seed: int | None = None, run_dir: str | Path | None = None) -> Profile:
    """Load a profile by name, or from a YAML file or a run directory.

    `overrides` are dotted or nested settings, e.g. {"method.ppo_epochs": 2,
    "evaluation.n_prompts": 64}; `seed` sets train.seed, `run_dir` train.checkpoint_dir.
    """
    path = _profile_path(name_or_path)
    data = merge(_PROFILE_DEFAULTS, read_yaml(path))
    name = file_name("profile", data.pop("profile", _name_from(path)))
    data = _apply_overrides(data, nest_overrides(overrides or {}))
    extra = {section: entries(section, data.pop(section, {}), checks)
             for section, checks in _PROFILE_CHECKS.items()}
    for role in _ASSET_CHECKS:
        if role not in extra["assets"]:
            raise ConfigError(f"assets.{role} is missing in {path.name}: name the asset.")
    config = TRLConfig.from_dict(data)
    if extra["assets"]["policy"] != config.model.model_path:
        raise wrong("assets.policy", extra["assets"]["policy"],
                    f"give the same as model.model_path, which is {config.model.model_path!r}")
    _set_run(config, seed, run_dir)
    return Profile(name, config, **extra)


def _profile_path(name_or_path: str | Path) -> Path:
    given = Path(file_path("profile", name_or_path))
    if given.suffix in (".yml", ".yaml"):
        return given
    if len(given.parts) > 1 or given.is_absolute():
        return given / "config.yml"
    if given.name not in profile_names():
        raise ConfigError(f"profile {given.name!r} does not exist: did you mean "
                          f"{closest(given.name, profile_names())!r}, or another of "
                          f"{', '.join(profile_names())}?")
    return PROFILES_DIR / f"{given.name}.yml"


def _name_from(path: Path) -> str:
    """The name of a profile whose file says none: that of the file, as far as it can be one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")[:100] or "profile"


def _apply_overrides(data: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`data` with the overrides; the policy's three names follow when one of them changes."""
    for section, fields in overrides.items():
        if section in _PROFILE_CHECKS:
            entries(section, fields, _PROFILE_CHECKS[section])  # names and values
    trl = {key: value for key, value in overrides.items() if key not in _PROFILE_CHECKS}
    _require_known_settings(trl, data)
    merged = merge(data, overrides)
    policy = overrides.get("assets", {}).get("policy")
    model_path = trl.get("model", {}).get("model_path")
    new_name = policy if policy is not None else model_path
    if new_name is not None:
        follow = {"assets": {"policy": new_name}, "model": {"model_path": new_name},
                  "tokenizer": {"tokenizer_path": new_name}}
        merged = merge(merge(merged, follow), overrides)
    return merged


def _set_run(config: TRLConfig, seed: int | None, run_dir: str | Path | None) -> None:
    if seed is not None:
        config.train.seed = seed
    if run_dir is not None:
        config.train.checkpoint_dir = str(resolve_run_dir(run_dir))
    config.train.validate()


# --- run directories --------------------------------------------------------------------------


def repo_root() -> Path:
    """The repository: where the package lies, or, if it is installed, the current directory."""
    parent = Path(__file__).resolve().parents[2]
    return Path.cwd() if parent.name in ("site-packages", "dist-packages") else parent


def clone_root(what: str) -> Path:
    """The clone of the repository; ConfigError, with `what` needs it, where there is none here.

    What pip installs has the package alone: no notebooks, no figures, no README.
    """
    root = repo_root()
    if not ((root / "pyproject.toml").is_file() and (root / "notebooks").is_dir()):
        raise ConfigError(f"{what} needs a clone of the repository, and {root} is none: clone it "
                          "and start the command there.")
    return root


def resolve_run_dir(run_dir: str | Path) -> Path:
    """A run directory as an absolute path; a relative one lies in the repository."""
    return repo_root() / os.path.expanduser(file_path("run_dir", run_dir))


def save_config(profile: Profile, run_dir: str | Path) -> Path:
    """Write the profile to config.yml of the run directory; returns that path."""
    path = resolve_run_dir(run_dir) / "config.yml"
    write_whole(path, yaml.safe_dump(profile.to_dict(), sort_keys=False, allow_unicode=True))
    return path


def check_run_dir(profile: Profile, run_dir: str | Path) -> None:
    """ConfigError when the run directory already belongs to another configuration."""
    path = resolve_run_dir(run_dir) / "config.yml"
    if not os.path.lexists(path):
        return
    # Fields that are newer than that file have their defaults there.
    there, here = (_flat(yaml.safe_load(yaml.safe_dump(p.to_dict())))
                   for p in (load_profile(path), profile))
    for name in [*here, *(key for key in there if key not in here)]:
        if there.get(name) != here.get(name):
            raise ConfigError(f"{path} belongs to another configuration ({name} is "
                              f"{shown(there.get(name))} there and {shown(here.get(name))} here): "
                              "choose another run_dir or delete that directory.")


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        is_nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return flat

"""Profiles: a configuration with a few sections more, and the directory that a run of it has.

A profile names its assets (which policy, reward model, data and judge), its `evaluation`, `prompts`
and `reward`, in a YAML file of trlX's format.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .checks import (
    Check,
    ConfigError,
    closest,
    entries,
    file_name,
    file_path,
    integer,
    one_of,
    shown,
    text,
    wrong,
)
from .files import (
    merge,
    nest_overrides,
    read_yaml,
    write_whole,
)
from .paths import resolve_run_dir
from .sections import (
    TrainConfig,
)
from .trl_config import TRLConfig, require_known_settings

PROFILES_DIR = Path(__file__).resolve().parents[1] / "profiles"


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
    require_known_settings(trl, data)
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

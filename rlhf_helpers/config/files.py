"""Configuration files and overrides: strict YAML in, merged nested dicts, whole files out."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .checks import ConfigError, file_path, mapping, wrong


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice",
                                           problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(content: str, origin: str) -> Any:
    """The value of a YAML text; `origin` names it in errors. No Python objects are made."""
    try:
        return yaml.load(content, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(f"{origin} is not valid YAML{where}: {problem}.") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; ConfigError when there is none."""
    try:
        content = Path(file_path("the configuration's path", path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"the configuration {path} cannot be read: {reason}.") from None
    value = parse_yaml(content, str(path))
    return mapping(f"the content of {path}", value)


def nest_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested dicts: {"method.gamma": 1} -> {"method": {"gamma": 1}}."""
    nested: dict[str, Any] = {}
    for name, value in mapping("overrides", overrides).items():
        for part in reversed(name.split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with the values of `update`, nested dicts entry by entry."""
    merged = dict(copy.deepcopy(base))
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """Overrides from a command line: ["method.ppo_epochs=2"] -> {"method.ppo_epochs": 2}."""
    overrides = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise wrong("override", item, "write it as name=value, e.g. method.ppo_epochs=2")
        overrides[name.strip()] = parse_yaml(value, f"override {name.strip()}")
    return overrides


def write_whole(path: Path, content: str) -> None:
    """Write a file under a temporary name and rename it, so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another run "
                          "directory or make room.") from None

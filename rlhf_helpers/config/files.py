"""Configuration files and overrides: strict YAML in, merged nested dicts, whole files out."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .checks import MAX_ENTRIES, ConfigError, file_path, mapping, wrong
from .reading import LARGEST_YAML, UnreadableFileError, read_text


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and aliases that multiply without end.

    PyYAML would silently take the last of two keys, and fill the memory from half a kilobyte.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if _is_too_large(node):
            raise yaml.MarkedYAMLError(
                problem=f"it has more than {MAX_ENTRIES:,} entries once its aliases are written out"
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice",
                                           problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _is_too_large(root: yaml.Node | None) -> bool:
    """Whether a YAML tree has more than MAX_ENTRIES nodes, counted as often as they appear."""
    waiting, counted = [root], 0
    while waiting and counted <= MAX_ENTRIES:
        node = waiting.pop()
        counted += 1
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return counted > MAX_ENTRIES


def parse_yaml(content: str, origin: str) -> Any:
    """The value of a YAML text; `origin` names it in errors. No Python objects are made."""
    if len(content) > LARGEST_YAML:
        raise ConfigError(f"{origin} is not valid YAML here: it has more than {LARGEST_YAML:,} "
                          "characters.")
    try:
        return yaml.load(content, Loader=_StrictLoader)
    except Exception as error:  # a scalar that is not of its tag raises whatever Python's types do
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(f"{origin} is not valid YAML{where}: {problem}.") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; ConfigError when there is none."""
    try:
        content = read_text(file_path("the configuration's path", path), LARGEST_YAML)
    except UnreadableFileError as error:
        raise UnreadableFileError(f"the configuration {error}") from None
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
        temporary.unlink(missing_ok=True)
        with open(temporary, "x", encoding="utf-8") as file:  # and never through a link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another run "
                          "directory or make room.") from None

"""Checks of single configuration values: type, range, and an error in one sentence.

A check is a function `check(path, value) -> value`. It returns the value in its normal form
(the string "1e-4", which is what YAML 1.1 makes of 1e-4, becomes the number) or raises a
`ConfigError` that names the field, the value and the remedy.
"""

from __future__ import annotations

import difflib
import json
import math
import numbers
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlhf_helpers.progress import printable

Check = Callable[[str, Any], Any]

# Larger than any sensible count and exactly representable as a float.
MAX_COUNT = 10**15
# More entries than any configuration has, nested ones included and counted wherever they appear.
MAX_ENTRIES = 100_000

_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][+-]?\d+)?")


class Sentence(Exception):
    """An error that explains itself; names and values in it cannot command a terminal."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(Sentence, ValueError):
    """A configuration that cannot run: one sentence with the field, the value and the remedy."""


class ConfigWarning(UserWarning):
    """A configuration that runs, though a part of it has no effect here."""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 200, 200, 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 8


def shown(value: Any, limit: int = 60) -> str:
    """The value as it appears in an error: one line, cut at `limit` characters."""
    try:
        text = _SHORT.repr(value)  # never all of a value that refers to itself a million times
    except Exception:  # a broken __repr__, or an integer of thousands of digits
        text = f"a value of type {type(value).__name__}"
    if not isinstance(value, str):
        # repr of a foreign object may hold line ends; an error is one sentence on one line.
        text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def wrong(path: str, value: Any, remedy: str) -> ConfigError:
    """The error "<path> is <value>: <remedy>."."""
    return ConfigError(f"{path} is {shown(value)}: {remedy}.")


def closest(name: str, known: Iterable[str]) -> str:
    """The known name most similar to `name`, by difflib."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def unknown(path: str, suggestion: str) -> ConfigError:
    """The error for a name that does not exist, in trlX's words, with the closest real one."""
    return ConfigError(
        f"parameter {path} is not present in the config (typo or a wrong config): "
        f"did you mean {suggestion}?"
    )


def _as_number(value: Any) -> float | int | None:
    """`value` as a finite int or float, or None when it is not one. A bool is not a number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = value.strip().replace("_", "")
    elif not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _bounds_text(low: float | None, high: float | None, above: float | None,
                 below: float | None) -> str:
    bounds = {"at least": low, "above": above, "at most": high, "below": below}
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)


def number(low: float | None = None, high: float | None = None, *,
           above: float | None = None, below: float | None = None) -> Check:
    """Accept a finite real number with low <= x <= high and above < x < below."""
    bounds = _bounds_text(low, high, above, below)
    remedy = f"give a number that is {bounds}" if bounds else "give a finite number"

    def check(path: str, value: Any) -> float | int:
        x = _as_number(value)
        if x is None or not _within(x, low, high, above, below):
            raise wrong(path, value, remedy)
        return x

    return check


def integer(low: int, high: int = MAX_COUNT) -> Check:
    """Accept a whole number low <= n <= high; 1e4 and 0.0 count as whole."""
    remedy = f"give a whole number from {low} to {high}"

    def check(path: str, value: Any) -> int:
        x = _as_number(value)
        if x is None or x != int(x) or not low <= x <= high:
            raise wrong(path, value, remedy)
        return int(x)

    return check


def _within(x: float, low: float | None, high: float | None, above: float | None,
            below: float | None) -> bool:
    return ((low is None or x >= low) and (high is None or x <= high)
            and (above is None or x > above) and (below is None or x < below))


def boolean(path: str, value: Any) -> bool:
    """Accept True or False only."""
    if not isinstance(value, bool):
        raise wrong(path, value, "give true or false")
    return value


def text(path: str, value: Any) -> str:
    """Accept a non-empty string that can be written as UTF-8."""
    if not isinstance(value, str) or not value.strip():
        raise wrong(path, value, "give a non-empty text")
    if "\0" in value or len(value) > 4096 or not _is_utf8(value):
        raise wrong(path, value, "give a text of at most 4096 printable characters")
    return value


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def file_name(path: str, value: Any) -> str:
    """Accept a name that may become a file's: it can lead to no other folder and says no command.

    Up to 100 letters and digits of ASCII, dots, hyphens and underscores, the first one a letter or
    a digit.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise wrong(path, value, "give a name of letters, digits, '.', '-' and '_' that begins "
                                 "with a letter or a digit")
    return value


def file_path(path: str, value: Any) -> str:
    """Accept a path that a file system can hold; a Path becomes a string."""
    value = text(path, os.fspath(value) if isinstance(value, os.PathLike) else value)
    if any(len(part.encode()) > 255 for part in re.split(r"[/\\]", value)):
        raise wrong(path, value, "give a path whose parts have at most 255 bytes each")
    return value


def _is_utf8(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def one_of(*choices: str) -> Check:
    """Accept exactly one of the strings."""
    listed = ", ".join(repr(choice) for choice in choices)

    def check(path: str, value: Any) -> str:
        if isinstance(value, str) and value in choices:
            return value
        hint = f" (did you mean {closest(value, choices)!r}?)" if isinstance(value, str) else ""
        raise wrong(path, value, f"give one of {listed}{hint}")

    return check


def optional(check: Check) -> Check:
    """Accept None (null in YAML) beside what `check` accepts."""

    def check_optional(path: str, value: Any) -> Any:
        if value is None:
            return None
        try:
            return check(path, value)
        except ConfigError as error:
            raise ConfigError(str(error).removesuffix(".") + ", or null.") from None

    return check_optional


def text_list(path: str, value: Any) -> list[str]:
    """Accept a list of non-empty strings."""
    if not isinstance(value, (list, tuple)):
        raise wrong(path, value, "give a list of texts")
    return [text(f"{path}[{index}]", item) for index, item in enumerate(value)]


def pair(check: Check) -> Check:
    """Accept two values, each passing `check`; a list becomes a tuple, as torch documents it."""

    def check_pair(path: str, value: Any) -> tuple[Any, Any]:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise wrong(path, value, "give a list of two numbers")
        return check(f"{path}[0]", value[0]), check(f"{path}[1]", value[1])

    return check_pair


def mapping(path: str, value: Any) -> dict[str, Any]:
    """Accept a mapping with string keys; returns a copy."""
    if not isinstance(value, Mapping):
        raise wrong(path, value, "give a mapping of names to values")
    for key in value:
        if not isinstance(key, str) or not key.isprintable() or len(key) > 100:
            raise wrong(f"a key of {path}", key, "give a name")
    return dict(value)


def plain_mapping(path: str, value: Any) -> dict[str, Any]:
    """Accept a mapping of plain values (what JSON can hold), nested or not."""
    checked = mapping(path, value)
    if has_too_many_entries(checked):
        raise wrong(path, value, f"give at most {MAX_ENTRIES:,} entries")
    try:
        plain = json.dumps(checked, allow_nan=False)
        return json.loads(plain)
    except (TypeError, ValueError, RecursionError):
        raise wrong(path, value, "give only numbers, texts, lists and mappings") from None


def has_too_many_entries(value: Any, most: int = MAX_ENTRIES) -> bool:
    """Whether lists and mappings hold more than `most` entries, counted as often as they appear.

    A few hundred bytes of YAML can name one list in another a billion times over.
    """
    waiting, counted = [value], 0
    while waiting:
        entry = waiting.pop()
        inside: Iterable[Any] = ()
        if isinstance(entry, Mapping):
            inside = (part for pair in entry.items() for part in pair)
        elif isinstance(entry, (list, tuple, set, frozenset)):
            inside = entry
        for part in inside:
            waiting.append(part)
            counted += 1
            if counted > most:
                return True
    return False


def entries(path: str, value: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Check a mapping entry by entry.

    Unknown names are errors that name the closest known one. An entry that is None is left out:
    an override can so remove an entry that a profile sets.
    """
    checked = {}
    for name, entry in mapping(path, value).items():
        if name not in checks:
            raise unknown(f"{path}.{name}", f"{path}.{closest(name, checks)}")
        if entry is not None:
            checked[name] = checks[name](f"{path}.{name}", entry)
    return checked

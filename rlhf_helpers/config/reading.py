"""Reading files that somebody may have touched: by hand, by another program, by an attacker.

Every file of a run directory, and every file that a command is given, is read through here. It
may be missing, a directory, a pipe, cut short, full of noise, huge, of another encoding or of
another type than expected: each is an `UnreadableFileError` of one sentence. Nothing waits for a
pipe, and nothing is read that is larger than the reader asks for. No library is imported here.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .checks import ConfigError, shown

LARGEST_TEXT = 512 * 2**20  # bytes; metrics and samples of the longest runs have a few per cent
LARGEST_YAML = 256 * 2**10  # PyYAML takes a second for it
# "\ud800" and the like: half of a pair, which is no text and cannot be written again.
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class UnreadableFileError(ConfigError):
    """A file is there but is not what it should be; the message names it and what is wrong."""


MAKE_AGAIN = "restore that file, or remove it and make it again"


def unreadable(path: str | Path, problem: str, remedy: str = MAKE_AGAIN) -> UnreadableFileError:
    """The error "<path> cannot be read: <problem>; <remedy>."."""
    return UnreadableFileError(f"{path} cannot be read: {problem}; {remedy}.")


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open for reading bytes; UnreadableFileError where it is none.

    A pipe is opened without waiting for its other end, seen to be one, and closed again.
    """
    try:
        # Windows, which has no such pipes, needs the word that files hold bytes.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise unreadable(path, _reason(error), "give the path of a file") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise unreadable(path, "it is no file but a directory, a pipe or a device")
    return os.fdopen(handle, "rb")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it is no path"


def read_text(path: str | Path, largest: int = LARGEST_TEXT) -> str:
    """A text file in UTF-8 of at most `largest` bytes."""
    with open_regular(path) as file:
        try:
            content = file.read(largest + 1)
        except OSError as error:
            raise unreadable(path, _reason(error)) from None
    if len(content) > largest:
        raise unreadable(path, f"it has more than {largest:,} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise unreadable(path, f"it is no text in UTF-8 (byte {error.start})") from None


class Record(dict):
    """A JSON object that knows its file: a field that is not there is one sentence."""

    path: str | Path = "the file"

    def __missing__(self, name: object) -> Any:
        raise unreadable(self.path, f"it lacks the field {shown(name)}")


def _record_of(path: str | Path) -> Any:
    def made(pairs: list[tuple[str, Any]]) -> Record:
        record = Record(pairs)
        record.path = path
        return record

    return made


def parse_json(text: str, path: str | Path, place: str = "") -> Any:
    """The value of a JSON text; `path` and `place` (" in line 3") are for the error."""
    try:
        value = json.loads(text, object_pairs_hook=_record_of(path))
        if _HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError:
        raise unreadable(path, f"a text{place} holds half a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        problem = getattr(error, "msg", None) or "its numbers or its nesting are too large"
        raise unreadable(path, f"it is no JSON{place} ({problem})") from None


def read_json(path: str | Path, fields: Mapping[str, Any] | None = None) -> Any:
    """The value in a JSON file; with `fields` an object that has these, as `check_fields` says."""
    value = parse_json(read_text(path), path)
    return value if fields is None else check_fields(value, fields, path)


def read_jsonl(path: str | Path, fields: Mapping[str, Any] | None = None) -> list[dict]:
    """The object in each line; a last line that a crash cut short (no newline) is left out."""
    text = read_text(path)
    complete = text[: text.rfind("\n") + 1]
    records = []
    for number, line in enumerate(complete.split("\n"), start=1):
        if line.strip():
            place = f" in line {number}"
            value = parse_json(line, path, place)
            records.append(check_fields(value, fields or {}, path, place))
    return records


# --- what a field must be --------------------------------------------------------------------

NUMBER = "a number"
NUMBER_OR_NONE = "a number or null"
COUNT = "a whole number that is not negative"
TEXT = "a text"
LIST = "a list"


def check_fields(
    value: Any, fields: Mapping[str, Any], path: str | Path, place: str = ""
) -> dict[str, Any]:
    """`value` if it is an object whose `fields` are what they should be, else an error.

    A field is one of the words above, a mapping of fields (an object), or a list with one such
    mapping (a list of objects). A "?" behind its name says that it may be null, and the name "*"
    stands for all fields that are not named. One that is missing is an error where it is asked
    for (`Record`): older files lack what newer ones have.
    """
    if not isinstance(value, dict):
        raise unreadable(path, f"{shown(value)}{place} is no object with fields")
    for name, wanted in fields.items():
        if name == "*":
            for other in value.keys() - {key.removesuffix("?") for key in fields}:
                _check_field(value[other], wanted, path, place, other)
            continue
        bare = name.removesuffix("?")
        if bare in value and not (bare != name and value[bare] is None):
            _check_field(value[bare], wanted, path, place, bare)
    return value


def _check_field(value: Any, wanted: Any, path: str | Path, place: str, name: str) -> None:
    inside = f"{place} of {shown(name)}"
    if isinstance(wanted, Mapping):
        check_fields(value, wanted, path, inside)
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise unreadable(path, f"{shown(name)}{place} is {shown(value)}, not a list")
        for entry in value:
            check_fields(entry, wanted[0], path, inside)
    elif not _IS[wanted](value):
        raise unreadable(path, f"{shown(name)}{place} is {shown(value)}, not {wanted}")


def _is_number(value: Any) -> bool:
    # NaN and infinity, which Python's json reads though JSON lacks them, are none; nor is a number
    # that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


_IS = {
    NUMBER: _is_number,
    NUMBER_OR_NONE: lambda value: value is None or _is_number(value),
    COUNT: lambda value: _is_number(value) and isinstance(value, int) and value >= 0,
    TEXT: lambda value: isinstance(value, str),
    LIST: lambda value: isinstance(value, list),
}

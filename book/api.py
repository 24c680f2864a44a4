"""The package's public names as pages of the book, each with its docstring.

Public is what the package and its rooms hand on (`__all__`). Docstrings here are plain Markdown,
so they go into the page as they are.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import rlhf_helpers


def rooms() -> list[str]:
    """The package, then its rooms that hand names on, by name."""
    found = [
        f"rlhf_helpers.{m.name}" for m in pkgutil.iter_modules(rlhf_helpers.__path__) if m.ispkg
    ]
    return [
        "rlhf_helpers",
        *(room for room in found if public_names(importlib.import_module(room))),
    ]


def public_names(module: ModuleType) -> list[str]:
    return sorted(getattr(module, "__all__", []))


def write_api(folder: Path) -> list[str]:
    """One page for each room; returns their names without suffix."""
    folder.mkdir(parents=True)
    for room in rooms():
        (folder / f"{room}.md").write_text(page(room), encoding="utf-8")
    return rooms()


def page(room: str) -> str:
    module = importlib.import_module(room)
    parts = [f"# {room}", (module.__doc__ or "").strip()]  # getdoc would unindent its examples
    in_rooms = names_of_rooms() if room == "rlhf_helpers" else set()
    for name in public_names(module):
        parts.append(entry(room, name, getattr(module, name), name in in_rooms))
    return "\n\n".join(parts) + "\n"


@functools.cache
def names_of_rooms() -> set[str]:
    """What stands on a room's page; the package's page shows it too, but is not linked to."""
    return {name for room in rooms()[1:] for name in public_names(importlib.import_module(room))}


def entry(room: str, name: str, value: object, is_elsewhere: bool) -> str:
    """A heading for the contents, then Sphinx's description of the name, with its methods."""
    options = f":module: {room}\n" + (":no-index:\n" if is_elsewhere else "")
    kind = "function" if inspect.isroutine(value) else "exception" if is_error(value) else "class"
    body = [inspect.getdoc(value) or ""]
    if kind == "class":
        body += [
            described("method", member, function, "", options.partition("\n")[2])
            for member, function in inspect.getmembers(value, inspect.isroutine)
            if not member.startswith("_") and function.__doc__ and documented_here(function)
        ]
    text = described(kind, name, value, "\n\n".join(body), options)
    return f"## {name}\n\n{text}"


def described(kind: str, name: str, value: object, body: str, options: str) -> str:
    body = body or inspect.getdoc(value) or ""
    fence = "`" * (8 if kind != "method" else 6)  # longer than any in a docstring
    return f"{fence}{{py:{kind}}} {name}{signature(value, kind)}\n{options}\n{body}\n{fence}"


def signature(value: object, kind: str) -> str:
    if kind == "exception":
        return ""
    try:
        shown = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    if kind == "method":
        shown = shown.replace(parameters=[p for n, p in shown.parameters.items() if n != "self"])
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(shown))  # annotations are strings


def is_error(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseException | Warning)


def documented_here(function: object) -> bool:
    return (getattr(function, "__module__", "") or "").startswith("rlhf_helpers")

"""The package's public names as pages of the book, each with its docstring.

Public is what the package and its rooms hand on (`__all__`). Docstrings here are plain Markdown,
so they go into the page as they are.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import rlhf_helpers


def rooms() -> list[str]:
    """The package, then its rooms that hand names on, by name."""
    found = [f"rlhf_helpers.{m.name}" for m in pkgutil.iter_modules(rlhf_helpers.__path__) if m.ispkg]
    return ["rlhf_helpers", *(room for room in found if public_names(importlib.import_module(room)))]


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
    parts = [f"# {room}", inspect.getdoc(module) or ""]
    parts += [entry(room, name, getattr(module, name)) for name in public_names(module)]
    return "\n\n".join(parts) + "\n"


def entry(room: str, name: str, value: object) -> str:
    """A heading for the contents, then Sphinx's description of the name, with its methods."""
    kind = "function" if inspect.isroutine(value) else "exception" if is_error(value) else "class"
    body = [inspect.getdoc(value) or ""]
    if kind == "class":
        body += [
            described("method", member, function, "")
            for member, function in inspect.getmembers(value, inspect.isroutine)
            if not member.startswith("_") and function.__doc__ and documented_here(function)
        ]
    text = described(kind, name, value, "\n\n".join(body), room)
    return f"## {name}\n\n{text}"


def described(kind: str, name: str, value: object, body: str, room: str = "") -> str:
    body = body or inspect.getdoc(value) or ""
    fence = "::::::" if kind != "method" else ":::"
    module = f":module: {room}\n" if room else ""
    return f"{fence}{{py:{kind}}} {name}{signature(value, kind)}\n{module}\n{body}\n{fence}"


def signature(value: object, kind: str) -> str:
    if kind == "exception":
        return ""
    try:
        shown = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    if kind == "method":
        shown = shown.replace(parameters=[p for n, p in shown.parameters.items() if n != "self"])
    return str(shown).replace("'", "")


def is_error(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseException | Warning)


def documented_here(function: object) -> bool:
    return (getattr(function, "__module__", "") or "").startswith("rlhf_helpers")

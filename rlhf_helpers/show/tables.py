"""Tables for notebooks: HTML where it can be shown, plain text elsewhere, everything escaped.

What a model or a data set has written goes into these tables too, so that no cell's text can
become markup or a formula.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

TEXT_WIDTH = 100  # characters of a line of the plain version
COLUMN_WIDTH = 44  # of the widest column of the plain version


class Table:
    """Rows of equal fields. Numbers stand right, texts left; None reads "not measured".

    Numbers have a real minus sign and a space before %.
    `columns` maps fields to titles, and chooses and orders them (default: the first row's fields).
    `formats` maps fields to format specifications, such as ".3f" or ",".
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Mapping[str, str] | None = None,
        formats: Mapping[str, str] | None = None,
    ) -> None:
        rows = list(rows)
        columns = columns or {name: name for name in (rows[0] if rows else {})}
        formats = formats or {}
        self.titles = list(columns.values())
        self.cells = [[_text(row[name], formats.get(name, "")) for name in columns] for row in rows]
        self.right = [
            bool(rows) and all(_is_number(row[name]) or row[name] is None for row in rows)
            for name in columns
        ]

    def _repr_html_(self) -> str:
        head = "".join(self._cell("th", t, r) for t, r in zip(self.titles, self.right, strict=True))
        rows = (
            "".join(self._cell("td", c, r) for c, r in zip(row, self.right, strict=True))
            for row in self.cells
        )
        body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
        # These class names keep MathJax, which notebooks load, away from the text.
        return (
            '<table class="tex2jax_ignore mathjax_ignore">\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )

    @staticmethod
    def _cell(tag: str, text: str, right: bool) -> str:
        style = f"text-align:{'right' if right else 'left'};vertical-align:top;white-space:pre-wrap"
        return f'<{tag} style="{style}">{escaped(text)}</{tag}>'

    def __repr__(self) -> str:
        lines = [self.titles, *self.cells]
        widths = [
            min(COLUMN_WIDTH, max(len(line[i]) for line in lines)) for i in range(len(self.titles))
        ]
        return "\n".join(self._plain_row(line, widths) for line in lines)

    def _plain_row(self, cells: list[str], widths: list[int]) -> str:
        wrapped = [textwrap.wrap(c, w) or [""] for c, w in zip(cells, widths, strict=True)]
        lines = []
        for i in range(max(map(len, wrapped), default=0)):
            parts = [cell[i] if i < len(cell) else "" for cell in wrapped]
            aligned = [
                part.rjust(width) if right else part.ljust(width)
                for part, width, right in zip(parts, widths, self.right, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
        return "\n".join(lines)


class Folded:
    """Tables or texts under one line that opens them in any page of HTML; plain text elsewhere."""

    def __init__(self, title: str, *parts: Table | str) -> None:
        """`title`: the line that stays in sight."""
        self.title, self.parts = title, parts

    def _repr_html_(self) -> str:
        inside = "\n".join(
            f'<pre class="tex2jax_ignore mathjax_ignore">{escaped(part)}</pre>'
            if isinstance(part, str) else part._repr_html_() for part in self.parts
        )  # fmt: skip
        return f"<details><summary>{escaped(self.title)}</summary>\n{inside}\n</details>"

    def __repr__(self) -> str:
        return "\n\n".join([self.title, *(str(part) for part in self.parts)])


def escaped(text: str) -> str:
    """`text` as HTML that shows it: no markup, no formula, no control characters."""
    shown = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    return html.escape(shown).replace("$", "<span>$</span>")


def wrapped(text: str, indent: str = "  ") -> str:
    """A long text for `print`, in lines of TEXT_WIDTH characters."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return textwrap.fill(shown, TEXT_WIDTH, initial_indent=indent, subsequent_indent=indent)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any, spec: str) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not _is_number(value):
        return str(value)
    text = format(value, spec)
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("-")  # no -0.000
    return text.replace("-", "−").replace("%", "\N{NO-BREAK SPACE}%")

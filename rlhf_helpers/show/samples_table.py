"""Prompts, outputs and rewards as a table: HTML in a notebook, plain text elsewhere.

The texts come from a model or a data set, so that every one is escaped before it becomes
HTML. Colours are translucent and the text keeps the theme's own, light or dark.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence

TEXT_WIDTH = 100
# Blue above one half and orange below, the stronger the farther: P(positive) 0.5 is bare.
POSITIVE_RGB, NEGATIVE_RGB = "0,114,178", "230,130,0"
STRONGEST = 0.55  # opacity at 0 and 1
TOP_LEFT = "text-align:left;vertical-align:top;padding:4px 8px"
TABLE = "width:100%;border-collapse:collapse;color:inherit"


class SamplesTable:
    """A table of sample records, before and (where given) after training.

    Before and after are matched by group, prompt and seed; a sample without a partner
    keeps an empty cell.
    """

    def __init__(
        self,
        before: Sequence[Mapping],
        after: Sequence[Mapping] | None = None,
        names: tuple[str, str] = ("before", "after"),
    ) -> None:
        """`names`: what to call the two sides."""
        self.rows, self.names = table_rows(before, after), names

    def _repr_html_(self) -> str:
        return samples_table_html(self.rows, self.names)

    def __repr__(self) -> str:
        return samples_table_text(self.rows, self.names)


def table_rows(before: Sequence[Mapping], after: Sequence[Mapping] | None = None) -> list[dict]:
    """One row for each sample before: prompt, output, reward, after_output, after_reward."""
    partners = {_key(sample): sample for sample in after or []}
    rows = []
    for sample in before:
        row = {name: sample[name] for name in ("prompt", "output", "reward")}
        if after is not None:
            partner = partners.get(_key(sample), {"output": "", "reward": None})
            row |= {"after_output": partner["output"], "after_reward": partner["reward"]}
        rows.append(row)
    return rows


def _key(sample: Mapping) -> tuple:
    return sample.get("group"), sample["prompt"], sample.get("seed")


def samples_table_html(
    rows: Sequence[Mapping], names: tuple[str, str] = ("before", "after")
) -> str:
    """An HTML table of rows of prompt, output, reward and, where there, after_output, after_reward.

    Everything is escaped; `$` cannot start a formula and control characters are blanked.
    """
    paired = any("after_output" in row for row in rows)
    titles = ["prompt", f"output {names[0]}", "reward", f"output {names[1]}", "reward"]
    titles = titles if paired else ["prompt", "output", "reward"]
    widths = {"prompt": ";width:20%", "reward": ";width:4em"}  # the rest is for the outputs
    head = "".join(
        f'<th style="{TOP_LEFT}{widths.get(title, "")}">{html.escape(title)}</th>'
        for title in titles
    )
    body = "\n".join(f"<tr>{_cells(row, paired)}</tr>" for row in rows)
    # These class names keep MathJax, which notebooks load, away from the text.
    return (
        f'<table class="tex2jax_ignore mathjax_ignore" style="{TABLE}">'
        f"\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )


def _cells(row: Mapping, paired: bool) -> str:
    cells = _text_cell(row["prompt"]) + _text_cell(row["output"]) + _reward_cell(row["reward"])
    if paired:
        cells += _text_cell(row["after_output"]) + _reward_cell(row["after_reward"])
    return cells


def _text_cell(text: str) -> str:
    safe = html.escape(_printable(text)).replace("$", "<span>$</span>")
    return f'<td style="{TOP_LEFT};white-space:pre-wrap">{safe}</td>'


def _reward_cell(reward: float | None) -> str:
    if reward is None:
        return "<td></td>"
    colour = POSITIVE_RGB if reward >= 0.5 else NEGATIVE_RGB
    opacity = min(1.0, abs(reward - 0.5) * 2) * STRONGEST
    style = f"{TOP_LEFT};background:rgba({colour},{opacity:.2f})"
    return f'<td style="{style}">{reward:.3f}</td>'


def _printable(text: str) -> str:
    """The text with control and direction-changing characters as spaces; line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def samples_table_text(
    rows: Sequence[Mapping], names: tuple[str, str] = ("before", "after")
) -> str:
    """The same table as plain text, one block for each prompt."""
    blocks, width = [], max(map(len, names))
    for row in rows:
        paired = "after_output" in row
        lines = [_printable(row["prompt"])]
        lines += _text_lines(names[0].ljust(width) if paired else "", row["reward"], row["output"])
        if paired:
            lines += _text_lines(names[1].ljust(width), row["after_reward"], row["after_output"])
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _text_lines(label: str, reward: float | None, output: str) -> list[str]:
    number = "" if reward is None else f"{reward:.3f}"
    head = f"  {label} {number:5}  " if label else f"  {number:5}  "
    text = " ".join(_printable(output).split())
    return textwrap.wrap(
        text, TEXT_WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
    ) or [head.rstrip()]

"""The reader as annotator: two texts, buttons, and a file that holds every answer at once."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_helpers.progress import in_live_notebook
from rlhf_helpers.rewards.preferences import Candidates, Pair, pair_line, read_lines, tie_line
from rlhf_helpers.runs.files import write_jsonl

BOX = (
    "border:1px solid #888; border-radius:4px; padding:8px 12px; margin:4px; min-height:4em;"
    " line-height:1.4; white-space:pre-wrap"
)


def label_pairs(candidates: Sequence[Candidates], path: str | Path) -> Any:
    """Ask the reader which of two texts is better; every answer is in `path` after its click.

    In a live notebook it returns the widget. It goes on where the file ends, and
    `read_pairs(path)` gives the preferences so far. Under papermill, nbval and in scripts nobody
    can press a button: the first pair is printed.
    """
    if not in_live_notebook():
        pair = candidates[0]
        print(f"{pair.prompt}\n  A: {pair.prompt}{pair.first}\n  B: {pair.prompt}{pair.second}")
        print("Open this notebook in Jupyter to answer by buttons.")
        return None
    return PairLabeller(candidates, path).widget


def answers_to(simulated: Sequence[Pair], path: str | Path) -> list[Pair]:
    """The reader's answers to the pairs that `simulated` answers, or those where there are none.

    Only a live notebook reads `path`: elsewhere the same pairs have the same answers everywhere.
    """
    if in_live_notebook() and Path(path).exists():
        asked = {_key(Candidates(p.prompt, p.chosen, p.rejected)) for p in simulated}
        lines = [line for line in read_lines(path) if "tie" not in line]
        own = [Pair(line["prompt"], line["chosen"], line["rejected"]) for line in lines
               if _key_of_line(line) in asked]  # fmt: skip
        if own:
            return own
    return list(simulated)


class PairLabeller:
    """The widget and what its buttons do."""

    def __init__(self, candidates: Sequence[Candidates], path: str | Path):
        """Take up the answers that `path` holds; those to other candidates stay there."""
        import ipywidgets as widgets

        self.candidates, self.path = list(candidates), Path(path)
        self.lines = read_lines(self.path) if self.path.exists() else []
        answered = {_key_of_line(line) for line in self.lines}
        self.waiting = [c for c in self.candidates if _key(c) not in answered]
        self.given: list[Candidates] = []  # in this session, for undo
        self.texts = [widgets.HTML(layout=widgets.Layout(width="50%")) for _ in range(2)]
        self.prompt, self.state = widgets.HTML(), widgets.HTML()
        self.bar = widgets.IntProgress(max=len(self.candidates), layout={"width": "50%"})
        names = ("A is better", "B is better", "No difference", "Undo")
        self.buttons = [widgets.Button(description=name) for name in names]
        actions = (lambda _: self.answer("A"), lambda _: self.answer("B"),
                   lambda _: self.answer("tie"), lambda _: self.undo())  # fmt: skip
        for button, action in zip(self.buttons, actions, strict=True):
            button.on_click(action)
        self.widget = widgets.VBox([
            self.prompt, widgets.HBox(self.texts), widgets.HBox(self.buttons),
            widgets.HBox([self.bar, self.state]),
        ])  # fmt: skip
        self._show()

    def answer(self, which: str) -> None:
        """Keep the answer to the pair that is shown ("A", "B" or "tie"), then show the next."""
        if not self.waiting:
            return
        pair = self.waiting[0]
        line = {
            "A": pair_line(Pair(pair.prompt, pair.first, pair.second)),
            "B": pair_line(Pair(pair.prompt, pair.second, pair.first)),
            "tie": tie_line(pair),
        }[which]
        self._keep([*self.lines, line])  # where that fails, the same pair is still shown
        self.given.append(self.waiting.pop(0))
        self._show()

    def undo(self) -> None:
        """Take the last answer of this session out of the file, and show its pair again."""
        if not self.given:
            return
        self._keep(self.lines[:-1])
        self.waiting.insert(0, self.given.pop())
        self._show()

    def _keep(self, lines: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.path, lines)
        self.lines = lines

    def _show(self) -> None:
        own = {_key(c) for c in self.candidates}
        answers = [line for line in self.lines if _key_of_line(line) in own]
        ties = sum("tie" in line for line in answers)
        self.bar.value = len(self.candidates) - len(self.waiting)
        self.state.value = (
            f"{self.bar.value} of {len(self.candidates)} answered, {ties} of them without a choice"
        )
        for button in self.buttons[:3]:
            button.disabled = not self.waiting
        self.buttons[3].disabled = not self.given
        if not self.waiting:
            self.prompt.value = f"All answers are in {html.escape(self.path.name)}."
            self.texts[0].value = self.texts[1].value = ""
            return
        pair = self.waiting[0]
        self.prompt.value = "Which text is better?"
        for box, name, text in zip(self.texts, "AB", (pair.first, pair.second), strict=True):
            shown = f"<i>{html.escape(pair.prompt)}</i>{html.escape(text)}"
            box.value = f'<div style="{BOX}"><b>{name}</b>\n{shown}</div>'


def _key(candidates: Candidates) -> tuple[str, frozenset[str]]:
    """What a pair is known by, whichever text was preferred."""
    return candidates.prompt, frozenset((candidates.first, candidates.second))


def _key_of_line(line: dict[str, Any]) -> tuple[Any, frozenset[Any]]:
    texts = line["tie"] if "tie" in line else [line.get("chosen"), line.get("rejected")]
    return line.get("prompt"), frozenset(map(str, texts))

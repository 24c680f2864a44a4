"""What a committed notebook must be like, checked without running it. No torch.

Each check takes a `Notebook` and raises AssertionError with the place and the reason.

How a notebook is made, and what the checks below hold it to (all of NOTEBOOKS and EXERCISES):

- Cell 0 says in two sentences what the notebook is about, shows a diagram, and ends with "After
  this notebook you can ...". The bootstrap cell follows (folded), one line of prose, the
  parameters, the injected parameters, and in cell 5 the first output: a text or a picture, not
  plumbing.
- What is named as an algorithm is written on the page, as a function or class of at most 20 lines
  (WRITTEN); this cell or the next asserts that it agrees with the package's own.
- Prose, then code, then what was seen. Jargon is explained where it is first used.
- A prediction is a paragraph that begins with **Predict.**; the code cells up to its folded answer
  (<details>) have folded outputs: OUTPUT_FOLDED in their metadata. What they print begins with
  the line "Answer:", which JupyterLab leaves in sight. The code is not folded.
- Whatever runs in seconds runs for real, in reference runs too, with an assertion on its range or
  shape. Cells that sample, score or look at the machine carry nbval-ignore-output; all others are
  compared at every replay.
- "What was seen" is the last cell: Markdown made by code from this run's files, its source folded.
- Fields with a button are `rlhf_helpers.notebook.try_it`, which gives plain output elsewhere.
- A real minus sign, × and "95 %". `rlhf_helpers.show.Table` writes numbers so by itself.
- Figures in a notebook are drawn with `plot_style.projected`: 11 points and more.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from rlhf_helpers.notebook.badges import bootstrap_source, colab_badge, is_bootstrap

NOTEBOOKS = [
    "01_setup.ipynb",
    "02_baseline_sampling.ipynb",
    "03_lora_parameter_inspection.ipynb",
    "04_ppo_run.ipynb",
    "05_before_after_evaluation.ipynb",
    "06_preferences.ipynb",
    "07_verifiable_rewards.ipynb",
]
PARAMETERS = ("profile", "run_dir", "seed", "overrides", "reference_run")
EXERCISES = [
    "02_exercises.ipynb", "03_exercises.ipynb", "04_exercises.ipynb", "05_exercises.ipynb",
    "06_exercises.ipynb", "07_exercises.ipynb",
]
MAX_BYTES = 1_000_000
MOST_CELLS = {"04_ppo_run.ipynb": 45}
FIRST_OUTPUT = 5  # the index of the cell by which a reader has met a text or a picture
FUNCTION_LINES = 20
# Functions and classes that each notebook writes on the page, beside the package's own.
WRITTEN = {
    "01_setup.ipynb": {"short_reward"},
    "02_baseline_sampling.ipynb": {"sample"},
    "03_lora_parameter_inspection.ipynb": {"LoRA", "lora_numbers"},
    "04_ppo_run.ipynb": {"reinforce", "gae", "clipped_loss", "ppo_loss"},
    "05_before_after_evaluation.ipynb": {"paired_interval", "distinct", "short_verdict"},
    "06_preferences.ipynb": {
        "preference_probability", "bradley_terry_loss", "mean_states", "dpo_loss",
        "response_logprobs",
    },
    "07_verifiable_rewards.ipynb": {
        "exact_answer", "pass_at_k", "leave_one_out_advantages", "group_normalised_advantages",
        "rloo_objective",
    },
}
# Folded for JupyterLab, for Colab and nbformat, and for Jupyter Book.
OUTPUT_FOLDED = ({"jupyter": {"outputs_hidden": True}, "collapsed": True}, "hide-output")
SOURCE_FOLDED = ({"jupyter": {"source_hidden": True}, "cellView": "form"}, "hide-input")
IGNORED = "nbval-ignore-output"
# What a cell calls whose output depends on the machine, or on the sums that its processor forms.
LIVE = re.compile(
    r"(?<![.\w])(?:sample|write_texts|write_answers|write|curve|mean_states|response_logprobs|"
    r"assess|three_texts|reward_fn|score|try_it|examine|available_bytes)\("
    r"|\bpolicy\.(?:generate|base)\(|\b(?:probabilities|findings)\b"
)
MEDIAN_LINES, LONGEST_CELL = 8, 40
# Import names that differ from the distribution's name in requirements.txt.
DISTRIBUTION = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|Users|mnt|var|opt)/[\w.-]+")
TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9-]{20,})")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]+src=[\"']([^\"']+)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)[^)]*\)")


DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class Notebook:
    """A notebook file and what it is compared with."""

    path: Path
    url: str  # of the repository
    requirements: set[str]  # canonical names of distributions
    package_names: set[str]  # functions and classes of the package

    @cached_property
    def node(self) -> nbformat.NotebookNode:
        return nbformat.read(self.path, as_version=4)

    @property
    def code(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.node.cells if cell.cell_type == "code"]

    @property
    def markdown(self) -> list[str]:
        return [cell.source for cell in self.node.cells if cell.cell_type == "markdown"]

    @cached_property
    def tree(self) -> ast.Module:
        """All code cells as one module; IPython's own syntax is translated first."""
        manager = TransformerManager()
        source = "\n".join(manager.transform_cell(cell.source) for cell in self.code)
        return ast.parse(source)


def check_is_valid(notebook: Notebook) -> None:
    nbformat.validate(notebook.node)
    assert notebook.node.nbformat == 4, "not nbformat 4"
    for cell in notebook.code:
        ast.parse(TransformerManager().transform_cell(cell.source))


def check_size(notebook: Notebook) -> None:
    size = notebook.path.stat().st_size
    assert size < MAX_BYTES, f"{size} bytes, at most {MAX_BYTES}"
    cells = len(notebook.node.cells)
    most = MOST_CELLS.get(notebook.path.name, 35)
    assert cells <= most, f"{cells} cells, at most {most}"


def literals(source: str) -> dict[str, object]:
    """Names and values of a cell that only assigns literals."""
    values = {}
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1, "not a literal"
        try:
            values[statement.targets[0].id] = ast.literal_eval(statement.value)
        except ValueError:
            raise AssertionError(f"{ast.unparse(statement)!r} is not a literal") from None
    return values


def check_parameters(notebook: Notebook) -> None:
    places = {"parameters": [], "injected-parameters": []}
    for index, cell in enumerate(notebook.node.cells):
        for tag in places.keys() & set(cell.metadata.get("tags", [])):
            places[tag].append(index)
    assert len(places["parameters"]) == 1, f"{places['parameters']} are tagged parameters"
    index = places["parameters"][0]
    values = literals(notebook.node.cells[index].source)
    assert tuple(values) == PARAMETERS, f"parameters are {tuple(values)}"
    # So that papermill without -p runs for real.
    assert (values["profile"], values["reference_run"]) == ("cpu", False)
    assert values["overrides"] == {}
    # What is committed shows the reference run; papermill replaces this cell.
    assert places["injected-parameters"] == [index + 1], "no injected-parameters cell right behind"
    injected = literals(notebook.node.cells[index + 1].source)
    assert injected == {"reference_run": True}, f"committed with {injected}"


def check_bootstrap(notebook: Notebook) -> None:
    cells = [cell for cell in notebook.code if is_bootstrap(cell)]
    assert len(cells) == 1, f"{len(cells)} cells are tagged bootstrap"
    assert cells[0].source == bootstrap_source(notebook.url), "run: python -m rlhf_helpers badges"
    first = notebook.code[0]
    assert is_bootstrap(first), "the bootstrap cell is not the first code cell"


def check_badge(notebook: Notebook) -> None:
    badge = colab_badge(notebook.url, notebook.path.name)
    assert badge in notebook.markdown[0], "no badge, or of another address, in the first cell"
    everything = "\n".join(notebook.markdown)
    assert everything.count("colab-badge.svg") == 1, "more than one Colab badge"


def check_cell_lengths(notebook: Notebook) -> None:
    lengths = [len(cell.source.splitlines()) for cell in notebook.code]
    assert statistics.median(lengths) <= MEDIAN_LINES, f"median {statistics.median(lengths)} lines"
    assert max(lengths) <= LONGEST_CELL, f"a cell of {max(lengths)} lines"


def check_was_executed(notebook: Notebook) -> None:
    counts = [cell.execution_count for cell in notebook.code]
    # nbval compares nothing in a cell without a number.
    assert counts == list(range(1, len(counts) + 1)), f"execution counts {counts}"


def check_outputs_are_clean(notebook: Notebook) -> None:
    for cell in notebook.code:
        for output in cell.outputs:
            where = f"In [{cell.execution_count}]"
            assert output.output_type != "error", f"{where} ended in an error"
            assert output.get("name") != "stderr", f"{where} has stderr: {output.text[:120]!r}"
    assert any(cell.outputs for cell in notebook.code), "no outputs at all"


def check_links(notebook: Notebook) -> None:
    for text in notebook.markdown:
        targets = [a or b for a, b in IMAGE.findall(text)] + LINK.findall(text)
        for target in targets:
            if re.match(r"https?:|mailto:|#|attachment:", target):
                continue
            path = notebook.path.parent / target.partition("#")[0]
            assert path.exists(), f"{target} leads nowhere"


def check_imports(notebook: Notebook) -> None:
    for node in ast.walk(notebook.tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            top = module.partition(".")[0]
            known = top in sys.stdlib_module_names or top in ("rlhf_helpers", "google", "IPython")
            name = DISTRIBUTION.get(top, top).replace("_", "-").lower()
            assert known or name in notebook.requirements, f"{module} is in no requirement"


def check_redefines_nothing_else(notebook: Notebook) -> None:
    """A name of the package stands for the package's own, but for what is written on purpose."""
    defined = {node.name for node in ast.walk(notebook.tree) if isinstance(node, DEFINITIONS)}
    again = (defined & notebook.package_names) - WRITTEN.get(notebook.path.name, set())
    assert not again, f"{sorted(again)} stand in rlhf_helpers"


def check_no_machine_or_secret(notebook: Notebook) -> None:
    text = notebook.path.read_text(encoding="utf-8")
    for pattern in (MACHINE_PATH, TOKEN):
        found = pattern.search(text)
        assert not found, f"{found.group(0)!r}"


# --- how a notebook teaches ---


def check_first_screen(notebook: Notebook) -> None:
    first = notebook.node.cells[0].source
    assert IMAGE.search(first.replace(colab_badge(notebook.url, notebook.path.name), "")), (
        "the first cell shows no picture"
    )
    assert "**After this notebook you can**" in first, "the first cell does not say what for"
    assert "<!-- costs -->" not in "".join(notebook.markdown), "costs belong to the end of 01"
    places = [i for i, cell in enumerate(notebook.node.cells) if cell.get("outputs")]
    assert places[0] <= FIRST_OUTPUT, f"the first output stands in cell {places[0]}"
    texts = [text for text in output_texts(notebook.node.cells[places[0]]) if text.strip()]
    said = [line for text in texts for line in text.splitlines()
            if not line.startswith(("Showing the", "Running in"))]  # fmt: skip
    assert said, "the first output is plumbing alone"


def output_texts(cell: nbformat.NotebookNode) -> list[str]:
    """The plain text of all outputs of a cell."""
    return [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs]


def check_written_on_the_page(notebook: Notebook) -> None:
    missing = set(WRITTEN.get(notebook.path.name, ()))
    for i, cell in enumerate(notebook.code):
        for node in ast.parse(TransformerManager().transform_cell(cell.source)).body:
            if not isinstance(node, DEFINITIONS):
                continue
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"
            if node.name in missing:
                beside = cell.source + "\n" + notebook.code[i + 1].source
                after = beside.split(f" {node.name}(", 1)[1]
                assert f"{node.name}(" in after or f"({node.name}," in after, (
                    f"{node.name} is not called"
                )
                assert re.search(r"^\s*assert\b", after, re.M), f"nothing asserts {node.name}"
                missing.discard(node.name)
    assert not missing, f"{sorted(missing)} are not written on the page"


def is_folded(cell: nbformat.NotebookNode, how: tuple[dict, str]) -> bool:
    """Whether a cell's metadata has all that `how` names, and its tag."""
    metadata, tag = how
    return tag in cell.metadata.get("tags", []) and all(
        metadata[key].items() <= cell.metadata.get(key, {}).items()
        if isinstance(metadata[key], dict) else cell.metadata.get(key) == metadata[key]
        for key in metadata
    )  # fmt: skip


def check_predictions(notebook: Notebook) -> None:
    """Each is answered by code whose output is folded, and then by a folded text."""
    waiting, answered, asked = False, 0, 0
    for cell in notebook.node.cells:
        if cell.cell_type == "code":
            if waiting and cell.outputs:
                where = f"In [{cell.execution_count}]"
                assert is_folded(cell, OUTPUT_FOLDED), f"{where} tells it"
                # JupyterLab shows the first line of a folded text.
                told = [out.text for out in cell.outputs if out.output_type == "stream"]
                assert not told or told[0].startswith("Answer:\n"), f"{where} begins with it"
            continue
        if waiting:
            assert "<details><summary>Answer</summary>" in cell.source, "no answer follows"
            answered, waiting = answered + 1, False
        if "**Predict.**" in cell.source:
            waiting, asked = True, asked + 1
    assert asked == answered >= 2, f"{asked} predictions, {answered} answers"


def check_folded_sources(notebook: Notebook) -> None:
    for cell in (notebook.code[0], notebook.code[-1]):
        assert is_folded(cell, SOURCE_FOLDED), f"In [{cell.execution_count}] is not folded"
    assert "## What was seen" in notebook.code[-1].source, "it does not end with what was seen"


def check_live_cells(notebook: Notebook) -> None:
    """nbval looks away where the text depends on the machine, and nowhere else."""
    for cell in notebook.code:
        if not cell.outputs:
            continue
        where = f"In [{cell.execution_count}]"
        ignored, live = IGNORED in cell.metadata.get("tags", []), bool(LIVE.search(cell.source))
        assert ignored or not live, f"{where} is live and carries no {IGNORED}"
        assert live or not ignored, f"{where} is not compared although nothing in it is live"


def check_typography(notebook: Notebook) -> None:
    """A real minus sign, and a space before %, in prose and in what cells show."""
    prose = [re.sub(r"`[^`]*`|\$[^$]*\$", "", text) for text in notebook.markdown]
    shown = [text for cell in notebook.code for text in output_texts(cell)]
    for text in prose + [t for t in shown if "Trainable Ratio" not in t]:  # OpenDelta's own line
        found = re.search(r"(?<![\w.)\]-])-\d|\d%", text)
        assert not found, f"{text[max(0, found.start() - 20) : found.end() + 5]!r}"


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


def package_names(package: Path) -> set[str]:
    """Names of all functions and classes at the top level of the package's modules."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, DEFINITIONS)}

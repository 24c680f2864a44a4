"""What a committed notebook must be like, checked without running it. No torch.

Each check takes a `Notebook` and raises AssertionError with the place and the reason.
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
]
PARAMETERS = ("profile", "run_dir", "seed", "overrides", "reference_run")
MAX_BYTES = 1_000_000
CELLS = range(20, 61)
MEDIAN_LINES, LONGEST_CELL = 8, 40
# Import names that differ from the distribution's name in requirements.txt.
DISTRIBUTION = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|Users|mnt|var|opt)/[\w.-]+")
TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9-]{20,})")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]+src=[\"']([^\"']+)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)[^)]*\)")


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
    assert len(notebook.node.cells) in CELLS, f"{len(notebook.node.cells)} cells"


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
            known = top in sys.stdlib_module_names or top in ("rlhf_helpers", "google")
            name = DISTRIBUTION.get(top, top).replace("_", "-").lower()
            assert known or name in notebook.requirements, f"{module} is in no requirement"


def check_redefines_nothing(notebook: Notebook) -> None:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    defined = {node.name for node in ast.walk(notebook.tree) if isinstance(node, kinds)}
    again = defined & notebook.package_names
    assert not again, f"{sorted(again)} stand in rlhf_helpers"


def check_no_machine_or_secret(notebook: Notebook) -> None:
    text = notebook.path.read_text(encoding="utf-8")
    for pattern in (MACHINE_PATH, TOKEN):
        found = pattern.search(text)
        assert not found, f"{found.group(0)!r}"


def check_questions(notebook: Notebook) -> None:
    text = "\n".join(notebook.markdown)
    folded = len(re.findall(r"<details>.*?<summary>.*?</summary>.*?</details>", text, re.S))
    assert folded == 2, f"{folded} folded answers"


def check_opening(notebook: Notebook) -> None:
    opening = "\n".join(notebook.markdown[:3])
    for word in ("cpu", "T4", "A100"):
        assert word in opening, f"the opening says nothing about {word}"


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


def package_names(package: Path) -> set[str]:
    """Names of all functions and classes at the top level of the package's modules."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, kinds)}

"""Every committed notebook passes every static check, and every check can fail."""

import re
from pathlib import Path

import nbformat
import notebook_checks as checks
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_notebooks import PARAMETERS, tagged_cell

from rlhf_helpers.notebook.badges import (
    bootstrap_source,
    colab_badge,
    replace_badges,
    repository_url,
    rewrite_badges,
)
from rlhf_helpers.notebook.doctor import requirement_lines

ROOT = Path(__file__).resolve().parents[2]
URL = repository_url(ROOT / "pyproject.toml")
NOTEBOOKS = checks.NOTEBOOKS
by_check = pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)


REQUIREMENTS = {
    canonicalize_name(Requirement(line).name)
    for line in requirement_lines(ROOT / "requirements.txt")
}
PACKAGE_NAMES = checks.package_names(ROOT / "rlhf_helpers")


def as_checked(path: Path) -> checks.Notebook:
    return checks.Notebook(path, URL, REQUIREMENTS, PACKAGE_NAMES)


def test_the_notebooks_are_these():
    found = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert found == NOTEBOOKS


@by_check
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name, check):
    check(as_checked(ROOT / "notebooks" / name))


# --- a notebook that passes, and one change for each check that must not pass --------------------


NEW = "01_setup.ipynb"
LOOP = "![The loop](../figures/diagrams/loop.svg)"
ANSWER = "<details><summary>Answer</summary>A</details>"


def _plumbing(first: str) -> list[nbformat.NotebookNode]:
    return [
        new_markdown_cell(first),
        folded(tagged_cell(bootstrap_source(URL), "bootstrap"), checks.SOURCE_FOLDED),
        tagged_cell(PARAMETERS, "parameters"),
        tagged_cell("reference_run = True", "injected-parameters"),
    ]


def folded(cell: nbformat.NotebookNode, how: tuple[dict, str]) -> nbformat.NotebookNode:
    cell.metadata.update(how[0])
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), how[1]]
    return cell


def shows(source: str, text: str = "1") -> nbformat.NotebookNode:
    return new_code_cell(source, outputs=[new_output("stream", name="stdout", text=f"{text}\n")])


def _counted(cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    code = [cell for cell in cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
    return new_notebook(cells=cells)


def good_notebook() -> nbformat.NotebookNode:
    first = f"# Title\n{colab_badge(URL, NEW)}\n{LOOP}\n**After this notebook you can** add."
    live = shows("try_it(str, 'text')", "a text")
    live.metadata["tags"] = [checks.IGNORED]
    cells = _plumbing(first) + [
        new_markdown_cell("It fell by −2, which is 5 %."),
        shows("import numpy\nrun"),
        new_code_cell("def short_reward(samples):\n    return [1]"),
        new_code_cell("assert short_reward(['a']) == [1]"),
        new_markdown_cell("**Predict.** One?"),
        folded(shows("x = 1\nx", "Answer:\n1"), checks.OUTPUT_FOLDED),
        new_markdown_cell(f"{ANSWER}\n\n**Predict.** Two?"),
        folded(shows("x = 2\nx", "Answer:\n2"), checks.OUTPUT_FOLDED),
        new_markdown_cell(ANSWER),
        live,
        folded(shows("show('## What was seen')"), checks.SOURCE_FOLDED),
    ]
    return _counted(cells)


def _append_to_last(text):
    def change(notebook):
        notebook.cells[-1].source += text

    return change


def _replace_in(index, old, new):
    def change(notebook):
        assert old in notebook.cells[index].source
        notebook.cells[index].source = notebook.cells[index].source.replace(old, new)

    return change


def _output(*args, **kwargs):
    def change(notebook):
        notebook.cells[-1].outputs = [new_output(*args, **kwargs)]

    return change


def _drop_outputs(notebook):
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []


def _skip_a_count(notebook):
    notebook.cells[-1].execution_count = None


def _lengthen_all(notebook):
    for cell in notebook.cells[5:]:
        cell.source += "\n" * 9 + "y = 1"


def _many_cells(notebook):
    notebook.cells += [new_code_cell("x = 1") for _ in range(25)]


def _swap_first_code(notebook):
    notebook.cells[1], notebook.cells[2] = notebook.cells[2], notebook.cells[1]


DAMAGE = {
    "check_is_valid": [_append_to_last("\ndef (")],
    "check_size": [_append_to_last("\n# " + "x" * 1_000_000), _many_cells],
    "check_parameters": [
        _replace_in(2, "seed = 0", "seed = 40 + 2 - len('')"),
        _replace_in(2, "seed = 0\n", ""),
        _replace_in(2, "seed = 0", "seed = 0\nextra = 1"),
        _replace_in(2, "reference_run = False", "reference_run = True"),
        lambda n: n.cells[2].metadata.pop("tags"),
        _replace_in(3, "True", "False"),
        lambda n: n.cells[3].metadata.pop("tags"),
        lambda n: n.cells.insert(3, n.cells.pop(4)),
    ],
    "check_bootstrap": [
        _replace_in(1, "sys.executable", "'python'"),
        lambda n: n.cells[1].metadata.pop("tags"),
        _swap_first_code,
    ],
    "check_badge": [
        _replace_in(0, URL.removeprefix("https://github.com/"), "somebody/else"),
        _replace_in(0, "01_setup", "02_setup"),
    ],
    "check_cell_lengths": [_lengthen_all, _append_to_last("\n" * 40 + "y = 1")],
    "check_was_executed": [_skip_a_count],
    "check_outputs_are_clean": [
        _output("error", ename="ValueError", evalue="", traceback=[]),
        _output("stream", name="stderr", text="Warning"),
        _drop_outputs,
    ],
    "check_links": [
        _replace_in(4, "It", "![curve](../figures/not_there.png)"),
        _replace_in(4, "It", "<img width=3 src='not_there.png'>"),
        _replace_in(4, "It", "[next](09_not_there.ipynb#part)"),
    ],
    "check_imports": [
        _append_to_last("\nimport trlx.data"),
        _append_to_last("\nfrom trl import a"),
    ],
    "check_redefines_nothing_else": [_append_to_last("\ndef run_pipeline(): pass")],
    "check_no_machine_or_secret": [
        _append_to_last("\nopen('/home/" + "ada/x.txt')"),
        _append_to_last("\nkey = 'hf_" + "abcdefghijklmnopqrst'"),
    ],
    "check_first_screen": [
        _replace_in(0, LOOP, ""),
        _replace_in(0, "**After this notebook you can**", "You can"),
        _replace_in(4, "It", "<!-- costs -->"),
        lambda n: n.cells.insert(4, n.cells.pop(6)),
        lambda n: n.cells[5].outputs[0].update(text="Showing the finished run in x.\n"),
    ],
    "check_written_on_the_page": [
        _replace_in(6, "short_reward", "long_reward"),
        _replace_in(7, "assert", "print("),
        _replace_in(7, "short_reward(['a'])", "[1]"),
        _replace_in(6, "    return", "    x = 1\n" * 20 + "    return"),
    ],
    "check_predictions": [
        lambda n: n.cells[9].metadata.pop("collapsed"),
        lambda n: n.cells[9].metadata.update(jupyter={"outputs_hidden": False}),
        lambda n: n.cells[11].metadata.update(tags=[]),
        lambda n: n.cells[9].outputs[0].update(text="1\n"),
        _replace_in(10, "<details>", ""),
        _replace_in(10, "**Predict.**", "Guess."),
        lambda n: n.cells.pop(12),
    ],
    "check_folded_sources": [
        lambda n: n.cells[1].metadata.pop("cellView"),
        lambda n: n.cells[-1].metadata.pop("jupyter"),
        _replace_in(-1, "What was seen", "The end"),
    ],
    "check_live_cells": [
        lambda n: n.cells[13].metadata.pop("tags"),
        lambda n: n.cells[5].metadata.update(tags=[checks.IGNORED]),
    ],
    "check_typography": [
        _replace_in(4, "−2", "-2"),
        _replace_in(4, "5 %", "5%"),
        _output("stream", name="stdout", text="gain -0.3\n"),
    ],
}


def written(tmp_path: Path, notebook: nbformat.NotebookNode) -> checks.Notebook:
    """The notebook in a folder beside which the diagrams stand."""
    diagrams = tmp_path / "figures" / "diagrams"
    diagrams.mkdir(parents=True, exist_ok=True)
    (diagrams / "loop.svg").touch()
    path = tmp_path / "notebooks" / NEW
    path.parent.mkdir(exist_ok=True)
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    return as_checked(path)


@by_check
def test_a_good_notebook_passes(tmp_path, check):
    check(written(tmp_path, good_notebook()))


def _each(damage):
    return [(name, change) for name, changes in damage.items() for change in changes]


@pytest.mark.parametrize("name, change", _each(DAMAGE))
def test_a_damaged_notebook_is_found(tmp_path, name, change):
    notebook = good_notebook()
    change(notebook)
    with pytest.raises((AssertionError, SyntaxError)):
        getattr(checks, name)(written(tmp_path, notebook))


def test_every_check_is_seen_failing():
    assert {check.__name__ for check in checks.CHECKS} == set(DAMAGE)


# --- exercises ------------------------------------------------------------------------------------

# Of the checks above, those that hold for exercises as well.
FOR_EXERCISES = (
    checks.check_is_valid, checks.check_bootstrap, checks.check_cell_lengths,
    checks.check_was_executed, checks.check_outputs_are_clean, checks.check_links,
    checks.check_imports, checks.check_no_machine_or_secret,
)  # fmt: skip
TITLE = re.compile(r"^## Exercise (\d+) · .+\n\n★{1,3} · \d+ minutes\n", re.M)


def exercises(name: str) -> checks.Notebook:
    return as_checked(ROOT / "notebooks" / "exercises" / name)


def test_the_exercises_are_these():
    found = sorted(path.name for path in (ROOT / "notebooks" / "exercises").glob("*.ipynb"))
    assert found == checks.EXERCISES


@pytest.mark.parametrize("check", FOR_EXERCISES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", checks.EXERCISES)
def test_exercise_notebook(name, check):
    check(exercises(name))


@pytest.mark.parametrize("name", checks.EXERCISES)
def test_each_exercise_is_open_and_its_folded_solution_is_right(name):
    notebook = exercises(name)
    assert colab_badge(URL, f"exercises/{name}") in notebook.markdown[0]
    text = "\n".join(notebook.markdown)
    numbers = [int(number) for number in TITLE.findall(text)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 3
    assert text.count("<summary>Hint</summary>") == len(numbers)
    code = notebook.code[1:]  # after the bootstrap: stub, check, solution, again and again
    assert len(code) == 3 * len(numbers)
    for stub, check, solution in zip(code[::3], code[1::3], code[2::3], strict=True):
        assert "raise NotImplementedError" in stub.source and not stub.outputs
        assert all(line.startswith("Still open") for line in said(check))
        assert "solution" in solution.metadata.tags
        assert checks.is_folded(solution, checks.SOURCE_FOLDED)
        assert set(said(solution)) == {"Right."}


def said(cell: nbformat.NotebookNode) -> list[str]:
    """The lines that a cell printed; at least one."""
    lines = "".join(checks.output_texts(cell)).splitlines()
    assert lines
    return lines


# --- the repository's address ---------------------------------------------------------------------


def test_one_command_moves_notebooks_and_readme_to_another_address(tmp_path):
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "01_setup.ipynb"
    path.write_text(nbformat.writes(good_notebook()), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{colab_badge(URL, '01_setup.ipynb')} and more\n")
    project = '[project.urls]\nRepository = "https://github.com/new-owner/new-name/"\n'
    (tmp_path / "pyproject.toml").write_text(project)

    assert rewrite_badges(tmp_path) == [path, readme]
    new = "https://github.com/new-owner/new-name"
    assert colab_badge(new, "01_setup.ipynb") in readme.read_text()
    moved = checks.Notebook(path, new, set(), set())
    checks.check_badge(moved)
    checks.check_bootstrap(moved)
    assert "rlhf-on-one-gpu" not in path.read_text()
    assert rewrite_badges(tmp_path) == []


def test_readme_badges_have_the_address_of_pyproject():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "colab-badge.svg" in text
    assert replace_badges(text, URL) == text


def test_the_bootstrap_cell_is_short_and_runs_twice(tmp_path, monkeypatch):
    source = bootstrap_source(URL)
    assert len(source.splitlines()) <= 10
    monkeypatch.chdir(ROOT / "tests")  # a folder of the repository, as notebooks/ is
    monkeypatch.setattr("sys.path", ["first"])
    for _ in range(2):
        scope: dict = {}
        exec(source, scope)
        assert scope["sys"].path[0] == str(ROOT)

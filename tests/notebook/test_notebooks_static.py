"""Every committed notebook passes every static check, and every check can fail."""

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


def good_notebook() -> nbformat.NotebookNode:
    cells = [
        new_markdown_cell(f"# Title\n{colab_badge(URL, '01_setup.ipynb')}\n| cpu | T4 | A100 |"),
        tagged_cell(bootstrap_source(URL), "bootstrap"),
        tagged_cell(PARAMETERS, "parameters"),
        tagged_cell("reference_run = True", "injected-parameters"),
        new_markdown_cell("<details><summary>Q</summary>A</details>" * 2),
    ]
    cells += [new_code_cell(f"import numpy\nx = {i}\nx") for i in range(20)]
    counted = [cell for cell in cells if cell.cell_type == "code"]
    for count, cell in enumerate(counted, start=1):
        cell.execution_count = count
    counted[-1].outputs = [new_output("stream", name="stdout", text="ok\n")]
    return new_notebook(cells=cells)


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
        cell.source += "\n" * 6 + "y = 1"


def _drop_cells(notebook):
    del notebook.cells[10:]


def _swap_first_code(notebook):
    notebook.cells[1], notebook.cells[2] = notebook.cells[2], notebook.cells[1]


DAMAGE = {
    "check_is_valid": [_append_to_last("\ndef (")],
    "check_size": [_append_to_last("\n# " + "x" * 1_000_000), _drop_cells],
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
        _replace_in(4, "A<", "![curve](../figures/not_there.png)<"),
        _replace_in(4, "A<", "<img width=3 src='not_there.png'><"),
        _replace_in(4, "A<", "[next](09_not_there.ipynb#part)<"),
    ],
    "check_imports": [
        _append_to_last("\nimport trlx.data"),
        _append_to_last("\nfrom trl import a"),
    ],
    "check_redefines_nothing": [_append_to_last("\ndef run_pipeline(): pass")],
    "check_no_machine_or_secret": [
        _append_to_last("\nopen('/home/" + "ada/x.txt')"),
        _append_to_last("\nkey = 'hf_" + "abcdefghijklmnopqrst'"),
    ],
    "check_questions": [_replace_in(4, "<summary>", "")],
    "check_opening": [_replace_in(0, "T4", "GPU")],
}


def written(tmp_path: Path, notebook: nbformat.NotebookNode) -> checks.Notebook:
    path = tmp_path / "01_setup.ipynb"
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    return as_checked(path)


@by_check
def test_a_good_notebook_passes(tmp_path, check):
    check(written(tmp_path, good_notebook()))


@pytest.mark.parametrize(
    "name, change", [(name, change) for name, changes in DAMAGE.items() for change in changes]
)
def test_a_damaged_notebook_is_found(tmp_path, name, change):
    notebook = good_notebook()
    change(notebook)
    with pytest.raises((AssertionError, SyntaxError)):
        getattr(checks, name)(written(tmp_path, notebook))


def test_every_check_is_seen_failing():
    assert {check.__name__ for check in checks.CHECKS} == set(DAMAGE)


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

"""Write the repository's address, kept once in pyproject.toml, into notebooks and README.

    python -m rlhf_helpers badges

Every notebook has a Colab badge in its first cell and one bootstrap cell, both made here.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat

from rlhf_helpers.config.reading import read_text
from rlhf_helpers.runs.files import atomic_write_text

from .reading import parse_notebook

BADGE = re.compile(
    r"\[!\[Open In Colab\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
    r"\(https://colab\.research\.google\.com/github/[^\s)]+?/notebooks/(?P<name>[\w./-]+\.ipynb)\)"
)
BOOTSTRAP_TAG = "bootstrap"


def repository_url(pyproject: Path) -> str:
    """The address in [project.urls], without a trailing slash."""
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    return data["project"]["urls"]["Repository"].rstrip("/")


def colab_badge(url: str, notebook: str) -> str:
    """Markdown that opens notebooks/<notebook> of the repository at `url` in Colab."""
    slug = url.removeprefix("https://github.com/")
    return (
        "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{notebook})"
    )


def bootstrap_source(url: str) -> str:
    """The bootstrap cell: on Colab it fetches and installs; elsewhere it finds the package."""
    folder = url.rsplit("/", 1)[-1]
    return f"""\
import subprocess
import sys
from pathlib import Path

url, here = "{url}", Path.cwd()
if "google.colab" in sys.modules:  # fetch the repository; torch and numpy stay as they are
    here = Path("/content/{folder}")
    here.exists() or subprocess.run(["git", "clone", "--depth=1", url, str(here)], check=True)
    subprocess.run([sys.executable, str(here / "rlhf_helpers/notebook/colab.py")], check=True)
sys.path[:0] = [str(p) for p in (here, *here.parents) if (p / "rlhf_helpers").is_dir()]"""


def replace_badges(text: str, url: str) -> str:
    """Point every Colab badge in a Markdown text to the repository at `url`."""
    return BADGE.sub(lambda match: colab_badge(url, match["name"]), text)


def is_bootstrap(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell is the one that makes the package importable."""
    return cell.cell_type == "code" and BOOTSTRAP_TAG in cell.metadata.get("tags", [])


def rewrite_notebook(path: Path, url: str) -> bool:
    """Refresh badge and bootstrap cell of one notebook; whether anything changed."""
    before = read_text(path)
    notebook = parse_notebook(before, path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = replace_badges(cell.source, url)
        elif is_bootstrap(cell):
            cell.source = bootstrap_source(url)
    return _write_if_changed(path, before, nbformat.writes(notebook) + "\n")


def rewrite_badges(repo_root: Path) -> list[Path]:
    """Refresh README.md and all notebooks from pyproject.toml; the files that changed."""
    url = repository_url(repo_root / "pyproject.toml")
    folder = repo_root / "notebooks"
    notebooks = sorted([*folder.rglob("[0-9]*.ipynb"), *folder.glob("colab/*.ipynb")])
    changed = [path for path in notebooks if rewrite_notebook(path, url)]
    readme = repo_root / "README.md"
    before = read_text(readme)
    if _write_if_changed(readme, before, replace_badges(before, url)):
        changed.append(readme)
    return changed


def _write_if_changed(path: Path, before: str, after: str) -> bool:
    if after == before:
        return False
    atomic_write_text(path, after)
    return True

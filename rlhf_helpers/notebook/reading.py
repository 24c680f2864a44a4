"""Notebooks as files that somebody may have touched."""

from __future__ import annotations

from pathlib import Path

import nbformat

from rlhf_helpers.config.reading import read_text, unreadable


def parse_notebook(text: str, path: Path) -> nbformat.NotebookNode:
    """A notebook's text as nbformat has it; UnreadableFileError where it is no notebook."""
    try:
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat and the JSON schema have no class in common
        problem = f"it is no notebook ({type(error).__name__})"
        raise unreadable(path, problem) from error
    return notebook


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook in a file; UnreadableFileError where there is none."""
    return parse_notebook(read_text(path), path)

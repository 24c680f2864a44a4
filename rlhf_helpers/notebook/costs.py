"""Time and memory of each notebook, in its header: measured by the reference runs, or said not to
be measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat

from rlhf_helpers.config.reading import read_text
from rlhf_helpers.progress import duration
from rlhf_helpers.runs.contents import read_manifest
from rlhf_helpers.runs.files import (
    MissingRunFileError,
    atomic_write_text,
    reference_run_dir,
)

from .reading import parse_notebook

# The machine of each profile, as the header's columns name it.
MACHINES = {"cpu": "2 CPU cores", "t4": "T4, 16 GB", "seed": "A100, 40 GB"}
NOT_MEASURED = "not measured"
BLOCK = re.compile(r"<!-- costs -->.*?<!-- /costs -->", re.DOTALL)


def known_costs(profile: str) -> list[dict[str, Any]]:
    """Rows of the reference run's manifest (name, seconds, peak_rss_bytes), [] without one."""
    try:
        path = reference_run_dir(profile).manifest
    except MissingRunFileError:
        return []
    rows = read_manifest(path)["notebooks"] if path.exists() else []
    return [row for row in rows if row["status"] == "executed"]


def cost_table(notebook: str) -> str:
    """Markdown: what `notebook` (its stem) takes on each machine, between two marks."""
    found = {profile: _cost(notebook, profile) for profile in MACHINES}
    lines = [
        "| | " + " | ".join(f"`{p}`: {MACHINES[p]}" for p in MACHINES) + " |",
        "|---" * (len(MACHINES) + 1) + "|",
        "| time, m:ss | " + " | ".join(cost[0] for cost in found.values()) + " |",
        "| peak memory | " + " | ".join(cost[1] for cost in found.values()) + " |",
    ]
    return "\n".join(["<!-- costs -->", *lines, "<!-- /costs -->"])


def _cost(notebook: str, profile: str) -> tuple[str, str]:
    for row in known_costs(profile):
        if row["name"] == notebook:
            return duration(row["seconds"]), f"{row['peak_rss_bytes'] / 1e9:.1f} GB"
    return NOT_MEASURED, NOT_MEASURED


def rewrite_cost_table(path: Path) -> bool:
    """Bring the table in one notebook's header up to date; whether anything changed."""
    before = read_text(path)
    notebook = parse_notebook(before, path)
    table = cost_table(path.stem)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = BLOCK.sub(lambda _: table, cell.source)
    after = nbformat.writes(notebook) + "\n"
    if after != before:
        atomic_write_text(path, after)
    return after != before

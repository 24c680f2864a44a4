"""Tables as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_helpers.runs.files import atomic_write_text


def write_csv(path: Path, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> Path:
    """A CSV file with these columns, numbers to six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _rounded(value) for key, value in row.items()})
    atomic_write_text(path, text.getvalue())
    return path


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value

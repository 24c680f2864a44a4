"""The tests that the pages name as proof exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
NAMED = re.compile(r"\b(?:tests/)?(\w+/test_\w+\.py)::(test_\w+)")


def names_in(path: Path) -> set[str]:
    """Names of the test functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["README.md", "docs/failures.md"])
def test_every_test_that_a_page_names_exists(page):
    for file, name in NAMED.findall((ROOT / page).read_text(encoding="utf-8")):
        assert (TESTS / file).exists(), file
        assert name in names_in(TESTS / file), f"{file}::{name}"


def test_each_row_of_the_table_of_failures_names_a_test():
    rows = [line for line in (ROOT / "docs" / "failures.md").read_text().splitlines()
            if line.startswith("| ") and not line.startswith("| What goes wrong")]  # fmt: skip
    assert len(rows) >= 15
    for row in rows:
        assert NAMED.search(row.split("|")[-2]), row
        assert len(row.split("|")) == 6, row


def test_the_page_shows_the_watchdogs_limits():
    from rlhf_helpers.config.kwargs import WATCHDOG_DEFAULTS

    page = (ROOT / "docs" / "failures.md").read_text()
    for name, value in WATCHDOG_DEFAULTS.items():
        shown = value if isinstance(value, str) else f"{value:g}"
        assert re.search(rf"\b{name}: {re.escape(shown)}\b", page), name

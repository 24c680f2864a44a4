"""Options of the test suite."""

from pathlib import Path


def pytest_addoption(parser):
    """`--golden-dir`: which recorded numbers of trlX tests/test_trlx_parity.py checks."""
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="directory in the format of tests/golden/README.md",
    )

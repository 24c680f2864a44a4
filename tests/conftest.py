"""Options of the test suite, and one thread for each of its processes."""

import os
from pathlib import Path

# Before torch is imported: several test files run side by side, and threads that wait for a core
# that another process has would slow all of them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser):
    """`--golden-dir`: which recorded numbers of trlX tests/training/test_trlx_parity.py checks."""
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="directory in the format of tests/golden/README.md",
    )

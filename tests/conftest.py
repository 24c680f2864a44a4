"""Options of the test suite, and one thread for each of its processes.

The tests' numbers are those of a CPU: a GPU is hidden from all but `make test-gpu`.

With RLHF_NO_SKIPS=1 a test that is skipped is a failure,
unless it is skipped for a reason of MAY_BE_SKIPPED.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: several test files run side by side, and threads that wait for a core
# that another process has would slow all of them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if not os.environ.get("RLHF_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# An example may take its time: on a busy machine the default of 200 ms fails at random.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_addoption(parser):
    """`--golden-dir`: which recorded numbers of trlX tests/training/test_trlx_parity.py checks."""
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="directory in the format of tests/golden/README.md",
    )


# trlX needs libraries of 2023; file systems may be mounted by root on a machine of its own only.
MAY_BE_SKIPPED = (
    "trlX is not installed", "no mount here", "no file system may be mounted here",
    "torch sees no GPU here",
)  # fmt: skip


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A skipped test as a failed one, where that is asked for."""
    outcome = yield
    _fail_if_skipped(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """The same for a whole file that is skipped."""
    outcome = yield
    _fail_if_skipped(outcome.get_result())


def _fail_if_skipped(report):
    if not os.environ.get("RLHF_NO_SKIPS") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed in reason for allowed in MAY_BE_SKIPPED):
        report.outcome = "failed"
        report.longrepr = f"{reason}\nNothing may be skipped here: `make extras` installs it."

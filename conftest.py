"""How `pytest --nbval notebooks/` replays the committed notebooks."""

import os


def pytest_configure(config):
    """Kernels that nbval starts print no progress: it would differ at every replay."""
    if getattr(config.option, "nbval", False) or getattr(config.option, "nbval_lax", False):
        os.environ.setdefault("RLHF_QUIET_PROGRESS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collectstart(collector):
    """Compare what cells print and show, but not stderr: warnings depend on versions."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)

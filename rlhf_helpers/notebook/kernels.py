"""Notebook kernels that run this very interpreter, with the environment that training wants."""

from __future__ import annotations

import os
from pathlib import Path

import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from traitlets import default

from rlhf_helpers.config.trl_config import repo_root

# Measured on CPU, these two make the PPO run about a fifth faster: glibc keeps large freed blocks
# (activations of one size come and go at every step) instead of returning them to the system,
# and idle OpenMP threads sleep instead of spinning.
MALLOC_TUNABLES = (
    "glibc.malloc.mmap_threshold=2147483648:glibc.malloc.trim_threshold=8589934592"
)


def kernel_environment(package_parent: Path) -> dict[str, str]:
    """Variables added to a kernel's environment; what the user has set already wins."""
    wanted = {
        "GLIBC_TUNABLES": MALLOC_TUNABLES,
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",  # else a warning at every fork
        "RLHF_PLAIN_PROGRESS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # debugpy's remark about frozen modules
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    # The package is found from any directory, installed or not.
    paths = [str(package_parent), os.environ.get("PYTHONPATH", "")]
    added["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    return added


class InterpreterKernelManager(AsyncKernelManager):
    """Starts `sys.executable -m ipykernel_launcher`, whatever kernelspecs are installed.

    A kernelspec called python3 in the user's home may belong to another environment: looking
    kernels up by name would run the notebooks with other versions than the ones checked.
    """

    @default("transport_encryption")
    def _default_transport_encryption(self) -> str:
        # Where pyzmq can: the talk with the kernel then needs its key, and no warning is printed.
        return "auto" if zmq.has("curve") else "disabled"

    @property
    def kernel_spec(self) -> KernelSpec:
        # ipykernel's own description: its command line starts with sys.executable.
        spec = KernelSpec(**get_kernel_dict())
        spec.env = kernel_environment(repo_root())
        return spec

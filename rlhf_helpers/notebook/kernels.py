"""Notebook kernels that run this very interpreter, with the environment that training wants."""

from __future__ import annotations

import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from traitlets import default

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.environment import added_environment

# Of a kernel alone, beside those of every process that trains.
KERNEL = {
    "RLHF_PLAIN_PROGRESS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # debugpy's remark about frozen modules
}


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
        spec.env = added_environment(repo_root(), KERNEL)
        return spec

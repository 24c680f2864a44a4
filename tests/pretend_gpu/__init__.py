"""A GPU in name only: real numbers on the host, and the rules of two devices.

    import pretend_gpu            # before torch
    pretend_gpu.switch_on()       # from here on torch says that there is a GPU
    ... whole runs ...
    pretend_gpu.counts.totals()   # {"kernels": .., "syncs": .., "copies": ..}

Tensors on cuda:0 are wrappers around tensors on the CPU (tensors.py). Where two devices meet, it
raises DeviceMismatch, as CUDA would raise; and it counts kernels, the waits of the host for the
device, and copies from the host. It says nothing about time, memory, real kernels, compilation or
several GPUs.
"""

from .build import load, why_not

load()

from .functions import switch_on  # noqa: E402  (torch is imported there, after `load`)
from .tensors import DeviceMismatch, GpuTensor, counts, to_gpu, to_host  # noqa: E402

__all__ = ["DeviceMismatch", "GpuTensor", "counts", "switch_on", "to_gpu", "to_host", "why_not"]

"""Print pip's option for torch's CPU build where that is the one to take, and say why in one line.

On Linux with an x86-64 processor, PyPI's torch is the CUDA build: several GB that are of no use
without an NVIDIA driver. torch's own index has a CPU build of 200 MB. Where the driver is there, or
that index cannot be reached, nothing is printed and pip decides. Standard library only, since
nothing is installed yet.
"""

import platform
import shutil
import sys
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS = 10  # to answer in


def has_nvidia_driver() -> bool:
    """Whether this machine has one, told by its files or its tool."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def can_be_reached(index: str) -> bool:
    """Whether the index answers for torch."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=SECONDS):
            return True
    except OSError:
        return False


def choose(system: str, machine: str, driver: bool, reach=can_be_reached) -> tuple[str, str]:
    """pip's option, or "", and the sentence that says what is installed."""
    if system != "Linux" or machine != "x86_64":
        return "", "Installing torch: PyPI's build for this system."
    if driver:
        return "", "Installing torch with CUDA for the NVIDIA driver that is here: several GB."
    if reach(CPU_INDEX):
        return f"--index-url={CPU_INDEX}", "Installing torch's CPU build: no NVIDIA driver here."
    return "", (
        f"Installing torch as pip finds it, perhaps several GB with CUDA: {CPU_INDEX} with the CPU "
        "build cannot be reached."
    )


if __name__ == "__main__":
    option, sentence = choose(platform.system(), platform.machine(), has_nvidia_driver())
    print(sentence, file=sys.stderr)
    print(option)

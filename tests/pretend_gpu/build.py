"""Compiles cuda_in_name.cpp once and loads it; must come before torch is imported."""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("cuda_in_name.cpp")


def why_not() -> str | None:
    """Why this machine cannot pretend to have a GPU, in a few words; None where it can."""
    if sys.platform != "linux":
        return "the library is built for Linux only"
    if shutil.which("g++") is None:
        return "there is no g++ to compile cuda_in_name.cpp"
    if list((_torch_directory() / "lib").glob("libtorch_cuda*")):
        return "this torch is a CUDA build, which has device guard and hooks of its own"
    return None


def load() -> None:
    """Load torch's own libraries and then ours, so that CUDA's place is taken when torch asks."""
    if "torch" in sys.modules:
        raise RuntimeError("import pretend_gpu before torch")
    libraries = _torch_directory() / "lib"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_compiled()))


def _torch_directory() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent  # finds it without importing it


def _compiled() -> Path:
    """The shared library of this source and this torch, compiled where it is not there yet."""
    version = importlib.metadata.version("torch").encode()
    key = hashlib.sha256(SOURCE.read_bytes() + version).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"cuda_in_name_{os.getuid()}_{key}.so"
    if library.exists():
        return library
    torch = _torch_directory()
    unfinished = library.with_suffix(f".{os.getpid()}")
    subprocess.run(
        ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(SOURCE), "-o", str(unfinished),
         f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include", f"-L{torch}/lib",
         "-lc10", "-ltorch_cpu"],
        check=True,
    )  # fmt: skip
    os.replace(unfinished, library)  # two tests may compile at once
    return library

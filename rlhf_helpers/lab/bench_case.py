"""What the bench can be asked to measure. Imports neither torch nor transformers."""

from __future__ import annotations

import time
from dataclasses import dataclass

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
VARIED: dict[str, tuple[str, tuple[int, ...]]] = {  # dimension -> field of Case, its values
    "unfrozen": ("unfrozen", (1, 2, 4, 8)),
    "batch": ("batch", (4, 8, 16)),
    "tokens": ("new_tokens", (10, 20, 40, 80)),
    "rollouts": ("rollouts", (8, 16, 32)),
    "layers": ("layers", (4, 8, 16, 24)),
}


@dataclass
class Case:
    """What to measure: a profile or a shape, and how much of it. None: as the profile says."""

    profile: str | None = None
    shape: str | None = None
    layers: int | None = None  # of the shape, instead of its own number
    tiny: bool = False  # the shape's architecture with hardly any width, to try the code
    batch: int | None = None
    rollouts: int | None = None
    chunk: int | None = None
    new_tokens: int | None = None
    unfrozen: int | None = None
    threads: int | None = None
    iterations: int = 5
    naive: bool = True
    semantics: str | None = None
    reward: str | None = None  # "distilbert": a random model of its shape scores the token ids
    clock: str = "wall"  # or "cpu": seconds that the process computed, on a machine that is shared
    static_cache: bool = False  # decode with a static cache, which transformers compiles on CUDA
    memory_of: str | None = None  # only the peak memory of this engine

    @property
    def device(self) -> str:
        """Where it runs."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

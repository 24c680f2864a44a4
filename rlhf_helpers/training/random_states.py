"""Random number generators: their states out, back in, and undone where something fails."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's random number generators."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put all generators back to where `random_states` found them."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def undone_on_failure(prompts: Any = None) -> Iterator[None]:
    """Where what is inside fails, random numbers and the place in `prompts` are as before it.

    So it can be done again later, with the same result as if it had not failed.
    `prompts`: a PromptStream, or nothing.
    """
    states = random_states()
    place = {n: getattr(prompts, n) for n in ("epoch", "position") if hasattr(prompts, n)}
    try:
        yield
    except BaseException:
        set_random_states(states)
        for name, value in place.items():
            setattr(prompts, name, value)
        raise

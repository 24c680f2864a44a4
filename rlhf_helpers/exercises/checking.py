"""What the checks of all exercises share.

A check is called with the reader's function and says in one sentence that it is right, or what is
most likely wrong. It raises nothing, so that a notebook runs to its end with exercises still open.
What a check compares with is worked out in another way than in the solution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

RIGHT = "Right."
OPEN = "Still open: write the function in the cell above, run it, and run this cell again."
NOTHING = "it returns None; did you forget `return`?"


def report(find_mistake: Callable[..., str | None]) -> Callable[..., None]:
    """Turn a function that returns the likely mistake, or None, into a check that prints."""

    def check(*functions: Callable[..., Any]) -> None:
        try:
            mistake = find_mistake(*functions)
        except NotImplementedError:
            print(OPEN)
            return
        except Exception as error:  # the reader's own, whatever it is
            mistake = f"it raised {type(error).__name__}: {error}"
        print(RIGHT if mistake is None else f"Not yet: {mistake}")

    check.__name__ = check.__qualname__ = find_mistake.__name__
    check.__doc__ = find_mistake.__doc__
    return check


def close(a: Any, b: Any) -> bool:
    """Equal but for rounding, and of the same shape."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


def not_one_number(loss: Any) -> str | None:
    """What is wrong with a loss that is nothing, or has a shape; None where it is one number."""
    if loss is None:
        return NOTHING
    loss = torch.as_tensor(loss)
    if loss.numel() != 1:
        return f"a loss is one number; this has the shape {list(loss.shape)}: take the mean."
    return None

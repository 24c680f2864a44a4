"""peft, whatever torchao lies beside it.

peft asks for every layer whether torchao has quantised it. With a torchao that is too old for it
(Colab's image has one) that question alone raises ImportError; with one that is newer than it, an
import inside the answer does. Here nothing is ever quantised by torchao, so the question is
answered without looking.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_QUESTION = "is_torchao_available"


@contextmanager
def torchao_unseen() -> Iterator[None]:
    """While this lasts, peft takes torchao for absent; nobody else does. Imports peft.

    Raises ImportError where peft cannot be imported.
    """
    import peft  # noqa: F401  its modules hold the question under their own names

    asking = [
        module for name, module in list(sys.modules.items())
        if name.startswith("peft.") and _QUESTION in vars(module)
    ]  # fmt: skip
    answers = [getattr(module, _QUESTION) for module in asking]
    for module in asking:
        setattr(module, _QUESTION, lambda: False)
    try:
        yield
    finally:
        for module, answer in zip(asking, answers, strict=True):
            setattr(module, _QUESTION, answer)

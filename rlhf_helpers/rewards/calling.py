"""Which keywords a user's reward function gets beside `samples`, `prompts` and `outputs`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def tokenizer_keyword(reward_fn: Callable[..., Any], tokenizer: Any) -> dict[str, Any]:
    """{"tokenizer": tokenizer} for a function that takes it, as in trlX after 0.7.0, else {}.

    Look once, when the function is known, and give the keyword with every call.

    It is taken by a parameter named `tokenizer`, unless that has a value already (a default or
    functools.partial's), or by **kwargs. A wrapper of the form (*args, **kwargs) passes on what it
    gets to a function that cannot be seen, and gets none; functools.wraps shows the function.
    """
    try:
        parameters = inspect.signature(reward_fn).parameters
    except (TypeError, ValueError):  # no function, or one written in C
        return {}
    named = parameters.get("tokenizer")
    if named is not None and named.kind in (named.POSITIONAL_OR_KEYWORD, named.KEYWORD_ONLY):
        takes_it = named.default in (named.empty, None)
    else:
        kinds = {parameter.kind for parameter in parameters.values()}
        takes_it = (
            inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
        )
    return {"tokenizer": tokenizer} if takes_it else {}

"""Calling what a user wrote: reward_fn, metric_fn, callback.

Whatever such a function does, a run ends in a sentence and with its checkpoint, and what it was
given is a copy: PPO trains on what the policy wrote. `reward_fn` is called by `call_reward_fn` in
reward.py, which retries; the others here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlhf_helpers.config.checks import ConfigError, shown, wrong

from .reward import RewardError


class UserFunctionError(RewardError):
    """metric_fn or callback failed; the message says which, how, and what to do."""


def check_function(name: str, value: Any, needed: bool = False) -> None:
    """ConfigError where `value` cannot be called; None is fine unless it is `needed`."""
    if callable(value) or (value is None and not needed):
        return
    if value is None:
        raise ConfigError(
            f"train() needs {name}, a function from samples to a list of numbers."
        )
    raise wrong(name, value, "give a function")


def user_function_error(name: str, error: Exception) -> UserFunctionError:
    """The sentence for what a user's function raised."""
    said = shown(str(error), 500).strip("'\"")
    return UserFunctionError(
        f"{name} raised {type(error).__name__}: {said}: mend it (the traceback above shows where) "
        "and make the same call, which goes on from the checkpoint."
    )


def call_metric_fn(metric_fn: Callable[..., Any], **lists: list[Any]) -> dict[str, list[float]]:
    """`metric_fn(**lists)` as names and one number for each sample.

    The function gets copies of the lists. Raises UserFunctionError where it raises, or where what
    it returns is no such mapping.
    """
    try:
        returned = metric_fn(**{name: list(values) for name, values in lists.items()})
    except Exception as error:
        raise user_function_error("metric_fn", error) from error
    if inspect.iscoroutine(returned):
        returned.close()
    if not isinstance(returned, Mapping):
        raise UserFunctionError(
            f"metric_fn returned {shown(returned)} ({type(returned).__name__}): return a dict of "
            "names, each with one number for each sample."
        )
    return {str(name): _numbers(str(name), values) for name, values in returned.items()}


def _numbers(name: str, values: Any) -> list[float]:
    """What a metric's values are as numbers: one, or as many as there are."""
    try:
        values = values.tolist() if hasattr(values, "tolist") else values
    except Exception as error:  # a tensor on the meta device has no numbers
        raise user_function_error("what metric_fn returned", error) from error
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        values = [values]
    values = [v for row in values for v in (row if isinstance(row, list | tuple) else [row])]
    numbers = [_number(value) for value in values]
    if not numbers or None in numbers:
        odd = values[numbers.index(None)] if numbers else []
        raise UserFunctionError(
            f"metric_fn returned {shown(odd)} ({type(odd).__name__}) for {shown(name)}: return one "
            "number for each sample."
        )
    return [number for number in numbers if number is not None]


def _number(value: Any) -> float | None:
    try:
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, str | bytes) else float(value)
    except Exception:  # no number
        return None


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

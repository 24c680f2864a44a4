"""Rewards that a program can check: is the answer right?

A verifier is a reward function: it gets the policy's outputs and, from the metadata of the prompts
({"prompt": "83+85-22=", "answer": "146"}), the right answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_helpers.data.arithmetic import reasoning_task

_NUMBER = re.compile(r"-?\d+")
_GSM8K = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")


def final_answer(output: str) -> str:
    """What stands behind the last equals sign, or the whole output where there is none."""
    return output.rpartition("=")[2]


def exact_answer(outputs: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the final answer is the right number and nothing else, 0 elsewhere."""
    return [float(final_answer(o) == a) for o, a in zip(outputs, answer, strict=True)]


def answer_anywhere(outputs: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the right number is among the numbers of the output: a sloppy verifier.

    Who writes many numbers is paid for the best of them, so that this is here to be fooled.
    """
    return [float(a in _NUMBER.findall(o)) for o, a in zip(outputs, answer, strict=True)]


def gsm8k_answer(text: str) -> str | None:
    """The number behind the last `####`, without thousands separators; None where there is none."""
    found = _GSM8K.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def gsm8k_verifier(outputs: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where an output's number behind `####` is that of the data set's answer, 0 elsewhere."""
    return [
        float(gsm8k_answer(a) is not None and gsm8k_answer(o) == gsm8k_answer(a))
        for o, a in zip(outputs, answer, strict=True)
    ]


def reasoning_verifier(name: str, **settings: Any) -> Callable[..., list[float]]:
    """The own scorer of a task of reasoning-gym; prompts carry the task's item as `item`.

    Some scorers pay in part: chain_sum's gives 0.75 for `=146`, where 146 is right.
    """
    task = reasoning_task(name, **settings)

    def verify(outputs: Sequence[str], item: Sequence[dict], **_: Any) -> list[float]:
        return [float(task.score_answer(o, entry=i)) for o, i in zip(outputs, item, strict=True)]

    return verify


# By the name of the data whose answers they check (a profile's assets.reward).
VERIFIERS = {"chain-sum": exact_answer, "openai/gsm8k": gsm8k_verifier}


# --- what an answer to a sum is like -----------------------------------------------------------


def shows_steps(output: str) -> bool:
    """Whether running totals stand before the answer, as in `168-22=146`."""
    return "=" in output


def steps_hold(output: str, answer: str) -> bool:
    """Whether every part of `168-22=146` has the right value."""
    return all(_value(part) == int(answer) for part in output.split("="))


def _value(part: str) -> int | None:
    """The value of a sum such as 168-22; None for what is no sum."""
    if not re.fullmatch(r"-?\d+([+-]\d+)*", part):
        return None
    return sum(int(term) for term in re.findall(r"[+-]?\d+", part))


def answer_metrics(
    outputs: Sequence[str], answer: Sequence[str], **_: Any
) -> dict[str, list[float]]:
    """What a run logs of its outputs on the way (a metric function for `train`).

    strict and sloppy verifier, characters, running totals shown, and of those: the answer right,
    every step right.
    """
    strict = exact_answer(outputs, answer)
    steps = [float(shows_steps(o)) for o in outputs]
    return {
        "strict": strict,
        "sloppy": answer_anywhere(outputs, answer),
        "characters": [float(len(o)) for o in outputs],
        "steps": steps,
        "steps_and_right": [a * b for a, b in zip(steps, strict, strict=True)],
        "steps_hold": [
            float(shows_steps(o) and steps_hold(o, a))
            for o, a in zip(outputs, answer, strict=True)
        ],
    }

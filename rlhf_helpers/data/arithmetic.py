"""Sums to solve, from the package reasoning-gym: `83+85-22=` and the answer `146`.

The problems are its task chain_sum, whose question ("State the final answer to the following
arithmetic problem: 83 + 85 - 22 =") is written as the bare sum, so that a model of a few hundred
thousand parameters can read it. A problem whose text falls into bucket 0 (as with reviews) is
held out from everything that trains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_helpers.config.checks import ConfigError

from .reviews import HELD_OUT_BUCKET, bucket_of

TRAINED_TERMS, TRAINED_DIGITS = (2, 3), (1, 2)  # from, to
LARGER_TERMS, LARGER_DIGITS = (4, 4), (2, 2)
# chain_sum draws item i of seed s from the number s + i: seeds this far apart share no item.
SEED_STRIDE = 10**10
HELD_OUT_SEED, LARGER_SEED = 1_000_001, 1_000_002

_TERM = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Problem:
    """One sum, such as `83+85-22`, and its answer."""

    expression: str
    answer: int

    @property
    def prompt(self) -> str:
        """What the policy is asked: the sum and an equals sign."""
        return f"{self.expression}="

    @property
    def terms(self) -> list[int]:
        """The numbers that are added, with their signs."""
        return [int(term) for term in _TERM.findall(self.expression)]

    @property
    def is_held_out(self) -> bool:
        """Whether nothing may be trained on it."""
        return bucket_of(self.expression) == HELD_OUT_BUCKET

    def as_prompt(self) -> dict[str, str]:
        """A prompt with metadata, as `train` takes it: the verifier gets `answer`."""
        return {"prompt": self.prompt, "answer": str(self.answer)}


def reasoning_task(name: str, **settings: Any) -> Any:
    """A task of reasoning-gym by name: a sequence of items with question, answer and metadata.

    `task.score_answer(answer, entry=item)` is its own scorer. ConfigError where the package is
    not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            f"The task {name!r} comes from the package reasoning-gym, which cannot be imported "
            f"({error}): install it with `pip install reasoning-gym`."
        ) from error
    return reasoning_gym.create_dataset(name, **settings)


def chain_sums(
    seed: int, terms: tuple[int, int] = TRAINED_TERMS, digits: tuple[int, int] = TRAINED_DIGITS,
    first: int = 0,
) -> Iterator[Problem]:
    """chain_sum's problems without end, from item `first` on; held-out ones are among them."""
    task = reasoning_task(
        "chain_sum", min_terms=terms[0], max_terms=terms[1], min_digits=digits[0],
        max_digits=digits[1], seed=seed * SEED_STRIDE, size=SEED_STRIDE,
    )  # fmt: skip
    for index in range(first, SEED_STRIDE):
        item = task[index]
        yield Problem(item["metadata"]["expression"].replace(" ", ""), int(item["answer"]))


def training_problems(n: int, seed: int = 0, first: int = 0) -> list[Problem]:
    """n problems to train on, as often as chain_sum draws each, never a held-out one."""
    free = (problem for problem in chain_sums(seed, first=first) if not problem.is_held_out)
    return [problem for problem, _ in zip(free, range(n), strict=False)]


def heldout_problems(n: int) -> list[Problem]:
    """The first n different held-out problems that chain_sum draws from a seed of their own."""
    return _different(n, (p for p in chain_sums(HELD_OUT_SEED) if p.is_held_out))


def larger_problems(n: int) -> list[Problem]:
    """n different problems one size larger than any in training: four terms of two digits."""
    return _different(n, chain_sums(LARGER_SEED, LARGER_TERMS, LARGER_DIGITS))


def _different(n: int, problems: Iterator[Problem]) -> list[Problem]:
    found: dict[Problem, None] = {}
    for problem in problems:
        found.setdefault(problem)
        if len(found) == n:
            break
    return list(found)

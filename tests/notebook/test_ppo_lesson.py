"""PPO as notebook 04 writes it: short, and it learns, with the notebook's own cells."""

import math
from pathlib import Path

import nbformat
import pytest
import torch

from rlhf_helpers.config.profiles import load_profile

ROOT = Path(__file__).resolve().parents[2]
# What the loop needs, and of that the cells that are the algorithm from sampling to the update.
PARTS, CHAIN = "ppo-parts", "ppo"
MOST_LINES = 60
SEEDS = range(5)


def cells(tag: str) -> list[str]:
    notebook = nbformat.read(ROOT / "notebooks" / "04_ppo_run.ipynb", as_version=4)
    return [c.source for c in notebook.cells if tag in c.metadata.get("tags", [])]


def test_the_whole_of_ppo_is_short():
    chain = cells(CHAIN)
    assert sum(len(source.splitlines()) for source in chain) <= MOST_LINES
    for name in ("def write_texts(", "def read(", "def assess(", "def ppo_loss(", "def update("):
        assert sum(name in source for source in chain) == 1
    assert "rlhf_helpers" not in "".join(chain)  # it is the algorithm, not a call of it


def after_the_loop(seed: int) -> dict:
    """What the notebook knows when its loop has run, with another seed."""
    scope = {"torch": torch, "math": math, "seed": seed, "settings": load_profile("cpu")}
    for source in cells(PARTS):
        exec(source, scope)
    return scope


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_rises_by_fifteen_hundredths(seed):
    """From the untuned policy's texts, and those after one round, to the last three rounds."""
    course = [row["reward"] for row in after_the_loop(seed)["course"]]
    assert sum(course[-3:]) / 3 - sum(course[:2]) / 2 >= 0.15, course

"""Sums: read rightly, held out from training, and the same whenever they are drawn."""

import hashlib
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.data.arithmetic import (
    Problem,
    chain_sums,
    heldout_problems,
    larger_problems,
    reasoning_task,
    training_problems,
)
from rlhf_helpers.data.assets import AssetError, find_asset
from rlhf_helpers.data.gsm8k import gsm8k_prompts


def some(problems, n):
    return [problem for problem, _ in zip(problems, range(n), strict=False)]


def test_they_are_chain_sums_problems_in_short():
    task = reasoning_task("chain_sum", min_terms=2, max_terms=3, min_digits=1, max_digits=2,
                          seed=0, size=50)  # fmt: skip
    for item, problem in zip(task, some(chain_sums(seed=0), 50), strict=True):
        assert problem.expression == item["metadata"]["expression"].replace(" ", "")
        assert str(problem.answer) == item["answer"]
        assert problem.as_prompt() == {"prompt": problem.expression + "=", "answer": item["answer"]}


@given(st.lists(st.integers(0, 99), min_size=2, max_size=4), st.data())
def test_terms_have_their_signs(numbers, data):
    signs = [1, *(data.draw(st.sampled_from([1, -1])) for _ in numbers[1:])]
    text = str(numbers[0]) + "".join(
        ("+" if sign > 0 else "-") + str(n) for sign, n in zip(signs[1:], numbers[1:], strict=True)
    )
    expected = [sign * n for sign, n in zip(signs, numbers, strict=True)]
    assert Problem(text, sum(expected)).terms == expected


def test_answers_are_right():
    for problem in [*some(chain_sums(seed=4), 200), *larger_problems(20)]:
        assert sum(problem.terms) == problem.answer


def test_what_is_held_out_by_hash_is_in_no_training():
    training = training_problems(3000)
    assert len(training) == 3000 and not any(p.is_held_out for p in training)
    held_out = heldout_problems(300)
    assert len(set(held_out)) == 300
    for problem in held_out:
        digest = hashlib.sha256(problem.expression.encode()).hexdigest()
        assert int(digest, 16) % 10 == 0
    assert not set(training) & set(held_out)
    share = sum(p.is_held_out for p in some(chain_sums(seed=9), 3000)) / 3000
    assert 0.06 < share < 0.14


def test_the_same_problems_at_every_call_and_others_for_another_seed():
    assert training_problems(40) == training_problems(40)
    assert training_problems(40, seed=1) != training_problems(40)
    assert heldout_problems(30) == heldout_problems(60)[:30]
    assert training_problems(5, first=20)[0] in training_problems(30)


def test_larger_ones_are_larger_than_any_in_training():
    larger = larger_problems(50)
    assert len(set(larger)) == 50
    assert all(len(p.terms) == 4 for p in larger)
    assert all(10 <= abs(t) <= 99 for p in larger for t in p.terms)
    assert all(len(p.terms) <= 3 for p in training_problems(200))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match="pip install reasoning-gym"):
        reasoning_task("chain_sum")


def test_the_generators_file_is_the_pinned_one():
    found = find_asset("chain-sum", "dataset")
    assert found.source == "pypi" and found.path.name == "chain_sum.py"


# --- GSM8K -----------------------------------------------------------------------------------

ROWS = [
    {"question": "Ann has 3 apples and buys 4.", "answer": "3+4=<<3+4=7>>7\n#### 7"},
    {"question": "How much is 2,000 less 1?", "answer": "It is\n#### 1,999"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_problems_of_a_file(tmp_path, kind):
    import pandas as pd

    path = tmp_path / f"problems.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pd.DataFrame(ROWS).to_parquet(path)
    prompts = gsm8k_prompts(str(path))
    assert [p["answer"] for p in prompts] == [row["answer"] for row in ROWS]
    assert "Problem: Ann has 3 apples and buys 4.\nSolution:" in prompts[0]["prompt"]


@pytest.mark.parametrize("rows", [
    [], [{"question": "?"}], [{"question": "a", "answer": "7"}],
    [{"question": "", "answer": "#### 7"}],
])  # fmt: skip
def test_what_is_no_problem(tmp_path, rows):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AssetError, match="cannot be read as problems"):
        gsm8k_prompts(str(path))

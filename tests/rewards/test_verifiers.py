"""What counts as a right answer, and what a sloppy verifier lets pass."""

import random

import pytest
from tiny_runs import tiny_train

from rlhf_helpers.data.arithmetic import chain_sums, reasoning_task
from rlhf_helpers.rewards.verifiers import (
    answer_anywhere,
    answer_metrics,
    exact_answer,
    final_answer,
    gsm8k_answer,
    gsm8k_verifier,
    reasoning_verifier,
    shows_steps,
    steps_hold,
)

# output, right answer, strict, sloppy
CASES = [
    ("146", "146", 1, 1),
    ("168-22=146", "146", 1, 1),
    ("146=", "146", 0, 1),  # nothing behind the last equals sign
    ("146=147", "146", 0, 1),
    ("1146", "146", 0, 0),
    ("-146", "146", 0, 0),
    ("-4", "-4", 1, 1),
    ("4", "-4", 0, 0),
    ("138+18=138-1+1=1=128=1=1", "138", 0, 1),  # what a fooled run wrote
    ("0146", "146", 0, 0),
    ("", "146", 0, 0),
    ("=", "0", 0, 0),
]


@pytest.mark.parametrize(("output", "answer", "strict", "sloppy"), CASES)
def test_strict_and_sloppy(output, answer, strict, sloppy):
    assert exact_answer(outputs=[output], answer=[answer], samples=["x"]) == [strict]
    assert answer_anywhere(outputs=[output], answer=[answer]) == [sloppy]


def test_the_sloppy_one_pays_whatever_the_strict_one_pays():
    for output, answer, *_ in CASES:
        assert answer_anywhere([output], [answer]) >= exact_answer([output], [answer])


def test_strict_is_reasoning_gyms_own_scorer_where_that_pays_in_full():
    task = reasoning_task("chain_sum", seed=5, size=1)
    rng = random.Random(0)
    for problem, _ in zip(chain_sums(seed=5), range(300), strict=False):
        wrong = str(problem.answer + rng.choice([-10, -1, 1, 10]))
        for output in (str(problem.answer), wrong, f"7+{wrong}={problem.answer}", f"{wrong}="):
            entry = {"answer": str(problem.answer)}
            own = task.score_answer(final_answer(output), entry=entry)
            assert exact_answer([output], [entry["answer"]]) == [float(own == 1)]


def test_reasoning_gyms_tasks_as_prompts_and_rewards():
    task = reasoning_task("chain_sum", seed=3, size=2)
    verify = reasoning_verifier("chain_sum", seed=3, size=2)
    right, other = (item["answer"] for item in task)
    outputs = [right, f"={other}"]
    # Its scorer pays the second in part: the share of the output that is the answer.
    assert verify(outputs=outputs, item=list(task)) == [1.0, len(other) / (len(other) + 1)]


def test_countdown_has_its_own_scorer():
    item = reasoning_task("countdown", seed=1, size=1)[0]
    verify = reasoning_verifier("countdown", seed=1, size=1)
    (right,) = verify(outputs=[item["metadata"]["expression"]], item=[item])
    (wrong,) = verify(outputs=["no idea"], item=[item])
    assert right == 1.0 > wrong


@pytest.mark.parametrize(("text", "number"), [
    ("She has 3*4=<<3*4=12>>12 apples.\n#### 12", "12"),
    ("#### 1,234", "1234"),
    ("#### -5", "-5"),
    ("#### $18", "18"),
    ("#### 2.50", "2.5"),
    ("#### 100", "100"),
    ("first #### 3 and then #### 4", "4"),
    ("the answer is 12", None),
    ("####", None),
])  # fmt: skip
def test_gsm8ks_answers(text, number):
    assert gsm8k_answer(text) == number


def test_gsm8ks_verifier():
    answers = ["so 4\n#### 1,000", "#### 7", "no number"]
    assert gsm8k_verifier(outputs=["#### 1000", "7", "no number"], answer=answers) == [1, 0, 0]


def test_steps():
    assert shows_steps("168-22=146") and not shows_steps("146") and not shows_steps("-4")
    assert steps_hold("168-22=146", "146")
    assert not steps_hold("167-22=146", "146")  # the answer is right and its step is not
    assert not steps_hold("168-22=", "146")
    assert steps_hold("-1+5=4", "4")
    assert not steps_hold("168--22=146", "146")


def test_metrics_count_what_they_say():
    outputs = ["168-22=146", "167-22=146", "146", "146=1"]
    metrics = answer_metrics(outputs=outputs, answer=["146"] * 4, prompts=["x"] * 4)
    assert metrics == {
        "strict": [1, 1, 1, 0], "sloppy": [1, 1, 1, 1], "characters": [10, 10, 3, 5],
        "steps": [1, 1, 0, 1], "steps_and_right": [1, 1, 0, 0], "steps_hold": [1, 0, 0, 0],
    }  # fmt: skip


def test_answers_reach_the_verifier_with_their_own_samples(tmp_path):
    """RLOO asks for each prompt k times: every output meets the answer of its own prompt."""
    prompts = [{"prompt": text, "answer": text[-1]} for text in ("value a", "model b", "data c")]
    seen = []

    def verify(prompts, outputs, answer, **_):
        seen.extend(zip(prompts, answer, strict=True))
        return [float(len(output)) for output in outputs]

    tiny_train(
        tmp_path, reward_fn=verify, prompts=prompts, eval_prompts=prompts,
        method__name="RLOOConfig", method__samples_per_prompt=4,
    )  # fmt: skip
    assert seen and all(prompt[-1] == answer for prompt, answer in seen)

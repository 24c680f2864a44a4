"""The corpus of half-wrong answers, and a small run that is killed and goes on."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from rlhf_helpers.data.arithmetic import Problem, training_problems
from rlhf_helpers.making import pretrain_arithmetic as module
from rlhf_helpers.making.arithmetic_report import publish_arithmetic
from rlhf_helpers.making.pretrain_arithmetic import (
    ERRORS,
    ArithmeticConfig,
    character_tokenizer,
    corpus_answer,
    corpus_batch,
    pretrain_arithmetic,
    with_running_totals,
)
from rlhf_helpers.rewards.verifiers import steps_hold
from rlhf_helpers.runs.files import read_jsonl

TINY = ArithmeticConfig(
    hidden_size=16, num_layers=1, num_heads=2, batch_size=16, steps=6, warmup_steps=2,
    check_every=3, check_problems=8, checkpoint_seconds=0.0,
)  # fmt: skip


@pytest.mark.parametrize(("expression", "text"), [
    ("83+85-22", "168-22=146"),
    ("5-9", "-4"),
    ("5-9+3", "-4+3=-1"),
    ("10+20+30-99", "30+30-99=60-99=-39"),
])  # fmt: skip
def test_running_totals(expression, text):
    problem = Problem(expression, eval(expression))
    assert with_running_totals(problem) == text
    assert steps_hold(text, str(problem.answer))


def test_the_corpus_is_the_stated_mixture():
    rng, config = random.Random(0), ArithmeticConfig()
    problems = training_problems(4000)
    three = [p for p in problems if len(p.terms) == 3]
    answers = {p: corpus_answer(p, rng, config) for p in problems}
    with_steps = [p for p in three if "=" in answers[p]]
    assert abs(len(with_steps) / len(three) - 0.4) < 0.04
    assert all(steps_hold(answers[p], str(p.answer)) for p in with_steps)
    direct = [p for p in answers if "=" not in answers[p]]
    wrong = [p for p in direct if int(answers[p]) != p.answer]
    assert abs(len(wrong) / len(direct) - 0.5) < 0.04
    assert {abs(int(answers[p]) - p.answer) for p in wrong} == set(ERRORS)


def test_a_batch_marks_what_is_learnt_from():
    tokenizer = character_tokenizer()
    groups = corpus_batch(7, tokenizer, TINY)
    assert sum(len(ids) for ids, _ in groups) == TINY.batch_size
    for ids, is_answer in groups:
        for row, marked in zip(ids, is_answer, strict=True):
            text = tokenizer.decode(row[: int((row != tokenizer.pad_token_id).sum())])
            answer = tokenizer.decode(row[marked])
            prompt = text[: -len(answer)]
            assert prompt.endswith("=") and answer.endswith("$") and prompt.count("=") == 1
    again = corpus_batch(7, tokenizer, TINY)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(groups, again, strict=True))
    assert not torch.equal(groups[0][0][:, :3], corpus_batch(8, tokenizer, TINY)[0][0][:, :3])


def test_the_tokenizer_survives_its_files(tmp_path):
    character_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 15
    ids = tokenizer("83+85-22=")["input_ids"]
    assert len(ids) == 9 and tokenizer.decode(ids) == "83+85-22="
    ended = [*ids, tokenizer.eos_token_id]
    assert tokenizer.decode(ended, skip_special_tokens=True) == "83+85-22="


def test_a_run_that_was_killed_goes_on_to_the_same_model(tmp_path, monkeypatch):
    whole, _ = pretrain_arithmetic(tmp_path / "whole", TINY)
    step, calls = module._step, []

    def killed(*given):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(module, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain_arithmetic(tmp_path / "parts", TINY)
    resumed, _ = pretrain_arithmetic(tmp_path / "parts", TINY)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    logs = [read_jsonl(tmp_path / d / "log.jsonl") for d in ("whole", "parts")]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == [3, 6]


def test_it_stops_some_steps_after_it_answers_well_enough(tmp_path):
    easy = replace(TINY, stop_greedy=0.0, decay_steps=2, steps=50)
    pretrain_arithmetic(tmp_path, easy)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


def test_what_is_published_loads_and_says_what_it_is(tmp_path):
    model, tokenizer = pretrain_arithmetic(tmp_path, TINY)
    metrics = publish_arithmetic(tmp_path, tmp_path / "out", model, tokenizer, TINY, problems=30)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "metrics.json", "README.md",
        "SHA256SUMS", "training_log.jsonl",
    }  # fmt: skip
    assert metrics["steps"] == 6 and metrics["heldout"]["problems"] == 30
    text = (tmp_path / "out" / "README.md").read_text()
    assert "50 % of the answers" in text and "None" not in text

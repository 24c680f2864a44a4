"""Pretraining: optimiser, data order, resume, bits per byte, and the shipped model's card."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from rlhf_helpers.data.assets import find_asset
from rlhf_helpers.making import pretrain as pretraining
from rlhf_helpers.making.pretrain import PretrainConfig, batch_of_step, learning_rate_factor
from rlhf_helpers.making.pretrain_report import bits_per_byte, card, windows

TINY = PretrainConfig(
    vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, context=16, batch_rows=4,
    steps=6, warmup_steps=2, checkpoint_seconds=0.0,
)  # fmt: skip


@pytest.fixture
def few_reviews(monkeypatch):
    texts = [f"This film number {i} was better than film {i * 7 % 50}." for i in range(200)]
    rows = {"text": texts, "label": [0] * 200, "bucket": [i % 10 for i in range(200)]}
    monkeypatch.setattr(pretraining, "load_reviews", lambda: Dataset.from_dict(rows))


def test_orthogonalised_matrices_keep_directions_and_lose_scales():
    torch.manual_seed(0)
    for rows, cols in ((8, 24), (24, 8), (12, 12)):
        g = torch.randn(3, rows, cols)
        singular = torch.linalg.svdvals(pretraining.orthogonalise(g))
        assert singular.min() > 0.3 and singular.max() < 1.3
    diagonal = torch.diag(torch.tensor([100.0, 1.0, 10.0])).unsqueeze(0)
    out = pretraining.orthogonalise(diagonal)[0]
    assert torch.allclose(out - torch.diag(out.diag()), torch.zeros(3, 3), atol=1e-5)
    assert (out.diag() > 0).all()


def test_learning_rate_rises_stays_and_falls_to_nothing():
    config = PretrainConfig(steps=100, warmup_steps=10, decay_fraction=0.5)
    assert learning_rate_factor(0, config) == pytest.approx(0.1)
    assert learning_rate_factor(9, config) == 1.0
    assert learning_rate_factor(50, config) == 1.0
    assert learning_rate_factor(75, config) == pytest.approx(0.5)
    assert learning_rate_factor(99, config) == pytest.approx(0.02)


def test_an_epoch_shows_every_row_once_and_a_step_is_always_the_same():
    config = PretrainConfig(context=4, batch_rows=2, seed=3)
    stream = np.arange(5 * 9)  # eight rows of five fit behind any offset
    epoch = [batch_of_step(stream, step, config) for step in range(4)]
    seen = torch.cat(epoch).flatten()
    assert len(set(seen.tolist())) == 40 and (seen.diff() == 1).sum() >= 32
    assert torch.equal(epoch[2], batch_of_step(stream, 2, config))
    again = torch.cat([batch_of_step(stream, step, config) for step in range(4, 8)])
    assert not torch.equal(torch.cat(epoch), again)


def test_an_interrupted_run_ends_as_one_that_was_not(few_reviews, tmp_path, monkeypatch):
    whole, _ = pretraining.pretrain(tmp_path / "whole", TINY)
    real_step = pretraining._step

    def dies_at_four(model, optimizers, rows, step, config):
        if step == 4:
            raise KeyboardInterrupt
        return real_step(model, optimizers, rows, step, config)

    monkeypatch.setattr(pretraining, "_step", dies_at_four)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(tmp_path / "cut", TINY)
    monkeypatch.setattr(pretraining, "_step", real_step)
    resumed, _ = pretraining.pretrain(tmp_path / "cut", TINY)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_training_lowers_the_loss(few_reviews, tmp_path):
    config = dataclasses.replace(TINY, steps=40, checkpoint_seconds=1e9)
    model, tokenizer = pretraining.pretrain(tmp_path, config)
    rows = torch.tensor([tokenizer("This film number 3 was better than film 21.")["input_ids"]])
    fresh = pretraining.new_model(config).eval()
    with torch.no_grad():
        before, after = (pretraining.mean_nats(m, rows[:, :17]).item() for m in (fresh, model))
    assert before == pytest.approx(math.log(tokenizer.vocab_size), rel=0.1)
    assert after < 0.75 * before


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 40, 41])
def test_windows_score_every_token_but_the_first_once(length):
    spans = windows(range(length), context=16, stride=8)
    scored = [i for first, end, start in spans for i in range(start, end)]
    assert scored == list(range(1, length))
    for first, end, start in spans:
        assert end - first <= 16 and first < start
        assert start == 1 or start - first >= 8  # context at least context - stride


def test_bits_per_byte_of_a_model_that_knows_nothing(few_reviews, tmp_path):
    model, tokenizer = pretraining.pretrain(tmp_path, dataclasses.replace(TINY, steps=1))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # every logit 0: log2(vocabulary) bits a token
    texts = ["This film number 3 was better.", "This film. " * 12]
    tokens = sum(len(tokenizer(t)["input_ids"]) - 1 for t in texts)
    n_bytes = sum(len(t.encode()) for t in texts)
    found = bits_per_byte(model, tokenizer, texts, stride=8)
    assert found["bits_per_byte"] == pytest.approx(math.log2(300) * tokens / n_bytes, rel=1e-5)


def test_the_shipped_model_beats_ppmd_and_its_card_says_what_was_measured():
    folder = find_asset("tiny-opt-imdb").path
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["heldout"]["bits_per_byte"] <= 1.65
    assert metrics["heldout"]["bits_per_byte"] < metrics["ppmd_order_8_bits_per_byte"]
    assert len(metrics["samples"]) == 8
    assert (folder / "README.md").read_text() == card(metrics)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 15e6

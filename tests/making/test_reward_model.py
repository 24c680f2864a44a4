"""Reward models from preferences, on tiny random models: learning, files, resuming, refusals."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import PROMPTS, model_dir, policy_with_lora, run_config, tiny_train
from transformers import AutoModelForCausalLM

import rlhf_helpers
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.making import reward_model as module
from rlhf_helpers.making.kept_texts import KeptTexts
from rlhf_helpers.making.reward_model import (
    RewardModel,
    RewardModelConfig,
    Training,
    calibration,
    train_reward_model,
)
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.models.peft_import import torchao_unseen
from rlhf_helpers.rewards import learned
from rlhf_helpers.rewards.learned import load_reward_model, pooled, token_rows
from rlhf_helpers.rewards.preferences import Pair
from rlhf_helpers.rewards.task import task_reward

WORDS = ["policy", "value", "batch", "model", "code", "data", "every", "human"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


def pairs_of(n, seed=0):
    """Texts of four words; the one with more of the word "feedback" is preferred."""
    rng = np.random.default_rng(seed)

    def text(feedbacks):
        words = list(rng.choice(WORDS, 4 - feedbacks)) + ["feedback"] * feedbacks
        return " " + " ".join(rng.permutation(words))

    pairs = []
    for _ in range(n):
        low, high = sorted(rng.choice(4, 2, replace=False))
        pairs.append(Pair(str(rng.choice(WORDS)), text(high), text(low)))
    return pairs


def config_of(root, family="opt", name="rm", policy=None, **changes):
    settings = dict(num_layers_unfrozen=2, epochs=4, batch_size=8, learning_rate=0.02,
                    max_tokens=24, directory=str(root / name))  # fmt: skip
    return RewardModelConfig(policy=policy or run_config(root, family), **{**settings, **changes})


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_it_learns_what_is_preferred_and_gives_a_reward_function(tmp_path, pooling):
    heldout = pairs_of(60, seed=1)
    reward_fn = train_reward_model(pairs_of(120), config_of(tmp_path, pooling=pooling), heldout)
    about = reward_fn.about
    assert about["heldout"]["accuracy"] > 0.8 and about["accuracy"] > 0.85
    assert about["history"][-1]["loss"] < about["history"][0]["loss"] < 1.5
    assert about["history"][-1]["heldout_accuracy"] == about["heldout"]["accuracy"]
    better, worse = [p.prompt + p.chosen for p in heldout], [p.prompt + p.rejected for p in heldout]
    right = np.array(reward_fn(samples=better)) > np.array(reward_fn(samples=worse))
    assert right.mean() == pytest.approx(about["heldout"]["accuracy"], abs=0.02)


@pytest.mark.parametrize(("family", "on_an_adapter"), [
    ("opt", False), ("gpt2", False), ("llama", False), ("llama", True)])  # fmt: skip
def test_the_files_alone_give_the_scores_that_were_trained(tmp_path, family, on_an_adapter):
    """What is loaded has LoRA merged into a plain model; what was trained has it beside."""
    policy = run_config(tmp_path, family)
    if on_an_adapter:  # such as supervised fine-tuning leaves
        policy_with_lora(tmp_path, family=family).save(tmp_path / "sft", policy.model.model_path)
        policy = run_config(tmp_path, family, model__model_path=str(tmp_path / "sft"))
    config = config_of(tmp_path, policy=policy, epochs=1)
    pairs = pairs_of(12)
    model = RewardModel(config)
    training = Training(model, pairs, [], {"a": 1})
    (tmp_path / "rm").mkdir()
    training.run()
    texts = [p.prompt + p.chosen for p in pairs] + ["a", "every human feedback code"]
    rows = token_rows(model.policy.tokenizer, texts, config.max_tokens)
    with torch.no_grad():
        trained = model.scores(KeptTexts(model.policy, rows, "x"), range(len(rows)))
    loaded = training.finish()
    assert loaded.scores(texts) == pytest.approx(trained.tolist(), abs=2e-4)
    assert loaded.scores(list(reversed(texts))) == pytest.approx(loaded.scores(texts)[::-1])
    assert np.std(loaded.scores(texts)) > 0.05 and not (tmp_path / "rm" / "checkpoint.pt").exists()


def test_the_score_by_hand(tmp_path):
    """A text alone, token by token through the plain model: no batch, no padding, no trunk."""
    config = config_of(tmp_path, epochs=1, pooling="last", output="standardised")
    reward_fn = train_reward_model(pairs_of(12), config)
    text = "policy data feedback"
    ids = reward_fn.tokenizer(text)["input_ids"] + [reward_fn.tokenizer.eos_token_id]
    hidden = reward_fn.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
    score = (hidden[0, -1] @ reward_fn.head[0]).item()
    assert reward_fn.scores([text, "a much longer text of policy data"])[0] == pytest.approx(score)
    z = (score - reward_fn.about["mean"]) / reward_fn.about["std"]
    assert reward_fn(samples=[text])[0] == pytest.approx(z)
    assert reward_fn(samples=[]) == []


def test_it_lies_on_the_device_of_its_process(tmp_path, monkeypatch):
    """Of several processes each has its own GPU; here a device that every machine has."""
    reward_fn = train_reward_model(pairs_of(12), config_of(tmp_path, epochs=1))
    monkeypatch.setattr(learned, "local_device", lambda: torch.device("meta"))
    assert load_reward_model(reward_fn.directory).head.device.type == "meta"
    assert load_reward_model(reward_fn.directory, "cpu").head.device.type == "cpu"


def test_pooling_sees_no_padding():
    hidden = torch.arange(24.0).view(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled(hidden, mask, "last").tolist() == [[4, 5, 6, 7], [20, 21, 22, 23]]
    assert pooled(hidden, mask, "mean").tolist() == [[2, 3, 4, 5], [16, 17, 18, 19]]


def test_of_long_texts_the_end_is_read(tmp_path):
    tokenizer = load_policy(run_config(tmp_path)).tokenizer
    (row,) = token_rows(tokenizer, ["policy data value batch feedback code"], 4)
    whole = tokenizer("policy data value batch feedback code")["input_ids"]
    assert row == [*whole[-3:], tokenizer.eos_token_id]


def test_the_percentile_is_that_of_a_normal_distribution():
    from statistics import NormalDist

    for z in (-3, -1, -0.3, 0, 0.5, 2):
        assert learned.OUTPUTS["percentile"](z) == pytest.approx(NormalDist().cdf(z), abs=0.01)
    assert 0 <= learned.OUTPUTS["percentile"](-1e9) < 1e-9


def test_the_states_of_the_trunk_are_those_of_each_text_alone_and_may_be_left_out(tmp_path):
    policy = load_policy(run_config(tmp_path))
    rows = token_rows(policy.tokenizer, ["policy", "every human feedback code", "data"], 24)
    kept, computed = KeptTexts(policy, rows, "x"), KeptTexts(policy, rows, "x", limit_bytes=0)
    assert kept.states is not None and computed.states is None
    tokens, mask, trunk = kept.batch([1, 2])
    assert mask.sum(1).tolist() == [len(rows[1]), len(rows[2])]
    alone = policy.trunk(torch.tensor([rows[2]]), torch.ones(1, len(rows[2]), dtype=torch.long))
    assert torch.allclose(trunk[1, : len(rows[2])], alone[0], atol=1e-5)
    real = mask.bool()
    assert torch.allclose(computed.batch([1, 2])[2][real], trunk[real], atol=1e-5)


def test_calibration_by_hand():
    """Three pairs at odds 3 : 1, two of them right: 0.75 said, 0.67 true, in both orders."""
    log3 = float(np.log(3))
    chosen = torch.tensor([log3, log3, 0.0], dtype=torch.float64)
    found = calibration(chosen, torch.tensor([0.0, 0.0, log3], dtype=torch.float64))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["n"] == 3
    assert found["ece"] == pytest.approx(0.75 - 2 / 3)
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 0.75**2) / 3)
    assert found["loss"] == pytest.approx(-(2 * np.log(0.75) + np.log(0.25)) / 3)


# --- stopping and going on ---------------------------------------------------------------------


def same_files(first, second):
    ours, theirs = (json.loads((d / "reward_model.json").read_text()) for d in (first, second))
    for about in (ours, theirs):
        del about["seconds"]
    assert ours == theirs
    for name in ("adapter_model.safetensors", "reward_head.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("stopped_at", [1, 3, 4, 7])
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, stopped_at, monkeypatch):
    """Whether it stops inside an epoch or at its end."""
    pairs, heldout = pairs_of(20), pairs_of(6, seed=1)
    train_reward_model(pairs, config_of(tmp_path, name="whole", epochs=3), heldout)
    config = config_of(tmp_path, epochs=3, checkpoint_seconds=0.0)
    learn = Training._learn

    def until(self):
        if self.step == stopped_at:
            raise KeyboardInterrupt
        return learn(self)

    monkeypatch.setattr(Training, "_learn", until)
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(pairs, config, heldout)
    assert not (tmp_path / "rm" / "reward_model.json").exists()
    monkeypatch.setattr(Training, "_learn", learn)
    train_reward_model(pairs, config, heldout)
    same_files(tmp_path / "whole", tmp_path / "rm")


def test_a_finished_model_is_loaded_and_another_one_is_not_written_over(tmp_path, monkeypatch):
    pairs, config = pairs_of(12), config_of(tmp_path, epochs=1)
    first = train_reward_model(pairs, config)
    monkeypatch.setattr(module, "RewardModel", None)  # would be needed to train
    again = train_reward_model(pairs, config)
    assert again.scores(["a b"]) == first.scores(["a b"])
    with pytest.raises(ConfigError, match="another pairs_sha256"):
        train_reward_model(pairs[:-1], config)
    with pytest.raises(ConfigError, match="another epochs"):
        train_reward_model(pairs, config_of(tmp_path, epochs=2))


def test_a_damaged_checkpoint_is_said(tmp_path):
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "checkpoint.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match="checkpoint.pt cannot be read: it is no checkpoint"):
        train_reward_model(pairs_of(4), config_of(tmp_path))


def test_the_seed_decides(tmp_path):
    pairs = pairs_of(12)
    names = {"one": 1, "again": 1, "two": 2}
    configs = [config_of(tmp_path, name=name, epochs=1, seed=s) for name, s in names.items()]
    scores = [train_reward_model(pairs, config).scores(["a"]) for config in configs]
    assert scores[0] == scores[1] != scores[2]


# --- use -----------------------------------------------------------------------------------


def test_it_rewards_a_run_and_a_profile_names_it_by_path(tmp_path):
    reward_fn = rlhf_helpers.train_reward_model(pairs_of(40), config_of(tmp_path))
    trainer = tiny_train(tmp_path, reward_fn=reward_fn, prompts=PROMPTS)
    assert trainer.step == 4
    assets = dict.fromkeys(("policy", "data", "judge"), "x") | {"reward": str(tmp_path / "rm")}
    task = {"label": "POSITIVE", "text": "sample"}
    profile = Profile("tiny", run_config(tmp_path), assets, {}, {}, task)
    texts = ["policy feedback", "data"]
    assert task_reward(profile)(samples=texts) == reward_fn(samples=texts)
    with pytest.raises(ConfigError, match="reward.text is 'output': leave it out"):
        profile.reward["text"] = "output"
        task_reward(profile)
    moved = reward_fn.save(tmp_path / "elsewhere")
    assert rlhf_helpers.load_reward_model(moved).scores(texts) == reward_fn.scores(texts)


def test_peft_reads_the_adapter(tmp_path):
    from peft import PeftModel

    reward_fn = train_reward_model(pairs_of(12), config_of(tmp_path, epochs=1))
    base = AutoModelForCausalLM.from_pretrained(model_dir(tmp_path))
    ids = torch.tensor([reward_fn.tokenizer("policy data")["input_ids"]])
    with torch.no_grad(), torchao_unseen():  # Colab's is too old for peft itself
        theirs = PeftModel.from_pretrained(base, tmp_path / "rm")(ids).logits
        assert torch.allclose(theirs, reward_fn.model(ids).logits, atol=1e-4)


def test_what_is_wrong_is_said_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="no reward model"):
        load_reward_model(tmp_path)
    (tmp_path / "reward_model.json").write_text('{"pooling": "last"}')
    with pytest.raises(ConfigError, match="lacks base_model, dtype"):
        load_reward_model(tmp_path)
    with pytest.raises(ConfigError, match="pairs has 1"):
        train_reward_model(pairs_of(1), config_of(tmp_path))
    with pytest.raises(ConfigError, match="pooling is 'first'"):
        config_of(tmp_path, pooling="first")
    with pytest.raises(ConfigError, match="learns by LoRA"):
        config_of(tmp_path, policy=run_config(tmp_path, model__delta_kwargs=None))


def test_the_lines_in_the_profile_hh_run_on_small_files_of_its_format(tmp_path, monkeypatch):
    """Read from the profile's own comment and run as they stand, but for model and sizes."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "Anthropic" / "hh-rlhf"
    for split in ("train", "test"):
        (root / "helpful-base").mkdir(parents=True, exist_ok=True)
        lines = []
        for i, pair in enumerate(pairs_of(8)):
            turns = f"\n\nHuman: {pair.prompt} {i}\n\nAssistant:"
            lines.append({"chosen": turns + pair.chosen, "rejected": turns + pair.rejected})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / "helpful-base" / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    found = type("Found", (), {"path": root})
    monkeypatch.setattr("rlhf_helpers.rewards.preferences.find_asset", lambda *_, **__: found)
    path = str(model_dir(tmp_path, "opt"))
    tiny = {"model.model_path": path, "model.num_layers_unfrozen": 2, "train.total_steps": 2,
            "train.batch_size": 4, "train.seq_length": 60, "method.num_rollouts": 4,
            "method.chunk_size": 4, "method.ppo_epochs": 1,
            "method.gen_kwargs.max_new_tokens": 8}  # fmt: skip
    load = rlhf_helpers.load_profile
    monkeypatch.setattr("rlhf_helpers.rewards.task.resolve_run_dir", lambda path: tmp_path / path)

    def load_tiny(name, run_dir):
        return load(name, tiny, run_dir=tmp_path / run_dir)

    monkeypatch.setattr(rlhf_helpers, "load_profile", load_tiny, raising=False)
    page = (Path(rlhf_helpers.__file__).parent / "profiles" / "hh.yml").read_text("utf-8")
    lines = [line.removeprefix("#     ") for line in page.splitlines() if line.startswith("#     ")]
    names: dict = {}
    exec("\n".join(lines), names)  # noqa: S102  (our own file)
    assert len(names["pairs"]) == 8 and names["pairs"][0].prompt.endswith("Assistant:")
    assert (tmp_path / "runs/hh/reward_model/reward_model.json").exists()
    assert (tmp_path / "runs/hh/policy").is_dir()
    profile = load("hh", tiny)
    texts = [p.prompt + p.chosen for p in names["pairs"]]
    assert task_reward(profile)(samples=texts) == names["reward_fn"](samples=texts)


# --- the head alone ------------------------------------------------------------------------


def test_the_head_alone_learns_on_states_of_the_base_model(tmp_path):
    config = config_of(tmp_path, num_layers_unfrozen=0, epochs=20, learning_rate=0.1)
    reward_fn = train_reward_model(pairs_of(60), config, pairs_of(40, seed=1))
    assert reward_fn.about["heldout"]["accuracy"] > 0.75
    base = AutoModelForCausalLM.from_pretrained(config.policy.model.model_path)
    for name, weight in base.state_dict().items():  # no LoRA has changed anything
        assert torch.equal(weight, reward_fn.model.state_dict()[name]), name
    ids = torch.tensor([token_rows(reward_fn.tokenizer, ["policy feedback"], 24)[0]])
    with torch.no_grad():
        states = base.get_decoder()(input_ids=ids).last_hidden_state.mean(1)
    score = (states @ reward_fn.head.T).item()
    assert reward_fn.scores(["policy feedback"]) == pytest.approx([score], abs=1e-4)
    about = json.loads((tmp_path / "rm" / "reward_model.json").read_text())
    assert about["identity"]["num_layers_unfrozen"] == 0 and about["lora"] is False
    assert not list((tmp_path / "rm").glob("adapter*"))


def test_states_of_texts_are_computed_once_and_change_no_number(tmp_path, monkeypatch):
    states = tmp_path / "kept" / "states.safetensors"
    plain = train_reward_model(pairs_of(12), config_of(tmp_path, num_layers_unfrozen=0))
    computed, forward = [], module.Policy.trunk_and_hidden

    def counted(self, tokens, mask, **kwargs):
        computed.append(len(tokens))
        return forward(self, tokens, mask, **kwargs)

    monkeypatch.setattr(module.Policy, "trunk_and_hidden", counted)
    models = [
        train_reward_model(pairs_of(n), config_of(tmp_path, name=f"rm{n}", num_layers_unfrozen=0,
                                                  states_file=str(states)))
        for n in (8, 12)
    ]  # fmt: skip
    texts = {p.prompt + text for p in pairs_of(12) for text in (p.chosen, p.rejected)}
    assert sum(computed) == len(texts)  # those of the first eight pairs not twice
    assert torch.allclose(models[1].head, plain.head, atol=1e-6)
    assert [p.name for p in states.parent.iterdir()] == ["states.safetensors"]

    # Neither another pooling nor another base model is served from it.
    for name, pooling, root in (("pooled", "last", tmp_path), ("other", "mean", tmp_path / "b")):
        own = config_of(root, name=f"{name}1", num_layers_unfrozen=0, pooling=pooling)
        if root != tmp_path:
            change_weights(own.policy.model.model_path)
        alone = train_reward_model(pairs_of(12), own)
        filed = replace(own, directory=str(root / f"{name}2"), states_file=str(states))
        assert torch.allclose(train_reward_model(pairs_of(12), filed).head, alone.head, atol=1e-6)
        assert not torch.allclose(alone.head, plain.head, atol=1e-2)


def change_weights(directory):
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(torch.arange(32) / 16)
    model.save_pretrained(directory)

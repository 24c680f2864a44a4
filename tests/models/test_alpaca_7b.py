"""The profile alpaca-7b on a tiny random LLaMA: loads, samples, learns, also with a 4-bit base."""

import importlib.util

import pytest
import torch
from tiny_runs import model_dir

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.config.trl_config import TRLConfig, validate_config
from rlhf_helpers.lab.memory import predict_profile
from rlhf_helpers.models.loading import load_base, load_policy, load_trained_policy
from rlhf_helpers.rewards.task import post_prompts
from rlhf_helpers.training.api import train

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the optional bitsandbytes"
)


def tiny_profile(root, **more):
    """The profile with a three-layer LLaMA and a few short steps; all else as it is."""
    path = str(model_dir(root, "llama"))
    return load_profile("alpaca-7b", run_dir=root / "run", overrides={
        "model.model_path": path, "train.total_steps": 4, "train.batch_size": 4,
        "train.eval_interval": 2, "method.num_rollouts": 8, "method.chunk_size": 4,
        "train.seq_length": 48, "method.gen_kwargs.max_new_tokens": 8, **more,
    })  # fmt: skip


def run(profile):
    rewarded = []

    def reward_fn(samples, outputs, **kwargs):
        rewarded.extend(outputs)
        return [text.count("e") / (1 + len(text)) for text in outputs]

    prompts = post_prompts(profile)
    return train(
        reward_fn=reward_fn, prompts=prompts, eval_prompts=prompts[:2], config=profile.config
    ), rewarded


def test_the_profile_runs_end_to_end_on_a_small_llama(tmp_path):
    profile = tiny_profile(tmp_path)
    trainer, rewarded = run(profile)
    assert trainer.step == 4 and len(rewarded) >= 12
    assert trainer.policy.base.dtype == torch.bfloat16  # as the profile says
    grown = [p for n, p in trainer.policy.trainable_parameters().items() if "lora_B" in n]
    assert grown and all(p.any() and p.dtype == torch.float32 for p in grown)
    # Left truncation: what is left of a prompt that is too long is its end.
    kept = trainer.tokenizer.decode(trainer.experience.prompts.prompts[0].input_ids)
    assert kept.replace(" ", "").endswith("Response:")


def test_the_real_profile_is_valid_and_its_prediction_needs_no_files():
    profile = load_profile("alpaca-7b")
    validate_config(profile.config)
    in_bfloat16 = predict_profile(profile, on_gpu=True)
    assert in_bfloat16.lasting["policy weights"] == 2 * (6_738_415_616 + 2 * 4096)
    assert 18e9 < in_bfloat16.peak < 24e9
    four_bits = load_profile("alpaca-7b", {"model.dtype": "float16", "model.load_in_4bit": True})
    assert predict_profile(four_bits, on_gpu=True).peak < 14e9  # a T4 has 15 to 16


@needs_bitsandbytes
def test_a_4_bit_base_learns_and_its_adapter_loads_again(tmp_path):
    profile = tiny_profile(tmp_path, **{"model.load_in_4bit": True})
    trainer, _ = run(profile)
    base = trainer.policy.base
    packed = base.model.layers[0].self_attn.q_proj.weight
    assert packed.dtype == torch.uint8  # the only layer of the trunk
    rest = [base.lm_head, base.model.layers[1].mlp.up_proj, base.model.layers[2].self_attn.q_proj]
    assert all(module.weight.dtype == torch.bfloat16 for module in rest)
    whole = load_base(tiny_profile(tmp_path).config.model, torch.device("cpu"))
    original = whole.model.layers[0].self_attn.q_proj.weight
    assert packed.numel() * 2 == original.numel()  # two weights a byte
    grown = [p for n, p in trainer.policy.trainable_parameters().items() if "lora_B" in n]
    assert grown and all(p.any() for p in grown)
    again = load_trained_policy(trainer.save_pretrained())
    again.set_dropout(active=False)
    trainer.policy.set_dropout(active=False)
    ids = torch.tensor([[80, 81, 82, 83]])
    ours, theirs = (p.score(ids, torch.ones_like(ids)) for p in (trainer.policy, again))
    assert torch.equal(ours.logprobs, theirs.logprobs)
    assert not torch.equal(ours.logprobs, ours.ref_logprobs)
    with pytest.raises(ConfigError, match="needs weights in full"):
        trainer.policy.save_merged(tmp_path / "merged")


@needs_bitsandbytes
def test_four_bits_are_close_to_the_weights_they_stand_for(tmp_path):
    """The same prompt's log-probabilities: near, and not the same."""
    ids = torch.tensor([[80, 81, 82, 83, 84, 85]])
    scores = []
    for quantised in (False, True):
        profile = tiny_profile(tmp_path, **{"model.load_in_4bit": quantised})
        policy = load_policy(profile.config, "cpu")
        scores.append(policy.score(ids, torch.ones_like(ids)).ref_logprobs)
    gap = (scores[0] - scores[1]).abs().mean()
    assert 0 < gap < 0.5 * scores[0].std()


def test_with_all_layers_unfrozen_nothing_is_left_to_quantise(tmp_path):
    for layers in (-1, 3):
        more = {"model.load_in_4bit": True, "model.num_layers_unfrozen": layers}
        with pytest.raises(ConfigError, match=r"num_layers_unfrozen is .*give less than 3"):
            load_policy(tiny_profile(tmp_path, **more).config, "cpu")


def test_without_bitsandbytes_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    config = TRLConfig.update(tiny_profile(tmp_path).config, {"model.load_in_4bit": True})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for act in (lambda: validate_config(config),
                lambda: load_base(config.model, torch.device("cpu"))):  # fmt: skip
        with pytest.raises(ConfigError, match=r"model\.load_in_4bit is True: install .*bitsandb"):
            act()

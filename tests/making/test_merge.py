"""`merge` writes a tuned policy as a model that needs nothing of this package."""

import json

import pytest
import torch
from tiny_runs import model_dir, policy_with_lora, run_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_helpers.__main__ import main
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.making.merge import merge
from rlhf_helpers.models.loading import load_policy, load_trained_policy

TOKENS = torch.tensor([[5, 9, 200, 31, 7]])


def adapter_of(root, family, base=None):
    """A policy whose LoRA changes what it says, and the adapter that it leaves."""
    policy = policy_with_lora(root, family=family)
    policy.save(root / "policy", str(base or root / f"{family}_bos"))
    return policy, root / "policy"


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_transformers_alone_loads_the_policy(tmp_path, family):
    policy, adapter = adapter_of(tmp_path, family)
    assert main(["merge", str(adapter), "--out", str(tmp_path / "plain")]) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    with torch.no_grad():
        expected = policy.base(TOKENS).logits
        untuned = AutoModelForCausalLM.from_pretrained(model_dir(tmp_path, family))(TOKENS).logits
        found = plain(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - untuned).abs().max() > 1e-3
    assert not any("lora" in name for name, _ in plain.named_parameters())
    text = "policy data"
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")(text) == policy.tokenizer(text)


def test_a_policy_that_started_from_an_adapter(tmp_path):
    """As after `fine-tune` and PPO with --set assets.policy=runs/fine_tune."""
    _, sft = adapter_of(tmp_path, "llama")
    policy = policy_with_lora(tmp_path, seed=6, family="llama", model__model_path=str(sft))
    policy.save(tmp_path / "tuned", str(sft))
    plain = AutoModelForCausalLM.from_pretrained(merge(str(tmp_path / "tuned"), tmp_path / "plain"))
    with torch.no_grad():
        expected = policy.base(TOKENS).logits
        torch.testing.assert_close(plain(TOKENS).logits, expected, rtol=0, atol=1e-5)
        first = AutoModelForCausalLM.from_pretrained(merge(str(sft), tmp_path / "first"))
        assert (first(TOKENS).logits - expected).abs().max() > 1e-3


def test_a_model_that_was_quantised_once_is_plain(tmp_path):
    """As SmolLM2 from its GGUF file: the configuration said so, and converters believe it."""
    base = model_dir(tmp_path, "llama")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gguf", "gguf_file": "x.gguf"}
    _, adapter = adapter_of(tmp_path, "llama", base)
    (base / "config.json").write_text(json.dumps(config))
    out = merge(str(adapter), tmp_path / "plain")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_a_run_without_lora_is_told_how_to_write_its_model(tmp_path):
    config = run_config(tmp_path, family="llama", model__delta_kwargs=None)
    policy = load_policy(config, "cpu")
    with torch.no_grad():
        policy.layers[-1].mlp.up_proj.weight.add_(0.1)
    policy.save(tmp_path / "policy", config.model.model_path)
    (tmp_path / "policy" / "trl_config.json").write_text(json.dumps(config.to_dict()))
    remedy = r"without LoRA .* load_trained_policy\(directory\).save_merged\(out\)"
    with pytest.raises(ConfigError, match=remedy):
        merge(str(tmp_path / "policy"), tmp_path / "plain")
    load_trained_policy(tmp_path / "policy", "cpu").save_merged(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, policy.base(TOKENS).logits)


def test_what_is_no_adapter_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="is no LoRA adapter: give the folder that has"):
        merge(str(model_dir(tmp_path, "opt")), tmp_path / "plain")
    assert not (tmp_path / "plain").exists()

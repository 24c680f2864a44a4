"""Every family of models that trlX names, with random weights, through two optimizer steps."""

import pytest
import torch
from peft import PeftModel
from tiny_runs import PROMPTS, letter_reward, model_dir, policy_with_lora, run_config
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.models.loading import load_policy, load_trained_policy
from rlhf_helpers.models.peft_import import torchao_unseen
from rlhf_helpers.training.api import train


@pytest.fixture(scope="module", params=["opt", "gpt2", "gpt_neox", "llama", "bloom"])
def trained(request, tmp_path_factory):
    """(trainer after two steps, its lines of metrics, directory)"""
    root = tmp_path_factory.mktemp(request.param)
    lines = []
    trainer = train(
        reward_fn=letter_reward,
        prompts=PROMPTS,
        eval_prompts=PROMPTS[:2],
        config=run_config(root, request.param, train__total_steps=2, train__eval_interval=2),
        callback=lines.append,
    )
    return trainer, lines, root


def logits_of(model):
    ids = torch.tensor([[80, 81, 82, 83, 84], [90, 91, 92, 93, 94]])
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_two_steps_change_the_policy_and_not_the_reference(trained):
    trainer, lines, _ = trained
    assert trainer.step == 2
    steps = [line for line in lines if "losses/total_loss" in line]
    assert len(steps) == 2 and all(torch.isfinite(torch.tensor(list(s.values()))).all()
                                   for s in steps)  # fmt: skip
    policy = trainer.policy
    policy.set_dropout(active=False)
    ids = torch.tensor([[80, 81, 82, 83, 84]])
    scored = policy.score(ids, torch.ones_like(ids))
    untouched = AutoModelForCausalLM.from_pretrained(trainer.config.model.model_path)
    with torch.no_grad():
        original = untouched(input_ids=ids).logits.log_softmax(-1)
    expected = original[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(scored.ref_logprobs, expected, atol=1e-5, rtol=0)
    assert (scored.logprobs - scored.ref_logprobs).abs().max() > 1e-4


def test_trunk_and_top_together_are_the_model(trained):
    """What is scored on trunk states equals the whole model's forward pass, left padding too."""
    trainer, _, _ = trained
    policy = trainer.policy
    policy.set_dropout(active=False)
    ids = torch.tensor([[2, 2, 80, 81, 82], [90, 91, 92, 93, 94]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    scored = policy.score(ids, mask)
    logprobs, values = policy(ids, mask, 0, 4, scored.trunk)
    seen = mask[:, :-1].bool()
    torch.testing.assert_close(logprobs[seen], scored.logprobs[seen], atol=1e-5, rtol=0)
    torch.testing.assert_close(values[seen], scored.values[seen], atol=1e-5, rtol=0)
    alone = policy.score(ids[:1, 2:], mask[:1, 2:])
    torch.testing.assert_close(scored.logprobs[:1, 2:], alone.logprobs, atol=1e-5, rtol=0)


def test_saved_adapter_loads_in_peft_and_here(trained):
    trainer, _, root = trained
    trainer.policy.set_dropout(active=False)
    expected = logits_of(trainer.policy.base)
    directory = trainer.save_pretrained(root / "adapter")
    base = AutoModelForCausalLM.from_pretrained(trainer.config.model.model_path)
    with torchao_unseen():  # Colab's is too old for peft itself
        in_peft = PeftModel.from_pretrained(base, directory)
    torch.testing.assert_close(logits_of(in_peft), expected)
    again = load_trained_policy(directory, "cpu")
    torch.testing.assert_close(logits_of(again.base), expected, atol=0, rtol=0)
    for name, parameter in trainer.policy.v_head.state_dict().items():
        assert torch.equal(again.v_head.state_dict()[name], parameter)


def test_merged_model_is_plain_and_has_the_same_logits(trained):
    trainer, _, root = trained
    trainer.policy.set_dropout(active=False)
    directory = trainer.save_pretrained(root / "merged", merge=True)
    plain = AutoModelForCausalLM.from_pretrained(directory)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(
        logits_of(plain), logits_of(trainer.policy.base), atol=1e-5, rtol=1e-5
    )
    assert AutoTokenizer.from_pretrained(directory)("policy")["input_ids"]


# --- models that are not all of one piece ------------------------------------------------------

ONE_MODULE = {"delta_type": "lora", "modified_modules": ["self_attn.q_proj"], "lora_r": 4,
              "lora_alpha": 8}  # fmt: skip


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3", "granite", "cohere", "llama"])
def test_log_probabilities_are_those_of_the_whole_model(family, tmp_path):
    """Layers of several kinds, and logits that are scaled behind the head."""
    policy = policy_with_lora(tmp_path, family=family, model__delta_kwargs=ONE_MODULE)
    ids = torch.randint(5, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        output = policy.base(input_ids=ids, attention_mask=mask, position_ids=positions)
    expected = output.logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    scored, seen = policy.score(ids, mask), mask[:, :-1].bool()
    torch.testing.assert_close(scored.logprobs[seen], expected[seen], atol=1e-5, rtol=0)
    updated, _ = policy(ids, mask, 0, 11, scored.trunk)
    torch.testing.assert_close(updated[seen], expected[seen], atol=1e-5, rtol=0)
    assert policy.base.config.to_dict() == AutoConfig.from_pretrained(
        policy.base.config._name_or_path, dtype=torch.float32
    ).to_dict() | {"_name_or_path": policy.base.config._name_or_path}  # fmt: skip


@pytest.mark.parametrize("family", ["gemma3_text", "granite"])
def test_an_untrained_policy_is_its_reference(family, tmp_path):
    """Sampled by the whole model, scored by its top: no KL, and a first ratio of 1."""
    lines = []
    train(
        reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=PROMPTS[:2], callback=lines.append,
        config=run_config(
            tmp_path, family, method__semantics="corrected", train__total_steps=1,
            model__delta_kwargs={**ONE_MODULE, "lora_dropout": 0.0},
        ),
    )  # fmt: skip
    rollouts = next(line for line in lines if "objective/kl" in line)
    step = next(line for line in lines if "losses/total_loss" in line)
    assert rollouts["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert step["ratio"] == pytest.approx(1, abs=1e-5)


def test_capped_logits_are_refused(tmp_path):
    """Gemma 2 ends in a tanh, whose gradient the frozen head does not know."""
    with pytest.raises(ConfigError, match="final_logit_softcapping"):
        load_policy(run_config(tmp_path, "gemma2", model__delta_kwargs=ONE_MODULE), "cpu")


def test_a_model_whose_output_is_narrower_than_its_layers(tmp_path):
    """As OPT-350m: 32 wide inside, 16 at both ends, norms behind the layers."""
    path = model_dir(tmp_path)
    shape = AutoConfig.from_pretrained(path)
    shape.word_embed_proj_dim, shape.do_layer_norm_before = 16, False
    AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    lines = []
    trainer = train(
        reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=PROMPTS[:2], callback=lines.append,
        config=run_config(tmp_path, method__semantics="corrected", train__total_steps=2,
                          model__delta_kwargs__lora_dropout=0.0),
    )  # fmt: skip
    step = next(line for line in lines if "losses/total_loss" in line)
    assert step["ratio"] == pytest.approx(1, abs=1e-5) and trainer.step == 2

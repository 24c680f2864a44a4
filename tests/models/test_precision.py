"""models/precision.py: what learns is float32 and computes in it, the rest in model.dtype."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import (
    PROMPTS,
    assert_same_run,
    letter_reward,
    model_dir,
    policy_with_lora,
    run_config,
    tiny_train,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_helpers.config.sections import ModelConfig
from rlhf_helpers.config.trl_config import default_ppo_config
from rlhf_helpers.models.loading import load_base, load_policy, load_trained_policy
from rlhf_helpers.models.lora_state import lora_sites
from rlhf_helpers.models.precision import default_dtype
from rlhf_helpers.training.api import train

FAMILIES = ["opt", "llama", "gpt2", "gpt_neox", "bloom"]
PEFT = {"model__delta_kwargs": None, "model__peft_config": {"peft_type": "LORA", "r": 4}}
NO_LORA = {"model__delta_kwargs": None}
TOKENS = torch.randint(10, 99, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
MASK[0, :3] = 0


# --- model.dtype: null ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "capability, expected",
    [((7, 0), torch.float16), ((7, 5), torch.float16),  # V100, T4: bfloat16 is emulated there
     ((8, 0), torch.bfloat16), ((8, 9), torch.bfloat16), ((9, 0), torch.bfloat16),
     ((12, 0), torch.bfloat16)],
)  # fmt: skip
def test_no_gpu_gets_a_type_that_it_has_to_emulate(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)  # as on a T4
    assert default_dtype(torch.device("cuda", 0)) == expected


def test_a_cpu_gets_float32_and_a_given_type_is_taken(tmp_path):
    path = str(model_dir(tmp_path))
    cpu = torch.device("cpu")
    assert load_base(ModelConfig(model_path=path), cpu).dtype == torch.float32
    assert load_base(ModelConfig(model_path=path, dtype="float16"), cpu).dtype == torch.float16


# --- in which type numbers are multiplied ------------------------------------------------------


class Products(TorchDispatchMode):
    """The types of all matrix products, by the shape of the second factor."""

    def __init__(self):
        super().__init__()
        self.types = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().removeprefix("aten::")
        if name in ("mm", "addmm", "bmm"):
            factors = args[1:3] if name == "addmm" else args[:2]
            self.types.setdefault(tuple(factors[1].shape), set()).add(factors[1].dtype)
            assert factors[0].dtype == factors[1].dtype
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapter", [{}, PEFT], ids=["opendelta", "peft"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lora_and_value_head_compute_in_float32_and_the_frozen_layers_do_not(
    tmp_path, adapter, dtype
):
    policy = policy_with_lora(tmp_path, model__dtype=dtype, **adapter)
    half = getattr(torch, dtype)
    with Products() as products:
        logprobs, values = policy(TOKENS, MASK, 4, 7, None)
    rank = 4
    lora = {(32, rank), (rank, 32)}  # A and B transposed
    value_head = {(32, 64), (64, 1)}
    for shape in lora | value_head:
        assert products.types.pop(shape) == {torch.float32}, shape
    assert products.types and set.union(*products.types.values()) == {half}
    assert logprobs.dtype == values.dtype == torch.float32
    (logprobs.sum() + values.sum()).backward()
    for name, parameter in policy.trainable_parameters().items():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
    assert {p.dtype for p in policy.base.parameters() if not p.requires_grad} == {half}


def test_loras_sum_is_rounded_once(tmp_path):
    """W x + scaling B A x in double, rounded: no float16 number lies nearer."""
    for adapter in ({}, PEFT):
        policy = policy_with_lora(tmp_path, model__dtype="float16", **adapter)
        policy.set_dropout(active=False)
        site = lora_sites(policy.base)[0]
        x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)).half()
        bias = site.module.bias if site.backend == "opendelta" else site.module.base_layer.bias
        # The frozen layer's own result is rounded to float16 before; then the sum is.
        frozen = nn.functional.linear(x, site.weight, bias).double()
        low_rank = x.double() @ site.lora_A.double().T @ site.lora_B.double().T
        exact = frozen + site.scaling * low_rank
        error = (site.module(x).double() - exact).abs()
        spacing = torch.finfo(torch.float16).eps * 2 ** exact.abs().log2().floor()
        assert (error <= 0.501 * spacing + 1e-6).all()
        assert error.max() > 0  # it is rounded


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_learn_compute_in_float32_and_begin_as_the_reference(tmp_path, family):
    policy = load_policy(run_config(tmp_path, family, model__dtype="bfloat16", **NO_LORA), "cpu")
    layers = policy.layers[policy.branch :]
    for module in (layers, policy._reference_layers):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    seen = []
    for layer in layers:
        for module in layer.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    scored = policy.score(TOKENS, MASK)
    assert set(seen) == {torch.float32}
    assert torch.equal(scored.logprobs, scored.ref_logprobs)  # no divergence before the first step
    assert scored.trunk.dtype == torch.bfloat16  # as it is kept beside the rollouts
    again = policy.score(TOKENS, MASK, trunk=scored.trunk)
    assert torch.equal(again.logprobs, scored.logprobs)
    # Sampling goes through the same layers.
    seen.clear()
    policy.generate(TOKENS, MASK, max_new_tokens=3, do_sample=False)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_near_the_same_policy_in_float32(tmp_path, family):
    """With LoRA and without: a widened mask, position or ALiBi in the wrong place would show."""
    for adapter in ({}, NO_LORA):
        settings = dict(family=family, **adapter)
        exact = load_policy(run_config(tmp_path, model__dtype="float32", **settings), "cpu")
        half = load_policy(run_config(tmp_path, model__dtype="bfloat16", **settings), "cpu")
        expected, ours = (p.score(TOKENS, MASK).logprobs for p in (exact, half))
        seen = MASK[:, :-1].bool()
        difference = (ours - expected)[seen].abs()
        assert difference.median() < 0.05 and difference.max() < 1.0
        assert 0 < difference.max()


def test_a_copy_of_the_policy_computes_the_same(tmp_path):
    policy = load_policy(run_config(tmp_path, model__dtype="bfloat16", **NO_LORA), "cpu")
    ours, theirs = (p.score(TOKENS, MASK).logprobs for p in (policy, copy.deepcopy(policy)))
    assert torch.equal(ours, theirs)


# --- learning ------------------------------------------------------------------------------------


def test_without_lora_every_weight_moves_at_the_posts_learning_rate(tmp_path):
    """`default_ppo_config()` in half precision; in bfloat16 three of ten weights moved."""
    ours = default_ppo_config()
    settings = {"optimizer__kwargs": dict(ours.optimizer.kwargs),
                "scheduler__kwargs": dict(ours.scheduler.kwargs), "model__dtype": "bfloat16",
                "train__total_steps": 8, "train__watchdog": "off", **NO_LORA}  # fmt: skip
    config = run_config(tmp_path, **settings)
    drawn = load_policy(config, "cpu").trainable_parameters()
    before = {name: p.detach().clone() for name, p in drawn.items()}
    trainer = train(reward_fn=letter_reward, prompts=PROMPTS, config=config)
    moved = total = 0
    for name, parameter in trainer.trained.items():
        if name.startswith("v_head") or "bias" in name:  # a bias may have no gradient (keys')
            continue
        assert parameter.dtype == torch.float32
        moved += (parameter != before[name]).sum().item()
        total += parameter.numel()
    assert total > 10_000 and moved / total > 0.999
    frozen = {n: p for n, p in trainer.policy.base.named_parameters() if not p.requires_grad}
    assert frozen and {p.dtype for p in frozen.values()} == {torch.bfloat16}


def test_layers_that_learnt_are_saved_and_loaded_in_full(tmp_path):
    trainer = tiny_train(tmp_path, model__dtype="bfloat16", **NO_LORA)
    directory = trainer.directory / "policy"
    assert {t.dtype for t in load_file(directory / "unfrozen_layers.safetensors").values()} == {
        torch.float32
    }
    again = load_trained_policy(directory, "cpu")
    ours, theirs = (p.score(TOKENS, MASK).logprobs for p in (trainer.policy, again))
    assert torch.equal(ours, theirs)


def test_a_run_in_half_precision_resumes_as_if_nothing_had_happened(tmp_path):
    class Stop(BaseException):  # like a kill: nothing catches it
        pass

    def stop(line):
        if line["step"] == 4 and "exp_scores/mean" not in line:
            raise Stop

    for name, adapter in (("LoRA", {}), ("none", NO_LORA)):
        settings = {"model__dtype": "bfloat16", "train__checkpoint_interval": 3, **adapter}
        tiny_train(tmp_path / name / "whole", **settings)
        with pytest.raises(Stop):
            tiny_train(tmp_path / name / "cut", callback=stop, **settings)
        tiny_train(tmp_path / name / "cut", **settings)
        assert_same_run(tmp_path / name / "whole" / "run", tmp_path / name / "cut" / "run")

"""Packed frozen weights: the same numbers, only where nothing ever changes, and switched off."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import PROMPTS, policy_with_lora
from torch import nn
from transformers.pytorch_utils import Conv1D

import rlhf_helpers.models.packed as packed_module
from rlhf_helpers.data.prompts import pad_prompts, tokenize_prompts
from rlhf_helpers.lab.naive import NaivePolicy
from rlhf_helpers.models.frozen_head import frozen_head_logprobs, is_frozen_linear
from rlhf_helpers.models.packed import (
    SWITCH,
    PackedWeight,
    measured_gain,
    pack_frozen,
    packable_modules,
    packed_of,
    packing_pays,
    plain_products,
)

pytestmark = pytest.mark.skipif(
    not packed_module._operators_work(), reason="this torch has no packed products"
)


@pytest.fixture
def small_too(monkeypatch):
    """Whatever its size, and without measuring."""
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setattr(packed_module, "SMALLEST", 1)


@pytest.mark.parametrize("rows", [(1,), (16,), (3, 5), (0,), (2, 164)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_products_and_gradients_are_those_of_plain_ones(rows, bias, transposed):
    torch.manual_seed(0)
    weight, b = torch.randn(40, 24), torch.randn(40) if bias else None
    packed = PackedWeight(weight.t().contiguous() if transposed else weight, b, transposed)
    outcomes = []
    for product in (packed, lambda x: F.linear(x, weight, b)):
        x = torch.linspace(-1, 1, 24).repeat(*rows, 1).requires_grad_()
        y = product(x)
        y.square().sum().backward()
        outcomes.append((y.detach(), x.grad))
    for ours, plain in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_by_hand():
    """[1 2; 3 4] times (1, 10), plus (0, 100); back: (1, 1) times the matrix."""
    packed = PackedWeight(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.0, 100.0]))
    assert packed.product(torch.tensor([[1.0, 10.0]])).tolist() == [[21.0, 143.0]]
    assert packed.product_back(torch.tensor([[1.0, 1.0]])).tolist() == [[4.0, 6.0]]


def test_rows_in_any_order_in_memory():
    packed = PackedWeight(torch.randn(7, 6))
    x = torch.randn(6, 3).t()
    torch.testing.assert_close(packed(x), F.linear(x, packed.weight), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neox", "llama", "bloom"])
def test_a_policy_samples_scores_and_learns_the_same(tmp_path, small_too, monkeypatch, family):
    """Every family, its gradients too; what LoRA changes stays unpacked."""
    outcomes = []
    for switch in ("0", "1"):
        monkeypatch.setenv(SWITCH, switch)
        policy = policy_with_lora(tmp_path, family=family)
        prompts = tokenize_prompts(PROMPTS, policy.tokenizer, 10)
        ids, mask = pad_prompts(prompts, policy.tokenizer.pad_token_id)
        torch.manual_seed(0)
        with policy.merged_for_sampling():
            rows = policy.generate(ids, mask, do_sample=True, top_k=0, max_new_tokens=8,
                                   min_new_tokens=8)  # fmt: skip
        whole = torch.cat([mask, torch.ones_like(rows[:, ids.shape[1] :])], 1)
        scored = policy.score(rows, whole)
        logprobs, values = policy(rows, whole, ids.shape[1] - 1, 8, scored.trunk)
        (logprobs.sum() + values.sum()).backward()
        gradients = [p.grad for p in policy.trainable_parameters().values()]
        outcomes.append([rows, scored.logprobs, scored.ref_logprobs, scored.values, *gradients])
        used = [m for m in policy.modules() if "packed" in vars(m)]
        assert bool(used) == (switch == "1")
        top = policy.layers[-1]
        assert any(m in used for m in top.modules()) == (switch == "1")  # its feed-forward
        assert any(m.packed.backward_order is not None for m in used) == (switch == "1")
    for plain, ours in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_only_large_frozen_float32_layers_without_lora(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_module, "SMALLEST", 32 * 48)
    policy = policy_with_lora(tmp_path)
    names = {m: n for n, m in policy.base.named_modules()}
    # Widths 32, feed-forward 48, 384 words: projections of 32 x 32 are too small.
    layers = [f"model.decoder.layers.{i}.{m}" for i in range(3) for m in ("fc1", "fc2")]
    assert {names[m] for m in packable_modules(policy.base)} == {*layers, "lm_head"}
    monkeypatch.setattr(packed_module, "SMALLEST", 1)
    found = {names[m] for m in packable_modules(policy.base)}
    assert "model.decoder.layers.0.self_attn.q_proj" in found  # the trunk's
    assert not any(f"layers.{i}.self_attn" in name for name in found for i in (1, 2))  # LoRA's
    policy.base.model.decoder.layers[0].fc1.requires_grad_(True)
    policy.base.model.decoder.layers[0].fc2.to(torch.bfloat16)
    assert len(packable_modules(policy.base)) == len(found) - 2
    assert packable_modules(nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.ReLU()))


def frozen(*sizes):
    torch.manual_seed(1)
    return nn.Linear(*sizes).requires_grad_(False)


def test_a_weight_that_changed_is_not_served_from_its_packing(small_too):
    layer, x = frozen(6, 4), torch.randn(3, 6)
    assert pack_frozen(layer) == 1 and packed_of(layer, x) is not None
    assert pack_frozen(layer) == 0
    copied = copy.deepcopy(layer)
    layer.weight.add_(1.0)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert packed_of(layer, x) is None
    # A copy computes with its own weight.
    copied.weight.zero_()
    assert torch.equal(copied(x), copied.bias.expand(3, 4))
    layer.load_state_dict(frozen(6, 4).state_dict())
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_other_types_and_autocast_go_the_plain_way(small_too):
    layer, x = frozen(6, 4), torch.randn(3, 6)
    pack_frozen(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_of(layer, x) is None and layer(x).dtype == torch.bfloat16
    assert packed_of(layer, x.double()) is None
    with plain_products():
        assert packed_of(layer, x) is None
    assert packed_of(layer, x) is not None


def test_a_packed_head_counts_as_a_frozen_one(small_too):
    torch.manual_seed(0)
    head = frozen(6, 11)
    hidden = torch.randn(2, 5, 6, requires_grad=True)
    labels = torch.randint(11, (2, 5))
    plain = frozen_head_logprobs(hidden, head, labels)
    pack_frozen(head)
    assert is_frozen_linear(head)
    ours = frozen_head_logprobs(hidden, head, labels)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(x.sum(), hidden)[0] for x in (ours, plain)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_conv1d_keeps_its_weight_the_other_way_round(small_too):
    layer = Conv1D(4, 6).requires_grad_(False)  # out, in
    x = torch.randn(2, 3, 6)
    plain = layer(x)
    assert pack_frozen(layer) == 1
    torch.testing.assert_close(layer(x), plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gain, pays", [(1.3, True), (1.05, False), (0.5, False)])
def test_measured_before_it_is_preferred(monkeypatch, gain, pays):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(packed_module, "measured_gain", lambda: gain)
    assert packing_pays() == pays
    monkeypatch.setenv(SWITCH, "0")
    assert not packing_pays()
    monkeypatch.setenv(SWITCH, "1")
    assert packing_pays()
    monkeypatch.setattr(packed_module, "_operators_work", lambda: False)
    assert not packing_pays()


def test_the_measurement_takes_both_in_turn(monkeypatch):
    """Plain products that take three times as long: a gain of 3, whatever this machine does."""
    times = iter([0.3, 0.1] * 7)
    monkeypatch.setattr(packed_module, "_seconds", lambda work: work() and next(times))
    assert measured_gain.__wrapped__() == pytest.approx(3.0)


def test_without_the_operators_nothing_is_packed(monkeypatch, small_too):
    monkeypatch.setattr(packed_module, "_packed", lambda weight: torch.ops.mkldnn.no_such_name)
    packed_module._operators_work.cache_clear()
    try:
        assert not packing_pays() and pack_frozen(frozen(6, 4)) == 0
    finally:
        monkeypatch.undo()
        packed_module._operators_work.cache_clear()


def test_too_little_memory_leaves_everything_as_it_is(monkeypatch, small_too):
    layer = frozen(6, 4)  # 96 bytes
    free = type("Memory", (), {"available": 191})
    monkeypatch.setattr(packed_module.psutil, "virtual_memory", lambda: free)
    assert pack_frozen(layer) == 0
    free.available = 192
    assert pack_frozen(layer) == 1


def test_the_benchmarks_slow_half_multiplies_plainly(tmp_path, small_too, monkeypatch):
    """Also around a model that another policy packed."""
    policy = policy_with_lora(tmp_path)
    ids = torch.randint(10, 100, (2, 6))
    mask = torch.ones_like(ids)
    policy.score(ids, mask)
    naive = NaivePolicy(policy.base, policy.tokenizer, 2)
    monkeypatch.setattr(PackedWeight, "product", lambda *_: pytest.fail("packed"))
    naive.score(ids, mask)
    naive(ids, mask, 0, 3, None)[0].sum().backward()
    naive.generate(ids, mask, max_new_tokens=2)


def test_a_run_that_goes_on_is_packed_as_it_was(tmp_path, monkeypatch):
    """Whatever a second measurement would say."""
    from tiny_runs import tiny_train

    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")
    monkeypatch.setattr(packed_module, "SMALLEST", 1)
    for first, later in (("1", "0"), ("0", "1")):
        root = tmp_path / first
        monkeypatch.setenv("RLHF_PACKED", first)
        before = tiny_train(root, train__total_steps=2)
        monkeypatch.setenv("RLHF_PACKED", later)
        after = tiny_train(root, train__total_steps=4)
        assert before.policy.packs_weights == after.policy.packs_weights == (first == "1")
        assert after.step == 4

"""The cache whose room is taken once: the same numbers as transformers' own, without copying."""

import pytest
import torch
from tiny_runs import PROMPTS, policy_with_lora
from transformers import AutoConfig, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf_helpers.lab.naive import NaivePolicy
from rlhf_helpers.models.kv_cache import RoomyLayer, roomy_cache


def states(tokens, seed):
    """Keys and values of some tokens, [batch, heads, tokens, width]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, tokens, 4, generator=generator) for _ in range(2)]


def both(room, lengths):
    """The layer with room and transformers' own, fed the same."""
    roomy, plain = RoomyLayer(room), DynamicLayer()
    for seed, tokens in enumerate(lengths):
        for ours, theirs in zip(
            roomy.update(*states(tokens, seed)), plain.update(*states(tokens, seed)), strict=True
        ):
            assert torch.equal(ours, theirs)
    return roomy, plain


def test_it_holds_what_was_put_in_and_never_moves_it():
    roomy, plain = both(9, [5, 1, 1])
    place = roomy.keys.data_ptr()
    roomy.update(*states(1, 7))
    assert roomy.keys.data_ptr() == place
    assert roomy.get_seq_length() == plain.get_seq_length() + 1 == 8
    assert roomy.get_mask_sizes(1) == (9, 0)


def test_more_than_its_room_is_held_too():
    both(6, [5, 1, 1, 3])
    both(4, [5, 1])


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
        lambda layer: layer.crop(-2),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.batch_select_indices(torch.tensor([1])),
        lambda layer: layer.reset(),
    ],
)
def test_after_a_change_from_outside_it_goes_on_as_transformers_does(change):
    roomy, plain = both(9, [5, 1])
    batch = None
    for layer in (roomy, plain):
        change(layer)
        batch = 2 if layer.keys is None else layer.keys.shape[0]
    for seed in (11, 12):
        new = [x[:1].expand(batch, -1, -1, -1) for x in states(1, seed)]
        for ours, theirs in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(ours, theirs)


def test_windows_stay_as_transformers_makes_them():
    kinds = {type(layer) for layer in roomy_cache(AutoConfig.for_model("opt"), 8).layers}
    assert kinds == {RoomyLayer}
    sliding = roomy_cache(AutoConfig.for_model("mistral", sliding_window=4), 8)
    assert {type(layer) for layer in sliding.layers} == {DynamicSlidingWindowLayer}


@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neox", "llama", "bloom"])
def test_samples_and_states_are_the_same_to_the_last_bit(tmp_path, family):
    policy = policy_with_lora(tmp_path, family=family)
    policy.tokenizer.padding_side = "left"
    batch = policy.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    seen = {}
    for takes_room in (True, False):
        policy.takes_room_at_once = takes_room
        states = []
        hook = policy.layers[-1].register_forward_hook(
            lambda _module, _args, output, states=states: states.append(
                output if isinstance(output, torch.Tensor) else output[0]
            )
        )
        torch.manual_seed(0)
        rows = policy.generate(
            batch.input_ids, batch.attention_mask, max_new_tokens=8, do_sample=True, top_k=0
        )
        hook.remove()
        seen[takes_room] = (rows, states)
    assert torch.equal(seen[True][0], seen[False][0])
    assert len(seen[True][1]) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen[True][1], seen[False][1], strict=True))


def test_whoever_names_a_cache_keeps_it(tmp_path, monkeypatch):
    """Also where a caller leaves the length open; and the benchmark's slow half grows its own."""
    policy = policy_with_lora(tmp_path)
    given = []
    monkeypatch.setattr(
        policy.base, "generate", lambda **kwargs: given.append(kwargs) or kwargs["input_ids"]
    )
    ids = torch.tensor([[5, 6]])
    own = DynamicCache()
    policy.generate(ids, max_new_tokens=3)
    policy.generate(ids, max_new_tokens=3, num_beams=2)
    policy.generate(ids, max_new_tokens=3, past_key_values=own)
    policy.generate(ids, max_new_tokens=3, cache_implementation="static")
    policy.generate(ids)
    assert type(given[0]["past_key_values"].layers[0]) is RoomyLayer
    assert given[0]["past_key_values"].layers[0].room == 5
    assert "past_key_values" not in given[1] and given[2]["past_key_values"] is own
    assert "past_key_values" not in given[3] and "past_key_values" not in given[4]
    assert not NaivePolicy.takes_room_at_once

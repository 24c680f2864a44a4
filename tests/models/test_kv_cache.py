"""The cache whose room is taken once: the same numbers as transformers' own, without copying."""

import pytest
import torch
from transformers import AutoConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf_helpers.models.kv_cache import RoomyLayer, roomy_cache


def states(tokens, seed):
    """Keys and values of some tokens, [batch, heads, tokens, width]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, tokens, 2, generator=generator) for _ in range(2)]


def both(room, lengths):
    """The layer with room and transformers' own, fed the same."""
    roomy, plain = RoomyLayer(room), DynamicLayer()
    for seed, tokens in enumerate(lengths):
        feed_both(roomy, plain, tokens, seed)
    return roomy, plain


def feed_both(roomy, plain, tokens, seed, batch=4):
    new = [x[:batch] for x in states(tokens, seed)]
    for ours, theirs in zip(roomy.update(*new), plain.update(*new), strict=True):
        assert torch.equal(ours, theirs)


def test_it_holds_what_was_put_in_and_never_moves_it():
    roomy, plain = both(9, [5, 1, 1])
    place = roomy.keys.data_ptr()
    roomy.update(*states(1, 7))
    assert roomy.keys.data_ptr() == place
    assert roomy.get_seq_length() == plain.get_seq_length() + 1 == 8
    assert roomy.get_mask_sizes(1) == (9, 0)


def test_more_than_its_room_is_refused():
    with pytest.raises(ValueError, match="room for 6 tokens, not for 7"):
        both(6, [5, 1, 1])


@pytest.mark.parametrize("left", [[3, 1, 2], [0, 3], [0, 1], [3], [0, 1, 2, 3]])
def test_rows_leave_and_the_others_go_on(left):
    """Rows may move to the front; what comes later joins the right ones."""
    roomy, plain = both(9, [5, 1])
    place = roomy.keys.data_ptr()
    for layer in (roomy, plain):
        layer.batch_select_indices(torch.tensor(left))
    for ours, theirs in ((roomy.keys, plain.keys), (roomy.values, plain.values)):
        assert torch.equal(ours, theirs)
    feed_both(roomy, plain, 1, 11, len(left))
    feed_both(roomy, plain, 1, 12, len(left))
    assert roomy.keys.data_ptr() == place


def test_windows_stay_as_transformers_makes_them():
    kinds = {type(layer) for layer in roomy_cache(AutoConfig.for_model("opt"), 8).layers}
    assert kinds == {RoomyLayer}
    sliding = roomy_cache(AutoConfig.for_model("mistral", sliding_window=4), 8)
    assert {type(layer) for layer in sliding.layers} == {DynamicSlidingWindowLayer}

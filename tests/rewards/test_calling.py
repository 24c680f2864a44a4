"""Which reward functions get the tokenizer: those of trlX after 0.7.0, no others."""

import functools

import pytest
import torch

from rlhf_helpers.rewards.calling import tokenizer_keyword

POLICYS = object()
OWN = object()


def older(samples, prompts, outputs):  # trlX 0.6 and 0.7.0
    return samples, prompts, outputs


def newer(samples, prompts, outputs, tokenizer, **kwargs):  # the dense example
    return tokenizer


class Scorer:
    def __call__(self, samples, *, tokenizer=None, **kwargs):
        return tokenizer

    def score(self, samples, prompts, outputs):
        return samples


class Model(torch.nn.Module):
    def forward(self, samples, prompts, outputs):
        return samples


def forwarding(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def forwarding_with_wraps(function):
    return functools.wraps(function)(forwarding(function))


TAKES_IT = [
    newer,
    lambda samples, **kwargs: kwargs["tokenizer"],
    lambda samples, prompts, outputs, tokenizer: tokenizer,
    Scorer(),
    functools.partial(newer, prompts=None),
    forwarding_with_wraps(newer),
]
DOES_NOT = [
    older,
    lambda samples, prompts, outputs: samples,
    Scorer().score,
    Model(),
    functools.partial(older),
    forwarding(older),
    forwarding_with_wraps(older),
]
HAS_ITS_OWN = [
    functools.partial(newer, tokenizer=OWN),
    lambda samples, prompts, outputs, tokenizer=OWN: tokenizer,
    lambda samples, tokenizer=OWN, **kwargs: tokenizer,
]
CALL = {"samples": ["a"], "prompts": [""], "outputs": ["a"]}


@pytest.mark.parametrize("reward_fn", TAKES_IT)
def test_a_function_that_takes_the_tokenizer_gets_it(reward_fn):
    call = CALL if not isinstance(reward_fn, functools.partial) else {"samples": [], "outputs": []}
    assert reward_fn(**call, **tokenizer_keyword(reward_fn, POLICYS)) is POLICYS


@pytest.mark.parametrize("reward_fn", DOES_NOT)
def test_a_function_that_does_not_is_called_as_before(reward_fn):
    assert tokenizer_keyword(reward_fn, POLICYS) == {}
    assert reward_fn(**CALL, **tokenizer_keyword(reward_fn, POLICYS)) is not None
    with pytest.raises(TypeError, match="tokenizer"):
        reward_fn(**CALL, tokenizer=POLICYS)


@pytest.mark.parametrize("reward_fn", HAS_ITS_OWN)
def test_a_tokenizer_that_the_function_has_already_stays(reward_fn):
    assert reward_fn(**CALL, **tokenizer_keyword(reward_fn, POLICYS)) is OWN


@pytest.mark.parametrize("thing", [max, dict, True, None, "reward"])
def test_what_has_no_signature_gets_nothing(thing):
    assert tokenizer_keyword(thing, POLICYS) == {}


def test_a_positional_tokenizer_cannot_be_handed_over_by_name():
    assert tokenizer_keyword(lambda tokenizer, /, samples: samples, POLICYS) == {}

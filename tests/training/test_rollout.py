"""Prompts, texts, masks, collation, kept trunk states, and sampling with common random numbers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import PROMPTS, policy_with_lora
from transformers import LogitsProcessorList

from rlhf_helpers.algorithms.ppo import gae, ppo_loss, whiten
from rlhf_helpers.evaluation.sampling import (
    EvalPrompt,
    RowNoise,
    _without_sampling,
    divergence,
    sample,
)
from rlhf_helpers.training.prompts import Prompt, PromptStream, pad_prompts, tokenize_prompts
from rlhf_helpers.training.rollout import (
    Rollout,
    build_rollouts,
    collate,
    cut_at_stop,
    decode,
    keep_sampled_ids,
    retokenise,
    shuffled_minibatches,
    to_text,
)

EOS = 2  # of the recorded tokenizers; padding too


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A random OPT with LoRA whose B is not zero, dropout off."""
    return policy_with_lora(tmp_path_factory.mktemp("opt"))


def prompts_of(policy, special=False):
    return pad_prompts(tokenize_prompts(PROMPTS[:5], policy.tokenizer, 12, special), EOS)


# --- prompts -------------------------------------------------------------------------------


def stream(n, chunk_size, seed=0):
    return PromptStream([Prompt([i]) for i in range(n)], chunk_size, seed)


def ids(chunk):
    return [prompt.input_ids[0] for prompt in chunk]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_every_prompt_comes_once_an_epoch(n, chunk_size, seed):
    source = stream(n, chunk_size, seed)
    for _ in range(3):
        seen = []
        while len(seen) < n:
            chunk = ids(next(source))
            assert 1 <= len(chunk) <= chunk_size
            seen += chunk
        assert sorted(seen) == list(range(n))


def test_order_changes_with_epoch_and_seed():
    first = stream(50, 50)
    epochs = [ids(next(first)), ids(next(first)), ids(next(stream(50, 50, seed=1)))]
    assert len({tuple(order) for order in epochs}) == 3


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 15))
def test_a_restored_place_goes_on_with_the_same_prompts(n, chunk_size, steps):
    original = stream(n, chunk_size)
    for _ in range(steps):
        next(original)
    restored = stream(n, chunk_size)
    restored.epoch, restored.position = original.epoch, original.position
    for _ in range(4):
        assert ids(next(restored)) == ids(next(original))


def test_prompts_are_cut_and_padded_on_the_left(policy):
    prompts = tokenize_prompts(["policy", "tokens value batch every"], policy.tokenizer, 5)
    tokens, mask = pad_prompts(prompts, EOS)
    assert tokens.shape == (2, 5)
    length = len(prompts[0].input_ids)
    assert mask[0].tolist() == [0] * (5 - length) + [1] * length
    assert (tokens[0, : 5 - length] == EOS).all() and mask[1].all()


def test_prompts_may_be_dicts_with_metadata(policy):
    prompts = tokenize_prompts(
        [{"prompt": "the model", "label": 1}, "a"], policy.tokenizer, max_prompt_length=8
    )
    assert prompts[0].metadata == {"label": 1} and prompts[1].metadata == {}
    assert to_text(policy.tokenizer, prompts[0].input_ids) == "the model"


# --- texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, stops, expected",
    [
        ("one two three", [], ("one two three", False)),
        ("one two three", ["two"], ("one", True)),
        ("one two three", ["four"], ("one two three", False)),
        ("one  ", ["x"], ("one  ", False)),  # only what is cut is stripped
        ("a b c d", ["c", "b"], ("a", True)),  # one after another
        ("stop", ["stop"], ("", True)),
    ],
)
def test_stop_sequences(text, stops, expected):
    assert cut_at_stop(text, stops) == expected


def test_end_of_text_is_written_out_only_where_it_was_drawn_or_cut(policy):
    tokenizer = policy.tokenizer
    prompt = tokenizer("a b", add_special_tokens=False)["input_ids"]
    ended = [*prompt, *tokenizer("policy", add_special_tokens=False)["input_ids"]]
    width = len(ended) + 1
    rows = torch.tensor([ended + [EOS], ended + ended[-1:]])
    assert rows.shape[1] == width
    prompts = torch.tensor([prompt, prompt])
    with_eos = decode(tokenizer, prompts, rows, append_eos_token=True)
    assert [o.endswith("</s>") for o in with_eos.outputs] == [True, False]
    assert not any("</s>" in o for o in decode(tokenizer, prompts, rows).outputs)
    assert decode(tokenizer, prompts, rows, ["li"], append_eos_token=True).outputs == [
        "po</s>",
        "po</s>",
    ]


# --- the ids that were drawn -----------------------------------------------------------------


def test_drawn_ids_are_kept_up_to_end_of_text(policy):
    prompt_ids = torch.tensor([[EOS, 80, 81], [82, 83, 84]])
    prompt_mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    rows = torch.tensor([[EOS, 80, 81, 90, EOS, EOS, EOS], [82, 83, 84, 91, 92, 93, EOS]])
    kept = keep_sampled_ids(policy.tokenizer, prompt_ids, prompt_mask, rows)
    assert kept.tokens.tolist() == rows.tolist()
    assert kept.attention_mask.tolist() == [[0, 1, 1, 1, 1, 0, 0], [1] * 7]
    # Column j decides token j + 1: the first is that of the last prompt token.
    assert kept.loss_mask.tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert kept.ends == [4, 6]


def test_drawn_ids_end_before_a_stop_sequence(policy):
    tokenizer = policy.tokenizer
    answer = tokenizer("policy data value", add_special_tokens=False)["input_ids"]
    rows = torch.tensor([[80, *answer]])
    kept = keep_sampled_ids(
        tokenizer, rows[:, :1], torch.ones(1, 1, dtype=torch.long), rows, [" value"]
    )
    response = kept.tokens[0, 1 : kept.ends[0] + 1].tolist()
    assert to_text(tokenizer, response) == "policy data"
    assert response == answer[: len(response)]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_masks_of_drawn_ids_are_explicit(policy, data):
    """Whatever is drawn, the loss mask covers the response up to its end and nothing else."""
    rows = data.draw(st.lists(st.lists(st.integers(0, 20), min_size=6, max_size=6), min_size=1,
                              max_size=4))  # fmt: skip
    rows = torch.tensor([[30, 31, *row] for row in rows])
    mask = torch.ones(len(rows), 2, dtype=torch.long)
    kept = keep_sampled_ids(policy.tokenizer, rows[:, :2], mask, rows)
    for i, row in enumerate(rows[:, 2:].tolist()):
        length = row.index(EOS) + 1 if EOS in row else len(row)
        assert kept.loss_mask[i].sum() == length
        assert kept.loss_mask[i, 1 : 1 + length].all()
        assert kept.tokens[i, 2 : 2 + length].tolist() == row[:length]


# --- rollouts ----------------------------------------------------------------------------------


def sampled(policy, corrected, seed=0, new_tokens=8):
    """Sequences that the policy drew, some ended early so that lengths differ."""
    torch.manual_seed(seed)
    prompt_ids, prompt_mask = prompts_of(policy, special=corrected)
    rows = policy.generate(prompt_ids, prompt_mask, do_sample=True, max_new_tokens=new_tokens)
    rows[0, prompt_ids.shape[1] + 2 :] = EOS
    rows[1, prompt_ids.shape[1] + 5 :] = EOS
    if corrected:
        return keep_sampled_ids(policy.tokenizer, prompt_ids, prompt_mask, rows)
    outputs = decode(policy.tokenizer, prompt_ids, rows, append_eos_token=True).outputs
    return retokenise(policy.tokenizer, prompt_ids, outputs)


SCORES = [1.0, -2.0, 0.5, 3.0, 0.25]


@pytest.mark.parametrize("corrected", [False, True])
def test_rewards_are_kl_penalty_plus_the_score_on_the_last_column(policy, corrected):
    sequences = sampled(policy, corrected)
    plain, _ = build_rollouts(policy, sequences, [0.0] * 5, 0.1, corrected)
    scored, _ = build_rollouts(policy, sequences, SCORES, 0.1, corrected)
    for without, rollout, score in zip(plain, scored, SCORES, strict=True):
        expected = -0.1 * (rollout.logprobs - rollout.ref_logprobs)
        counted = rollout.loss_mask.bool()
        torch.testing.assert_close(without.rewards[counted], expected[counted])
        difference = rollout.rewards - without.rewards
        assert difference[-1].item() == pytest.approx(score)
        assert (difference[:-1] == 0).all()


def test_dense_rewards_go_token_by_token_and_none_is_lost(policy):
    sequences = sampled(policy, corrected=True)
    lengths = [int(row.sum()) for row in sequences.loss_mask]
    dense = [[1.0, 2.0], [], [0.5] * lengths[2], [1.0] * (lengths[3] + 4), [3.0]]
    plain, _ = build_rollouts(policy, sequences, [0.0] * 5, 0.1, True)
    scored, _ = build_rollouts(policy, sequences, dense, 0.1, True)
    added = [(b.rewards - a.rewards).tolist() for a, b in zip(plain, scored, strict=True)]
    assert added[0][:2] == pytest.approx([1.0, 2.0]) and not any(added[0][2:])
    assert not any(added[1])
    assert added[2] == pytest.approx([0.5] * lengths[2])
    assert added[3] == pytest.approx([1.0] * (lengths[3] - 1) + [5.0])  # the rest on the last
    assert [r.score for r in scored] == pytest.approx([sum(row) for row in dense])


def rollout(query, response, value):
    """A rollout of which every number is `value`."""
    columns = torch.full((len(response),), value)
    return Rollout(
        query=torch.tensor(query),
        response=torch.tensor(response),
        attention_mask=torch.ones(len(query) + len(response), dtype=torch.long),
        logprobs=columns, ref_logprobs=columns, values=columns, rewards=columns,
        loss_mask=torch.ones(len(response), dtype=torch.long), score=0.0,
    )  # fmt: skip


def test_collation_pads_queries_left_responses_right_and_numbers_with_zero():
    batch = collate([rollout([5, 6], [7], 1.0), rollout([8], [9, 10, 11], 2.0)], 1, "cpu", True)
    assert batch.tokens.tolist() == [[5, 6, 7, 1, 1], [1, 8, 9, 10, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert batch.start == 1
    assert batch.rewards.tolist() == [[1, 0, 0], [2, 2, 2]]
    assert batch.loss_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.trunk is None


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("unfrozen", [1, 2, -1])
def test_kept_trunk_states_change_neither_loss_nor_gradients(tmp_path, corrected, unfrozen):
    """Chunks of different widths in one minibatch, so that kept states are padded both ways."""
    policy = policy_with_lora(tmp_path, model__num_layers_unfrozen=unfrozen)
    chunks = [sampled(policy, corrected, seed, width) for seed, width in ((0, 8), (1, 11))]
    rollouts = []
    for chunk in chunks:
        rollouts += build_rollouts(policy, chunk, SCORES, 0.1, corrected)[0]
    # Another prompt width as well, by taking away a column of left padding.
    for r in rollouts[:5]:
        if r.attention_mask[0] == 0:
            r.query, r.attention_mask, r.trunk = r.query[1:], r.attention_mask[1:], r.trunk[1:]
    outcomes = []
    for keep in (True, False):
        chosen = [copy.copy(r) for r in rollouts]
        for r in chosen:
            r.trunk = r.trunk if keep else None
        batch = collate(chosen, EOS, "cpu", corrected)
        assert (batch.trunk is not None) == keep
        outcomes.append(loss_and_gradients(policy, batch, corrected))
    (loss, gradients), (plain_loss, plain_gradients) = outcomes
    assert loss.item() == pytest.approx(plain_loss.item(), abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, plain_gradients[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def loss_and_gradients(policy, batch, corrected):
    mask = batch.loss_mask if corrected else None
    advantages, returns = gae(batch.values, batch.rewards, 1.0, 0.95)
    width = batch.rewards.shape[1]
    logprobs, values = policy(batch.tokens, batch.attention_mask, batch.start, width, batch.trunk)
    loss, _ = ppo_loss(
        logprobs, values, batch.logprobs, batch.values, whiten(advantages, mask), returns,
        batch.loss_mask, cliprange=0.2, cliprange_value=0.2, vf_coef=1.0,
    )  # fmt: skip
    trained = policy.trainable_parameters()
    return loss, dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def test_first_update_recomputes_the_stored_log_probabilities_and_values(policy):
    rollouts, _ = build_rollouts(policy, sampled(policy, True), SCORES, 0.1, True)
    batch = collate(rollouts, EOS, "cpu", True)
    width = batch.rewards.shape[1]
    logprobs, values = policy(batch.tokens, batch.attention_mask, batch.start, width, batch.trunk)
    seen = batch.loss_mask.bool()
    torch.testing.assert_close(logprobs[seen], batch.logprobs[seen], atol=1e-5, rtol=0)
    torch.testing.assert_close(values[seen], batch.values[seen], atol=1e-5, rtol=0)


@given(st.integers(1, 40), st.integers(1, 12))
def test_minibatches_take_every_rollout_once(n, size):
    batches = list(shuffled_minibatches(n, size, torch.Generator().manual_seed(0)))
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)


# --- sampling ----------------------------------------------------------------------------------


def test_merged_lora_generates_the_same_tokens(policy):
    prompt_ids, mask = prompts_of(policy)
    settings = dict(do_sample=True, max_new_tokens=10)
    torch.manual_seed(1)
    unmerged = policy.generate(prompt_ids, mask, **settings)
    torch.manual_seed(1)
    with policy.merged_for_sampling():
        merged = policy.generate(prompt_ids, mask, **settings)
    assert merged.tolist() == unmerged.tolist()


def test_lora_is_not_merged_while_its_dropout_is_active(policy):
    weight = policy.layers[-1].self_attn.q_proj.weight
    before = weight.clone()
    policy.set_dropout(active=True)
    try:
        with policy.merged_for_sampling():
            assert torch.equal(weight, before)
    finally:
        policy.set_dropout(active=False)
    with policy.merged_for_sampling():
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


def eval_prompts(seeds):
    return [EvalPrompt(PROMPTS[i % len(PROMPTS)], "heldout", seed) for i, seed in enumerate(seeds)]


def test_a_seed_means_the_same_text_whatever_the_batch(policy):
    prompts = eval_prompts(range(5))
    settings = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "top_p": 1.0}
    together = sample(policy, prompts, settings, 12)
    alone = [sample(policy, [p], settings, 12)[0] for p in prompts]
    assert [s.output_ids for s in together] == [s.output_ids for s in alone]
    assert [s.output for s in together] == [s.output for s in alone]
    other = sample(policy, eval_prompts(range(100, 105)), settings, 12)
    assert [s.output_ids for s in together] != [s.output_ids for s in other]


def test_row_noise_draws_from_softmax():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(2000, 1)
    noise = RowNoise(range(2000))
    counts = torch.zeros(4)
    for _ in range(5):
        counts += torch.bincount(noise(None, scores).argmax(1), minlength=4)
    expected = scores[0].softmax(0) * 10_000
    # Pearson's test with 3 degrees of freedom: 16.3 is exceeded once in 1000 times.
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_warpers_act_before_the_noise(policy):
    settings = {"max_new_tokens": 6, "do_sample": True, "top_k": 1}
    one, other = (sample(policy, eval_prompts(seeds), settings, 12) for seeds in ([1, 2], [7, 8]))
    greedy = sample(policy, eval_prompts([1, 2]), {"max_new_tokens": 6, "do_sample": False}, 12)
    # With one candidate left, noise cannot matter.
    texts = [[s.output_ids for s in samples] for samples in (one, other, greedy)]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("given", [{}, {"top_k": 3}, {"top_k": 0, "top_p": 0.5, "min_p": 0.1},
                                   {"temperature": 0.5, "typical_p": 0.7}])  # fmt: skip
def test_candidates_are_those_of_generate(policy, given):
    """Where generate() would draw from, so does the sampler: the same settings, also by default."""
    prompt_ids, mask = prompts_of(policy)
    settings, processors = _without_sampling({"do_sample": True, **given}, range(5))
    logits = policy.base(prompt_ids, attention_mask=mask).logits[:, -1]
    ours = LogitsProcessorList(processors[:-1])(prompt_ids, logits.clone())
    theirs = policy.generate(
        prompt_ids, mask, do_sample=True, max_new_tokens=1, **given,
        output_scores=True, return_dict_in_generate=True,
    ).scores[0]  # fmt: skip
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-5, rtol=1e-4)
    assert settings == {"do_sample": False}


def test_divergence_of_samples_equals_a_token_by_token_sum(policy):
    samples = sample(policy, eval_prompts([3, 4, 5]), {"max_new_tokens": 8, "do_sample": True}, 12)
    for one, cost in zip(samples, divergence(policy, samples), strict=True):
        tokens = torch.tensor([one.prompt_ids + one.output_ids])
        scored = policy.score(tokens, torch.ones_like(tokens))
        first = len(one.prompt_ids) - 1
        k1 = (scored.logprobs - scored.ref_logprobs)[0, first:].sum().item()
        assert cost["n_tokens"] == len(one.output_ids)
        assert cost["kl_k1"] == pytest.approx(k1, abs=1e-4)
        nll = -scored.ref_logprobs[0, first:].sum().item()
        assert cost["reference_nll"] == pytest.approx(nll, abs=1e-3)
        assert cost["kl_k3"] >= 0

"""Prompts, texts, masks, collation, kept trunk states, and sampling with common random numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import PROMPTS, one_by_one, policy_with_lora
from transformers import LogitsProcessorList

from rlhf_helpers.algorithms.ppo import gae, ppo_loss, whiten
from rlhf_helpers.data.prompts import Prompt, PromptStream, pad_prompts, tokenize_prompts
from rlhf_helpers.evaluation.sampling import (
    EvalPrompt,
    RowNoise,
    _without_sampling,
    divergence,
    sample,
)
from rlhf_helpers.training.interval_evaluation import write_answers
from rlhf_helpers.training.rollout import RolloutStore, build_rollouts
from rlhf_helpers.training.semantics import (
    CorrectedSemantics,
    TrlxSemantics,
    sequences_of,
    shuffled_minibatches,
)
from rlhf_helpers.training.sequences import cut_at_stop, decode, to_text

EOS = 2  # of the recorded tokenizers; padding too
BOTH = [TrlxSemantics(), CorrectedSemantics()]
by_semantics = pytest.mark.parametrize("semantics", BOTH, ids=lambda s: type(s).__name__)


def keep_sampled_ids(tokenizer, prompt_ids, prompt_mask, rows, stop_sequences=()):
    """Samples as the corrected semantics keep them."""
    return sequences_of(
        CorrectedSemantics(), tokenizer, prompt_ids, prompt_mask, rows, (), stop_sequences
    )


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


@settings(max_examples=30)
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


def sampled(policy, semantics, seed=0, new_tokens=8):
    """Sequences that the policy drew, some ended early so that lengths differ."""
    torch.manual_seed(seed)
    prompt_ids, prompt_mask = prompts_of(policy, semantics.adds_special_tokens)
    rows = policy.generate(prompt_ids, prompt_mask, do_sample=True, max_new_tokens=new_tokens)
    rows[0, prompt_ids.shape[1] + 2 :] = EOS
    rows[1, prompt_ids.shape[1] + 5 :] = EOS
    outputs = decode(policy.tokenizer, prompt_ids, rows, append_eos_token=True).outputs
    return sequences_of(semantics, policy.tokenizer, prompt_ids, prompt_mask, rows, outputs)


SCORES = [1.0, -2.0, 0.5, 3.0, 0.25]


@by_semantics
def test_rewards_are_kl_penalty_plus_the_score_on_the_last_column(policy, semantics):
    sequences = sampled(policy, semantics)
    plain, _ = build_rollouts(policy, sequences, [0.0] * 5, 0.1, semantics)
    scored, _ = build_rollouts(policy, sequences, SCORES, 0.1, semantics)
    for without, rollout, score in zip(one_by_one(plain), one_by_one(scored), SCORES, strict=True):
        expected = -0.1 * (rollout.logprobs - rollout.ref_logprobs)
        counted = rollout.loss_mask.bool()
        torch.testing.assert_close(without.rewards[counted], expected[counted])
        difference = rollout.rewards - without.rewards
        assert difference[-1].item() == pytest.approx(score)
        assert (difference[:-1] == 0).all()


def test_dense_rewards_go_token_by_token_and_none_is_lost(policy):
    sequences = sampled(policy, CorrectedSemantics())
    lengths = [int(row.sum()) for row in sequences.loss_mask]
    dense = [[1.0, 2.0], [], [0.5] * lengths[2], [1.0] * (lengths[3] + 4), [3.0]]
    plain, _ = build_rollouts(policy, sequences, [0.0] * 5, 0.1, CorrectedSemantics())
    scored, _ = build_rollouts(policy, sequences, dense, 0.1, CorrectedSemantics())
    pairs = zip(one_by_one(plain), one_by_one(scored), strict=True)
    added = [(b.rewards - a.rewards).tolist() for a, b in pairs]
    assert added[0][:2] == pytest.approx([1.0, 2.0]) and not any(added[0][2:])
    assert not any(added[1])
    assert added[2] == pytest.approx([0.5] * lengths[2])
    assert added[3] == pytest.approx([1.0] * (lengths[3] - 1) + [5.0])  # the rest on the last
    assert scored.scores == pytest.approx([sum(row) for row in dense])


def one_rollout(query, response, value):
    """A store of one rollout of which every number is `value`."""
    columns, n = torch.full((1, len(response)), value), len(query) + len(response)
    store = RolloutStore(
        tokens=torch.tensor([query + response]),
        attention_mask=torch.ones(1, n, dtype=torch.long),
        logprobs=columns, ref_logprobs=columns, values=columns, rewards=columns,
        loss_mask=torch.ones(1, len(response), dtype=torch.long),
        query_widths=[len(query)], response_widths=[len(response)], columns=[len(response)],
        scores=[value], trunk=torch.full((1, n, 2), value),
    )  # fmt: skip
    store.set_advantages(1.0, 0.95)
    return store


def test_a_store_pads_queries_left_responses_right_and_numbers_with_zero():
    short, long = one_rollout([5, 6], [7], 1.0), one_rollout([8], [9, 10, 11], 2.0)
    store = RolloutStore.joined([short, long], pad_id=1)
    batch = store.minibatch([0, 1], CorrectedSemantics())
    assert batch.tokens.tolist() == [[5, 6, 7, 1, 1], [1, 8, 9, 10, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert batch.start == 1
    assert batch.rewards.tolist() == [[1, 0, 0], [2, 2, 2]]
    assert batch.loss_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.trunk[:, :, 0].tolist() == [[1, 1, 1, 0, 0], [0, 2, 2, 2, 2]]


def test_a_minibatch_is_as_wide_as_its_widest_rollout():
    parts = [one_rollout([5, 6], [7], 1.0), one_rollout([8], [9, 10, 11], 2.0)]
    store = RolloutStore.joined(parts, pad_id=1)
    first, second = (store.minibatch([i], CorrectedSemantics()) for i in (0, 1))
    assert first.tokens.tolist() == [[5, 6, 7]] and first.start == 1
    assert second.tokens.tolist() == [[8, 9, 10, 11]] and second.start == 0
    assert first.rewards.tolist() == [[1]] and second.trunk.shape == (1, 4, 2)
    # Advantages made before joining are those of the rollout by itself.
    assert first.advantages.tolist() == [[0.0]] and first.returns.tolist() == [[1.0]]


def test_advantages_do_not_depend_on_what_a_rollout_is_joined_with():
    parts = [one_rollout([5, 6], [7, 8], 1.0), one_rollout([8], [9, 10, 11], 2.0)]
    store = RolloutStore.joined(parts, pad_id=1)
    store.set_advantages(1.0, 0.95)
    for i, part in enumerate(parts):
        width = part.columns[0]
        assert torch.equal(store.advantages[i, :width], part.advantages[0])
        assert not store.advantages[i, width:].any() and not store.returns[i, width:].any()


def test_a_store_comes_back_from_its_state(policy):
    built, _ = build_rollouts(policy, sampled(policy, BOTH[1]), SCORES, 0.1, BOTH[1])
    built.set_advantages(1.0, 0.95)
    again = RolloutStore.from_state(built.state_dict())
    assert vars(again).keys() == vars(built).keys()
    for name, value in vars(built).items():
        kept = getattr(again, name)
        assert torch.equal(kept, value) if isinstance(value, torch.Tensor) else kept == value, name


@by_semantics
@pytest.mark.parametrize("unfrozen", [1, 2, -1])
def test_kept_trunk_states_change_neither_loss_nor_gradients(tmp_path, semantics, unfrozen):
    """Chunks of different widths in one minibatch, so that kept states are padded both ways."""
    policy = policy_with_lora(tmp_path, model__num_layers_unfrozen=unfrozen)
    chunks = [sampled(policy, semantics, seed, width) for seed, width in ((0, 8), (1, 11))]
    parts = [build_rollouts(policy, chunk, SCORES, 0.1, semantics)[0] for chunk in chunks]
    # Another prompt width as well: rollouts whose first column is padding give it away.
    padded = [i for i in range(5) if parts[0].attention_mask[i, 0] == 0]
    assert padded
    narrow = parts[0].chosen(padded)
    narrow.query_widths = [width - 1 for width in narrow.query_widths]
    for name in ("tokens", "attention_mask", "trunk"):
        setattr(narrow, name, getattr(narrow, name)[:, 1:])
    store = RolloutStore.joined([narrow, *parts], EOS)
    store.set_advantages(1.0, 0.95)
    outcomes = []
    for kept in (store.trunk, None):
        store.trunk = kept
        batch = store.minibatch(range(len(store)), semantics)
        assert (batch.trunk is None) == (kept is None)
        outcomes.append(loss_and_gradients(policy, batch, semantics))
    (loss, gradients), (plain_loss, plain_gradients) = outcomes
    assert loss.item() == pytest.approx(plain_loss.item(), abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, plain_gradients[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def loss_and_gradients(policy, batch, semantics):
    mask = semantics.statistics_mask(batch.loss_mask)
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
    semantics = CorrectedSemantics()
    store, _ = build_rollouts(policy, sampled(policy, semantics), SCORES, 0.1, semantics)
    store.set_advantages(1.0, 0.95)
    batch = store.minibatch(range(5), semantics)
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


@pytest.mark.parametrize("several", [False, True])
def test_an_evaluated_text_ends_with_the_token_that_the_settings_name(policy, several):
    settings = {"max_new_tokens": 8, "do_sample": True, "top_k": 0}
    (whole,) = sample(policy, eval_prompts([3]), settings, 12)
    end = whole.output_ids[2]
    length = whole.output_ids.index(end) + 1
    ending = {"eos_token_id": [EOS, end] if several else end}
    (cut,) = sample(policy, eval_prompts([3]), settings | ending, 12)
    assert not whole.ended and len(whole.output_ids) == 8 > length
    assert cut.ended and cut.output_ids == whole.output_ids[:length]


ANSWERS = {"max_new_tokens": 8, "do_sample": True, "top_k": 0}


def test_answers_are_to_whole_prompts(policy, monkeypatch):
    """A character outside ASCII takes several tokens."""
    question = "请用中文写一句话🙂🙂 answer: 7"
    whole, passed = policy.tokenizer(question)["input_ids"], []
    draw = policy.generate
    monkeypatch.setattr(
        policy, "generate", lambda ids, mask, **k: passed.append(ids) or draw(ids, mask, **k)
    )
    write_answers(policy, [question], 1, ANSWERS)
    assert passed[0].tolist() == [whole] and len(whole) > len(question) + 1


def test_answers_are_drawn_without_dropout(policy):
    """Whoever asks: a trainer of trlX's semantics leaves it on."""
    expected = write_answers(policy, PROMPTS[:3], 2, ANSWERS)
    policy.set_dropout(active=True)
    try:
        found = write_answers(policy, PROMPTS[:3], 2, ANSWERS)
        assert policy.lora_dropout_active
    finally:
        policy.set_dropout(active=False)
    assert found == expected


def test_row_noise_draws_from_softmax():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(2000, 1)
    noise = RowNoise(range(2000))
    counts = torch.zeros(4)
    for _ in range(5):
        counts += torch.bincount(noise(None, scores).argmax(1), minlength=4)
    expected = scores[0].softmax(0) * 10_000
    # Pearson's test with 3 degrees of freedom: 16.3 is exceeded once in 1000 times.
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_which_rows_go_on_is_read_once(monkeypatch):
    """A GPU's host waits for every reading of a tensor."""
    noise, scores, reads = RowNoise([5, 6, 7]), torch.zeros(2, 3), []
    read = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: reads.append(x) or read(x))
    noise.rows = torch.tensor([0, 2])
    drawn = torch.stack([noise(None, scores) for _ in range(4)])
    assert len(reads) == 1
    noise.rows = torch.tensor([2])
    last = noise(None, scores[:1])
    assert len(reads) == 2
    alone = RowNoise([7])
    assert torch.equal(drawn[:, 1], torch.cat([alone(None, scores[:1]) for _ in range(4)]))
    assert torch.equal(last, alone(None, scores[:1]))


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
    settings, processors = _without_sampling(policy, {"do_sample": True, **given}, range(5))
    logits = policy.base(prompt_ids, attention_mask=mask).logits[:, -1]
    ours = LogitsProcessorList(processors[:-1])(prompt_ids, logits.clone())
    theirs = policy.generate(
        prompt_ids, mask, do_sample=True, max_new_tokens=1, **given,
        output_scores=True, return_dict_in_generate=True,
    ).scores[0]  # fmt: skip
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-5, rtol=1e-4)
    assert settings == {"do_sample": False}


@pytest.mark.parametrize(("own", "given"), [
    ({"temperature": 0.3}, {"do_sample": True, "top_k": 0}),
    ({"top_p": 0.5, "top_k": 7}, {"do_sample": True}),
    ({"top_p": 0.5}, {"do_sample": True, "top_p": 1.0, "top_k": 0}),
    ({"do_sample": True, "temperature": 0.5}, {"top_k": 0}),
    ({"do_sample": True}, {"do_sample": False})])  # fmt: skip
def test_the_models_own_settings_count_in_evaluation_as_in_rollouts(
    policy, own, given, monkeypatch
):
    """One distribution: what generate() of transformers draws from, and what the sampler does."""
    for name, value in own.items():
        monkeypatch.setattr(policy.base.generation_config, name, value)
    prompt_ids, mask = prompts_of(policy)
    _, processors = _without_sampling(policy, given, range(5))
    logits = policy.base(prompt_ids, attention_mask=mask).logits[:, -1]
    theirs = policy.base.generate(
        input_ids=prompt_ids, attention_mask=mask, max_new_tokens=1, pad_token_id=EOS, **given,
        output_scores=True, return_dict_in_generate=True,
    ).scores[0]  # fmt: skip
    drawn = [p for p in processors if not isinstance(p, RowNoise)]
    ours = LogitsProcessorList(drawn)(prompt_ids, logits.clone())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-5, rtol=1e-4)
    assert len(processors) - len(drawn) == given.get("do_sample", True)


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


def test_divergence_is_the_same_from_a_trainer_and_from_the_disk(policy):
    """A trainer's policy has the temperature of its run; the one that it saved has none."""
    samples = sample(policy, eval_prompts([3, 4]), {"max_new_tokens": 8, "do_sample": True}, 12)
    loaded = divergence(policy, samples)
    policy.temperature = 0.5
    assert divergence(policy, samples) == loaded
    assert policy.temperature == 0.5

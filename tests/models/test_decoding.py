"""The loop that samples: transformers' `generate` is its twin, draw for draw."""

import pytest
import torch
from tiny_runs import PROMPTS, policy_with_lora
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LogitsProcessor

from rlhf_helpers.data.prompts import pad_prompts, tokenize_prompts
from rlhf_helpers.evaluation.sampling import RowNoise
from rlhf_helpers.lab.naive import NaivePolicy
from rlhf_helpers.models.decoding import decode, settings_for
from rlhf_helpers.models.kept_trunk import sampling_recorded

MANY_ENDS = list(range(3, 100))  # a quarter of the vocabulary: rows end one after another
LEFT_PADDED, SAME_LENGTH = True, False


@pytest.fixture(scope="module", params=["opt", "gpt2", "gpt_neox", "llama", "bloom"])
def policy(request, tmp_path_factory):
    return policy_with_lora(tmp_path_factory.mktemp(request.param), family=request.param)


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return policy_with_lora(tmp_path_factory.mktemp("opt"))


def prompts_of(policy, padded=LEFT_PADDED):
    if not padded:
        return torch.arange(100, 140).view(8, 5), torch.ones(8, 5, dtype=torch.long)
    prompts = tokenize_prompts(PROMPTS, policy.tokenizer, 10)
    return pad_prompts(prompts, policy.tokenizer.pad_token_id)


def sampled_by(policy, own, padded=LEFT_PADDED, seed=0, **settings):
    """Tokens, and the next random number after them."""
    given = dict(eos_token_id=MANY_ENDS, max_new_tokens=12, **settings)
    assert settings_for(policy.base, dict(pad_token_id=1) | given) is not None
    policy.own_decoding = own
    torch.manual_seed(seed)
    try:
        return policy.generate(*prompts_of(policy, padded), **given), torch.rand(1).item()
    finally:
        policy.own_decoding = True


def rows_fed(policy):
    """How many rows enter the model's first layer, call by call."""
    seen = []
    policy.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(len(args[0] if args else kwargs["hidden_states"])),
        with_kwargs=True,
    )
    return seen


@pytest.mark.parametrize("padded", [LEFT_PADDED, SAME_LENGTH])
@pytest.mark.parametrize(
    "settings",
    [
        dict(do_sample=True, top_k=0),
        dict(do_sample=True),  # top_k 50, as generate() has it
        dict(do_sample=True, top_k=5, temperature=0.7, min_new_tokens=4),
        dict(do_sample=True, top_k=0, top_p=0.9, min_p=0.02, typical_p=0.95),
        dict(do_sample=False, min_new_tokens=2),
    ],
)
def test_same_seed_same_tokens_and_same_random_numbers_afterwards(policy, settings, padded):
    for seed in range(3):
        ours, after = sampled_by(policy, True, padded, seed, **settings)
        theirs, after_theirs = sampled_by(policy, False, padded, seed, **settings)
        assert torch.equal(ours, theirs)
        assert after == after_theirs


def test_with_dropout_of_lora_too(policy):
    """trlX samples with it: no row may leave then, since each draws random numbers."""
    policy.set_dropout(active=True)
    try:
        ours, theirs = (sampled_by(policy, own, do_sample=True, top_k=0) for own in (True, False))
    finally:
        policy.set_dropout(active=False)
    assert torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1]


def test_greedy_search_equals_whole_forward_passes(policy):
    """No cache, no batch: the most probable token after everything before it."""
    ids, mask = prompts_of(policy)
    rows = policy.generate(ids, mask, do_sample=False, max_new_tokens=5, eos_token_id=MANY_ENDS)
    for row, seen, found in zip(ids, mask.bool(), rows, strict=True):
        text = row[seen].tolist()
        for _ in range(5):
            with torch.no_grad():
                logits = policy.base(input_ids=torch.tensor([text])).logits
            text.append(logits[0, -1].argmax().item())
            if text[-1] in MANY_ENDS:
                break
        new = text[seen.sum() :]
        assert found[ids.shape[1] :][: len(new)].tolist() == new


def test_a_row_that_has_ended_leaves(policy):
    """The rows that enter the first layer: those with a token still to come, counted by hand."""
    seen = rows_fed(policy)
    rows, _ = sampled_by(policy, True, do_sample=True, top_k=0)
    width = prompts_of(policy)[0].shape[1]
    lengths = [
        next((i + 1 for i, token in enumerate(row) if token in MANY_ENDS), len(row))
        for row in rows[:, width:].tolist()
    ]
    assert seen == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert seen[0] == 8 > seen[-1]
    assert rows.shape[1] == width + max(lengths)


def test_states_of_the_trunk_are_those_of_scoring(policy):
    """In every column that was fed; a row that left has none."""
    ids, mask = prompts_of(policy)
    torch.manual_seed(0)
    with sampling_recorded(policy) as record:
        rows = policy.generate(ids, mask, do_sample=True, max_new_tokens=12, eos_token_id=MANY_ENDS)
    fed = record.ids >= 0
    n = rows.shape[1] - 1
    assert record.ids.shape == (8, n) and record.states.shape == (8, n, 32)
    assert torch.equal(record.ids[fed], rows[:, :n][fed])
    assert (record.states[~fed] == 0).all() and (~fed).any()
    whole = torch.cat([mask, torch.ones_like(rows[:, ids.shape[1] :])], 1)
    expected = policy.trunk(rows, whole)[:, :n]
    attended = fed & whole[:, :n].bool()
    torch.testing.assert_close(record.states[attended], expected[attended], atol=1e-5, rtol=1e-5)


def test_nothing_stays_behind_in_the_model(opt):
    before = [len(module._forward_pre_hooks) for module in opt.modules()]
    with sampling_recorded(opt):
        opt.generate(*prompts_of(opt), max_new_tokens=3)
        with pytest.raises(TypeError):
            opt.generate(*prompts_of(opt), max_new_tokens="three")
    assert [len(module._forward_pre_hooks) for module in opt.modules()] == before
    assert opt.record is None


def test_on_a_gpu_the_host_asks_seldom(opt, monkeypatch):
    """The same tokens where it is asked every few tokens only who has ended."""
    expected, _ = sampled_by(opt, True, do_sample=True, top_k=0)
    ids, mask = prompts_of(opt)
    for every in (2, 5, 100):
        monkeypatch.setattr("rlhf_helpers.models.decoding.check_every", lambda _device, n=every: n)
        seen = rows_fed(opt)
        torch.manual_seed(0)
        settings = settings_for(opt.base, dict(
            eos_token_id=MANY_ENDS, pad_token_id=opt.tokenizer.pad_token_id, max_new_tokens=12,
            do_sample=True, top_k=0))  # fmt: skip
        assert torch.equal(decode(opt, ids, mask, settings).tokens, expected)
        changes = [step for step in range(1, len(seen)) if seen[step] != seen[step - 1]]
        assert all(step % every == 0 for step in changes)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_model_is_not_left_to_look_at_a_mask(policy, monkeypatch, attention):
    """On a GPU the host would wait for it at every token; `eager` and BLOOM want it otherwise."""
    monkeypatch.setattr(policy.base.config, "_attn_implementation", attention)
    shapes = []
    forward = policy.base.forward
    monkeypatch.setattr(
        policy.base, "forward",
        lambda **given: shapes.append(given["attention_mask"].ndim) or forward(**given),
    )  # fmt: skip
    ours, _ = sampled_by(policy, True, do_sample=True, top_k=0)
    ready = attention == "sdpa" and policy.base.config.model_type != "bloom"
    assert shapes[0] == 2 and set(shapes[1:]) == ({4} if ready else {2})
    monkeypatch.undo()
    monkeypatch.setattr(policy.base.config, "_attn_implementation", attention)
    theirs, _ = sampled_by(policy, False, do_sample=True, top_k=0)
    assert torch.equal(ours, theirs)


def test_noise_of_its_own_for_each_row_goes_with_the_rows(opt):
    """The evaluation's draws: the texts are those of `generate`, rows leave as well."""
    drawn = []
    for own in (True, False):
        opt.own_decoding = own
        seen = rows_fed(opt)
        drawn.append(opt.generate(
            *prompts_of(opt), do_sample=False, max_new_tokens=12, eos_token_id=MANY_ENDS,
            logits_processor=[RowNoise(range(8))]))  # fmt: skip
        assert (seen[-1] < 8) == own
    opt.own_decoding = True
    assert torch.equal(*drawn)


class Unknown(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores.flip(0)  # it would mind if rows left


@pytest.mark.parametrize(
    "setting",
    [
        dict(num_beams=2),
        dict(repetition_penalty=1.2),
        dict(no_repeat_ngram_size=2),
        dict(cache_implementation="static"),
        dict(past_key_values=DynamicCache()),
        dict(use_cache=False),
        dict(stop_strings=["a"]),
        dict(output_scores=True),
        dict(logits_processor=[Unknown()]),
        dict(max_length=30),
        dict(never_heard_of=1),
    ],
)
def test_what_the_loop_does_not_know_goes_to_transformers(opt, monkeypatch, setting):
    given = []
    monkeypatch.setattr(
        opt.base, "generate", lambda **kwargs: given.append(kwargs) or kwargs["input_ids"]
    )
    opt.generate(*prompts_of(opt), max_new_tokens=3, do_sample=True, **setting)
    assert len(given) == 1 and setting.items() <= given[0].items()
    opt.generate(*prompts_of(opt), max_new_tokens=3, do_sample=True)
    assert len(given) == 1


def test_the_models_own_settings_count(opt, monkeypatch):
    """generation_config: a temperature is honoured, a penalty sends the call to transformers."""
    given = dict(max_new_tokens=3, pad_token_id=1, do_sample=True)
    monkeypatch.setattr(opt.base.generation_config, "temperature", 0.5)
    assert [type(p).__name__ for p in settings_for(opt.base, given).processors] == [
        "TemperatureLogitsWarper", "TopKLogitsWarper"
    ]  # fmt: skip
    assert len(settings_for(opt.base, given | {"temperature": 1.0}).processors) == 1
    monkeypatch.setattr(opt.base.generation_config, "repetition_penalty", 1.5)
    assert settings_for(opt.base, given) is None


def test_a_model_that_keeps_no_keys_and_values_goes_to_transformers():
    config = AutoConfig.for_model(
        "mamba", vocab_size=32, hidden_size=8, num_hidden_layers=1, state_size=4
    )
    model = AutoModelForCausalLM.from_config(config)
    assert settings_for(model, dict(max_new_tokens=3, pad_token_id=1)) is None


def test_windows_and_rows_that_leave(tmp_path):
    """A model with sliding windows: the same texts as transformers'."""
    config = AutoConfig.for_model(
        "mistral", vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, sliding_window=4, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    settings = dict(max_new_tokens=9, do_sample=True, top_k=0, eos_token_id=list(range(16)),
                    pad_token_id=1)  # fmt: skip

    class Bare:
        base, layers, branch = model, model.model.layers, 0
        takes_positions, lora_dropout_active = True, False

    ids = torch.randint(16, 64, (6, 5))
    mask = torch.ones_like(ids)
    mask[:2, :2] = 0
    torch.manual_seed(1)
    ours = decode(Bare(), ids, mask, settings_for(model, settings)).tokens
    torch.manual_seed(1)
    theirs = model.generate(input_ids=ids, attention_mask=mask, **settings)
    assert torch.equal(ours, theirs)
    assert (ours[:, 5:-1] < 16).any()  # a row ended before the last did


def test_the_benchmarks_slow_half_samples_with_transformers():
    assert not NaivePolicy.own_decoding


@pytest.mark.parametrize("padded", [LEFT_PADDED, SAME_LENGTH])
def test_final_states_are_those_of_a_pass_over_the_whole_text(policy, padded):
    """Of every token that was drawn, in rows that end one after another."""
    ids, mask = prompts_of(policy, padded)
    torch.manual_seed(0)
    with sampling_recorded(policy, keep_hidden=True) as record:
        rows = policy.generate(
            ids, mask, eos_token_id=MANY_ENDS, max_new_tokens=12, do_sample=True, top_k=0
        )
    width, drawn = ids.shape[1], rows[:, ids.shape[1] :]
    ended = torch.isin(drawn, torch.tensor(MANY_ENDS)).int()
    real = ended.cumsum(1) - ended == 0  # up to and with the first end
    assert 0 < real.sum() < real.numel()
    _, final = policy.trunk_and_hidden(rows, torch.cat([mask, real.long()], 1))
    expected = final[:, width - 1 : -1]
    torch.testing.assert_close(record.hidden[real], expected[real], atol=1e-5, rtol=1e-5)
    with sampling_recorded(policy) as record:
        policy.generate(ids, mask, max_new_tokens=2)
    assert record.hidden is None and record.states is not None


@pytest.mark.parametrize("settings", [dict(do_sample=True, top_k=0), dict(do_sample=False)])
def test_a_prompt_in_several_rows_is_read_once(policy, settings):
    """Three texts of one prompt, one of the next, two of a third: the same as if each was read."""
    ids, mask = prompts_of(policy)
    rows = torch.tensor([0, 0, 0, 1, 2, 2])
    ids, mask = ids[rows], mask[rows]
    fed = rows_fed(policy)
    given = dict(eos_token_id=MANY_ENDS, max_new_tokens=12, **settings)
    found = []
    for own in (True, False):
        policy.own_decoding = own
        torch.manual_seed(0)
        with sampling_recorded(policy, keep_hidden=True) as record:
            found.append((policy.generate(ids, mask, **given), torch.rand(1).item(), record))
        policy.own_decoding = True
    (ours, after, record), (theirs, after_theirs, _) = found
    assert fed[0] == 3 and fed.count(6) >= 1
    assert torch.equal(ours, theirs) and after == after_theirs
    assert torch.equal(record.ids[:, : ids.shape[1]], ids)
    states, final = policy.trunk_and_hidden(ids, mask)
    real = mask.bool()
    width = ids.shape[1]
    torch.testing.assert_close(record.states[:, :width][real], states[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(record.hidden[:, 0], final[:, -1], atol=1e-5, rtol=1e-5)

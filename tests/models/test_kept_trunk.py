"""Trunk states kept from sampling: exactly those of scoring, or not used."""

import pytest
import torch
from tiny_runs import PROMPTS, letter_reward, one_by_one, run_config

from rlhf_helpers.data.prompts import pad_prompts, tokenize_prompts
from rlhf_helpers.models.kept_trunk import (
    SamplingRecord,
    final_states,
    sampling_recorded,
    trunk_states,
)
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.training.rollout import build_rollouts
from rlhf_helpers.training.semantics import TrlxSemantics, sequences_of
from rlhf_helpers.training.trainer import PPOTrainer

EOS = 2


def trainer_with(tmp_path, semantics, tokenizer="nobos", **overrides):
    config = run_config(tmp_path, tokenizer=tokenizer, method__semantics=semantics, **overrides)
    trainer = PPOTrainer(config, letter_reward)
    with torch.no_grad():  # a policy that differs from its reference
        for name, parameter in trainer.trained.items():
            if "lora" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    trainer.add_prompts(PROMPTS, PROMPTS[:1])
    return trainer


def count_trunk_passes(policy):
    """Tokens that enter the model's first layer, call by call."""
    seen = []
    policy.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(
            (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()
        ),
        with_kwargs=True,
    )
    return seen


@pytest.mark.parametrize("semantics", ["trlx", "corrected"])
@pytest.mark.parametrize("tokenizer", ["bos", "nobos"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_rollouts_and_updates_are_those_without_kept_states(
    tmp_path, semantics, tokenizer, dropout
):
    """Same random numbers, states kept or computed: rollouts, statistics, losses, weights."""
    outcomes = []
    for keep in (True, False):
        trainer = trainer_with(
            tmp_path, semantics, tokenizer, model__delta_kwargs={"lora_dropout": dropout}
        )
        trainer.experience.keep_trunk = keep
        torch.manual_seed(7)
        trainer.store, stats = trainer.experience.make(8, 0.05)
        assert (trainer.store.trunk is not None) == keep
        losses = [trainer.optimizer_step(batch)["losses/total_loss"] for batch in trainer._plan()]
        outcomes.append((trainer, stats, torch.stack(losses)))
    (kept, stats, losses), (plain, plain_stats, plain_losses) = outcomes
    for a, b in zip(one_by_one(kept.store), one_by_one(plain.store), strict=True):
        assert a.response.tolist() == b.response.tolist()
        for name in ("logprobs", "ref_logprobs", "values", "rewards"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=1e-5)
    for name, value in plain_stats.items():
        if not name.startswith("time/"):
            assert stats[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name
    torch.testing.assert_close(losses, plain_losses, atol=1e-4, rtol=1e-4)


def test_under_corrected_scoring_computes_no_trunk(tmp_path):
    """Chunks of 4: after sampling, nothing enters the first layer any more."""
    trainer = trainer_with(tmp_path, "corrected")
    generate, seen, at_the_end = trainer.policy.generate, count_trunk_passes(trainer.policy), []

    def sampled(*args, **kwargs):
        rows = generate(*args, **kwargs)
        at_the_end.append(len(seen))
        return rows

    trainer.policy.generate = sampled
    trainer.experience.prompts.prompts = trainer.experience.prompts.prompts[:4]
    trainer.experience.make(4, 0.05)
    assert at_the_end == [len(seen)]


def test_under_corrected_the_policy_is_not_run_again_to_be_scored(tmp_path, monkeypatch):
    trainer = trainer_with(tmp_path, "corrected")
    policy, top, calls = trainer.policy, trainer.policy.top, []
    policy.top = lambda *arguments: calls.append(1) or top(*arguments)
    policy.reference_top = lambda trunk, tokens, mask: trunk
    trainer.experience.make(4, 0.05)
    assert calls == []
    monkeypatch.setattr(Policy, "samples_as_it_scores", False)
    trainer.experience.make(4, 0.05)
    assert calls  # so that they would have been counted


@pytest.mark.parametrize("dropout, dtype", [(0.1, "float32"), (0.0, "bfloat16")])
def test_final_states_are_kept_only_where_they_are_those_of_scoring(tmp_path, dropout, dtype):
    """Not in half precision; and under trlx dropout is active and texts are tokenised again."""
    for semantics in ("trlx", "corrected"):
        trainer = trainer_with(
            tmp_path, semantics, model__delta_kwargs={"lora_dropout": dropout}, model__dtype=dtype
        )
        ids, mask = pad_prompts(trainer.experience.prompts.prompts[:4], EOS)
        _, record = trainer.experience.sample(ids, mask)
        assert record.states is not None
        kept = semantics == "corrected" and dtype == "float32"
        assert (record.hidden is not None) == kept


def test_final_states_serve_only_the_very_ids_that_were_drawn(tmp_path):
    trainer = trainer_with(tmp_path, "corrected")
    ids, mask, rows, record = sampled_record(trainer, keep_hidden=True)
    full = torch.cat([mask, torch.ones_like(rows[:, ids.shape[1] :])], 1)
    ends = [rows.shape[1] - 1] * 4
    found = final_states(rows, full, ends, record, mask)
    expected = trainer.policy.trunk_and_hidden(rows, full)[1][:, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    shorter = final_states(rows[:, :-2], full[:, :-2], [e - 2 for e in ends], record, mask)
    assert torch.equal(shorter, found[:, :-2])  # as where a stop sequence cuts the text
    changed = rows.clone()
    changed[1, -3] = (changed[1, -3] + 1) % 300 + 3
    assert final_states(changed, full, ends, record, mask) is None
    assert final_states(rows, full, ends, sampled_record(trainer)[3], mask) is None


def sampled_record(trainer, new_tokens=6, keep_hidden=False):
    prompts = tokenize_prompts(PROMPTS[:4], trainer.tokenizer, 12)
    ids, mask = pad_prompts(prompts, EOS)
    torch.manual_seed(0)
    with sampling_recorded(trainer.policy, keep_hidden) as record:
        rows = trainer.policy.generate(
            ids, mask, do_sample=True, max_new_tokens=new_tokens, min_new_tokens=new_tokens
        )
    return ids, mask, rows, record


def test_rows_whose_ids_or_mask_changed_are_computed(tmp_path):
    trainer = trainer_with(tmp_path, "corrected")
    policy = trainer.policy
    ids, mask, rows, record = sampled_record(trainer)
    full = torch.cat([mask, torch.ones_like(rows[:, ids.shape[1] :])], 1)
    tokens, changed_mask = rows.clone(), full.clone()
    tokens[1, -3] = (tokens[1, -3] + 1) % 300 + 3  # as if re-tokenised differently
    changed_mask[2, ids.shape[1]] = 0  # as trlX masks a special token
    ends = [rows.shape[1] - 1] * 4
    seen = count_trunk_passes(policy)
    states = trunk_states(policy, tokens, changed_mask, ends, record, mask)
    assert seen == [2 * rows.shape[1]]  # rows 1 and 2, nothing else
    expected = policy.trunk(tokens, changed_mask)
    attended = changed_mask[:, :-1].bool()
    torch.testing.assert_close(states[:, :-1][attended], expected[:, :-1][attended])


def test_a_record_of_other_rows_serves_nothing(tmp_path):
    trainer = trainer_with(tmp_path, "corrected")
    ids, mask, rows, record = sampled_record(trainer)
    full = torch.cat([mask, torch.ones_like(rows[:, ids.shape[1] :])], 1)
    ends = [rows.shape[1] - 1] * 4
    others = rows.flip(0)
    assert trunk_states(trainer.policy, others, full.flip(0), ends, record, mask) is None
    assert trunk_states(trainer.policy, rows, full, ends, SamplingRecord(), mask) is None
    assert trunk_states(trainer.policy, rows[:2], full[:2], ends[:2], record, mask[:2]) is None


def test_a_prompt_column_left_out_changes_no_number_that_is_kept(tmp_path):
    """Without mean_kl only response columns enter the head: rollouts stay what they are."""
    trainer = trainer_with(tmp_path, "trlx", model__delta_kwargs={"lora_dropout": 0.0})
    ids, mask, rows, _ = sampled_record(trainer)
    outputs = trainer.tokenizer.batch_decode(rows[:, ids.shape[1] :])
    semantics = TrlxSemantics()
    sequences = sequences_of(semantics, trainer.tokenizer, ids, mask, rows, outputs)
    arguments = trainer.policy, sequences, [1.0] * 4, 0.1, semantics
    whole, with_kl = build_rollouts(*arguments)
    partial, without = build_rollouts(*arguments, is_last_chunk=False)
    assert without.kl_per_sequence == pytest.approx(with_kl.kl_per_sequence, abs=1e-5)
    for a, b in zip(one_by_one(whole), one_by_one(partial), strict=True):
        for name in ("logprobs", "ref_logprobs", "values", "rewards"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=1e-5)


def test_a_static_cache_draws_the_same_tokens(tmp_path):
    """Prompts padded to a multiple of 16, which is cut off again."""
    trainer = trainer_with(tmp_path, "corrected")
    ids, mask, _, _ = sampled_record(trainer)
    draws = []
    for more in ({}, {"cache_implementation": "static"}):
        torch.manual_seed(1)
        draws.append(trainer.policy.generate(ids, mask, do_sample=True, max_new_tokens=6, **more))
    assert draws[0].tolist() == draws[1].tolist()

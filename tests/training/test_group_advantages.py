"""RLOO and GRPO: samples without an advantage cost nothing and change nothing."""

import pytest
import torch
from tiny_runs import PROMPTS, run_config, tiny_train

from rlhf_helpers.runs.files import read_jsonl
from rlhf_helpers.training.semantics import semantics_of
from rlhf_helpers.training.trainer import PPOTrainer
from rlhf_helpers.training.update import method_loss


def coarse_reward(samples, **_):
    """0 or 1, so that some prompts have four samples of one score."""
    return [float(len(text) % 2) for text in samples]


def trainer_with_rollouts(tmp_path, reward=coarse_reward, **overrides):
    config = run_config(
        tmp_path, method__samples_per_prompt=4, method__num_rollouts=32, method__chunk_size=32,
        method__init_kl_coef=0.0, method__target=None, method__ppo_epochs=1,
        method__semantics="corrected", train__batch_size=32, **overrides,
    )  # fmt: skip
    trainer = PPOTrainer(config, reward)
    trainer.add_prompts(PROMPTS, PROMPTS[:2])
    trainer.store, _ = trainer.experience.make(32, trainer.kl_ctl.value)
    return trainer


def gradient(trainer, batch):
    loss, stats = method_loss(
        trainer.model, batch, trainer.config.method, trainer.semantics, trainer.kl_ctl.value,
        trainer.processes,
    )  # fmt: skip
    names = [n for n in trainer.trained]
    found = torch.autograd.grad(loss, list(trainer.trained.values()))
    return loss, stats, dict(zip(names, found, strict=True))


@pytest.mark.parametrize("method", ["RLOOConfig", "GRPOConfig"])
def test_they_leave_the_gradient_as_it_is(tmp_path, method):
    trainer = trainer_with_rollouts(tmp_path, method__name=method)
    silent = [i for i in range(32) if not trainer.store.advantages[i].any()]
    assert 0 < len(silent) < 32 and len(silent) % 4 == 0
    batch = trainer.minibatch(range(32))
    assert len(batch.tokens) == 32 - len(silent)
    assert batch.share == pytest.approx(1 - len(silent) / 32)
    everything = trainer.store.minibatch(range(32), semantics_of("corrected"))
    loss, stats, ours = gradient(trainer, batch)
    whole_loss, _, theirs = gradient(trainer, everything)
    assert loss.item() == pytest.approx(whole_loss.item(), abs=1e-6)
    assert stats["losses/total_loss"].item() == pytest.approx(whole_loss.item(), abs=1e-6)
    assert stats["rollout/teaching"] == batch.share
    assert any(g.abs().max() > 0 for g in ours.values())
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name


def test_with_a_penalty_in_the_loss_all_take_part(tmp_path):
    trainer = trainer_with_rollouts(tmp_path, method__name="GRPOConfig")
    trainer.kl_ctl.value = 0.1
    assert len(trainer.minibatch(range(32)).tokens) == 32


def test_where_nobody_has_one_a_step_still_works(tmp_path):
    trainer = trainer_with_rollouts(
        tmp_path, lambda samples, **_: [1.0] * len(samples), method__name="RLOOConfig"
    )
    batch = trainer.minibatch(range(8, 32))
    assert len(batch.tokens) == 1
    loss, _, found = gradient(trainer, batch)
    assert loss.item() == 0 and all(g.abs().max() == 0 for g in found.values())


def test_steps_without_any_advantage_do_not_make_the_next_one_look_like_an_explosion(tmp_path):
    """A verifier that finds nothing right for some iterations, as at the start of a hard task."""
    calls = []

    def verifier(samples, **_):
        calls.append(1)
        found = len(calls) > 4
        return [10.0 * (i % 4 == 0) * found for i in range(len(samples))]

    tiny_train(
        tmp_path, reward_fn=verifier, method__name="RLOOConfig", method__samples_per_prompt=4,
        method__ppo_epochs=1, method__init_kl_coef=0.0, train__total_steps=12,
        train__eval_interval=100,
    )  # fmt: skip
    norms = [line["grad_norm"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")
             if "grad_norm" in line]  # fmt: skip
    assert norms[0] == 0 and max(norms) > 1

"""Whole small runs: what they write, how they go on after interruptions, what they accept."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    PROMPTS,
    assert_same_run,
    letter_reward,
    one_by_one,
    run_config,
    tiny_train,
    without_times,
)

from rlhf_helpers.config.checks import ConfigError, ConfigWarning
from rlhf_helpers.models.loading import load_policy, load_trained_policy
from rlhf_helpers.rewards.reward import RewardError
from rlhf_helpers.runs.files import read_jsonl
from rlhf_helpers.training.api import train
from rlhf_helpers.training.rollout import RolloutStore
from rlhf_helpers.training.trainer import PPOTrainer


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(trainer, lines that the callback got, run directory) of a run of 6 steps."""
    root, lines = tmp_path_factory.mktemp("finished"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_QUIET_PROGRESS", "1")
        trainer = tiny_train(root, train__total_steps=6, callback=lines.append)
    return trainer, lines, root / "run"


# --- what a run leaves ---------------------------------------------------------------------


def test_metrics_have_trlx_names_and_steps(finished):
    _, lines, directory = finished
    assert read_jsonl(directory / "metrics.jsonl") == lines
    kinds = {
        "rollout": [line["step"] for line in lines if "exp_scores/mean" in line],
        "update": [line["step"] for line in lines if "losses/total_loss" in line],
        "evaluation": [line["step"] for line in lines if "reward/mean" in line],
    }
    # 8 rollouts in batches of 4, twice each: 4 steps an iteration, evaluated every 4 and at the
    # end.
    assert kinds == {"rollout": [0, 4], "update": [1, 2, 3, 4, 5, 6], "evaluation": [0, 4, 6]}
    rollout = next(line for line in lines if "exp_scores/mean" in line)
    for name in ("kl_ctl_value", "policy/sqrt_kl", "objective/kl", "time/exp_generate"):
        assert name in rollout


def test_run_directory_holds_policy_checkpoint_and_evaluation_samples(finished):
    trainer, _, directory = finished
    assert [p.name for p in (directory / "checkpoints").iterdir()] == ["step_00000006"]
    samples = read_jsonl(directory / "eval_samples.jsonl")
    assert {s["step"] for s in samples} == {0, 4, 6} and len(samples) == 6
    assert all(s["reward"] == letter_reward([s["prompt"] + s["output"]])[0] for s in samples)
    policy = load_trained_policy(directory / "policy", "cpu")
    for name, parameter in policy.trainable_parameters().items():
        assert torch.equal(parameter, trainer.trained[name]), name
    # Nothing but what is trained lies there, in formats that hold no code.
    assert not list(directory.rglob("*.bin")) and not list(directory.rglob("*.pkl"))


def test_only_lora_and_value_head_have_changed(finished):
    trainer, _, _ = finished
    before = load_policy(trainer.config, "cpu").state_dict()
    changed = {n for n, t in trainer.policy.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {n if n.startswith("v_head") else f"base.{n}" for n in trainer.trained}


def test_trainer_offers_what_people_used(tmp_path):
    trainer = tiny_train(tmp_path, train__total_steps=2)
    batch = trainer.tokenizer(["the model", "policy"], return_tensors="pt", padding=True)
    for generate in (trainer.generate, trainer.generate_eval, trainer.model.generate):
        rows = generate(batch["input_ids"], batch["attention_mask"], max_new_tokens=3)
        assert rows.shape == (2, batch["input_ids"].shape[1] + 3)
    assert trainer.model.base_model.config.model_type == "opt"
    assert 0 <= trainer.evaluate()["reward/mean"] <= 1


def test_the_same_seed_is_the_same_run_and_another_is_not(finished, tmp_path):
    _, lines, directory = finished
    tiny_train(tmp_path / "a", train__total_steps=6)
    metrics = read_jsonl(tmp_path / "a" / "run" / "metrics.jsonl")
    assert without_times(metrics) == without_times(lines)
    tiny_train(tmp_path / "b", train__total_steps=6, train__seed=1)
    assert read_jsonl(tmp_path / "b" / "run" / "metrics.jsonl")[0] != lines[0]


@pytest.mark.parametrize("semantics", ["trlx", "corrected"])
def test_it_learns(tmp_path, semantics):
    """The share of the letter e in the outputs rises well beyond its spread."""

    def reward_fn(samples, outputs, **kwargs):
        return [10 * output.count("e") / 8 for output in outputs]

    tiny_train(
        tmp_path, reward_fn, PROMPTS * 4, train__total_steps=80, train__eval_interval=1000,
        train__batch_size=16, method__num_rollouts=32, method__chunk_size=32,
        method__ppo_epochs=4, optimizer__kwargs={"lr": 2e-2}, method__init_kl_coef=0.01,
        method__semantics=semantics, method__cliprange_reward=0,
        model__delta_kwargs={"lora_r": 8, "lora_dropout": 0.0},
    )  # fmt: skip
    rewards = [line["exp_scores/mean"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")
               if "exp_scores/mean" in line]  # fmt: skip
    assert len(rewards) == 10
    assert sum(rewards[-2:]) > 2 * sum(rewards[:2]), rewards


# --- interruption and resumption ---------------------------------------------------------------


def kill_and_resume(root, moments):
    """Runs killed_run.py and returns the directories of the whole and of the killed runs."""
    repository = Path(__file__).parents[2]
    script = repository / "tests" / "killed_run.py"
    command = [sys.executable, script, root, json.dumps(moments)]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=repository, timeout=1500,
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return root / "whole", [root / f"killed_{n}" for n in range(len(moments))], done.stdout


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    whole, killed, output = kill_and_resume(tmp_path, ["writing", "logging"])
    assert output.count("ended by signal 9") == 2
    for directory in killed:
        assert_same_run(whole, directory)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
    chance = random.Random(0)
    whole, killed, output = kill_and_resume(tmp_path, [chance.random() for _ in range(20)])
    assert output.count("ended by signal 9") == 20
    for directory in killed:
        assert_same_run(whole, directory)


@pytest.mark.parametrize("semantics, minibatches", [("trlx", 2), ("corrected", 4)])
def test_a_minibatch_that_is_used_again_at_once_is_put_together_once(
    tmp_path, monkeypatch, semantics, minibatches
):
    """8 rollouts in minibatches of 4, 2 epochs: under `trlx` each is taken twice in a row."""
    put_together = []

    def counted(store, indices, semantics, minibatch=RolloutStore.minibatch):
        put_together.append(indices)
        return minibatch(store, indices, semantics)

    monkeypatch.setattr(RolloutStore, "minibatch", counted)
    tiny_train(tmp_path, method__semantics=semantics, train__watchdog={"action": "off"})
    assert len(put_together) == minibatches

    trainer = PPOTrainer(run_config(tmp_path / "other"), letter_reward)
    trainer.add_prompts(PROMPTS, PROMPTS[:1])
    trainer.store, _ = trainer.experience.make(8, 0.05)
    first, again = trainer.minibatch([0, 1]), trainer.minibatch([0, 1])
    assert first is again and trainer.minibatch([1, 0]) is not first
    trainer.store = trainer.store.chosen([4, 5, 6, 7])  # the same indices mean other rollouts
    assert trainer.minibatch([0, 1]) is not first


def test_interrupt_saves_and_the_same_call_goes_on(finished, tmp_path, capsys):
    def interrupt(line):
        if line["step"] == 4 and "exp_scores/mean" in line:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 4 of 6.*the same call goes on"):
        tiny_train(tmp_path, train__total_steps=6, callback=interrupt)
    assert load_trained_policy(tmp_path / "run" / "policy", "cpu")
    tiny_train(tmp_path, train__total_steps=6)
    assert "at step 4 of 6: going on from there" in capsys.readouterr().out
    assert_same_run(finished[2], tmp_path / "run")
    # The handler of before is back.
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_is_not_run_again(tmp_path):
    calls = []

    def counting(samples, **kwargs):
        calls.append(1)
        return letter_reward(samples)

    first = tiny_train(tmp_path, counting)
    n = len(calls)
    again = tiny_train(tmp_path, counting)
    assert len(calls) == n
    for name, parameter in again.trained.items():
        assert torch.equal(parameter, first.trained[name])


@pytest.mark.parametrize("first", [2, 3, 4])
def test_a_finished_run_can_be_made_longer(finished, tmp_path, first):
    """It ends in the middle of an iteration or between two; the longer run has their rollouts."""
    short = tiny_train(tmp_path, train__total_steps=first)
    longer = tiny_train(tmp_path, train__total_steps=6)
    assert longer.step == 6
    # By trlX's rule the coefficient moves once a minibatch (2 steps), but not after the last.
    assert longer.kl_ctl.value == finished[0].kl_ctl.value < short.config.method.init_kl_coef


def test_another_configuration_is_refused(tmp_path):
    tiny_train(tmp_path)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"method.gamma = 1, not 0.5: choose another"):
        tiny_train(tmp_path, method__gamma=0.5)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(tmp_path):
    whole = tiny_train(tmp_path / "whole", train__checkpoint_interval=2)
    tiny_train(tmp_path, train__checkpoint_interval=2)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.pt").write_bytes(bytes(content))
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        tiny_train(tmp_path, train__checkpoint_interval=2)
    assert_same_run(whole.directory, tmp_path / "run")


def test_save_and_load_bring_back_everything(tmp_path):
    """After loading, the next update and the next sample are those that followed the saving."""
    trainer = tiny_train(tmp_path)
    trainer.save(tmp_path / "mine")

    def next_ones():
        trainer.optimizer_step(trainer.plan[0])
        changed = {n: p.detach().clone() for n, p in trainer.trained.items()}
        ids = torch.tensor([[80, 81]])
        return changed, trainer.generate(ids), next(trainer.experience.prompts)

    first = next_ones()
    next_ones()
    assert trainer.load(tmp_path / "mine")
    second = next_ones()
    for name, tensor in first[0].items():
        assert torch.equal(tensor, second[0][name]), name
    assert torch.equal(first[1], second[1]) and first[2] == second[2]


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/step_00000004", "policy"])
def test_load_takes_every_directory_that_a_run_wrote(tmp_path, place):
    trainer = tiny_train(tmp_path)
    after = {n: p.detach().clone() for n, p in trainer.trained.items()}
    with torch.no_grad():
        for parameter in trainer.trained.values():
            parameter.zero_()
    assert trainer.load(tmp_path / "run" / place)
    for name, parameter in trainer.trained.items():
        assert torch.equal(parameter, after[name]), name
    assert not trainer.load(tmp_path / "elsewhere")


def test_best_checkpoint_is_that_of_the_best_evaluation(tmp_path):
    rewards = iter([0.0] * 5 + [3.0, 1.0, 2.0, 0.0, 0.0])

    def at_evaluation(samples, **kwargs):
        return [next(rewards)] * len(samples) if len(samples) == 2 else [0.0] * len(samples)

    trainer = tiny_train(
        tmp_path, at_evaluation, train__save_best=True, train__eval_interval=1,
        train__total_steps=2,
    )  # fmt: skip
    assert trainer.best_reward in (0.0, 1.0, 2.0, 3.0)
    assert load_trained_policy(tmp_path / "run" / "best_checkpoint", "cpu")


# --- what train() accepts ----------------------------------------------------------------------


def test_metadata_of_prompts_reaches_reward_and_metric_functions(tmp_path):
    seen = []

    def reward_fn(samples, prompts, outputs, topic, **kwargs):
        assert len(topic) == len(samples) == len(prompts) == len(outputs)
        assert all(s == p + o for s, p, o in zip(samples, prompts, outputs, strict=True))
        seen.extend(zip(prompts, topic, strict=True))
        return letter_reward(samples)

    def metric_fn(samples, topic, **kwargs):
        return {"length": [float(len(s)) for s in samples], "topics": [len(t) for t in topic]}

    topics = {prompt: f"topic {i}" for i, prompt in enumerate(PROMPTS)}
    prompts = [{"prompt": p, "topic": t} for p, t in topics.items()]
    tiny_train(tmp_path, reward_fn, prompts, prompts[:2], metric_fn=metric_fn)
    assert {p for p, _ in seen} == set(PROMPTS)
    assert all(topics[p] == topic for p, topic in seen)
    evaluations = [line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")
                   if "reward/mean" in line]  # fmt: skip
    assert all(line["metrics/topics"] == 7 and line["metrics/length"] > 0 for line in evaluations)


@pytest.mark.parametrize("semantics", ["trlx", "corrected"])
def test_dense_rewards(tmp_path, semantics):
    def per_token(samples, outputs, **kwargs):
        return [[0.5] * len(output.split()) for output in outputs]

    trainer = tiny_train(tmp_path, per_token, method__semantics=semantics)
    assert trainer.step == 4
    scores = trainer.store.scores
    assert all(score % 0.5 == 0 for score in scores) and len(set(scores)) > 1


def test_a_list_of_one_number_each_is_one_number_each(tmp_path):
    """A tensor of shape [n, 1], as trlX 0.7 takes it."""
    trainer = tiny_train(tmp_path, lambda samples, **_: torch.ones(len(samples), 1))
    assert set(trainer.store.scores) == {1.0}
    assert all(r.rewards[-1] > 0.5 for r in one_by_one(trainer.store))


@pytest.mark.parametrize("semantics", ["trlx", "corrected"])
def test_stop_sequences_end_outputs_in_rollouts_and_evaluation(tmp_path, semantics):
    seen = []

    def reward_fn(samples, outputs, **kwargs):
        seen.extend(outputs)
        return letter_reward(samples)

    tiny_train(
        tmp_path, reward_fn, stop_sequences=["e", " "], method__semantics=semantics
    )  # fmt: skip
    texts = [output.removesuffix("</s>") for output in seen]
    assert any(texts) and not any("e" in t or " " in t for t in texts)


@pytest.mark.parametrize("scale", ["running", "ref", None])
def test_scaled_rewards(tmp_path, scale):
    trainer = tiny_train(tmp_path, method__scale_reward=scale)
    assert trainer.step == 4
    assert trainer.experience.scaler.moments.count == pytest.approx(8)


@pytest.mark.parametrize("unfrozen, layers", [(0, []), (1, [2]), (3, [0, 1, 2]), (-1, [0, 1, 2])])
@pytest.mark.filterwarnings("ignore:model.num_layers_unfrozen=0")
def test_number_of_layers_that_learn(tmp_path, unfrozen, layers):
    trainer = tiny_train(tmp_path, model__num_layers_unfrozen=unfrozen)
    names = [n for n in trainer.trained if not n.startswith("v_head")]
    assert sorted({int(n.split(".")[3]) for n in names}) == layers
    assert len(names) == len(layers) * 4 * 2
    policy = load_trained_policy(tmp_path / "run" / "policy", "cpu")
    assert policy.branch == (3 - len(layers) if layers else 2)


@pytest.mark.parametrize("unfrozen", [0, 1, -1])
def test_without_lora_the_top_layers_learn_and_the_reference_stays(tmp_path, unfrozen):
    config = {"model__delta_kwargs": None, "model__num_layers_unfrozen": unfrozen}
    trainer = tiny_train(tmp_path, **config)
    layers = {0: set(), 1: {2}, -1: {0, 1, 2}}[unfrozen]
    names = [n for n in trainer.trained if not n.startswith("v_head")]
    assert {int(n.split(".")[3]) for n in names} == layers
    ids = torch.tensor([[80, 81, 82, 83, 84, 85]])
    after = trainer.policy.score(ids, torch.ones_like(ids))
    before = load_policy(trainer.config, "cpu").score(ids, torch.ones_like(ids))
    torch.testing.assert_close(after.ref_logprobs, before.logprobs, atol=1e-6, rtol=0)
    moved = (after.logprobs - after.ref_logprobs).abs().max()
    assert (moved > 1e-3) == bool(layers)
    again = load_trained_policy(tmp_path / "run" / "policy", "cpu")
    torch.testing.assert_close(
        again.score(ids, torch.ones_like(ids)).logprobs, after.logprobs, atol=1e-6, rtol=0
    )


def test_peft_config_in_place_of_delta_kwargs(tmp_path):
    peft_config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
                   "target_modules": ["q_proj", "v_proj"]}  # fmt: skip
    trainer = tiny_train(tmp_path, model__delta_kwargs=None, model__peft_config=peft_config)
    names = [n for n in trainer.trained if not n.startswith("v_head")]
    assert len(names) == 2 * 2 * 2
    assert load_trained_policy(tmp_path / "run" / "policy", "cpu").has_lora


def test_one_prompt_a_chunk_has_no_standard_deviation_and_runs(tmp_path):
    tiny_train(tmp_path, method__chunk_size=1, method__num_rollouts=4)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert lines[0]["exp_scores/std"] is None
    assert json.loads(json.dumps(lines[1]["reward/mean"])) >= 0


def test_eval_prompts_default_to_the_first_batch_of_prompts(tmp_path):
    train(reward_fn=letter_reward, prompts=PROMPTS, config=run_config(tmp_path))
    samples = read_jsonl(tmp_path / "run" / "eval_samples.jsonl")
    assert [s["prompt"] for s in samples if s["step"] == 0] == PROMPTS[:4]


def test_model_path_replaces_the_configured_one(tmp_path):
    config = run_config(tmp_path)
    path, config.model.model_path = config.model.model_path, "nowhere"
    trainer = train(path, letter_reward, prompts=PROMPTS, config=config)
    assert trainer.config.model.model_path == path


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompts, said",
    [
        (None, "prompts is None: give a list"),
        ([], "prompts is \\[\\]"),
        ("one text", "prompts is 'one text'"),
        (["fine", "  "], "prompts\\[1\\] is '  '"),
        (["fine", 3], "prompts\\[1\\] is 3"),
        ([{"text": "x"}], "under \"prompt\""),
        ([{"prompt": "x", "samples": 1}], "prompts\\[0\\] has the key 'samples'"),
    ],
)
def test_bad_prompts_are_named(tmp_path, prompts, said):
    with pytest.raises(ConfigError, match=said):
        tiny_train(tmp_path, prompts=prompts)
    assert not (tmp_path / "run").exists()


def test_what_train_does_not_do(tmp_path):
    with pytest.raises(ConfigError, match="reward_fn"):
        train(prompts=PROMPTS, config=run_config(tmp_path))
    with pytest.raises(ConfigError, match="offline methods"):
        train(samples=["a"], rewards=[1.0], config=run_config(tmp_path))


def test_a_bad_reward_loses_nothing(tmp_path):
    calls = []

    def breaks_later(samples, **kwargs):
        calls.append(1)
        rewards = letter_reward(samples)
        if len(calls) > 3:
            rewards[1] = float("nan")
        return rewards

    # Calls: two chunks, one evaluation, and the first chunk of the second iteration.
    with pytest.raises(RewardError, match="sample 1"):
        tiny_train(tmp_path, breaks_later, train__checkpoint_interval=2, train__total_steps=8,
                   train__eval_interval=100)  # fmt: skip
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    # Mended, the same call goes on.
    mended = tiny_train(tmp_path, train__checkpoint_interval=2, train__total_steps=8,
                        train__eval_interval=100)  # fmt: skip
    assert mended.step == 8


def test_a_policy_directory_without_a_policy_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match="run 04_ppo_run first"):
        load_trained_policy(tmp_path)


def test_a_policy_without_its_value_head_can_sample_and_says_so(finished, tmp_path):
    """As committed runs are: they leave it out."""
    kept = shutil.copytree(finished[2] / "policy", tmp_path / "policy")
    whole = load_trained_policy(kept, "cpu")
    (kept / "value_head.safetensors").unlink()
    with pytest.warns(ConfigWarning, match="no value_head.safetensors.*can sample"):
        again = load_trained_policy(kept, "cpu")
    ids = torch.tensor([[5, 6, 7]])
    logits = [policy.base(ids).logits for policy in (whole, again)]
    assert torch.equal(*logits)


def test_nothing_is_written_before_the_run_starts(tmp_path):
    PPOTrainer(run_config(tmp_path), letter_reward)
    assert not (tmp_path / "run").exists()

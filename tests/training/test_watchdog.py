"""Numbers that go wrong: each provoked for real, found within one iteration, and undone."""

import warnings

import pytest
import torch
from tiny_runs import PROMPTS, letter_reward, run_config

from rlhf_helpers.models.finite_logits import NotFiniteError
from rlhf_helpers.models.loading import load_trained_policy
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.runs.files import read_jsonl
from rlhf_helpers.training.api import train
from rlhf_helpers.training.watchdog import MOST_SKIPS, WatchdogError

STEPS_OF_AN_ITERATION = 4  # of run_config's


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


def watched(root, reward_fn=letter_reward, callback=None, **settings):
    """A run of 12 steps; `settings` as model__dtype="float32"."""
    settings = {"train__total_steps": 12, "train__eval_interval": 1000, **settings}
    return train(
        reward_fn=reward_fn, prompts=PROMPTS, eval_prompts=PROMPTS[:2], callback=callback,
        config=run_config(root, **settings),
    )  # fmt: skip


class Sabotage:
    """A callback that spoils something once, when an iteration's rollouts are logged.

    Between there and the next look lie real optimizer steps of the real loop.
    """

    def __init__(self, monkeypatch, iteration: int, spoil):
        self.count, self.iteration, self.spoil = 0, iteration, spoil
        self.trainer = None
        from rlhf_helpers.training import trainer

        original = trainer.PPOTrainer.add_prompts

        def seen(this, *args):
            self.trainer = this
            return original(this, *args)

        monkeypatch.setattr(trainer.PPOTrainer, "add_prompts", seen)

    def __call__(self, line):
        if "exp_scores/mean" in line:
            self.count += 1
            if self.count == self.iteration:
                self.before = {n: p.detach().clone() for n, p in self.trainer.trained.items()}
                self.step = line["step"]
                self.spoil(self.trainer)


def overflow(trainer):
    """Values that make the squared error infinite in float32."""
    trainer.store.returns = trainer.store.returns * 1e30


def spike(trainer):
    """One outlier among the rewards, as a scorer that fails now and then gives it."""
    trainer.store.rewards[0, trainer.store.columns[0] - 1] += 1e6
    trainer.store.set_advantages(1.0, 0.95)


def diverge(trainer):
    """A learning rate at which the policy leaves the reference policy in one iteration."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = 3.0


SABOTAGE = {
    "loss": (overflow, {}, "the loss of step .* (inf|nan): lower optimizer.kwargs.lr, now 0.01"),
    "gradient": (spike, {"method__cliprange_value": 1e6}, "times the median of the .* steps before "
                 "it.*method.cliprange_reward is 10.*train.watchdog.max_gradient_growth"),
    "KL": (diverge, {"train__watchdog": {"max_kl": 5.0, "max_gradient_growth": 1e9},
                     "scheduler__kwargs": {"T_max": 10**9}},
           "nats a response away from the reference policy, over the limit of 5: raise "
           "method.init_kl_coef, now 0.05 or lower method.target, now 6"),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind, action",
    [("loss", "stop"), ("loss", "skip"), ("gradient", "stop"), ("KL", "stop"),
     pytest.param("gradient", "skip", marks=pytest.mark.slow),
     pytest.param("KL", "skip", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_bad_update_is_found_within_one_iteration_and_undone(tmp_path, monkeypatch, kind, action):
    spoil, settings, said = SABOTAGE[kind]
    limits = {**settings.get("train__watchdog", {}), "action": action}
    sabotage = Sabotage(monkeypatch, 3, spoil)
    settings = {**settings, "train__total_steps": 16, "train__watchdog": limits}
    if action == "stop":
        with pytest.raises(WatchdogError, match=said) as raised:
            watched(tmp_path, callback=sabotage, **settings)
        assert "\n" not in str(raised.value)
        after = load_trained_policy(tmp_path / "run" / "policy", "cpu").trainable_parameters()
        assert sabotage.trainer.step <= sabotage.step + STEPS_OF_AN_ITERATION
        for name, parameter in after.items():
            assert torch.equal(parameter, sabotage.before[name]), name
        # Without the cause, the same call goes on from there to the end.
        again = watched(tmp_path, **settings)
        assert again.step == 16
        return
    undone = []

    def also(line):
        sabotage(line)
        if "watchdog/skipped" in line:
            weights = sabotage.trainer.trained.items()
            undone.append(all(torch.equal(p, sabotage.before[n]) for n, p in weights))
            for group in sabotage.trainer.optimizer.param_groups:
                group["lr"] = 1e-2

    with pytest.warns(UserWarning, match=said):
        trainer = watched(tmp_path, callback=also, **{**settings, "train__total_steps": 20})
    assert undone == [True] and trainer.step == 20
    assert trainer.watchdog.skips == 0  # those after it were good


def test_the_policy_that_repeats_itself_is_found(tmp_path, monkeypatch):
    """All samples the same, and with them the reward: the end of learning."""

    def one_token(trainer):
        policy = trainer.policy
        draw = policy.generate

        def always(*args, **kwargs):
            samples = draw(*args, **kwargs)
            samples[:, args[0].shape[1] :] = 99
            return samples

        policy.generate = always

    sabotage = Sabotage(monkeypatch, 2, one_token)
    with pytest.raises(WatchdogError, match="all 8 samples of this iteration are the same.*reward "
                       "stands still.*raise method.init_kl_coef, now 0.05"):  # fmt: skip
        watched(tmp_path, callback=sabotage)
    assert sabotage.trainer.step == 8


def test_entropy_that_collapses_is_found(tmp_path, monkeypatch):
    """Logits ten thousand times as sharp: each prompt keeps one answer, the answers differ."""

    def sharpen(trainer):
        head = trainer.policy.base.get_output_embeddings()
        head.register_forward_hook(lambda module, inputs, logits: 1e4 * logits)

    sabotage = Sabotage(monkeypatch, 2, sharpen)
    with pytest.raises(WatchdogError, match="entropy has collapsed to .* nats a token, from .* at "
                       "the start: raise method.init_kl_coef.*or lower "
                       "train.watchdog.min_entropy_share, now 0.01"):  # fmt: skip
        watched(tmp_path, callback=sabotage, method__semantics="corrected",
                train__watchdog={"max_kl": 1e9, "max_gradient_growth": 1e9})  # fmt: skip
    assert sabotage.trainer.step == 8


def test_a_learning_rate_far_too_high_is_said_and_not_a_traceback_of_torchs(tmp_path):
    with pytest.raises(WatchdogError, match="lower optimizer.kwargs.lr, now 10") as raised:
        watched(
            tmp_path, optimizer__kwargs={"lr": 10.0, "eps": 1e-8}, scheduler__kwargs={"T_max": 10},
            train__total_steps=40, method__init_kl_coef=0.0,
        )  # fmt: skip
    assert load_trained_policy(tmp_path / "run" / "policy", "cpu")
    assert "the same call goes on" in str(raised.value)


# What torch says on a CPU, what this project says on a GPU, and what CUDA says elsewhere.
NO_NUMBERS = [
    RuntimeError("probability tensor contains either `inf`, `nan` or element < 0"),
    NotFiniteError("the policy's logits are not finite numbers"),
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be "
                 "asynchronously reported at some other API call"),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_NUMBERS, ids=["cpu", "guard", "cuda"])
def test_sampling_from_no_numbers_is_said_in_words(tmp_path, monkeypatch, error):
    def generate(*args, **kwargs):
        raise error

    monkeypatch.setattr(Policy, "generate", generate)
    with pytest.raises(WatchdogError, match="probabilities are not finite numbers: lower "
                       "optimizer.kwargs.lr, now 0.01.*last checkpoint") as raised:  # fmt: skip
        watched(tmp_path)
    assert raised.value.__cause__ is error


def test_other_errors_of_sampling_stay_what_they_are(tmp_path, monkeypatch):
    def generate(*args, **kwargs):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Policy, "generate", generate)
    with pytest.raises(RuntimeError, match="out of memory"):
        watched(tmp_path)


def test_skipping_ends_when_it_does_not_help(tmp_path, monkeypatch):
    def spoil_always(line):
        if "exp_scores/mean" in line:
            overflow(sabotage.trainer)

    sabotage = Sabotage(monkeypatch, 0, overflow)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(WatchdogError, match="the loss of step"):
            watched(tmp_path, callback=spoil_always, train__total_steps=100,
                    train__watchdog="skip")  # fmt: skip
    assert sum("is undone" in str(w.message) for w in caught) == MOST_SKIPS
    skipped = [line["watchdog/skipped"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")
               if "watchdog/skipped" in line]  # fmt: skip
    assert skipped == [1, 2, 3]


def test_scores_that_never_differ_are_warned_of_but_end_no_run(tmp_path):
    with pytest.warns(UserWarning, match="reward_fn gave 0.5 to every sample of 3 iterations"):
        trainer = watched(tmp_path, lambda samples, **_: [0.5] * len(samples))
    assert trainer.step == 12


def without_times_and_norms(path):
    return [{k: v for k, v in line.items() if not k.startswith("time/") and k != "grad_norm"}
            for line in read_jsonl(path)]  # fmt: skip


def test_watching_changes_no_number(tmp_path):
    for action in ("off", "stop"):
        watched(tmp_path / action, train__watchdog=action, train__total_steps=8)
    off, on = (tmp_path / action / "run" / "metrics.jsonl" for action in ("off", "stop"))
    assert without_times_and_norms(off) == without_times_and_norms(on)
    assert any("grad_norm" in line for line in read_jsonl(on))
    assert not any("grad_norm" in line for line in read_jsonl(off))

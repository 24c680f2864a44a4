"""Numbers that go wrong in a run: found within one iteration, said in words, undone.

Two looks an iteration, both at numbers that reach the host anyway: at the statistics of the
optimizer steps when they are logged, and at the new rollouts, which show what those steps made of
the policy. The weights that were good are kept until then (the trainer's `good_weights`), so that
an update that turns out to be bad can be taken back whole.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.models.finite_logits import NotFiniteError

from .rollout import RolloutStore
from .state import put_back_weights

HISTORY = 64  # optimizer steps whose gradient norms say what is normal
SMALLEST_NORM = 1e-3  # what counts as normal is at least this
MOST_SKIPS = 3  # in a row; then skipping does not help
STILL = 3  # iterations in a row with one and the same score for all samples


class WatchdogError(RuntimeError):
    """A run was stopped because its numbers went wrong; says which, and what to change."""


class Watchdog:
    """What is normal for this run, and whether new numbers are."""

    def __init__(self, config: TRLConfig):
        """`config.train.watchdog` has the action and the limits."""
        self.config = config
        self.limits = config.train.watchdog
        self.active = self.limits["action"] != "off"
        self.norms: deque[float] = deque(maxlen=HISTORY)
        self.first_entropy: float | None = None
        self.skips = 0  # in a row
        self.undone = False  # whether the last update was
        self.still = 0  # iterations in a row in which all scores were equal

    # --- the optimizer steps -------------------------------------------------------------------

    def of_updates(self, steps: Iterable[tuple[int, dict[str, float]]]) -> str | None:
        """What is wrong with the first bad one of these optimizer steps' statistics, or None."""
        for step, stats in steps if self.active else ():
            problem = self._of_update(step, stats)
            if problem:
                return problem
        return None

    def _of_update(self, step: int, stats: dict[str, float]) -> str | None:
        loss, norm = stats["losses/total_loss"], stats.get("grad_norm")
        if not math.isfinite(loss):
            return f"the loss of step {step} is {loss}: {self.smaller_steps()}"
        if norm is None:  # the loss is scaled, and the scaler watches the gradients
            return None
        if not math.isfinite(norm):
            return f"the gradient of step {step} is {norm}: {self.smaller_steps()}"
        limit, growth = self.limits["max_gradient_growth"], 0.0
        if self.norms:
            growth = norm / max(statistics.median(self.norms), SMALLEST_NORM)
        if growth > limit:
            return (
                f"the gradient of step {step} has a norm of {norm:.3g}, {growth:.0f} times the "
                f"median of the {len(self.norms)} steps before it: look for outliers among the "
                f"rewards (method.cliprange_reward is {self.config.method.cliprange_reward}), "
                f"{self.smaller_steps()}, or raise train.watchdog.max_gradient_growth, "
                f"now {limit:g}"
            )
        if norm > 0:  # where all samples of each prompt score the same, RLOO and GRPO learn nothing
            self.norms.append(norm)
        return None

    @torch.no_grad()
    def of_outputs(self, trainer) -> str | None:
        """What is wrong with what the policy says after its last optimizer step, or None.

        That step's own loss is of before it, and sampling from what is no number would end in an
        error of torch's. Two rollouts are enough: numbers that overflow do so everywhere.
        """
        if not self.active:
            return None
        batch = trainer.minibatch(range(min(2, len(trainer.store))))
        trainer.policy.set_dropout(active=False)  # so that no random numbers are drawn
        outputs = trainer.policy(
            batch.tokens, batch.attention_mask, batch.start, batch.logprobs.shape[1], batch.trunk
        )
        trainer.policy.set_dropout(active=trainer.semantics.dropout_outside_updates)
        if all(torch.isfinite(x).all() for x in outputs):
            return None
        return (
            f"after step {trainer.step} the policy's outputs are not finite numbers: "
            f"{self.smaller_steps()}"
        )

    def smaller_steps(self) -> str:
        """The remedy for steps that were too large."""
        rate = self.config.optimizer.kwargs.get("lr")
        words = "lower optimizer.kwargs.lr" + (f", now {rate:g}" if rate is not None else "")
        if self.config.model.dtype == "float16":
            words += ", or set model.dtype to bfloat16 or float32, which overflow later"
        return words

    # --- the rollouts ----------------------------------------------------------------------------

    def of_rollouts(self, stats: dict[str, float], rollouts: RolloutStore) -> str | None:
        """What is wrong with new rollouts and their statistics, or None."""
        if not self.active:
            return None
        problem = self._of_divergence(stats) or self._of_variety(stats, rollouts)
        if problem is None:
            self.skips = self.skips if self.undone else 0  # these weights are older than the update
            self.undone = False
            self._notice_still_scores(rollouts)
        return problem

    def _of_divergence(self, stats: dict[str, float]) -> str | None:
        kl, limit = stats.get("objective/kl", 0.0), self.limits["max_kl"]
        if math.isfinite(kl) and kl <= limit:
            return None
        method = self.config.method
        target = "" if method.target is None else f" or lower method.target, now {method.target:g}"
        return (
            f"the policy is {kl:.4g} nats a response away from the reference policy, over the "
            f"limit of {limit:g}: raise method.init_kl_coef, now {method.init_kl_coef:g}{target}, "
            f"{self.smaller_steps()}, or raise train.watchdog.max_kl"
        )

    def _of_variety(self, stats: dict[str, float], rollouts: RolloutStore) -> str | None:
        method = self.config.method
        settings = method.gen_experience_kwargs or method.gen_kwargs
        if not settings.get("do_sample", False) or len(rollouts) < 4:
            return None  # samples of one prompt are meant to be the same, or there are too few
        remedy = (
            f"raise method.init_kl_coef, now {method.init_kl_coef:g}, or {self.smaller_steps()}"
        )
        if stats["rollout/distinct"] == 1:
            return (
                f"all {len(rollouts)} samples of this iteration are the same, so that the reward "
                f"stands still and nothing more can be learned: {remedy}"
            )
        entropy = stats["policy/entropy"]
        if self.first_entropy is None:
            self.first_entropy = entropy
        limit = self.limits["min_entropy_share"] * self.first_entropy
        if entropy < limit:
            return (
                f"the policy's entropy has collapsed to {entropy:.3g} nats a token, from "
                f"{self.first_entropy:.3g} at the start: {remedy}; or lower "
                f"train.watchdog.min_entropy_share, now {self.limits['min_entropy_share']:g}"
            )
        return None

    def _notice_still_scores(self, rollouts: RolloutStore) -> None:
        scores = set(rollouts.scores)
        self.still = self.still + 1 if len(scores) == 1 and len(rollouts) > 1 else 0
        if self.still == STILL:
            warnings.warn(
                f"reward_fn gave {scores.pop():g} to every sample of {STILL} iterations in a row, "
                "though samples differ: there is nothing to learn from that, look at reward_fn.",
                stacklevel=2,
            )

    # --- what to do -----------------------------------------------------------------------------

    def may_skip(self) -> bool:
        """Whether a bad update is undone and the run goes on; counts how often it was."""
        self.skips += 1
        self.undone = True
        return self.limits["action"] == "skip" and self.skips <= MOST_SKIPS

    def state_dict(self) -> dict[str, Any]:
        """What this run has shown to be normal."""
        return {"norms": list(self.norms), "first_entropy": self.first_entropy,
                "skips": self.skips, "undone": self.undone, "still": self.still}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.norms = deque(state["norms"], maxlen=HISTORY)
        self.first_entropy = state["first_entropy"]
        self.skips, self.undone, self.still = state["skips"], state["undone"], state["still"]


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Norm of all gradients together, [] on their device; nothing waits for it."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def undo_update(trainer, problem: str) -> None:
    """Go back to the weights before this iteration's steps, and leave out those still to come.

    Then, as configured, raise WatchdogError with all of it saved, or return to go on from there.
    """
    watchdog, last_good = trainer.watchdog, trainer.good_weights
    if last_good is not None:
        put_back_weights(trainer, last_good)
        trainer.good_weights = None  # a second problem with these weights is not the update's
    trainer.position = len(trainer.plan)
    finished = trainer.step >= trainer.total_steps
    if watchdog.may_skip() and last_good is not None:
        warnings.warn(f"{problem}. This update is undone.", stacklevel=2)
        trainer.log.write(trainer.step, {"watchdog/skipped": watchdog.skips})
        if not finished and not trainer.todo:
            trainer.todo = ["collect"]
        return
    trainer.todo = [] if finished else ["collect"]
    trainer.save()
    policy = trainer.save_pretrained()
    raise WatchdogError(
        f"stopped at step {trainer.step} of {trainer.total_steps}: {problem}. The policy as it was "
        f"before that is in {policy}; the same call goes on from it, and with "
        "train.watchdog.action = skip past such updates."
    )


# In torch's errors about sampling from what is no number, on a CPU and on a GPU.
NO_NUMBERS = ("probability tensor contains", "device-side assert")


@contextmanager
def no_numbers_said(watchdog: Watchdog) -> Iterator[None]:
    """The errors about sampling from what is no number, in words: WatchdogError."""
    try:
        yield
    except RuntimeError as error:
        expected = isinstance(error, NotFiniteError) or any(x in str(error) for x in NO_NUMBERS)
        if not expected:
            raise
        raise WatchdogError(
            "stopped, because the policy's probabilities are not finite numbers: "
            f"{watchdog.smaller_steps()}; the last checkpoint is as it was."
        ) from error

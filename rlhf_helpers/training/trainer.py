"""`train(...)`: trlX's one call, and the loop behind it.

An iteration samples and scores rollouts, then takes `ppo_epochs` optimizer steps on each of
their minibatches. The loop's whole state can be saved between two optimizer steps, so that a
run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from rlhf_helpers.algorithms.ppo import kl_controller
from rlhf_helpers.config.checks import ConfigWarning
from rlhf_helpers.config.kwargs import optimizer_class_path, scheduler_class_path
from rlhf_helpers.config.sections import GRPOConfig
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.data.prompts import (
    PromptStream,
    check_fits_model,
    tokenize_prompts,
)
from rlhf_helpers.environment import advice_about_threads, local_device
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.calling import UserFunctionError
from rlhf_helpers.rewards.reward import RewardError
from rlhf_helpers.runs.files import made_directory, refuse_links, writing_to
from rlhf_helpers.runs.lock import only_run_in

from .experience import ExperienceMaker, RewardCaller, prompts_per_chunk, samples_per_prompt
from .interrupts import interrupts_noted
from .interval_evaluation import metric_means, sample_and_score
from .log import TrainingLog
from .processes import Processes
from .random_states import undone_on_failure
from .rollout import Minibatch, RolloutStore
from .saving import Saving
from .semantics import semantics_of
from .state import kept_weights
from .update import built, method_loss
from .watchdog import Watchdog, gradient_norm, no_numbers_said, undo_update


class PPOTrainer:
    """The policy, its optimizer and the state of the loop. Made by `train`."""

    def __init__(
        self,
        config: TRLConfig,
        reward_fn: Callable[..., Any],
        metric_fn: Callable[..., dict[str, list[float]]] | None = None,
        stop_sequences: Sequence[str] = (),
        callback: Callable[[dict[str, float]], None] | None = None,
        policy: Policy | None = None,
    ):
        """Load the policy as the configuration says, or take `policy`; nothing is written yet."""
        self.config = config
        self.metric_fn = metric_fn
        self.stop_sequences = list(stop_sequences)
        self.directory = Path(config.train.checkpoint_dir)
        self.log = TrainingLog(config, self.directory, callback)
        self.semantics = semantics_of(config.method.semantics)
        advice = advice_about_threads(torch.get_num_threads())
        if advice and local_device().type == "cpu":
            warnings.warn(advice, ConfigWarning, stacklevel=3)
        set_seed(config.train.seed)  # Python's and numpy's too: reward functions may draw
        if policy is None:
            policy = load_policy(config, local_device())
        self.policy = policy
        random.seed(config.train.seed)  # libraries draw from it while they are first imported
        half = self.policy.base.dtype == torch.float16 and self.policy.device.type == "cuda"
        self.processes = Processes(scaled_loss=half)
        self.accelerator = self.processes.accelerator
        self.log.processes = self.processes
        self.has_critic = samples_per_prompt(config.method) == 1
        if not self.has_critic:  # RLOO and GRPO leave the value head as it was drawn
            self.policy.v_head.requires_grad_(False)
        self.trained = {
            n: p for n, p in self.policy.trainable_parameters().items() if p.requires_grad
        }
        optimizer = built(optimizer_class_path, config.optimizer, list(self.trained.values()))
        scheduler = built(scheduler_class_path, config.scheduler, optimizer)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(
            self.policy, optimizer, scheduler
        )
        method, train = config.method, config.train
        # Of each process; the configured ones are of all processes together.
        self.batch_size = self.processes.share(train.batch_size, "train.batch_size")
        self.num_rollouts = self.processes.share(method.num_rollouts, "method.num_rollouts")
        self.kl_ctl = kl_controller(method.init_kl_coef, method.target, method.horizon)
        self.reward = RewardCaller(
            reward_fn, train.reward_timeout_seconds, train.reward_retries, self.tokenizer
        )
        self.generator = torch.Generator().manual_seed(train.seed)  # order of the minibatches
        self.store: RolloutStore | None = None
        self.plan: list[list[int]] = []  # the minibatch of each optimizer step of this iteration
        self.position = 0  # how many of them are done
        self.step = 0  # optimizer steps
        self.iteration = 0
        self.mean_kl = 0.0
        self.best_reward = float("-inf")
        self.todo = ["collect", "evaluate"]  # before the next optimizer step
        self.shown: dict[str, float] = {}  # beside the progress
        self.was_last = False  # whether the step at which the checkpoint was taken ended the run
        self.watchdog = Watchdog(config)
        self.good_weights: dict[str, Any] | None = None  # of the start of this iteration
        self.saving = Saving(self)
        self._interrupts: list[int] = []
        self._minibatch: tuple[RolloutStore, list[int], Minibatch] | None = None
        self._taught: tuple[RolloutStore, list[bool]] | None = None
        self.policy.set_dropout(active=self.semantics.dropout_outside_updates)
        self.policy.temperature = self.semantics.logprob_temperature(policy, method)
        self.processes.seed(train.seed)

    @property
    def tokenizer(self):
        """The policy's tokenizer, pad = eos."""
        return self.policy.tokenizer

    def add_prompts(
        self, prompts: Sequence[str | dict], eval_prompts: Sequence[str | dict]
    ) -> None:
        """Tokenise the prompts to sample from and those to evaluate on."""
        method, train = self.config.method, self.config.train
        room = train.seq_length - method.gen_kwargs["max_new_tokens"]
        tokenised, all_eval_prompts = (
            tokenize_prompts(texts, self.tokenizer, room, self.semantics.adds_special_tokens)
            for texts in (prompts, eval_prompts)
        )
        for key in ("gen_kwargs", "gen_experience_kwargs"):
            if getattr(method, key) is not None:
                every = [*tokenised, *all_eval_prompts]
                check_fits_model(every, self.policy.base, getattr(method, key), f"method.{key}")
        self.eval_prompts = self.processes.own(all_eval_prompts)
        chunk_size = self.processes.share(method.chunk_size, "method.chunk_size")
        per_chunk = prompts_per_chunk(method, chunk_size)
        stream = PromptStream(self.processes.own(tokenised), per_chunk, train.seed)
        self.experience = ExperienceMaker(
            self.policy, method, stream, self.reward, self.stop_sequences, self.processes
        )

    # --- the loop ------------------------------------------------------------------------------

    def learn(self) -> None:
        """Train to the end, from the beginning or from the newest checkpoint."""
        with writing_to(self.directory, "make the same call: it goes on from the last checkpoint"):
            made_directory(self.directory)
            refuse_links(self.directory)
            lock = only_run_in(self.directory) if self.processes.is_main else nullcontext()
            with lock, interrupts_noted() as self._interrupts:
                self.log.start_trackers()
                self._begin()
                try:
                    with no_numbers_said(self.watchdog):
                        self._train()
                except RewardError:  # what was scored before is kept
                    if self.processes.number == 1:  # the others cannot be asked for their share
                        self.save()
                        self.save_pretrained()
                    raise
                self._finish()

    def _begin(self) -> None:
        if not self.saving.resume():
            self.log.start_over()
        elif self.was_last and self.step < self.total_steps:
            self.todo = ["prepare"]  # a finished run that is made longer
        self.experience.after_chunk = self._between_chunks
        self._progress: Progress | None = None

    def _train(self) -> None:
        self._catch_up()
        quiet = None if self.processes.is_main else True
        name = type(self.config.method).__name__.removesuffix("Config")
        self._progress = Progress(self.total_steps, name, unit="step", done=self.step, quiet=quiet)
        while self.step < self.total_steps:
            self._one_step()
            if self._all_agree(bool(self._interrupts)):
                self._stop_interrupted()
            if self._all_agree(self.log.problem is not None):
                if self.processes.number > 1:  # which are all here: see learn
                    self.save()
                    self.save_pretrained()
                raise self.log.problem or UserFunctionError("callback failed in another process.")

    def _catch_up(self) -> None:
        """Do what is due before the next optimizer step; what fails stays due."""
        phases = {"evaluate": self._evaluate, "prepare": self._prepare_next_step,
                  "collect": self._collect}  # fmt: skip
        while self.todo:
            phases[self.todo[0]]()
            self.todo.pop(0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run: the configured ones, or all that `epochs` allows."""
        train, method = self.config.train, self.config.method
        batches = -(-(len(self.store or ()) or self.num_rollouts) // self.batch_size)
        return min(train.epochs * method.ppo_epochs * batches, train.total_steps)

    def _one_step(self) -> None:
        """One optimizer step, and what is due after it."""
        train = self.config.train
        stats = self.optimizer_step(self.plan[self.position])
        self.position += 1
        self.step += 1
        self.log.later(self.step, stats)
        finished = self.step >= self.total_steps
        self.todo = ["evaluate"] if finished or self.step % train.eval_interval == 0 else []
        self.todo += [] if finished else ["prepare"]
        self._progress.update(**self.shown)
        self._catch_up()
        if finished:
            return
        on_schedule = self.step % train.checkpoint_interval == 0
        if on_schedule or self._all_agree(self.saving.is_due()):
            self.save()
            self._catch_up()

    def _all_agree(self, flag: bool) -> bool:
        """Whether any process says so. Several processes ask each other once an iteration only."""
        if self.processes.number == 1:
            return flag
        return self.position == 0 and self.processes.any(flag)

    def _prepare_next_step(self) -> None:
        self._update_kl_coefficient()
        if self.position == len(self.plan):
            self._flush()
            self.todo.append("collect")

    def _evaluate(self) -> None:
        self._flush()
        with undone_on_failure():
            stats = self.evaluate(keep_best=self.config.train.save_best)
        self.log.write(self.step, stats)

    def _update_kl_coefficient(self) -> None:
        n_steps = self.semantics.controller_steps(
            self.position, len(self.plan), self.config.method.ppo_epochs,
            self.config.train.batch_size, len(self.store) * self.processes.number,
        )  # fmt: skip
        if n_steps is not None:
            self.kl_ctl.update(self.mean_kl, n_steps=n_steps)

    def _collect(self) -> None:
        """Make new rollouts and plan the optimizer steps on them."""
        store, stats = self.experience.make(self.num_rollouts, self.kl_ctl.value)
        problem = self.processes.first(self.watchdog.of_rollouts(stats, store))
        if problem:
            undo_update(self, problem)
            return self._collect()
        # Short chunks may leave one process with more rollouts; all take equally many steps.
        self.store = store.first(self.processes.smallest(len(store)))
        self.mean_kl = stats.pop("mean_kl")
        self.iteration += 1
        self.plan, self.position = self._plan(), 0
        self.good_weights = kept_weights(self) if self.watchdog.active else None
        kl = round(stats["objective/kl"], 4) + 0.0  # a policy that has not moved: 0, not -3e-07
        self.shown = {"reward": stats["exp_scores/mean"], "KL": kl}
        self.log.write(self.step, stats)

    def _between_chunks(self) -> None:
        if self.processes.number > 1:  # which may be at different chunks
            return
        if self._interrupts:
            self._stop_interrupted()
        self._stop_on_problem()
        if self.saving.is_due():
            self.save()

    def _stop_on_problem(self) -> None:
        """Raise what the callback raised, if it did: `learn` then saves what there is."""
        if self.log.problem is not None:
            raise self.log.problem

    def _flush(self) -> None:
        """Log the optimizer steps whose statistics still wait, and look at what they made."""
        arrived = self.log.flush()
        problem = self.watchdog.of_updates(arrived)
        if arrived and not problem:
            problem = self.watchdog.of_outputs(self)
        problem = self.processes.first(problem)
        if problem:
            undo_update(self, problem)

    def _plan(self) -> list[list[int]]:
        """Which rollouts enter each optimizer step of this iteration."""
        epochs = self.config.method.ppo_epochs
        return self.semantics.plan(len(self.store), self.batch_size, epochs, self.generator)

    def optimizer_step(self, indices: Sequence[int]) -> dict[str, Tensor | float]:
        """One gradient step on the rollouts with these indices; statistics stay on the device."""
        batch = self.minibatch(indices)
        self.policy.set_dropout(active=True)
        started = time.perf_counter()
        loss, stats = self.loss(batch)
        forward = time.perf_counter()
        self.accelerator.backward(loss)
        if self.watchdog.active and self.accelerator.scaler is None:
            stats["grad_norm"] = gradient_norm(self.trained.values())
        backward = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.policy.set_dropout(active=self.semantics.dropout_outside_updates)
        stats["learning_rate_group_0"] = self.optimizer.param_groups[0]["lr"]
        stats["time/forward"] = forward - started
        stats["time/backward"] = backward - forward
        return stats

    def minibatch(self, indices: Sequence[int]) -> Minibatch:
        """The stored rollouts with these indices.

        The last one is kept: `trlx` takes each minibatch `ppo_epochs` times in a row.
        """
        store, chosen, kept = self.store, list(indices), self._minibatch
        if kept is None or kept[0] is not store or kept[1] != chosen:
            taught = self._teaching(chosen)
            batch = store.minibatch(taught, self.semantics)
            batch.share = len(taught) / len(chosen)
            kept = self._minibatch = store, chosen, batch
        return kept[2]

    def _teaching(self, indices: list[int]) -> list[int]:
        """Those of the rollouts that have a part in the gradient; at least one.

        Where all samples of a prompt score the same, RLOO's and GRPO's advantages are 0, and so
        is all that these samples would add. A KL penalty in GRPO's loss is of all samples.
        """
        in_loss = isinstance(self.config.method, GRPOConfig) and self.kl_ctl.value != 0
        if self.has_critic or in_loss:
            return indices
        if self._taught is None or self._taught[0] is not self.store:
            self._taught = self.store, self.store.teaching()
        return [i for i in indices if self._taught[1][i]] or indices[:1]

    def loss(self, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's loss on a minibatch, with gradients, and its statistics."""
        return method_loss(
            self.model, batch, self.config.method, self.semantics, self.kl_ctl.value,
            self.processes,
        )  # fmt: skip

    # --- sampling and evaluation -----------------------------------------------------------------

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        """Sample with the rollouts' settings: token ids [B, Q] -> [B, Q + new tokens]."""
        method = self.config.method
        settings = method.gen_experience_kwargs or method.gen_kwargs
        return self.policy.generate(input_ids, attention_mask, **{**settings, **kwargs})

    def generate_eval(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs
    ) -> Tensor:
        """Sample with the evaluation's settings (gen_kwargs)."""
        settings = {**self.config.method.gen_kwargs, **kwargs}
        return self.policy.generate(input_ids, attention_mask, **settings)

    def evaluate(self, keep_best: bool = False) -> dict[str, float]:
        """Sample on the evaluation prompts, score the samples, write them to eval_samples.jsonl."""
        started = time.perf_counter()
        records = sample_and_score(
            self.policy, self.generate_eval, self.eval_prompts, self.reward, self.stop_sequences,
            self.batch_size,
        )  # fmt: skip
        records = self.processes.together(records)
        generated = time.perf_counter()
        rewards = [r["reward"] for r in records]
        stats = {"reward/mean": sum(rewards) / len(rewards), "time/generate": generated - started}
        if self.metric_fn is not None:
            prompts = self.processes.together(self.eval_prompts)
            stats.update(metric_means(self.metric_fn, records, prompts))
            stats["time/metric"] = time.perf_counter() - generated
        if keep_best and self.step > 0 and stats["reward/mean"] > self.best_reward:
            self.best_reward = stats["reward/mean"]
            self.save_pretrained(self.directory / "best_checkpoint")
        self.log.samples(self.step, records)
        return stats

    # --- files -------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path | None = None, merge: bool = False) -> Path:
        """Write the policy, by default to <checkpoint_dir>/policy.

        An adapter that peft loads, value head, tokenizer and configuration, for
        `load_trained_policy`; with `merge` a plain transformers model without LoRA instead.
        """
        directory = Path(directory or self.directory / ("merged_policy" if merge else "policy"))
        return self.saving.policy(directory, merge)

    def save(self, directory: str | Path | None = None) -> Path:
        """Write a checkpoint from which the run can go on exactly, by default among its own."""
        self._flush()
        return self.saving.checkpoint(Path(directory or self.directory / "checkpoints"))

    def load(self, directory: str | Path | None = None) -> bool:
        """Take up the newest intact checkpoint; False where there is none.

        `directory`: a run's directory (default: this run's), its `checkpoints`, one of them, or
        what `save_pretrained` wrote; from that, only the policy is taken.
        """
        return self.saving.load(Path(directory or self.directory))

    def _stop_interrupted(self) -> None:
        self.save()
        self.save_pretrained()
        if self._progress is not None:
            self._progress.close()
        raise KeyboardInterrupt(
            f"stopped after step {self.step} of {self.total_steps}; the policy so far is in "
            f"{self.directory / 'policy'}, and the same call goes on from here."
        )

    def _finish(self) -> None:
        self._progress.close()
        self.save()
        self.save_pretrained()
        self.log.close()
        self._stop_on_problem()

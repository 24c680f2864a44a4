"""`train_reward_model(pairs, config)`: from preferences to a reward function for `train()`.

    config = RewardModelConfig(policy=load_profile("cpu").config, directory="runs/reward_model")
    reward_fn = train_reward_model(load_pairs("preferences.jsonl"), config)

The reward model has the policy's own architecture: its frozen trunk, LoRA in the top layers, and
one linear head where the policy has its output head. It learns by Bradley-Terry's loss
(algorithms/preferences.py). A training that was interrupted goes on when it is called again.
With `num_layers_unfrozen: 0` the head alone learns, on states that are computed once a text.

Shapes: n pairs, B of them in a batch, h hidden width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_helpers.algorithms.preferences import bradley_terry_loss, preference_accuracy
from rlhf_helpers.config.checks import ConfigError, file_path, integer, number, one_of
from rlhf_helpers.config.reading import open_regular, unreadable
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.data.assets import write_sums
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.models.lora import lora_parameters, save_adapter
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.calibration import reliability
from rlhf_helpers.rewards.learned import (
    HEAD,
    OUTPUTS,
    POOLINGS,
    SETTINGS,
    LearnedReward,
    load_reward_model,
    pooled,
    token_rows,
)
from rlhf_helpers.rewards.preferences import Pair
from rlhf_helpers.runs.files import (
    atomic_write_json,
    read_json,
    writing_to,
    written_together,
)
from rlhf_helpers.runs.manifest import library_versions

from .checkpoints import CHECKPOINT, opened, save_checkpoint
from .kept_texts import KeptTexts, pooled_states

HISTORY_PAIRS = 256  # held-out pairs on which each epoch is measured; at the end all are taken
# What may differ where a training goes on: it changes no number.
NOT_THE_MODEL = ("directory", "checkpoint_seconds", "states_file")


@dataclass(frozen=True)
class RewardModelConfig:
    """Everything that decides what a reward model becomes, beside its pairs.

    Of `policy` the sections model and tokenizer count: which base model, which LoRA.
    """

    policy: TRLConfig
    directory: str = "reward_model"  # where its files go
    # Top layers with LoRA. None: as many as the policy's; 0: none, the head alone learns.
    num_layers_unfrozen: int | None = None
    pooling: str = "mean"  # what the head reads: the state at the "last" token, or the "mean"
    epochs: int = 4  # passes over the pairs
    batch_size: int = 32  # pairs
    learning_rate: float = 1e-3  # falls linearly to 0 after the warm-up
    warmup_share: float = 0.1  # of all steps
    weight_decay: float = 0.01
    max_tokens: int = 256  # of prompt and response together; of longer texts the end is read
    output: str = "percentile"  # the unit of the reward: see rewards/learned.py
    seed: int = 0
    checkpoint_seconds: float = 60.0
    states_file: str | None = None  # of the head alone: keeps texts' states for further models

    def __post_init__(self) -> None:
        if not isinstance(self.policy, TRLConfig):
            raise ConfigError("policy has to be a TRLConfig, such as load_profile('cpu').config.")
        checks = {
            "directory": file_path, "pooling": one_of(*POOLINGS), "output": one_of(*OUTPUTS),
            "epochs": integer(1, 10_000), "batch_size": integer(1, 65_536),
            "learning_rate": number(above=0.0, high=10.0), "warmup_share": number(0.0, 1.0),
            "weight_decay": number(0.0, 10.0), "max_tokens": integer(2, 1_000_000),
            "seed": integer(0, 2**32 - 1), "checkpoint_seconds": number(0.0, 1e9),
        }  # fmt: skip
        for name, check in checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.num_layers_unfrozen is not None:
            integer(0, 10_000)("num_layers_unfrozen", self.num_layers_unfrozen)
        if self.states_file is not None:
            file_path("states_file", self.states_file)
        model = self.policy.model
        if model.delta_kwargs is None and model.peft_config is None:
            raise ConfigError(
                "policy.model has neither delta_kwargs nor peft_config: a reward model learns by "
                "LoRA, so set one of them."
            )

    def described(self) -> dict[str, Any]:
        """The configuration as a file holds it: plain values, and no paths of this machine."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        model, tokenizer = fields.pop("policy").model, self.policy.tokenizer
        kept = {name: value for name, value in fields.items() if name not in NOT_THE_MODEL}
        sections = {"model": model.to_dict(), "tokenizer": tokenizer.to_dict()}
        return json.loads(json.dumps({**kept, **sections}))


def train_reward_model(
    pairs: Sequence[Pair], config: RewardModelConfig, heldout: Sequence[Pair] = ()
) -> LearnedReward:
    """Train a reward model on pairs and return it as a reward function; its files stay.

    `heldout` are pairs that it does not learn from: its accuracy and calibration on them are in
    `about` of what is returned, and in reward_model.json. Where `config.directory` holds the
    finished model of the same pairs and configuration, that one is loaded; where it holds a
    checkpoint, training goes on from it. ConfigError where it holds another model.
    """
    if len(pairs) < 2:
        raise ConfigError(f"pairs has {len(pairs)} pairs: give at least 2, better some hundreds.")
    directory, identity = Path(config.directory), _identity(pairs, heldout, config)
    if (directory / SETTINGS).exists():
        _require_same(read_json(directory / SETTINGS, {}).get("identity"), identity, directory)
        return load_reward_model(directory)
    opened(directory)
    with writing_to(directory, "call it again: it goes on from its checkpoint"):
        training = Training(RewardModel(config), pairs, heldout, identity)
        training.run()
        return training.finish()


class RewardModel(nn.Module):
    """A policy's decoder with LoRA, and one linear head."""

    def __init__(self, config: RewardModelConfig):
        """Load the base model; LoRA and head are drawn from `config.seed`."""
        super().__init__()
        self.config = config
        layers = config.num_layers_unfrozen
        changes: dict[str, Any] = {"train.seed": config.seed}
        if layers:
            changes["model.num_layers_unfrozen"] = layers
        self.policy: Policy = load_policy(TRLConfig.update(config.policy, changes))
        width = self.policy.base.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, bias=False)  # a constant cancels in every pair
        # As Stiennon et al. 2020 draw it (appendix B): variance 1 / (h + 1).
        nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5)
        self.head.to(self.policy.device)

    def trained(self) -> dict[str, nn.Parameter]:
        """What learns, by name: LoRA's matrices, if any is to, and the head."""
        lora = {} if self.head_alone else lora_parameters(self.policy.base)
        return {**lora, "head.weight": self.head.weight}

    @property
    def head_alone(self) -> bool:
        """Whether LoRA stays what it begins as, no change at all."""
        return self.config.num_layers_unfrozen == 0

    def scores(self, texts: KeptTexts | Tensor, indices: Sequence[int]) -> Tensor:
        """The scores of these of the texts, or of these pooled states [n, h]: [B]."""
        if isinstance(texts, Tensor):
            return self.head(texts[list(indices)]).squeeze(-1)
        tokens, mask, trunk = texts.batch(indices)
        hidden = self.policy.top(trunk, tokens, mask)
        return self.head(pooled(hidden, mask, self.config.pooling)).squeeze(-1)


class Training:
    """One training of a reward model, from its start or from a checkpoint to its files."""

    def __init__(self, model: RewardModel, pairs: Sequence[Pair], heldout: Sequence[Pair],
                 identity: dict[str, Any]):  # fmt: skip
        """Tokenise the pairs, compute the trunk's states, take up a checkpoint if there is one."""
        self.model, self.config, self.identity = model, model.config, identity
        self.directory = Path(model.config.directory)
        self.n, self.n_heldout = len(pairs), len(heldout)
        both = [p.prompt + p.chosen for p in [*pairs, *heldout]]
        both += [p.prompt + p.rejected for p in [*pairs, *heldout]]
        rows = token_rows(model.policy.tokenizer, both, model.config.max_tokens)
        self.texts: KeptTexts | Tensor
        if model.head_alone:
            kept = self.config.states_file and Path(self.config.states_file)
            self.texts = pooled_states(model.policy, rows, self.config.pooling, kept or None)
        else:
            self.texts = KeptTexts(model.policy, rows, "Trunk states")
        self.parameters = model.trained()
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )  # fmt: skip
        self.per_epoch = -(-self.n // self.config.batch_size)
        self.steps = self.config.epochs * self.per_epoch
        self.step, self.seconds, self.loss_sum = 0, 0.0, 0.0
        self.history: list[dict[str, Any]] = []
        self._resume()

    # --- learning --------------------------------------------------------------------------

    def run(self) -> None:
        """All steps that are left."""
        self._started = self._saved = time.monotonic()
        progress = Progress(self.steps, "Reward model", unit="step", done=self.step)
        with progress:
            while self.step < self.steps:
                self.loss_sum += self._learn()
                self.step += 1
                shown = {"loss": self.loss_sum / (1 + (self.step - 1) % self.per_epoch)}
                if self.step % self.per_epoch == 0:
                    self._end_epoch()
                progress.update(**shown)
                if time.monotonic() - self._saved > self.config.checkpoint_seconds:
                    self._save()
        self.seconds += time.monotonic() - self._started

    def _learn(self) -> float:
        """One optimizer step; its loss, in nats a pair."""
        chosen = self._pairs_of_step()
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # of the dropout
        self.model.policy.set_dropout(active=True)
        scores = self._scores_of(chosen)
        loss = bradley_terry_loss(*scores)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate_factor()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.model.policy.set_dropout(active=False)
        return loss.item()

    def _pairs_of_step(self) -> list[int]:
        epoch, place = divmod(self.step, self.per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.n)
        size = self.config.batch_size
        return order[place * size : (place + 1) * size].tolist()

    def _scores_of(self, pairs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and of the rejected texts of these pairs, two [B]."""
        rejected = [self.n + self.n_heldout + i for i in pairs]
        return self.model.scores(self.texts, [*pairs, *rejected]).chunk(2)

    def _rate_factor(self) -> float:
        warmup = self.config.warmup_share * self.steps
        return min((self.step + 1) / max(warmup, 1.0), 1 - self.step / self.steps)

    def _end_epoch(self) -> None:
        line = {"epoch": self.step // self.per_epoch, "loss": self.loss_sum / self.per_epoch}
        if self.n_heldout:
            some = min(self.n_heldout, HISTORY_PAIRS)
            chosen, rejected = self._all_scores(range(self.n, self.n + some))
            line["heldout_loss"] = bradley_terry_loss(chosen, rejected).item()
            line["heldout_accuracy"] = preference_accuracy(chosen, rejected).item()
        self.history.append(line)
        self.loss_sum = 0.0

    @torch.no_grad()
    def _all_scores(self, pairs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scores of chosen and rejected texts of many pairs, on the CPU, two [n]."""
        size, parts = self.config.batch_size, []
        for first in range(0, len(pairs), size):
            parts.append(torch.stack(self._scores_of(pairs[first : first + size])).cpu())
        return tuple(torch.cat(parts, dim=1).double())

    # --- files -----------------------------------------------------------------------------

    def finish(self) -> LearnedReward:
        """Write the model's files, remove the checkpoint, and load what was written."""
        policy, config = self.model.policy, self.config
        about = self.report()
        with written_together(self.directory) as temporary:
            if not self.model.head_alone:
                save_adapter(policy.base, temporary, config.policy.model.model_path)
            head = {"weight": self.model.head.weight.detach().float().cpu().contiguous()}
            save_file(head, temporary / HEAD)
            policy.tokenizer.save_pretrained(temporary)
            atomic_write_json(temporary / SETTINGS, about)
            write_sums(temporary)
        (self.directory / CHECKPOINT).unlink(missing_ok=True)
        return load_reward_model(self.directory, policy.device)

    def report(self) -> dict[str, Any]:
        """What reward_model.json holds: how to read the model, and how good it is."""
        config = self.config
        chosen, rejected = self._all_scores(range(self.n))
        scores = torch.cat([chosen, rejected])
        about = {
            "base_model": config.policy.model.model_path,
            "lora": not self.model.head_alone,
            "dtype": str(self.model.policy.base.dtype).removeprefix("torch."),
            "pooling": config.pooling,
            "max_tokens": config.max_tokens,
            "output": config.output,
            "mean": scores.mean().item(),  # over the texts of the training pairs
            "std": scores.std().item() or 1.0,
            "pairs": self.n,
            "accuracy": preference_accuracy(chosen, rejected).item(),  # on the training pairs
        }
        if self.n_heldout:
            about["heldout"] = calibration(
                *self._all_scores(range(self.n, self.n + self.n_heldout))
            )
        return about | {
            "history": self.history,
            "seconds": self.seconds,
            "versions": library_versions(),
            "identity": self.identity,
        }

    def _save(self) -> None:
        state = {
            "identity": json.dumps(self.identity), "step": self.step,
            "seconds": self.seconds + time.monotonic() - self._started,
            "loss_sum": self.loss_sum, "history": self.history,
            "trained": {name: p.detach().cpu() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        save_checkpoint(self.directory, state)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        path = self.directory / CHECKPOINT
        if not path.exists():
            return
        with open_regular(path) as file:
            try:
                state = torch.load(file, weights_only=True, map_location="cpu")
                saved = json.loads(state["identity"])
            except Exception as error:  # torch raises many kinds
                problem = f"it is no checkpoint ({type(error).__name__})"
                raise unreadable(
                    path, problem, "delete it, and training starts again"
                ) from error
        _require_same(saved, self.identity, self.directory)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.loss_sum, self.history = state["loss_sum"], state["history"]
        print(f"{self.directory} holds a reward model at step {self.step} of {self.steps}: "
              "going on from there.", flush=True)  # fmt: skip


def calibration(chosen: Tensor, rejected: Tensor) -> dict[str, Any]:
    """How good the scores of n pairs are: accuracy, loss, and how true the probabilities are.

    `ece` and `brier` are those of P(first preferred) over each pair in both orders, so that the
    order in which a pair is shown says nothing; see `reliability`.
    """
    p = torch.sigmoid(chosen - rejected)
    both = torch.cat([p, 1 - p]).tolist()
    labels = [1] * len(p) + [0] * len(p)
    measured = reliability(both, labels)
    return {
        "n": len(p),
        "accuracy": preference_accuracy(chosen, rejected).item(),
        "loss": bradley_terry_loss(chosen, rejected).item(),
        **{name: measured[name] for name in ("ece", "brier", "bins")},
    }


def _identity(
    pairs: Sequence[Pair], heldout: Sequence[Pair], config: RewardModelConfig
) -> dict[str, Any]:
    """What a directory must agree on, for its model to be this one."""
    digest = {
        name: hashlib.sha256(
            "\n".join(json.dumps(dataclasses.astuple(p)) for p in own).encode()
        ).hexdigest()
        for name, own in (("pairs_sha256", pairs), ("heldout_sha256", heldout))
    }
    return {**config.described(), **digest}


def _require_same(saved: Any, now: dict[str, Any], directory: Path) -> None:
    saved = saved if isinstance(saved, dict) else {}
    for name in now:
        if saved.get(name) != now[name]:
            raise ConfigError(
                f"{directory} holds a reward model with another {name} ({saved.get(name)!r:.60}, "
                f"now {now[name]!r:.60}): choose another directory, or delete that one."
            )

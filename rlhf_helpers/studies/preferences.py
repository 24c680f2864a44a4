"""Preferences in a study: pairs, a simulated annotator, reward models, gold beside proxy.

Two texts of the untuned policy for each of many training prompts; an annotator who wants what the
profile's reward says (and fluency, where that has a weight), with noise; reward models of some of
the pairs. All of it is drawn once a study and kept under runs/study/; a study that was stopped
goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from rlhf_helpers.algorithms.preferences import accuracy_ceiling
from rlhf_helpers.config.checks import ConfigError, closest
from rlhf_helpers.evaluation.before_after import paired_bootstrap
from rlhf_helpers.evaluation.sampling import EvalPrompt
from rlhf_helpers.making.kept_texts import pooled_states
from rlhf_helpers.making.reward_model import RewardModelConfig, train_reward_model
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.rewards.annotator import Gold, annotate
from rlhf_helpers.rewards.learned import LearnedReward, token_rows
from rlhf_helpers.rewards.preferences import Candidates, Pair, pair_line
from rlhf_helpers.runs.files import (
    atomic_write_json,
    read_json,
    refuse_link,
    remove,
    write_jsonl,
)
from rlhf_helpers.runs.tensors import read_tensors
from rlhf_helpers.training.semantics import semantics_of

from .baselines import draw_candidates
from .best_of_pool import COLUMNS, pool_rows
from .dpo import ResponseTexts
from .plan import LEARNED_KINDS, Plan, Row
from .written import write_csv

BEST_OF_N = "best_of_n.csv"
POOL_SIZES = [2**k for k in range(11)]  # n in it
SPARE = 0.02  # more prompts than pairs: two texts may come out equal, or one empty
# Of a policy or reward model, what is left out of what is kept: the base model has the tokenizer.
NOT_KEPT = (
    "checkpoint.pt", "SHA256SUMS", "tokenizer*", "special_tokens_map.json", "vocab.json",
    "merges.txt", "chat_template*",
)  # fmt: skip
# What reward_model.json keeps of each reward model.
MODEL_FIELDS = ("pairs", "pooling", "accuracy", "heldout", "history", "seconds", "versions")


class Preferences:
    """What the rows that learn from preferences share. It is drawn when it is asked for."""

    def __init__(self, plan: Plan, work: Path, prompts: Sequence[str],
                 reward_fn: Callable[..., list[float]], judge: Any):  # fmt: skip
        """`prompts` are those that PPO trains on; `reward_fn` gives P(POSITIVE), gold's part."""
        self.plan, self.work, self.settings = plan, work, plan.preferences
        self._settings = plan.preferences_of("ppo-learned")  # reward models among them
        self.reward_fn, self.judge = reward_fn, judge
        learned = [row for row in plan.rows if row.kind in LEARNED_KINDS]
        if not learned:
            raise ConfigError("no row of the plan learns from preferences: give one of kind "
                              f"{', '.join(LEARNED_KINDS)}.")  # fmt: skip
        self.profile = plan.settings(learned[0])
        self.reward_model_config(0, Path("."))  # what the plan says of it, checked
        self._training_prompts = prompts
        self._untuned = None
        self._models: dict[tuple[int, int], LearnedReward] = {}
        self._drawn: tuple[list[Pair], list[Pair], Gold, float] | None = None

    def folder(self, row: Row) -> str:
        """Where a row's run lies: another folder for other preferences, which no config names."""
        return f"{row.id}-{digest([self.plan.preferences_of(row.kind), row.options])}"

    # --- pairs -----------------------------------------------------------------------------

    @property
    def pairs(self) -> list[Pair]:
        """The annotated pairs that rows and reward models take theirs from."""
        return self._annotated()[0]

    @property
    def heldout(self) -> list[Pair]:
        """Annotated pairs on which reward models are measured."""
        return self._annotated()[1]

    @property
    def gold(self) -> Gold:
        """What the annotator wants."""
        return self._annotated()[2]

    @property
    def ceiling(self) -> float:
        """The accuracy on held-out pairs of one who knows gold."""
        return self._annotated()[3]

    def some(self, n: int, seed: int) -> list[Pair]:
        """The `n` pairs of this seed's draw."""
        order = np.random.default_rng([self.settings["seed"], seed]).permutation(len(self.pairs))
        return [self.pairs[i] for i in order[:n]]

    def _annotated(self) -> tuple[list[Pair], list[Pair], Gold, float]:
        if self._drawn is None:
            self._drawn = self._draw()
        return self._drawn

    def _draw(self) -> tuple[list[Pair], list[Pair], Gold, float]:
        s = self.settings
        needed = s["pairs"] + s["heldout"]
        records = self._texts(needed)
        usable = [
            (a, b) for a, b in zip(records[::2], records[1::2], strict=True)
            if a["output"] != b["output"] and a["output"].strip() and b["output"].strip()
        ][:needed]  # fmt: skip
        if len(usable) < needed:
            raise ConfigError(f"preferences.pairs and heldout are {needed} together: only "
                              f"{len(usable)} pairs of different texts came out, ask for fewer."
                              )  # fmt: skip
        flat = [record for both in usable for record in both]
        positive = [record["reward"] for record in flat]
        fluency = self._fluency_of_pairs(flat)
        gold = Gold.measured_on(positive, fluency, s["fluency_weight"])
        values = gold.of(positive, fluency)
        self._values = {
            (r["prompt"], r["output"]): value for r, value in zip(flat, values, strict=True)
        }
        gaps = values[::2] - values[1::2]
        candidates = [Candidates(a["prompt"], a["output"], b["output"]) for a, b in usable]
        noise = s["temperature"], s["random_share"]
        pairs = annotate(candidates, gaps, *noise, seed=s["seed"])
        ceiling = accuracy_ceiling(torch.tensor(gaps[s["pairs"] :]), *noise).item()
        return pairs[: s["pairs"]], pairs[s["pairs"] :], gold, ceiling

    def _texts(self, needed: int) -> list[dict[str, Any]]:
        """Two samples of the untuned policy for each of a few more prompts than `needed`."""
        seed = self.settings["seed"]
        distinct = list(dict.fromkeys(self._training_prompts))
        n = int(needed * (1 + SPARE)) + 8
        if n > len(distinct):
            raise ConfigError(f"preferences.pairs and heldout are {needed} together: there are "
                              f"{len(distinct)} prompts, ask for fewer.")  # fmt: skip
        order = np.random.default_rng(seed).permutation(len(distinct))[:n]
        first = (10_000 + seed) * 1_000_000_000
        prompts = [EvalPrompt(distinct[i], "pairs", first + k) for k, i in enumerate(order)]
        depends = [self.profile.assets, self.profile.config.method.gen_kwargs,
                   self.profile.config.train.seq_length, seed, n]  # fmt: skip
        self._texts_path = self.work.parent / f"pairs-{digest(depends)}.jsonl"  # of any plan
        return draw_candidates(
            self.untuned, prompts, 2, self.profile, self.reward_fn, self._texts_path
        )

    @property
    def untuned(self):
        """The policy before any training."""
        if self._untuned is None:
            self._untuned = load_policy(self.profile.config)
        return self._untuned

    def _fluency_of_pairs(self, records: Sequence[dict[str, Any]]) -> list[float] | None:
        """`_fluency` of the pairs' texts, computed once and kept beside them."""
        if not self.settings["fluency_weight"]:
            return None
        texts = [[record["prompt"], record["output"]] for record in records]
        path = self._texts_path.with_name(f"fluency-{digest(texts)}.json")
        if not path.exists():
            atomic_write_json(path, {"fluency": self._fluency(*zip(*texts, strict=True))})
        return read_json(path, {})["fluency"]

    def _fluency(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[float] | None:
        """Mean log-probability of each output's tokens under the untuned policy, in nats."""
        if not self.settings["fluency_weight"]:
            return None
        special = semantics_of(self.profile.config.method.semantics).adds_special_tokens
        texts = ResponseTexts(self.untuned, prompts, outputs, special)
        sums = texts.reference_logprobs().tolist()
        return [total / n for total, n in zip(sums, texts.lengths, strict=True)]

    # --- reward models ---------------------------------------------------------------------

    def reward_model_config(self, seed: int, directory: Path) -> RewardModelConfig:
        """The plan's configuration of a reward model; ConfigError for a name that it lacks."""
        given = self.settings["reward_model"]
        known = {f.name for f in dataclasses.fields(RewardModelConfig)} - {
            "policy", "directory", "seed", "states_file",
        }  # fmt: skip
        for name in given:
            if name not in known:
                raise ConfigError(f"preferences.reward_model has no field {name!r}: did you mean "
                                  f"{closest(name, known)!r}?")  # fmt: skip
        pooling = given.get("pooling", RewardModelConfig.pooling)
        states = self.work.parent / f"states-{pooling}-{digest(self.profile.assets['policy'])}"
        return RewardModelConfig(
            policy=self.profile.config, directory=str(directory), seed=seed,
            states_file=f"{states}.safetensors", **given,
        )  # fmt: skip

    def reward_model(self, n: int, seed: int) -> LearnedReward:
        """The reward model of `n` pairs and this seed, trained now or loaded."""
        if (n, seed) not in self._models:
            directory = self.reward_model_dir(n, seed)
            config = self.reward_model_config(seed, directory)
            print(f"Reward model of {n:,} pairs, seed {seed}", flush=True)
            self._models[n, seed] = train_reward_model(self.some(n, seed), config, self.heldout)
        return self._models[n, seed]

    def reward_model_dir(self, n: int, seed: int) -> Path:
        """Where that reward model lies; another one for other settings."""
        depends = [self._settings, self.profile.assets["policy"]]
        return self.work / f"reward_models-{digest(depends)}" / f"{n}-s{seed}"

    # --- measuring -------------------------------------------------------------------------

    def gold_values(
        self, samples: Sequence[str], prompts: Sequence[str], outputs: Sequence[str],
        positive: Sequence[float],
    ) -> list[float]:  # fmt: skip
        """Gold of texts as files have it: P(POSITIVE), or both parts in standard deviations."""
        if not self.settings["fluency_weight"]:
            return list(positive)
        return self.gold.of(positive, self._fluency(prompts, outputs)).tolist()

    def metrics_of(self, learned: LearnedReward) -> Callable[..., dict[str, list[float]]]:
        """A metric function for `train()`: what truth, judge and reward model say of samples."""

        def metrics(samples, prompts, outputs, **_: Any) -> dict[str, list[float]]:
            positive = self.reward_fn(samples=samples)
            return {
                "sentiment": positive,
                "gold": self.gold_values(samples, prompts, outputs, positive),
                "proxy": learned.standardised(samples).tolist(),
                "judge": self.judge.score(samples),
            }

        return metrics

    def measured(
        self, row: Row, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """What a row's file says beside its evaluation: gold and proxy before and after."""
        found: dict[str, Any] = {"gold_name": self.gold.name, "ceiling": self.ceiling}
        golds = {}
        for side, records in (("before", before), ("after", after)):
            prompts, outputs = ([r[k] for r in records] for k in ("prompt", "output"))
            texts = [p + o for p, o in zip(prompts, outputs, strict=True)]
            positive = [r["reward"] for r in records]
            golds[side] = np.array(self.gold_values(texts, prompts, outputs, positive))
            found[f"gold_{side}"] = float(golds[side].mean())
            if row.kind != "dpo":
                learned = self.reward_model(row.options["pairs"], row.seed)
                found[f"proxy_{side}"] = float(learned.standardised(texts).mean())
                found["reward_model_accuracy"] = learned.about["heldout"]["accuracy"]
        difference = paired_bootstrap(golds["after"] - golds["before"])
        return {**found, "gold_difference": difference._asdict()}

    # --- what is kept ----------------------------------------------------------------------

    def write_pairs(self, out: Path) -> None:
        """preferences.jsonl: every annotated pair, those that measure marked as held out.

        `gold`: what the annotator wants of the chosen text and of the other one.
        """
        parts = {"train": self.pairs, "heldout": self.heldout}
        write_jsonl(out / "preferences.jsonl", [
            pair_line(pair, gold=[round(self._values[pair.prompt, text], 3)
                                  for text in (pair.chosen, pair.rejected)], split=split)
            for split, pairs in parts.items() for pair in pairs
        ])  # fmt: skip

    def make_reward_models(self, out: Path) -> Path:
        """Train the plan's reward models by size and seed; reward_model.json after each."""
        path, settings = out / "reward_model.json", self._settings
        kept = read_json(path, {}) if path.exists() else {}
        models = kept.get("models", {}) if kept.get("preferences") == settings else {}
        wanted = [(n, s) for s in self.settings["seeds"] for n in self.settings["sizes"]]
        about = {
            "preferences": settings, "gold": self.gold.name,
            "gold_moments": dataclasses.asdict(self.gold), "ceiling": self.ceiling,
        }  # fmt: skip
        for n, seed in wanted:
            name = f"{n}-s{seed}"
            if name not in models:
                remove(out / BEST_OF_N)  # it was of the models before
                learned = self.reward_model(n, seed)
                fields = {k: learned.about[k] for k in MODEL_FIELDS if k in learned.about}
                models[name] = {"seed": seed, **fields}
                held = learned.about["heldout"]["accuracy"]
                print(f"  held-out accuracy {held:.3f}, ceiling {self.ceiling:.3f}", flush=True)
            atomic_write_json(path, {**about, "models": models})
        if not wanted:
            atomic_write_json(path, {**about, "models": models})
        return path

    def write_best_of_pool(self, out: Path) -> None:
        """best_of_n.csv: for each reward model, proxy and gold of the best of n unseen texts.

        One that is there is of these models: `make_reward_models` removes any other.
        """
        if (out / BEST_OF_N).exists():
            return
        pairs = [*self.pairs, *self.heldout]
        texts = [(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
        values = np.array([self._values[text] for text in texts])
        gold = values if self.settings["fluency_weight"] else 1 / (1 + np.exp(-values))
        lines = []
        for n in self.settings["sizes"]:
            for seed in self.settings["seeds"]:
                learned = self.reward_model(n, seed)
                scores = self._standardised(learned, ["".join(text) for text in texts])
                seen = {p.prompt for p in self.some(n, seed)}
                unseen = np.array([prompt not in seen for prompt, _ in texts])
                lines += pool_rows(scores[unseen], gold[unseen], POOL_SIZES, pairs=n, seed=seed,
                                   gold_name=self.gold.name)  # fmt: skip
        write_csv(out / BEST_OF_N, COLUMNS, lines)

    def _standardised(self, learned: LearnedReward, texts: list[str]) -> np.ndarray:
        """The scores of texts of the untuned policy, from their kept states where those serve."""
        config = self.reward_model_config(0, Path("."))
        if config.num_layers_unfrozen != 0:
            return learned.standardised(texts)
        rows = token_rows(self.untuned.tokenizer, texts, config.max_tokens)
        states = pooled_states(self.untuned, rows, config.pooling, Path(config.states_file or ""))
        scores = (states @ learned.head.T).squeeze(1).cpu().double().numpy()
        return (scores - learned.about["mean"]) / learned.about["std"]

    def keep_adapters(self, out: Path) -> None:
        """What the plan names, in float16: adapters/<row>, policy and reward model of a row, and
        reward_models/<pairs>-s<seed>.
        """  # fmt: skip
        for n in self.settings["sizes"]:
            for seed in self.settings["seeds"]:
                if f"{n}-s{seed}" in self.settings["adapters"]:
                    _keep(self.reward_model_dir(n, seed), out / "reward_models" / f"{n}-s{seed}")
        for row in (row for row in self.plan.rows if row.kind in LEARNED_KINDS):
            policy = self.work / self.folder(row) / "policy"
            named = {row.name, row.id} & set(self.settings["adapters"])
            if not named or not policy.is_dir():
                continue
            folders = {"policy": policy}
            if row.kind == "ppo-learned":
                folders["reward_model"] = self.reward_model_dir(row.options["pairs"], row.seed)
            for name, source in folders.items():
                _keep(source, out / "adapters" / row.id / name)


def _keep(source: Path, target: Path) -> None:
    """Copy what is read of a policy or a reward model, its numbers in float16."""
    for place in (target.parent.parent, target.parent, target):
        refuse_link(place)
    ignored = shutil.ignore_patterns(*NOT_KEPT)
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
    for path in target.glob("*.safetensors"):  # half as large, and as good
        halves = {name: value.half() for name, value in read_tensors(path).items()}
        save_file(halves, path)


def digest(value: Any) -> str:
    """Twelve digits that differ where the value does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]

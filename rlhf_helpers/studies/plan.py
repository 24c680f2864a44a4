"""A study's plan: a YAML file that lists rows, each of one kind, with settings and seeds.

    profile: study            # what every row starts from
    evaluation_seed: 1000     # of the held-out prompts' random streams, the same for every row
    n_prompts: 1000           # held-out prompts a row is evaluated on
    interval_prompts: 64      # of these, evaluated on while a row trains
    set: {}                   # settings for all rows, by dotted name
    rows:
      - name: PPO, KL 0.01
        kind: ppo             # ppo, ppo-corrected, rloo, grpo, best-of-n, sft, positive-prompt
        panel: frontier       # which figure or panel it belongs to
        seeds: [1000]
        set: {method.init_kl_coef: 0.01}
      - name: best of n
        kind: best-of-n
        n: [2, 4, 8]          # a row of the table for each

Anything that is left out has the value shown above, rows aside.

Three kinds learn from preferences, of which the plan then says where they come from (the defaults
are those of PREFERENCES below; see preferences.py):

    preferences: {pairs: 4096, heldout: 1024, temperature: 0.5, random_share: 0.1}
    rows:
      - {name: "1,024 pairs", kind: ppo-learned, pairs: 1024}  # PPO against a reward model
      - {name: best of, kind: best-of-n-learned, pairs: 1024}  # the reward model chooses
      - {name: DPO, kind: dpo, pairs: 1024}                    # no reward model at all
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import (
    ConfigError,
    boolean,
    closest,
    entries,
    file_name,
    integer,
    mapping,
    number,
    text,
    text_list,
    wrong,
)
from rlhf_helpers.config.files import read_yaml
from rlhf_helpers.config.profiles import Profile, load_profile

# Settings that make a kind of training what it is.
TRAINED_KINDS: dict[str, dict[str, Any]] = {
    "ppo": {"method.name": "PPOConfig", "method.semantics": "trlx"},
    "ppo-corrected": {"method.name": "PPOConfig", "method.semantics": "corrected"},
    "rloo": {"method.name": "RLOOConfig"},
    "grpo": {"method.name": "GRPOConfig"},
    "ppo-learned": {"method.name": "PPOConfig", "method.semantics": "corrected"},
}
# What the kinds without reinforcement learning need of a row, with defaults.
BASELINE_OPTIONS: dict[str, dict[str, Any]] = {
    "best-of-n": {"n": [2, 4, 8, 16, 32, 64]},
    "sft": {"steps": 200, "batch_size": 32, "learning_rate": 1e-3},
    "positive-prompt": {"prefix": "This is a wonderful movie and I loved it."},
    "ppo-learned": {"pairs": 1024},
    "best-of-n-learned": {"n": [2, 4, 8, 16, 32, 64], "pairs": 1024},
    "dpo": {"pairs": 1024, "beta": 0.1, "steps": 120, "batch_size": 32, "learning_rate": 1e-3},
}
KINDS = tuple(dict.fromkeys((*TRAINED_KINDS, *BASELINE_OPTIONS)))
LEARNED_KINDS = ("ppo-learned", "best-of-n-learned", "dpo")


def _candidates(path: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not value:
        raise wrong(path, value, "give a list of whole numbers above 1, such as [2, 4, 8]")
    return [integer(2, 10_000)(path, n) for n in value]


_OPTION_CHECKS = {
    "n": _candidates, "steps": integer(1, 1_000_000), "batch_size": integer(1, 100_000),
    "learning_rate": number(above=0.0, high=10.0), "prefix": text,
    "pairs": integer(2, 10_000_000), "beta": number(above=0.0, high=1e4),
}  # fmt: skip


def _numbers(path: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        raise wrong(path, value, "give a list of whole numbers")
    return [integer(0, 2**31)(path, item) for item in value]


# Where preferences come from: defaults, and what may be given.
PREFERENCES: dict[str, Any] = {
    "pairs": 4096, "heldout": 1024, "seed": 0,
    "fluency_weight": 0.0, "temperature": 0.5, "random_share": 0.1,
    "sizes": [], "seeds": [], "reward_model": {}, "adapters": [], "keep_pairs": True,
}  # fmt: skip
_PREFERENCE_CHECKS = {
    "pairs": integer(2, 10_000_000),  # of which rows and reward models take their share
    "heldout": integer(2, 1_000_000),  # further ones, on which reward models are measured
    "seed": integer(0, 2**31),  # of prompts, texts and answers
    "fluency_weight": number(0.0, 100.0),  # 0: the annotator wants sentiment alone
    "temperature": number(0.0, 1000.0), "random_share": number(0.0, 1.0),  # of the answers
    "sizes": _numbers, "seeds": _numbers,  # reward models to make beside those of rows
    "reward_model": mapping,  # fields of RewardModelConfig
    "keep_pairs": boolean,  # whether preferences.jsonl is written
    "adapters": text_list,  # what is kept: names or ids of rows, reward models such as 64-s1000
}  # fmt: skip
# What says which reward models are made and kept, but not what they are.
NOT_THE_PREFERENCES = ("sizes", "seeds", "adapters", "keep_pairs")
ROW_KEYS = ("name", "kind", "panel", "seeds", "set", "n_prompts")


@dataclass(frozen=True)
class Row:
    """One run of a study: a row of its table."""

    id: str  # a name for files, unique in the plan
    name: str
    kind: str
    panel: str
    seed: int
    n_prompts: int
    set: dict[str, Any] = field(default_factory=dict)  # dotted settings, the plan's included
    options: dict[str, Any] = field(default_factory=dict)  # of a baseline: n, steps, prefix ...


@dataclass(frozen=True)
class Plan:
    """A list of rows and what they share."""

    name: str
    profile: str
    evaluation_seed: int
    n_prompts: int
    interval_prompts: int
    rows: list[Row]
    preferences: dict[str, Any] = field(default_factory=lambda: dict(PREFERENCES))

    def settings(self, row: Row, run_dir: str | Path | None = None) -> Profile:
        """The complete configuration of a row."""
        changes = {**TRAINED_KINDS.get(row.kind, {}), **row.set}
        if row.kind in LEARNED_KINDS:
            changes["method.semantics"] = "corrected"
        return load_profile(self.profile, changes, seed=row.seed, run_dir=run_dir)

    def preferences_of(self, kind: str) -> dict[str, Any]:
        """The settings of preferences that a row of this kind depends on (DPO: no reward model)."""
        left_out = (*NOT_THE_PREFERENCES, "reward_model") if kind == "dpo" else NOT_THE_PREFERENCES
        settings = {k: v for k, v in self.preferences.items() if k not in left_out}
        return json.loads(json.dumps(settings))


def load_plan(path: str | Path) -> Plan:
    """Read and check a plan, every row's configuration included."""
    data = read_yaml(path)
    checks = {"profile": text, "evaluation_seed": integer(0, 2**31), "set": mapping,
              "n_prompts": integer(2, 1_000_000), "interval_prompts": integer(1, 100_000),
              "rows": _row_list, "preferences": _preferences}  # fmt: skip
    defaults = {"profile": "study", "evaluation_seed": 1000, "n_prompts": 1000,
                "interval_prompts": 64, "set": {}, "preferences": {}}  # fmt: skip
    values = entries("the plan", {**defaults, **data}, checks)
    if "rows" not in values:
        raise ConfigError(f"rows is missing in {path}: list the runs of the study.")
    shared = values.pop("set")
    given = values.pop("rows")
    rows = [
        row
        for index, entry in enumerate(given)
        for row in _rows(f"rows[{index}]", entry, shared, values["n_prompts"])
    ]
    plan = Plan(file_name("the plan's file name", Path(path).stem), rows=rows, **values)
    _check_rows(plan)
    return plan


def _preferences(path: str, value: Any) -> dict[str, Any]:
    return {**PREFERENCES, **entries(path, value, _PREFERENCE_CHECKS)}


def _row_list(path: str, value: Any) -> list:
    if not isinstance(value, list) or not value:
        raise wrong(path, value, "give a list with at least one row")
    return value


def _rows(path: str, entry: Any, shared: Mapping[str, Any], n_prompts: int) -> list[Row]:
    """The rows that one entry of the plan stands for: one a seed, and one for each n."""
    entry = mapping(path, entry)
    kind = entry.get("kind")
    if kind not in KINDS:
        raise wrong(f"{path}.kind", kind, f"give one of {', '.join(KINDS)}")
    defaults = BASELINE_OPTIONS.get(kind, {})
    for key in entry:
        if key not in (*ROW_KEYS, *defaults):
            likely = closest(key, [*ROW_KEYS, *defaults])
            raise wrong(
                f"{path}.{key}",
                entry[key],
                f"rows of kind {kind} have no such key; did you mean {likely}?",
            )
    options = {
        key: _OPTION_CHECKS[key](f"{path}.{key}", entry.get(key, value))
        for key, value in defaults.items()
    }
    settings = {**shared, **mapping(f"{path}.set", entry.get("set", {}))}
    base = Row(
        id="", name=_short(f"{path}.name", entry.get("name", kind)), kind=kind,
        panel=text(f"{path}.panel", entry.get("panel", "frontier")), seed=0,
        n_prompts=integer(2, 1_000_000)(f"{path}.n_prompts", entry.get("n_prompts", n_prompts)),
        set=settings, options=options,
    )  # fmt: skip
    seeds = entry.get("seeds", [1000])
    if not isinstance(seeds, list) or not seeds:
        raise wrong(f"{path}.seeds", seeds, "give a list of seeds, such as [1000, 1001]")
    seeded = [
        dataclasses.replace(base, seed=integer(0, 2**32 - 1)(f"{path}.seeds", seed))
        for seed in seeds
    ]
    return [_with_id(row) for each in seeded for row in _each_n(each)]


def _short(path: str, value: Any) -> str:
    if len(text(path, value)) > 100:
        raise wrong(path, value, "give a name of at most 100 characters")
    return value


def _each_n(row: Row) -> list[Row]:
    if "n" not in row.options:
        return [row]
    numbers = row.options["n"]
    # The candidates are drawn once, as many as the largest n asks for.
    return [
        dataclasses.replace(
            row, name=f"{row.name} {n}", options={**row.options, "n": n, "of": max(numbers)}
        )
        for n in numbers
    ]


def _with_id(row: Row) -> Row:
    slug = re.sub(r"[^a-z0-9.]+", "-", row.name.lower()).strip("-")
    return dataclasses.replace(row, id=f"{slug}-s{row.seed}")


def _check_rows(plan: Plan) -> None:
    seen: set[str] = set()
    for row in plan.rows:
        if row.id in seen:
            raise ConfigError(f"the row {row.name!r} with seed {row.seed} is in the plan twice: "
                              "give each row a name of its own.")  # fmt: skip
        seen.add(row.id)
        _check_learned(plan, row)
        try:
            plan.settings(row)
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from None


def _check_learned(plan: Plan, row: Row) -> None:
    """No row can take more pairs than the plan has."""
    if row.kind in LEARNED_KINDS:
        most = plan.preferences["pairs"]
        integer(2, most)(f"pairs of row {row.name!r}", row.options["pairs"])

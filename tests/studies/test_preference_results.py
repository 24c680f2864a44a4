"""The committed results of the chain from preferences, and what the pages say of them."""

import csv
import json
import math

import pytest

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.rewards.preferences import read_pairs
from rlhf_helpers.studies import preference_tables as tables
from rlhf_helpers.studies.plan import load_plan
from rlhf_helpers.studies.study import finished

KEPT = tables.kept_folder("preferences")
NAMES = [name for name in tables.FOLDERS if tables.kept_folder(name).is_dir()]
STUDY = (repo_root() / "docs" / "study.md").read_text(encoding="utf-8")


def csv_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def models(name="preferences"):
    return {n: [m["heldout"]["accuracy"] for m in own]
            for n, own in tables.models_by_size(name).items()}  # fmt: skip


def mean(values):
    return sum(values) / len(values)


def test_what_is_kept_is_small():
    assert sum(p.stat().st_size for p in KEPT.rglob("*") if p.is_file()) <= 5_000_000


def test_the_ceiling_is_that_of_the_pairs_that_are_kept():
    lines = [json.loads(line) for line in (KEPT / "preferences.jsonl").read_text().splitlines()]
    heldout = [line for line in lines if line["split"] == "heldout"]
    assert (len(lines), len(heldout)) == (5120, 1024)
    assert len(read_pairs(KEPT / "preferences.jsonl")) == 5120
    likelier = []
    for line in heldout:
        odds = math.exp((line["gold"][0] - line["gold"][1]) / 0.5)
        p = 0.9 * odds / (1 + odds) + 0.05
        likelier.append(max(p, 1 - p))
    ceiling = json.loads((KEPT / "reward_model.json").read_text())["ceiling"]
    assert mean(likelier) == pytest.approx(ceiling, abs=1e-3)
    # The answers were drawn with these probabilities: gold itself guesses about as many.
    guessed = mean([line["gold"][0] > line["gold"][1] for line in heldout])
    assert abs(guessed - ceiling) < 3 * math.sqrt(ceiling * (1 - ceiling) / 1024)


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_courses_end_as_the_row_files_say(name):
    folder, plan = tables.kept_folder(name), load_plan(
        repo_root() / "figures" / "study" / f"{name}.yml"
    )
    results = tables.kept_rows(name)
    done = [row.id for row in plan.rows if finished(plan, row, folder)]
    assert [result["id"] for result in results] == done  # none of another configuration
    table = csv_rows(folder / "table.csv")
    assert len(table) == len(results) == len(list(folder.glob("rows/*.json")))
    ends = {}
    for line in csv_rows(folder / "overoptimisation.csv"):
        ends[line["name"], line["seed"]] = line  # the last line of each stays
    assert len(ends) == len(results)
    for result, row in zip(results, table, strict=True):
        end = ends[row["name"], row["seed"]]
        for line, field in ((row, "gold_after"), (end, "gold")):
            assert float(line[field]) == pytest.approx(result["gold_after"], rel=1e-5)
        assert end["gold_name"] == result["gold_name"]
        assert end["n"] == "256" and int(end["pairs"]) == result["row"]["options"]["pairs"]
        if result["gold_name"] == "sentiment":
            assert result["gold_after"] == pytest.approx(result["evaluation"]["reward_after"])


@pytest.mark.parametrize("name", NAMES)
def test_adapters_and_reward_models_are_those_of_the_plan(name):
    folder = tables.kept_folder(name)
    about = json.loads((folder / "reward_model.json").read_text())
    plan = load_plan(repo_root() / "figures" / "study" / f"{name}.yml")
    kept = plan.preferences
    wanted = {f"{n}-s{seed}" for n in kept["sizes"] for seed in kept["seeds"]}
    assert set(about["models"]) == wanted
    for model in about["models"].values():
        assert model["heldout"]["n"] == kept["heldout"]
    for adapter in (folder / "adapters").glob("*"):
        assert adapter.name in kept["adapters"]
        assert (adapter / "policy" / "adapter_model.safetensors").is_file()

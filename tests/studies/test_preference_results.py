"""The committed results of the chain from preferences, and what the pages say of them."""

import csv
import json
import math

import nbformat
import numpy as np
import pytest

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.rewards.preferences import read_pairs
from rlhf_helpers.studies import preference_tables as tables
from rlhf_helpers.studies.overoptimisation import end_of
from rlhf_helpers.studies.plan import load_plan
from rlhf_helpers.studies.study import finished

KEPT = tables.kept_folder("preferences")
NAMES = [name for name in tables.FOLDERS if tables.kept_folder(name).is_dir()]
RUN = [name for name in NAMES if (tables.kept_folder(name) / "table.csv").is_file()]
STUDY = (repo_root() / "docs" / "study.md").read_text(encoding="utf-8")
PAGE = " ".join(
    " ".join(cell.source.split())
    for cell in nbformat.read(repo_root() / "notebooks" / "06_preferences.ipynb", 4).cells
    if cell.cell_type == "markdown"
)


SAID = " ".join(STUDY.split())


def csv_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def models(name="preferences"):
    return {n: [m["heldout"]["accuracy"] for m in own]
            for n, own in tables.models_by_size(name).items()}  # fmt: skip


def mean(values):
    return sum(values) / len(values)


def span(values, digits):
    """"0.35 to 0.38", or one number where both ends are the same."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def listed(values, digits):
    """"0.839, 0.810 and 0.825"."""
    *first, last = (f"{value:.{digits}f}" for value in values)
    return f"{', '.join(first)} and {last}"


def nats(rows, digits=1):
    return span([row["evaluation"]["kl_per_sequence"] for row in rows], digits)


def assert_said(*sentences):
    for sentence in sentences:
        assert sentence in SAID, sentence


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


@pytest.mark.parametrize("name", RUN)
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


# --- what docs/study.md says ---------------------------------------------------------------


def best_of(name, pairs, n):
    """The lines of best_of_n.csv of these pairs and this n, by seed."""
    rows = csv_rows(tables.kept_folder(name) / "best_of_n.csv")
    own = [row for row in rows if (row["pairs"], row["n"]) == (str(pairs), str(n))]
    return {int(row["seed"]): {k: float(row[k]) for k in ("proxy", "gold", "gold_low", "gold_high")}
            for row in own}  # fmt: skip


def test_what_is_said_of_the_reward_models_holds():
    accuracies, about = models(), json.loads((KEPT / "reward_model.json").read_text())
    sizes = [16, 64, 256, 1024, 4096]
    assert {n: len(own) for n, own in accuracies.items()} == dict.fromkeys(sizes, 3)
    own = [m["accuracy"] for m in tables.models_by_size("preferences")[4096]]
    (lora,) = tables.models_by_size("preferences_lora")[1024]
    (head,) = [m for m in tables.models_by_size("preferences")[1024] if m["seed"] == 1000]
    assert_said(
        f"guesses {listed([mean(accuracies[n]) for n in sizes], 2)} of the new answers",
        f"The ceiling is {about['ceiling']:.2f}.",
        f"after 4,096 it is right on {span(own, 2)} of its own pairs",
        f"one draw of 1,024 pairs came to {lora['heldout']['accuracy']:.2f}, where the head alone "
        f"has {head['heldout']['accuracy']:.2f} on the same draw",
        f"{lora['heldout']['accuracy'] - head['heldout']['accuracy']:.3f} more",
    )
    assert max(accuracies[1024]) < 0.70 and max(accuracies[4096]) < 0.74  # the goals: not reached
    assert lora["seed"] == 1000 and len(lora["history"]) == 4
    assert lora["seconds"] > 60 and head["seconds"] < 5  # "for minutes in place of a second"


def test_what_is_said_of_the_trials_holds():
    rows = csv_rows(KEPT / "reward_model_trials.csv")
    trials = {(row["reward_model"].partition(",")[0], row["pairs"], row["draws"]):
              float(row["accuracy"]) for row in rows}  # fmt: skip
    said = {
        ("top three layers in full", "1024", "1"): "0.66",
        ("head alone", "1024", "1"): "0.66",
        ("head alone", "1024", "3"): "0.67",
        ("head on the states of all layers", "1024", "3"): "0.66",
        ("head alone", "3072", "2"): "0.67",
        ("head on the states of all layers", "3072", "2"): "0.68",
    }
    assert {key: f"{trials[key]:.2f}" for key in said} == said
    for size in ("1024", "3072"):
        own = [accuracy for key, accuracy in trials.items() if key[1] == size]
        assert max(own) - min(own) < 0.015


def test_what_is_said_of_best_of_n_holds():
    ends = {n: best_of("preferences", n, 1024) for n in (16, 64, 1024)}
    assert all(len(own) == 3 for own in ends.values())
    golds = {n: [row["gold"] for row in own.values()] for n, own in ends.items()}
    start = {f"{row['gold']:.2f}" for row in best_of("preferences", 1024, 1).values()}
    before, after = best_of("preferences", 16, 128)[1000], ends[16][1000]
    assert len(start) == 1 and after["gold"] == min(golds[16])
    assert_said(
        f"has a P(POSITIVE) of {span(golds[1024], 2)}, from {start.pop()}, with all three draws",
        f"From 64 pairs it is {span(golds[64], 2)}, from 16 {span(golds[16], 2)}.",
        f"of all three, {span([row['proxy'] for row in ends[16].values()], 1)} standard deviations",
        f"gold goes from {before['gold']:.2f} at n = 128 to {after['gold']:.2f} at n = 1,024 "
        f"(95 % interval {after['gold_low']:.2f} to {after['gold_high']:.2f}), and the proxy from "
        f"{before['proxy']:.1f} to {after['proxy']:.1f}",
    )
    rows = [r for r in tables.kept_rows("preferences") if r["row"]["kind"] == "best-of-n-learned"]
    assert len(rows) == 8
    for pairs, name in ((64, "64"), (4096, "4,096")):
        for n in (4, 16):
            own = [r["gold_after"] for r in rows
                   if (r["row"]["options"]["pairs"], r["row"]["options"]["n"]) == (pairs, n)]
            assert f"best of {n} from {name} pairs {span(own, 2)}" in SAID, (n, name, span(own, 2))


def test_what_is_said_of_the_second_gold_holds():
    accuracies = models("preferences_fluency")
    assert {n: len(own) for n, own in accuracies.items()} == {64: 3, 1024: 3}
    folder = tables.kept_folder("preferences_fluency")
    about = json.loads((folder / "reward_model.json").read_text())
    assert about["gold"] == "sentiment and fluency"
    few, many = (best_of("preferences_fluency", n, 128) for n in (64, 1024))
    assert_said(
        f"guess {mean(accuracies[64]):.2f} of the answers after 64 pairs and "
        f"{mean(accuracies[1024]):.2f} after 1,024, of a ceiling of {about['ceiling']:.2f}",
        f"The best of 128 texts comes to {span([row['gold'] for row in many.values()], 1)} with "
        "1,024 pairs",
        f"and to {listed([few[s]['gold'] for s in (1000, 1001, 1002)], 1)} with the draws of 64",
    )
    start = best_of("preferences_fluency", 64, 1)
    assert all(abs(row["gold"]) < 0.02 for row in start.values())


def ppo_rows(name, row="PPO, 1,024 pairs"):
    """The finished rows of this name, by seed: PPO against reward models of 1,024 pairs."""
    rows = [r for r in tables.kept_rows(name) if r["row"]["name"] == row]
    return sorted(rows, key=lambda r: r["row"]["seed"])


def test_what_is_said_of_ppo_holds():
    rows, (lora,) = ppo_rows("preferences"), ppo_rows("preferences_lora")
    assert [r["row"]["seed"] for r in rows] == [1000, 1001, 1002] and lora["row"]["seed"] == 1000
    assert all(r["settings"]["method"]["semantics"] == "corrected" for r in [*rows, lora])
    start = {f"{row['gold_before']:.3f}" for row in [*rows, lora]}
    changes, own = [r["gold_difference"] for r in rows], lora["gold_difference"]
    assert len(start) == 1 and min(c["mean"] for c in changes) > 0.25
    assert_said(
        f"of 1,024 pairs gold rises from {start.pop()} to "
        f"{listed([r['gold_after'] for r in rows], 3)} on 256 held-out prompts",
        f"by {span([c['mean'] for c in changes], 2)}, at {nats(rows)} nats",
        f"(the lowest end of a 95 % interval is {min(c['low'] for c in changes):.2f})",
        f"it rises to {lora['gold_after']:.3f}, by {own['mean']:.2f} ({own['low']:.2f} to "
        f"{own['high']:.2f}), at {nats([lora])} nats",
        f"it ends at {span([r['evaluation']['judge_after'] for r in rows], 2)}, with LoRA at "
        f"{lora['evaluation']['judge_after']:.2f}",
    )


def test_what_is_said_of_few_and_many_pairs_holds():
    many, few, least = (ppo_rows("preferences", f"PPO, {n} pairs") for n in ("4,096", "64", "16"))
    for rows in (many, few, least):
        assert [r["row"]["seed"] for r in rows] == [1000, 1001, 1002]
    changes = [r["gold_difference"] for r in many]
    assert min(c["mean"] for c in changes) > 0.30  # the goal
    golds = [listed([r["gold_after"] for r in rows], 3) for rows in (many, few, least)]
    gains = [span([r["gold_difference"]["mean"] for r in rows], 2) for rows in (many, few, least)]
    assert_said(
        f"From 4,096 pairs gold rises to {golds[0]}, by {gains[0]}, at {nats(many)} nats",
        f"(the lowest end of an interval is {min(c['low'] for c in changes):.2f})",
        f"From 64 pairs it rises to {golds[1]}, by {gains[1]}, and from 16 to {golds[2]}, by "
        f"{gains[2]}",
    )


def free_rows(pairs):
    """PPO without a penalty, and the same reward models' PPO with one: [(free, held)]."""
    return list(zip(ppo_rows("preferences", f"PPO, {pairs} pairs, β 0"),
                    ppo_rows("preferences", f"PPO, {pairs} pairs"), strict=True))  # fmt: skip


def test_what_is_said_of_ppo_without_a_penalty_holds():
    least, few, many = (free_rows(n) for n in ("16", "64", "4,096"))
    assert len(least) == len(few) == len(many) == 3
    for free, held in [*least, *few, *many]:
        assert free["row"]["seed"] == held["row"]["seed"]
        assert free["settings"]["method"]["init_kl_coef"] == 0
        assert free["settings"]["train"]["total_steps"] == 192
        assert free["gold_after"] > held["gold_after"]  # "It fell in none of the nine"
    free = [[row for row, _ in rows] for rows in (least, few, many)]
    more = [[row["gold_after"] - held["gold_after"] for row, held in rows]
            for rows in (few, many)]  # fmt: skip
    proxies = [[end_of(row)["proxy"] for row in rows] for rows in free]
    assert_said(
        f"the policies go {nats([*free[0], *free[1], *free[2]], 0)} nats far",
        f"gold ends at {span([r['gold_after'] for r in free[2]], 2)} with 4,096 pairs and at "
        f"{span([r['gold_after'] for r in free[1]], 2)} with 64, higher than with the penalty by "
        f"{span(more[1], 2)} and {span(more[0], 2)}",
        f"With 16 it ends at {listed([r['gold_after'] for r in free[0]], 3)}",
        f"The proxies of 16 end at {listed(proxies[0], 1)} standard deviations, those of 4,096 at "
        f"{span(proxies[2], 1)}",
    )


def test_what_is_said_of_dpo_beside_ppo_holds():
    dpo = sorted((r for r in tables.kept_rows("preferences") if r["row"]["kind"] == "dpo"),
                 key=lambda r: r["row"]["seed"])  # fmt: skip
    ppo, (lora,) = ppo_rows("preferences"), tables.kept_rows("preferences_lora")
    assert [r["row"]["seed"] for r in dpo] == [r["row"]["seed"] for r in ppo]  # the same pairs
    options = {"pairs": 1024, "beta": 0.1, "steps": 96, "batch_size": 32, "learning_rate": 1e-3}
    assert all(r["row"]["options"] == options for r in dpo)
    odd = [[r["evaluation"]["perplexity_after"] for r in rows] for rows in (dpo, [*ppo, lora])]
    (before,) = {f"{r['evaluation']['perplexity_before']:.0f}" for r in dpo}
    assert_said(
        f"bring gold to {listed([r['gold_after'] for r in dpo], 3)} without a reward model, at "
        f"{nats(dpo)} nats",
        f"rises from {before} to {listed(odd[0], 0)}, where PPO's ends at {span(odd[1], 0)}",
    )
    assert [r["evaluation"]["verdict"] for r in dpo] == ["improved", "gamed", "improved"]
    assert {r["evaluation"]["verdict"] for r in [*ppo, lora]} == {"improved"}


def test_what_is_said_of_ppo_under_the_second_gold_holds():
    few, many = (ppo_rows("preferences_fluency", f"PPO, {n} pairs, β 0") for n in ("64", "1,024"))
    assert len(few) == len(many) == 3
    rises = [span([r["gold_difference"]["mean"] for r in rows], 1) for rows in (few, many)]
    both = [*few, *many]
    (before,) = {f"{r['evaluation']['perplexity_before']:.0f}" for r in both}
    after = span([r["evaluation"]["perplexity_after"] for r in both], 0)
    (over,) = [r for r in both if end_of(r)["proxy"] > r["gold_after"]]
    assert {r["evaluation"]["verdict"] for r in both} == {"narrower"}
    assert_said(
        f"raises it by {rises[0]} with the reward models from 64 pairs and by {rises[1]} with "
        f"those from 1,024, at {nats(both, 0)} nats",
        f"falls from {before} to {after}",
        f"the sixth ({over['row']['options']['pairs']} pairs, seed {over['row']['seed']}) says "
        f"{end_of(over)['proxy']:.1f}, where gold has {over['gold_after']:.1f}",
    )


# --- what notebook 06 says beside what it computes -----------------------------------------


def kept_lines(folder=KEPT):
    return [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]


def test_the_page_says_of_pairs_and_reward_models_what_the_files_say():
    lines = [line for line in kept_lines() if line["split"] == "heldout"]
    easy = [line for line in lines if abs(line["gold"][0] - line["gold"][1]) > 3][:12]
    assert f"it was {sum(p['gold'][0] > p['gold'][1] for p in easy)} in {len(easy)}" in PAGE
    accuracies, about = models(), json.loads((KEPT / "reward_model.json").read_text())
    means = [mean(accuracies[n]) for n in (16, 64, 256, 1024, 4096)]
    own = [m["accuracy"] for m in tables.models_by_size("preferences")[4096]]
    assert f"On average {listed(means, 2)}:" in PAGE
    assert f"the ceiling is {about['ceiling']:.2f}" in PAGE
    assert f"right on only {span(own, 2)} of the pairs that it *learned from*" in PAGE
    few = accuracies[16]
    assert f"draws of 16 lie between {min(few):.2f} and {max(few):.2f}" in PAGE
    of_seed = {(m["pairs"], m["seed"]): m["heldout"]["accuracy"] for m in about["models"].values()}
    assert of_seed[16, 1000] == min(few)  # "poor" is the worst of three, "good" the best
    assert of_seed[1024, 1001] == max(accuracies[1024])
    (lora,) = tables.models_by_size("preferences_lora")[1024]
    head = next(m for m in tables.models_by_size("preferences")[1024] if m["seed"] == 1000)
    lora_right, head_right = (m["heldout"]["accuracy"] for m in (lora, head))
    said = f"that was hardly better, {lora_right:.2f} beside {head_right:.2f}, and took minutes"
    assert said in PAGE
    assert 0 < lora_right - head_right < 0.02 and lora["seconds"] > 60 > 20 * head["seconds"]


def test_the_page_says_of_best_of_n_what_the_file_says():
    rows = csv_rows(KEPT / "best_of_n.csv")
    pools = {(row["pairs"], f"{int(row['pool']):,}") for row in rows}
    assert {("16", "10,208"), ("1024", "8,192")} <= pools
    assert "(10,208 for one from 16 pairs, 8,192 for one from 1,024)" in PAGE
    good, poor = best_of("preferences", 1024, 1024), best_of("preferences", 16, 1024)
    (start,) = {f"{row['gold']:.2f}" for row in best_of("preferences", 1024, 1).values()}
    assert f"from {start} to {span([row['gold'] for row in good.values()], 2)} with all" in PAGE
    assert f"it ends at {listed([row['gold'] for row in poor.values()], 2)}" in PAGE
    assert f"the proxies at {span([row['proxy'] for row in poor.values()], 1)}" in PAGE
    after = poor[1000]
    assert "(seed 1000, the solid line)" in PAGE  # the first of the seeds, and of SEED_STYLES
    assert f"interval is {after['gold_low']:.2f} to {after['gold_high']:.2f}" in PAGE


def test_the_page_says_of_ppo_and_dpo_what_the_files_say():
    least, many = (free_rows(n) for n in ("16", "4,096"))
    both = [free for free, _ in [*least, *many]]
    golds = [[free["gold_after"] for free, _ in rows] for rows in (many, least)]
    assert f"With 4,096 pairs it rises to {span(golds[0], 2)}" in PAGE
    assert f"with 16 to {listed(golds[1], 2)}" in PAGE
    assert f"{nats(both, 0)} nats far" in PAGE
    proxies = [[end_of(free)["proxy"] for free, _ in rows] for rows in (many, least)]
    assert f"proxy ends at {listed(proxies[1], 1)} standard deviations" in PAGE
    assert f"with 4,096 at {span(proxies[0], 1)}" in PAGE
    gains = [[free["gold_difference"]["mean"] for free, _ in rows] for rows in (least, many)]
    assert sorted(gains[0])[1] < min(gains[1]) / 2 and sorted(gains[0])[2] > min(gains[1])
    assert "for less than half of the gain" in PAGE  # two draws; the third was lucky
    dpo = [r for r in tables.kept_rows("preferences") if r["row"]["kind"] == "dpo"]
    for options in (row["row"]["options"] for row in dpo):
        assert options["steps"] * options["batch_size"] == 3 * options["pairs"]
        assert options["beta"] == 0.1
    assert "take each of 1,024 pairs three times, with β = 0.1" in PAGE


def test_draws_of_one_seed_in_two_studies_share_nothing_and_all_pairs_are_one_draw():
    """The pages say so: a seed draws from 4,096 pairs in one study, from 1,024 in the other."""
    prompts = {}
    for name in ("preferences", "preferences_fluency"):
        lines = kept_lines(tables.kept_folder(name))
        train = [line["prompt"] for line in lines if line["split"] == "train"]
        order = np.random.default_rng([0, 1001]).permutation(len(train))[:64]
        prompts[name] = {train[i] for i in order}
        sizes = load_plan(repo_root() / "figures" / "study" / f"{name}.yml").preferences["sizes"]
        assert max(sizes) == len(train)  # the draws of the full size are orders of the same pairs
    assert not prompts["preferences"] & prompts["preferences_fluency"]
    assert "the three of 4,096 are the same pairs in three orders" in " ".join(STUDY.split())
    assert "(of 4,096: the same pairs in three orders)" in PAGE

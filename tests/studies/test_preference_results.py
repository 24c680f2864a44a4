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
    assert {n: len(own) for n, own in accuracies.items()} == dict.fromkeys([64, 256, 1024, 4096], 3)
    said = [f"{mean(accuracies[n]):.2f}" for n in (64, 256, 1024, 4096)]
    assert said == ["0.59", "0.62", "0.65", "0.66"] and f"{about['ceiling']:.2f}" == "0.82"
    assert "guesses 0.59, 0.62, 0.65 and 0.66 of" in STUDY
    assert max(accuracies[1024]) < 0.70 and max(accuracies[4096]) < 0.74  # the goals: not reached
    assert (min(accuracies[64]), max(accuracies[64])) == pytest.approx((0.55, 0.62), abs=0.005)
    own = [m["accuracy"] for m in tables.models_by_size("preferences")[4096]]
    assert all(f"{a:.2f}" == "0.70" for a in own)
    (lora,) = tables.models_by_size("preferences_lora")[1024]
    (head,) = [m for m in tables.models_by_size("preferences")[1024] if m["seed"] == 1000]
    assert lora["seed"] == 1000 and len(lora["history"]) == 4
    assert f"{lora['heldout']['accuracy']:.2f}" == "0.64"
    assert f"{head['heldout']['accuracy']:.2f}" == "0.65"
    assert round(lora["seconds"]) == 380 and round(head["seconds"]) == 2


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
    good, poor = best_of("preferences", 1024, 1024), best_of("preferences", 64, 1024)
    assert len(good) == len(poor) == 3
    ends = sorted(row["gold"] for row in good.values())
    assert (f"{ends[0]:.2f}", f"{ends[-1]:.2f}") == ("0.95", "0.96")
    assert all(f"{r['gold']:.2f}" == "0.44" for r in best_of("preferences", 1024, 1).values())
    ends = sorted(row["gold"] for row in poor.values())
    assert (f"{ends[0]:.2f}", f"{ends[-1]:.2f}") == ("0.53", "0.75")
    before, after = best_of("preferences", 64, 128)[1001], poor[1001]
    assert max(best_of("preferences", 64, 2**k)[1001]["gold"] for k in range(11)) == before["gold"]
    assert (f"{before['gold']:.2f}", f"{after['gold']:.2f}") == ("0.61", "0.53")
    assert (f"{before['proxy']:.1f}", f"{after['proxy']:.1f}") == ("2.7", "3.6")
    assert (f"{after['gold_low']:.2f}", f"{after['gold_high']:.2f}") == ("0.43", "0.62")
    assert (f"{before['gold_low']:.2f}", f"{before['gold_high']:.2f}") == ("0.57", "0.64")


def test_what_is_said_of_the_second_gold_holds():
    accuracies = models("preferences_fluency")
    assert {n: len(own) for n, own in accuracies.items()} == {64: 3, 1024: 3}
    assert [f"{mean(accuracies[n]):.2f}" for n in (64, 1024)] == ["0.60", "0.66"]
    folder = tables.kept_folder("preferences_fluency")
    about = json.loads((folder / "reward_model.json").read_text())
    assert f"{about['ceiling']:.2f}" == "0.87" and about["gold"] == "sentiment and fluency"
    few, many = (best_of("preferences_fluency", n, 128) for n in (64, 1024))
    assert [f"{few[s]['gold']:.1f}" for s in (1000, 1001, 1002)] == ["2.0", "1.8", "2.2"]
    assert {f"{row['gold']:.1f}" for row in many.values()} == {"2.2"}
    later = best_of("preferences_fluency", 64, 256)
    assert (f"{few[1001]['gold']:.2f}", f"{later[1001]['gold']:.2f}") == ("1.78", "1.73")
    assert all(later[s]["gold"] > few[s]["gold"] for s in (1000, 1002))
    start = best_of("preferences_fluency", 64, 1)
    assert all(abs(row["gold"]) < 0.02 for row in start.values())


def ppo_rows(name, row="PPO, 1,024 pairs"):
    """The finished rows of this name, by seed: PPO against reward models of 1,024 pairs."""
    rows = [r for r in tables.kept_rows(name) if r["row"]["name"] == row]
    return sorted(rows, key=lambda r: r["row"]["seed"])


def span(values, digits):
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def test_what_is_said_of_ppo_holds():
    rows, (lora,) = ppo_rows("preferences"), ppo_rows("preferences_lora")
    for row in [*rows, lora]:
        assert f"{row['gold_before']:.3f}" == "0.463"
        assert row["settings"]["method"]["semantics"] == "corrected"
    assert [r["row"]["seed"] for r in rows] == [1000, 1001, 1002] and lora["row"]["seed"] == 1000
    assert [f"{r['gold_after']:.3f}" for r in rows] == ["0.839", "0.810", "0.825"]
    changes = [r["gold_difference"] for r in rows]
    assert span([c["mean"] for c in changes], 2) == "0.35 to 0.38"
    assert min(c["mean"] for c in changes) > 0.25
    assert f"{min(c['low'] for c in changes):.2f}" == "0.31"
    assert "0.839, 0.810 and 0.825 on 256 held-out" in " ".join(STUDY.split())
    assert span([r["evaluation"]["kl_per_sequence"] for r in rows], 1) == "9.2 to 10.4"
    assert span([r["evaluation"]["judge_after"] for r in rows], 2) == "0.80 to 0.82"
    assert f"{lora['gold_after']:.3f}" == "0.790"
    change = lora["gold_difference"]
    assert [f"{change[k]:.2f}" for k in ("mean", "low", "high")] == ["0.33", "0.29", "0.36"]
    assert f"{lora['evaluation']['kl_per_sequence']:.1f}" == "8.8"
    assert f"{lora['evaluation']['judge_after']:.2f}" == "0.80"


def test_what_is_said_of_few_and_many_pairs_holds():
    many, few = (ppo_rows("preferences", f"PPO, {n} pairs") for n in ("4,096", "64"))
    assert [r["row"]["seed"] for r in many] == [r["row"]["seed"] for r in few] == [1000, 1001, 1002]
    said = " ".join(STUDY.split())
    for rows in (many, few):
        golds = [f"{r['gold_after']:.3f}" for r in rows]
        assert f"to {golds[0]}, {golds[1]} and {golds[2]}" in said
    changes = [r["gold_difference"] for r in many]
    assert span([c["mean"] for c in changes], 2) == "0.34 to 0.37"
    assert min(c["mean"] for c in changes) > 0.30
    assert f"{min(c['low'] for c in changes):.2f}" == "0.30"
    assert span([r["evaluation"]["kl_per_sequence"] for r in many], 1) == "9.0 to 9.6"
    assert span([r["gold_difference"]["mean"] for r in few], 2) == "0.19 to 0.23"
    assert span([r["evaluation"]["kl_per_sequence"] for r in few], 1) == "9.1 to 10.3"


def free_rows():
    """PPO without a penalty, and the same reward models' PPO with one: two times [(free, held)]."""
    return [list(zip(ppo_rows("preferences", f"PPO, {n} pairs, β 0"),
                     ppo_rows("preferences", f"PPO, {n} pairs"), strict=True))
            for n in ("64", "4,096")]  # fmt: skip


def test_what_is_said_of_ppo_without_a_penalty_holds():
    few, many = free_rows()
    assert len(few) == len(many) == 3
    for free, held in [*few, *many]:
        assert free["row"]["seed"] == held["row"]["seed"]
        assert free["settings"]["method"]["init_kl_coef"] == 0
        assert free["settings"]["train"]["total_steps"] == 192
    kl = [free["evaluation"]["kl_per_sequence"] for free, _ in [*few, *many]]
    assert span(kl, 0) == "15 to 17"
    assert span([free["gold_after"] for free, _ in many], 2) == "0.88 to 0.90"
    assert span([free["gold_after"] for free, _ in few], 2) == "0.67 to 0.69"
    more = [[free["gold_after"] - held["gold_after"] for free, held in rows]
            for rows in (few, many)]  # fmt: skip
    assert [f"{abs(x):.2f}" for x in more[0]] == ["0.00", "0.03", "0.00"]
    assert span(more[1], 2) == "0.07 to 0.08"
    rose = [end_of(free)["proxy"] - end_of(held)["proxy"] for free, held in few]
    assert span(rose, 1) == "0.5 to 0.7"
    gamed = [free for free, _ in [*few, *many] if free["evaluation"]["verdict"] == "gamed"]
    assert [r["row"]["options"]["pairs"] for r in gamed] == [64]
    assert round(gamed[0]["evaluation"]["perplexity_after"]) == 140
    said = " ".join(STUDY.split())
    for sentence in (
        "without a penalty (β = 0, 192 steps) the policies go 15 to 17 nats far",
        "gold ends at 0.88 to 0.90 with 4,096 pairs, 0.07 to 0.08 higher than with the penalty",
        "With 64 pairs it ends at 0.67 to 0.69, by 0.00, 0.03 and 0.00 higher, while the proxies",
        "are higher by 0.5 to 0.7 standard deviations",
    ):
        assert sentence in said, sentence


def test_what_is_said_of_dpo_beside_ppo_holds():
    dpo = sorted((r for r in tables.kept_rows("preferences") if r["row"]["kind"] == "dpo"),
                 key=lambda r: r["row"]["seed"])  # fmt: skip
    ppo, (lora,) = ppo_rows("preferences"), tables.kept_rows("preferences_lora")
    assert [r["row"]["seed"] for r in dpo] == [r["row"]["seed"] for r in ppo]  # the same pairs
    options = {"pairs": 1024, "beta": 0.1, "steps": 96, "batch_size": 32, "learning_rate": 1e-3}
    assert all(r["row"]["options"] == options for r in dpo)
    golds, said = [f"{r['gold_after']:.3f}" for r in dpo], " ".join(STUDY.split())
    assert f"bring gold to {golds[0]}, {golds[1]} and {golds[2]} without a reward model" in said
    assert f"at {span([r['evaluation']['kl_per_sequence'] for r in dpo], 1)} nats" in said
    odd = [[r["evaluation"]["perplexity_after"] for r in rows] for rows in (dpo, ppo, [lora])]
    rises = [f"{perplexity:.0f}" for perplexity in odd[0]]
    assert f"rises from 74 to {rises[0]}, {rises[1]} and {rises[2]}, where PPO's ends" in said
    assert span(odd[1], 0) == "74 to 105" and span(odd[2], 0) == "78"
    assert {round(r["evaluation"]["perplexity_before"]) for r in dpo} == {74}
    assert [r["evaluation"]["verdict"] for r in dpo] == ["improved", "gamed", "gamed"]
    assert {r["evaluation"]["verdict"] for r in [*ppo, lora]} == {"improved"}


def test_what_is_said_of_ppo_under_the_second_gold_holds():
    few, many = (ppo_rows("preferences_fluency", f"PPO, {n} pairs, β 0") for n in ("64", "1,024"))
    assert len(few) == len(many) == 3
    rises = [[r["gold_difference"]["mean"] for r in rows] for rows in (few, many)]
    assert [span(own, 1) for own in rises] == ["2.3 to 3.7", "2.9 to 3.2"]
    assert min(rises[0]) < min(rises[1]) and max(rises[0]) > max(rises[1])
    both = [*few, *many]
    assert span([r["evaluation"]["kl_per_sequence"] for r in both], 0) == "16 to 19"
    assert all(end_of(r)["proxy"] < r["gold_after"] + 0.05 for r in both)
    assert span([r["evaluation"]["perplexity_after"] for r in both], 0) == "29 to 36"
    assert {r["evaluation"]["verdict"] for r in both} == {"narrower"}
    said = " ".join(STUDY.split())
    assert "raises it by 2.3 to 3.7 with the reward models from 64 pairs and by 2.9 to 3.2" in said
    assert "at 16 to 19 nats" in said and "falls from 74 to 29 to 36" in said


# --- what notebook 06 says beside what it computes -----------------------------------------


def kept_lines(folder=KEPT):
    return [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]


def test_the_page_says_of_pairs_and_reward_models_what_the_files_say():
    lines = [line for line in kept_lines() if line["split"] == "heldout"]
    easy = [line for line in lines if abs(line["gold"][0] - line["gold"][1]) > 3][:12]
    assert f"it was {sum(p['gold'][0] > p['gold'][1] for p in easy)} in {len(easy)}" in PAGE
    accuracies, about = models(), json.loads((KEPT / "reward_model.json").read_text())
    means = [f"{mean(accuracies[n]):.2f}" for n in (64, 256, 1024, 4096)]
    own = {f"{m['accuracy']:.2f}" for m in tables.models_by_size("preferences")[4096]}
    assert f"On average {', '.join(means[:3])} and {means[3]}:" in PAGE
    assert f"the ceiling is {about['ceiling']:.2f}" in PAGE
    assert own == {"0.70"} and "right on only 0.70 of the pairs that it *learned from*" in PAGE
    few = accuracies[64]
    assert f"draws of 64 lie between {min(few):.2f} and {max(few):.2f}" in PAGE
    of_seed = {(m["pairs"], m["seed"]): m["heldout"]["accuracy"] for m in about["models"].values()}
    assert of_seed[64, 1001] == min(few)  # "poor" is the worst of three, "good" the best
    assert of_seed[1024, 1002] == max(accuracies[1024])
    (lora,) = tables.models_by_size("preferences_lora")[1024]
    head = next(m for m in tables.models_by_size("preferences")[1024] if m["seed"] == 1000)
    lora_right, head_right = (m["heldout"]["accuracy"] for m in (lora, head))
    assert f"that was no better, {lora_right:.2f} beside {head_right:.2f}, and took" in PAGE
    assert f"took {lora['seconds']:.0f} seconds in place of {head['seconds']:.0f}" in PAGE


def test_the_page_says_of_best_of_n_what_the_file_says():
    rows = csv_rows(KEPT / "best_of_n.csv")
    pools = {(row["pairs"], f"{int(row['pool']):,}") for row in rows}
    assert {("64", "10,112"), ("1024", "8,192")} <= pools
    assert "(10,112 for one from 64 pairs, 8,192 for one from 1,024)" in PAGE
    good, poor = best_of("preferences", 1024, 1024), best_of("preferences", 64, 1024)
    assert {f"{row['gold']:.2f}" for row in best_of("preferences", 1024, 1).values()} == {"0.44"}
    assert all(0.945 < row["gold"] < 0.965 for row in good.values())
    assert "from 0.44 to about 0.95 with all three" in PAGE
    ends = sorted(row["gold"] for row in poor.values())
    assert f"between {ends[0]:.2f} and {ends[-1]:.2f}, and with the poor" in PAGE
    before, after = best_of("preferences", 64, 128)[1001], poor[1001]
    assert "(seed 1001, dashed)" in PAGE  # the second of the seeds, and of SEED_STYLES
    assert f"{before['gold']:.2f} at n = 128, {after['gold']:.2f} at n = 1,024" in PAGE
    assert f"gains another {after['proxy'] - before['proxy']:.1f} of a standard deviation" in PAGE
    assert f"interval is {after['gold_low']:.2f} to {after['gold_high']:.2f}" in PAGE


def test_the_page_says_of_ppo_and_dpo_what_the_files_say():
    few, many = free_rows()
    both = [free for free, _ in [*few, *many]]
    golds = [span([free["gold_after"] for free, _ in rows], 2) for rows in (many, few)]
    assert f"With 4,096 pairs it rises to {golds[0]}, with 64 to {golds[1]} only" in PAGE
    kl = span([row["evaluation"]["kl_per_sequence"] for row in both], 0)
    assert f"as far, {kl} nats" in PAGE
    proxy = span([end_of(row)["proxy"] for row in both], 1)
    assert f"the proxy is {proxy} standard deviations" in PAGE
    held = span([row["evaluation"]["kl_per_sequence"] for _, row in [*few, *many]], 0)
    assert f"led PPO {held} nats far" in PAGE
    more = [[free["gold_after"] - row["gold_after"] for free, row in rows] for rows in (few, many)]
    assert f"raised gold by {span(more[1], 2)} with 4,096 pairs" in PAGE
    said = [f"{abs(x):.2f}" for x in more[0]]
    assert f"raised it by {said[0]}, {said[1]} and {said[2]}, while" in PAGE
    rose = span([end_of(free)["proxy"] - end_of(row)["proxy"] for free, row in few], 1)
    assert f"the three proxies rose by {rose} standard deviations" in PAGE
    assert all(min(x) > -0.01 for x in more)  # "fell in no run by more than chance"
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

"""The README says what the committed files say."""

import json
import re

import nbformat
import pytest

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.data.assets import find_asset
from rlhf_helpers.evaluation.evaluate_run import evaluation_path
from rlhf_helpers.show import results_tables as results
from rlhf_helpers.show import study_figures
from rlhf_helpers.studies import report as study_report
from rlhf_helpers.studies import study

README = (repo_root() / "README.md").read_text(encoding="utf-8")


def test_readme_tables_are_those_of_the_committed_runs():
    assert results.results_table() in README
    assert results.pairs_table() in README
    running = (repo_root() / "docs" / "running.md").read_text(encoding="utf-8")
    assert results.costs_table() in running
    assert results.support_table() in running


def test_the_readme_has_one_table_of_results_of_five_columns_whose_words_it_explains():
    headers = re.findall(r"^\| .* \|(?=\n\|---)", README, re.MULTILINE)
    numbers = [h for h in headers if "reward" in h or "gain" in h or "judge" in h]
    assert len(numbers) == 1
    words = [re.split(r",| \(", word.strip())[0] for word in numbers[0].strip("|").split("|")]
    assert len(words) == 5
    said = README[: README.index(numbers[0])]
    for word in set(words) - {"seed"}:
        assert f"**{word}**" in said, word


def test_a_text_in_a_table_stays_in_its_cell():
    assert results._in_a_cell("a | b\n*c* _d_ <e>") == r"a \| b \*c\* \_d\_ \<e\>"


def test_the_table_of_machines_counts_what_the_twin_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "repo_root", lambda: tmp_path)
    assert "| CPU | measured |\n" in results.support_table()  # no twin has run
    folder = tmp_path / "figures" / "support"
    folder.mkdir(parents=True)
    rows = [
        {"problem": None, "date": "2026-01-03"},
        {"problem": "ValueError: no", "date": "2026-01-02"},
        {"problem": None, "date": "2026-01-04"},
    ]
    image = {"image": "an-image", "python": "3.13.1", "notebooks": rows,
             "versions": {"torch": "2.11.0"}, "fast_tests": {}}  # fmt: skip
    path = folder / "an-image.json"
    path.write_text(json.dumps(image))
    table = results.support_table()
    assert "| where | Python 3.11 | an-image, Python 3.13.1 |" in table
    assert "| 2026-01-02: 2 of 3 runs of notebooks |" in table
    assert "| L4, profile `seed` | – | untested |" in table and "torch 2.11.0." in table
    image["fast_tests"] = {
        "models": {"passed": 1000, "failed": 2, "date": "2026-01-06"},
        "show": {"passed": 300, "failed": 0, "error": 1, "date": "2026-01-05"},
    }
    path.write_text(json.dumps(image))
    table = results.support_table()
    assert "notebooks; 2026-01-05: 1,300 of 1,303 fast tests |" in table


def test_every_seed_reaches_what_the_readme_promises():
    """The bar of this tutorial: 0.85 with every seed, 0.90 on average, no collapse."""
    runs = [
        json.loads((path / "evaluation.json").read_text()) for path in results.finished_runs("cpu")
    ]
    assert len({run["seed"] for run in runs}) >= 3
    after = [run["reward_after"] for run in runs]
    assert min(after) >= 0.85 and sum(after) / len(after) >= 0.90
    for run in runs:
        assert run["n_prompts"] >= 256
        assert run["paired_difference"]["low"] > 0.2
        assert run["distinct_2_after"] >= 0.5 * run["distinct_2_before"]


def test_rewards_in_the_table_are_the_means_of_the_committed_samples():
    folder = repo_root() / "figures" / "reference_runs" / "cpu"
    seed = json.loads((folder / "evaluation.json").read_text())["seed"]
    row = re.search(rf"^\| {seed} \| ([\d.]+) → \*\*([\d.]+)\*\*", README, re.MULTILINE)
    for shown, name in zip(row.groups(), ("baseline", "after"), strict=True):
        lines = (folder / f"{name}_samples.jsonl").read_text().splitlines()
        rewards = [s["reward"] for s in map(json.loads, lines) if s["group"] == "heldout"]
        assert abs(sum(rewards) / len(rewards) - float(shown)) < 0.0006


def test_seeds_of_another_version_of_the_code_are_named(tmp_path, monkeypatch):
    evaluation = json.loads(
        (repo_root() / "figures/reference_runs/cpu/evaluation.json").read_text()
    )
    monkeypatch.setattr(results, "repo_root", lambda: tmp_path)
    for place, seed, commit in (
        ("reference_runs/cpu", 1, "a"), ("seeds/cpu-2", 2, "b"), ("seeds/cpu-3", 3, "a"),
    ):  # fmt: skip
        folder = tmp_path / "figures" / place
        folder.mkdir(parents=True)
        manifest = {"profile": "cpu", "seed": seed, "versions": {"commit": commit}, "notebooks": []}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "evaluation.json").write_text(json.dumps(evaluation | {"seed": seed}))
    table = results.results_table()
    assert "Seed 2 was run with another version of the code than seed 1 (`commit`" in table
    (tmp_path / "figures/seeds/cpu-2/evaluation.json").unlink()
    assert "another version" not in results.results_table()


def test_seeds_of_another_machine_are_named(tmp_path, monkeypatch):
    evaluation = json.loads(
        (repo_root() / "figures/reference_runs/cpu/evaluation.json").read_text()
    )
    monkeypatch.setattr(results, "repo_root", lambda: tmp_path)
    here, there = ("AMD EPYC", "2.13.0+cpu"), ("Intel(R) Xeon(R)", "2.11.0")
    for place, seed, (device, torch) in (
        ("reference_runs/cpu", 1, here), ("seeds/cpu-2", 2, there), ("seeds/cpu-3", 3, there),
        ("seeds/cpu-4", 4, here),
    ):  # fmt: skip
        folder = tmp_path / "figures" / place
        folder.mkdir(parents=True)
        versions = {"torch": torch} | ({"commit": "a"} if device == here[0] else {})
        manifest = {"profile": "cpu", "seed": seed, "versions": versions, "notebooks": [],
                    "device": {"name": device}}  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "evaluation.json").write_text(json.dumps(evaluation | {"seed": seed}))
    table = results.results_table()
    assert (
        "Seeds 2, 3 were run on Intel Xeon with torch 2.11.0, seed 1 on AMD EPYC with torch "
        "2.13.0." in table
    )
    assert "another version" not in table  # a copy without git knows of no commit


def test_tuning_claims_hold_in_the_file_they_name():
    lines = (repo_root() / "figures" / "tuning.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    constant = [r for r in rows if (r["modules"], r["lr"]) == ("all", "0.003")]
    lengths = [float(r["rollout_length"]) for r in constant]
    assert min(lengths) < 0.4 * lengths[0]
    last = max((r for r in constant if r["reward_mean_128_heldout"]), key=lambda r: int(r["step"]))
    assert float(last["objective_kl"]) < 2 and float(last["reward_mean_128_heldout"]) > 0.9


def test_the_comparison_of_semantics_is_that_of_the_committed_runs():
    page = (repo_root() / "docs" / "coming_from_trlx.md").read_text(encoding="utf-8")
    assert results.semantics_table() in page


def evaluations(paths):
    return {e["seed"]: e for e in (json.loads((p / "evaluation.json").read_text()) for p in paths)}


def test_both_semantics_reach_the_same_reward():
    trlx, corrected = map(evaluations, results.runs_by_semantics("cpu").values())
    assert trlx.keys() == corrected.keys() and len(trlx) >= 3

    def mean(runs, name):
        return sum(run[name] for run in runs.values()) / len(runs)

    rewards = [run["reward_after"] for run in trlx.values()]
    gap = mean(corrected, "reward_after") - mean(trlx, "reward_after")
    assert abs(gap) < max(rewards) - min(rewards)
    assert all(run["n_prompts"] == trlx[seed]["n_prompts"] for seed, run in corrected.items())
    assert abs(mean(corrected, "kl_per_sequence") - mean(trlx, "kl_per_sequence")) < 2


def test_runs_compared_differ_in_semantics_alone():
    from rlhf_helpers.config.profiles import load_profile

    kinds = {"trlx": results.trlx_runs("cpu"), "corrected": results.finished_runs("cpu")}
    for semantics, paths in kinds.items():
        for path in paths:
            own = load_profile(path).config.to_dict()
            assert own["method"].pop("semantics") == semantics
            other = load_profile("cpu", seed=own["train"]["seed"]).config.to_dict()
            assert other["method"].pop("semantics") == "corrected"
            for run in (own, other):
                run["train"].pop("checkpoint_dir")
            assert own == other


def test_the_finale_is_the_reference_run_without_its_penalty():
    """What notebook 05, the README and docs/study.md say of the run with β = 0."""
    from rlhf_helpers.config.profiles import load_profile
    from rlhf_helpers.evaluation.before_after import pair_samples, summarise_pair
    from rlhf_helpers.runs.files import read_jsonl, reference_run_dir

    held, free = reference_run_dir("cpu"), results.without_penalty_run("cpu")
    own, other = (load_profile(run.path).config.to_dict() for run in (held, free))
    assert (own["method"].pop("init_kl_coef"), other["method"].pop("init_kl_coef")) == (0.01, 0)
    for run in (own, other):
        run["train"].pop("checkpoint_dir")
    assert own == other
    before, after = read_jsonl(held.baseline_samples), read_jsonl(free.after_samples)
    assert len(pair_samples(before, after)) == len(after)  # the same prompts and seeds
    kept, cheat = (results.read_evaluation(run.evaluation) for run in (held, free))
    again = summarise_pair(before, after, seed=cheat["seed"])
    for name in ("reward_after", "judge_after", "perplexity_after", "kl_per_sequence"):
        assert again[name] == pytest.approx(cheat[name], rel=1e-4), name
    # Reward and judge are pleased; the untuned model, KL and a count of one word tell.
    for name in ("reward_after", "judge_after", "perplexity_after"):
        assert cheat[name] > kept[name], name
    assert (kept["verdict"], cheat["verdict"]) == ("narrower", "gamed")
    assert 1.5 < cheat["perplexity_after"] / cheat["perplexity_before"] < 1.6  # "only just"
    assert 2.5 < cheat["kl_per_sequence"] / kept["kl_per_sequence"] < 3  # "nearly three times"
    texts = {
        name: [set(re.findall("[a-z]+", row["output"].lower())) for row in rows
               if row["group"] == "heldout"]
        for name, rows in (("before", before), ("held", read_jsonl(held.after_samples)),
                           ("free", after))
    }  # fmt: skip

    def share(name, word):
        return sum(word in text for text in texts[name]) / len(texts[name])

    assert 0.62 < share("free", "wonderful") < 0.7 and len(texts["before"]) == 256
    assert 256 * share("before", "wonderful") == 1
    assert 0.4 < share("held", "great") < 0.5
    said = " ".join(README.split())
    assert f"{100 * share('free', 'wonderful'):.0f} % of the texts say *wonderful*" in said
    numbers = f"reward {cheat['reward_after']:.3f}, judge {cheat['judge_after']:.3f}"
    assert numbers in said
    study = " ".join(STUDY.split())
    assert f"{numbers}, {cheat['kl_per_sequence']:.1f} nats" in study
    perplexities = [cheat[f"perplexity_{when}"] for when in ("before", "after")]
    assert "perplexity went from {:.0f} to {:.0f}".format(*perplexities) in study
    cells = nbformat.read(repo_root() / "notebooks/05_before_after_evaluation.ipynb", 4).cells
    page = " ".join(" ".join(c.source.split()) for c in cells if c.cell_type == "markdown")
    assert "a perplexity of {1:.0f}, where its own texts have {0:.0f}".format(*perplexities) in page
    assert f"limit at 1.5 times as much, {1.5 * cheat['perplexity_before']:.0f}:" in page
    size = sum(path.stat().st_size for path in free.path.rglob("*") if path.is_file())
    assert size < 5_000_000


# --- docs/study.md -------------------------------------------------------------------------

STUDY = (repo_root() / "docs" / "study.md").read_text(encoding="utf-8")


def test_what_docs_study_says_of_the_base_model_holds():
    said = " ".join(STUDY.split())
    card = json.loads(
        (repo_root() / "rlhf_helpers/artifacts/tiny-opt-imdb/metrics.json").read_text()
    )
    assert f"has read {card['training_reviews']:,} reviews" in said
    assert f"{card['training_tokens'] / 1e6:.0f} million tokens" in said
    assert f"It needs {card['heldout']['bits_per_byte']:.3f} bits" in said
    assert f"needs {card['ppmd_order_8_bits_per_byte']:.3f}, and the model" in said
    lines = (repo_root() / "figures/study/reading.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    preferred = [row["preferred"] for row in rows]
    assert len(rows) == len({row["prompt"] for row in rows}) == 50
    votes = [preferred.count(name) for name in ("shipped", "earlier", "tie")]
    assert "model's {} times and the earlier one's {} times, with {} ties".format(*votes) in said
    broken = [sum(row["broken_words"][name] for row in rows) for name in ("shipped", "earlier")]
    assert "about {} broken words in the one's texts and {} in the other's".format(*broken) in said
    for row in rows:
        assert row["shipped"].startswith(row["prompt"])
        assert row["earlier"].startswith(row["prompt"])


def test_study_tables_are_those_of_the_committed_files():
    assert study_report.with_blocks(STUDY) == STUDY, "run: python -m rlhf_helpers figures"
    for path in re.findall(r"!\[[^\]]*\]\(\.\./([^)]+)\)", STUDY):
        assert (repo_root() / path).exists(), path


@pytest.mark.parametrize("plan", sorted((repo_root() / "figures" / "study").glob("*.yml")))
def test_each_row_of_a_study_s_table_is_its_row_file(plan):
    folder = plan.with_suffix("")
    table = study_report.study_rows(folder.name)
    files = {path.stem: json.loads(path.read_text()) for path in folder.glob("rows/*.json")}
    by_row = {(f["row"]["name"], f["row"]["seed"]): f for f in files.values()}
    assert len(table) == len(by_row) == len(files)
    for row in table:
        kept = by_row[row["name"], row["seed"]]
        for name in study.MEASURES:
            value = kept["evaluation"][name]
            if isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=1e-5), name
            else:
                assert row[name] == value, name
        assert row["n_prompts"] == kept["row"]["n_prompts"] == kept["evaluation"]["n_samples"]


def test_runs_on_a_thousand_prompts_confirm_the_default():
    """What docs/study.md shows of the default's finished runs, the reference run among them."""
    paths = [p for p in results.finished_runs("cpu") if (p / "evaluation_1000.json").exists()]
    assert repo_root() / "figures" / "reference_runs" / "cpu" in paths
    for path in paths:
        e = json.loads((path / "evaluation_1000.json").read_text())
        assert e["n_prompts"] == 1000 and e["run_seed"] == results.read_evaluation(
            path / "evaluation.json"
        )["seed"]
        assert e["reward_after"] >= 0.85
        assert e["paired_difference"]["low"] > 0.2 and e["judge_difference"]["low"] > 0.2
        hostile = e["groups"]["hostile"]
        assert hostile["n_samples"] == 64 and hostile["paired_difference"]["low"] > 0
        assert len(e["repeated_4grams_after"]) == 10


def test_what_docs_study_says_of_the_ablations_holds():
    rows = {row["name"]: row for row in study_report.study_rows("ablations")}
    default = rows[study_report.DEFAULT_ROW]
    slow, fast = rows["rate 3e-4"], rows["rate 1e-2"]
    assert f"{slow['reward_after']:.2f}" == "0.61"
    for row in (default, rows["rate 1e-3"]):
        assert f"{row['reward_after']:.2f}" == "0.89"
    assert fast["reward_after"] < default["reward_after"] and fast["verdict"] == "gamed"
    assert fast["kl_per_sequence"] > 3 * default["kl_per_sequence"]
    assert fast["perplexity_after"] > 4 * fast["perplexity_before"]
    assert fast["judge_after"] > default["judge_after"]
    rank_1, alone = rows["rank 1"], rows["value head alone"]
    assert rank_1["trained_parameters"] < default["trained_parameters"] / 3
    assert alone["trained_parameters"] > rank_1["trained_parameters"] / 2
    assert abs(rank_1["reward_after"] - default["reward_after"]) < 0.05
    layers = [rows[n] for n in ("1 layer", "2 layers", "all 6 layers")] + [default]
    assert max(row["reward_after"] for row in layers) - layers[0]["reward_after"] < 0.06
    assert alone["kl_per_sequence"] == 0 and alone["verdict"] == "no_change"


def test_a_real_pretrained_model_improves_beyond_its_intervals():
    folder = repo_root() / "figures/reference_runs/smollm2"
    e = json.loads(evaluation_path(folder).read_text())
    assert e["paired_difference"]["low"] > 0 and e["judge_difference"]["low"] > 0
    said = (
        f"{e['n_prompts']:,} prompts reward {e['reward_before']:.3f} → {e['reward_after']:.3f}, "
        f"judge {e['judge_before']:.3f} → {e['judge_after']:.3f}, *{e['verdict']}*"
    )
    assert said in " ".join(README.split())


def test_what_docs_study_says_of_dpo_on_the_frontier_holds():
    rows = study_report.study_rows("frontier")
    (dpo,) = [row for row in rows if row["kind"] == "dpo"]
    grpo = [row for row in rows if row["name"] == "GRPO, β 0.04"]
    reward = sum(row["reward_after"] for row in grpo) / 3
    assert abs(sum(row["kl_per_sequence"] for row in grpo) / 3 - dpo["kl_per_sequence"]) < 1
    assert dpo["verdict"] == "gamed"
    sentence = (
        f"comes to {dpo['reward_after']:.2f} at {dpo['kl_per_sequence']:.1f} nats, where GRPO has "
        f"{reward:.2f} as far away"
    )
    said = " ".join(STUDY.split())
    assert sentence in said and f"(perplexity {dpo['perplexity_after']:.0f})" in said


def test_every_seed_of_the_showcase_does_what_the_pages_say():
    found = {}
    for path in results.finished_runs("smollm2"):
        e = json.loads((path / "evaluation.json").read_text())
        found[e["seed"]] = e
        assert e["reward_after"] > 0.85 and e["judge_difference"]["low"] > 0.2, e["seed"]
        assert e["perplexity_after"] < e["perplexity_before"]
    assert list(found) == [1000, 1001, 1002]
    assert [e["verdict"] for e in found.values()] == ["improved", "narrower", "narrower"]


def test_the_showcase_on_a_thousand_prompts_is_what_the_pages_say():
    found = [json.loads((path / "evaluation_1000.json").read_text())
             for path in results.finished_runs("smollm2")]  # fmt: skip
    assert [e["run_seed"] for e in found] == [1000, 1001, 1002]
    assert {(e["n_prompts"], e["verdict"]) for e in found} == {(1000, "improved")}
    after = [f"{e['reward_after']:.3f}" for e in found]
    judge = sorted(f"{e['judge_difference']['mean']:.2f}" for e in found)
    assert f"two more seeds end at {after[1]} and {after[2]}, *improved* too" in " ".join(
        README.split()
    )
    study = " ".join((repo_root() / "docs/study.md").read_text(encoding="utf-8").split())
    assert f"rewards are {after[0]}, {after[1]} and {after[2]} (0.85 had been aimed at)" in study
    assert f"the judge rises by {judge[0]} to {judge[-1]}" in study
    few = [json.loads((path / "evaluation.json").read_text())
           for path in results.finished_runs("smollm2")]  # fmt: skip
    more, more_few = ([e["self_bleu_after"] - e["self_bleu_before"] for e in runs]
                      for runs in (found, few))  # fmt: skip
    assert [f"{x:.2f}" for x in more_few[1:]] == ["0.11", "0.11"] and more_few[0] < 0.1
    assert (f"{min(more):.2f}", f"{max(more):.2f}") == ("0.06", "0.09")
    assert "it rises by 0.11 with two seeds, on a thousand by 0.06 to 0.09" in study


def test_what_an_iteration_of_the_showcase_takes():
    found = json.loads((repo_root() / "figures/bench/smollm2_iteration.json").read_text())
    text = " ".join((repo_root() / "docs/study.md").read_text(encoding="utf-8").split())
    parts = ("iteration", "update", "generate", "score")
    now, then = (
        tuple(f"{found[name]['cpu_seconds'][part]:.0f}" for part in parts)
        for name in ("after", "before")
    )
    assert (
        f"takes {now[0]} CPU seconds on one thread, of which {now[1]} are updates, {now[2]} "
        f"sampling and {now[3]} scoring. At be786ec it took {then[0]} ({then[1]}, {then[2]} and "
        f"{then[3]})"
    ) in text


def test_the_showcase_is_the_run_of_its_profile():
    """The committed run's settings are the profile's, and it started from the shipped adapter."""
    folder = repo_root() / "figures/reference_runs/smollm2"
    assert load_profile(folder / "config.yml").config == load_profile("smollm2").config
    used = {a["role"]: a for a in json.loads((folder / "manifest.json").read_text())["assets"]}
    assert used["policy"]["sha256"] == find_asset("smollm2-135m-reviews").sha256
    metrics = json.loads((find_asset("smollm2-135m-reviews").path / "metrics.json").read_text())
    assert metrics["base_sha256"] == used["policy base"]["sha256"]
    assert metrics["after"]["bits_per_byte"] < metrics["before"]["bits_per_byte"] - 0.1
    files = [p for p in find_asset("smollm2-135m-reviews").path.iterdir()]
    assert sum(p.stat().st_size for p in files) < 10e6


def test_what_docs_study_says_of_the_frontier_holds():
    groups = {g.name: g for g in study_figures.groups_of(study_report.study_rows("frontier"))}

    def mean(name, column):
        return groups[name].mean(column)

    def each(name, column):
        return [row[column] for row in groups[name].rows]

    def perplexity_times(name):
        return [a / b for a, b in zip(each(name, "perplexity_after"),
                                      each(name, "perplexity_before"), strict=True)]  # fmt: skip

    usual, free, best = "PPO, β 0.01", "PPO, β 0", "best of 64"
    corrected, rloo, grpo = "PPO corrected, β 0.01", "RLOO, β 0.01", "GRPO, β 0.04"
    of_three = {usual, free, "PPO, β 0.1", corrected, rloo, grpo}
    assert {name: len(group.rows) for name, group in groups.items()} == {
        name: 3 if name in of_three else 1 for name in groups
    }
    said = " ".join(STUDY.split())
    assert min(each(free, "reward_after")) > 0.95 and min(each(free, "judge_difference_low")) > 0.3
    assert mean(free, "kl_per_sequence") > 2 * mean(usual, "kl_per_sequence")
    times = perplexity_times(free)
    assert f"to {times[0]:.1f} and {times[1]:.1f} times" in said
    assert f"with the third only to {times[2]:.1f} times" in said
    held = perplexity_times(usual)
    assert f"PPO with β = 0.01 has {min(held):.1f} to {max(held):.1f} times" in said
    verdicts = {row["seed"]: row["verdict"] for row in groups[free].rows}
    assert verdicts == {1000: "gamed", 1001: "gamed", 1002: "narrower"}
    assert {row["verdict"] for row in groups[usual].rows} == {"narrower"}
    dial = ["PPO, β 0.1", "PPO, β 0.03", usual, "PPO, β 0.003"]
    for column in ("reward_after", "kl_per_sequence"):
        assert [mean(name, column) for name in dial] == sorted(mean(n, column) for n in dial)
    assert mean("PPO, β 0.1", "kl_per_sequence") < 2 and mean("PPO, β 0.1", "reward_after") < 0.6
    long = "PPO, β 0, long"
    assert {row["verdict"] for row in groups[long].rows} == {"collapsed"}
    assert mean(long, "reward_after") > 0.975 and mean(long, "judge_after") > 0.975
    assert mean(long, "distinct_2_after") < 0.1 * mean(long, "distinct_2_before")
    assert abs(mean(best, "reward_after") - mean(usual, "reward_after")) < 0.03
    assert mean(best, "kl_analytic") < 0.3 * mean(usual, "kl_per_sequence")
    assert mean(best, "distinct_2_after") > 0.9 * mean(best, "distinct_2_before")

    def seen(name):
        return mean(name, "judge_difference_mean") / mean(name, "paired_difference_mean")

    assert 0.4 < seen(best) < 0.6 and seen(usual) > 0.8
    for name in (rloo, grpo):
        assert min(each(name, "reward_after")) > 0.85
        assert mean(name, "kl_per_sequence") <= mean(usual, "kl_per_sequence")
    ends = [mean(name, "reward_after") for name in (corrected, usual)]
    assert "ends a little higher than PPO with them, {:.2f} against {:.2f}".format(*ends) in said
    assert min(each(corrected, "reward_after")) < max(each(usual, "reward_after"))
    gains = [mean(name, "paired_difference_mean")
             for name in ("positive prompt", "SFT, 100 steps", "SFT, 400 steps")]  # fmt: skip
    assert f"in front gains {gains[0]:.2f}, a short fine-tuning" in said
    assert f"{gains[1]:.2f}; four times as much of it gains {gains[2]:.2f}" in said

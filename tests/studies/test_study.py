"""Studies: plans are checked, rows are kept and resumed, baselines are what they say."""

import csv
import json
import math
import shutil
import time

import pytest
import torch
from datasets import Dataset
from tiny_runs import letter_reward, policy_with_lora, run_config
from tiny_studies import LETTERS, VowelJudge, small_plans, write_plan

from rlhf_helpers.__main__ import main
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.evaluation.sampling import EvalPrompt, sample_records
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.runs.files import read_json, read_jsonl
from rlhf_helpers.studies import baselines as study_baselines
from rlhf_helpers.studies import study
from rlhf_helpers.studies.plan import load_plan
from rlhf_helpers.training.trainer import PPOTrainer


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


def error_of(tmp_path, rows, **fields):
    with pytest.raises(ConfigError) as caught:
        load_plan(write_plan(tmp_path, rows, **fields))
    return str(caught.value)


# --- plans ---------------------------------------------------------------------------------


def test_one_entry_stands_for_a_row_of_each_seed_and_each_n(tmp_path):
    plan = load_plan(
        write_plan(
            tmp_path,
            [
                {"name": "PPO, β 0.1", "kind": "ppo", "seeds": [3, 4],
                 "set": {"method.init_kl_coef": 0.1}},
                {"name": "best of", "kind": "best-of-n", "n": [2, 8], "n_prompts": 50},
            ],
            set={"train.total_steps": 9},
        )
    )  # fmt: skip
    assert [row.id for row in plan.rows] == [
        "ppo-0.1-s3", "ppo-0.1-s4", "best-of-2-s1000", "best-of-8-s1000",
    ]  # fmt: skip
    assert [row.n_prompts for row in plan.rows] == [1000, 1000, 50, 50]
    assert plan.rows[2].options == {"n": 2, "of": 8}
    settings = plan.settings(plan.rows[1])
    assert settings.config.train.seed == 4 and settings.config.train.total_steps == 9
    assert settings.config.method.init_kl_coef == 0.1


def test_kinds_choose_the_method(tmp_path):
    rows = [{"name": kind, "kind": kind} for kind in ("ppo", "ppo-corrected", "rloo", "grpo")]
    plan = load_plan(write_plan(tmp_path, rows))
    methods = [plan.settings(row).config.method for row in plan.rows]
    assert [type(m).__name__ for m in methods] == [
        "PPOConfig", "PPOConfig", "RLOOConfig", "GRPOConfig",
    ]  # fmt: skip
    assert [m.semantics for m in methods] == ["trlx", "corrected", "corrected", "corrected"]


def test_a_wrong_plan_is_refused_before_anything_runs(tmp_path):
    ppo = {"name": "a", "kind": "ppo"}
    assert "'ilql'" in error_of(tmp_path, [{"name": "a", "kind": "ilql"}])
    assert "did you mean seeds" in error_of(tmp_path, [ppo | {"seed": 1}])
    assert "twice" in error_of(tmp_path, [ppo, ppo])
    assert "method.init_kl_coef" in error_of(tmp_path, [ppo | {"set": {"method.init_kl": 0}}])
    assert "row 'a'" in error_of(tmp_path, [ppo | {"set": {"method.init_kl_coef": -1}}])
    assert "rows" in error_of(tmp_path, [])
    assert "n_prompts" in error_of(tmp_path, [ppo], n_prompt=4)
    assert "from 2 to" in error_of(tmp_path, [{"name": "b", "kind": "best-of-n", "n": [1]}])


def test_the_command_says_when_no_row_is_chosen(capsys, tmp_path):
    plan = repo_root() / "figures" / "study" / "frontier.yml"
    for chosen in (["--only", "no such row"], ["--first", "1", "--only", "no such row"]):
        assert main(["study", str(plan), "--out", str(tmp_path / "out"), *chosen]) == 2
        assert "--only is 'no such row': no row of the plan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_committed_plans_load_and_their_finished_rows_are_rows_of_them():
    for path in sorted((repo_root() / "figures" / "study").glob("*.yml")):
        plan = load_plan(path)
        folder = path.parent / plan.name
        for file in folder.glob("rows/*.json"):
            assert read_json(file)["row"] in [study.described(plan, row) for row in plan.rows], file


@pytest.mark.parametrize("name", ["frontier", "ablations"])
def test_committed_tables_follow_from_their_rows(tmp_path, name):
    """Also where a row of the plan that would add columns has not run."""
    folder = repo_root() / "figures" / "study" / name
    shutil.copytree(folder / "rows", tmp_path / "rows")
    study.refresh(load_plan(folder.with_suffix(".yml")), tmp_path)
    assert (tmp_path / "table.csv").read_text("utf-8") == (folder / "table.csv").read_text("utf-8")
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"rows", "table.csv"} | {p.name for p in folder.glob("overoptimisation.csv")}


# --- running -------------------------------------------------------------------------------


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    return small_plans(tmp_path, monkeypatch)


EVERY_KIND = [
    {"name": "PPO", "kind": "ppo"},
    {"name": "RLOO", "kind": "rloo"},
    {"name": "best of", "kind": "best-of-n", "n": [2, 6], "n_prompts": 6},
    {"name": "SFT", "kind": "sft", "steps": 3, "batch_size": 4},
    {"name": "prefix", "kind": "positive-prompt", "prefix": "every feedback"},
]


def table_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_kind_gets_a_row_and_a_second_call_does_nothing(tmp_path, small_world, monkeypatch):
    plan = small_world(EVERY_KIND)
    table = study.run_study(plan, tmp_path / "out")
    rows = table_of(table)
    assert [row["name"] for row in rows] == [
        "PPO", "RLOO", "best of 2", "best of 6", "SFT", "prefix",
    ]  # fmt: skip
    # One baseline for all; RLOO's has the special token in front that `corrected` adds.
    assert rows[0]["reward_before"] == rows[4]["reward_before"] == rows[5]["reward_before"]
    # The same comparison, from the file that says more.
    kept = read_json(tmp_path / "out" / "rows" / "ppo-s1000.json")
    assert {"torch", "transformers"} <= kept["versions"].keys()
    after = read_jsonl(tmp_path / "runs/study/plan/ppo-s1000/after_samples.jsonl")
    mean = sum(s["reward"] for s in after) / 12
    assert float(rows[0]["reward_after"]) == pytest.approx(mean, abs=1e-5)
    assert kept["evaluation"]["reward_after"] == pytest.approx(mean)
    course = table_of(tmp_path / "out" / "metrics" / "ppo-s1000.csv")
    assert any(line["metrics/judge"] for line in course)
    assert float(rows[3]["kl_analytic"]) == pytest.approx(math.log(6) - 5 / 6, abs=1e-5)
    assert rows[3]["kl_per_sequence"] == "" and float(rows[3]["reward_after"]) > float(
        rows[2]["reward_after"]
    )
    monkeypatch.setattr(study, "Bench", None)  # would be needed to do anything
    before = table.read_text()
    study.run_study(plan, tmp_path / "out")
    assert table.read_text() == before


def test_a_row_whose_settings_changed_is_done_again_and_the_others_are_kept(tmp_path, small_world):
    rows = [{"name": "a", "kind": "ppo"}, {"name": "b", "kind": "ppo", "seeds": [7]}]
    study.run_study(small_world(rows), tmp_path / "out")
    kept = (tmp_path / "out/rows/a-s1000.json").stat().st_mtime_ns
    rows[1]["n_prompts"] = 10
    table = study.run_study(small_world(rows), tmp_path / "out")
    assert [row["n_prompts"] for row in table_of(table)] == ["12", "10"]
    assert (tmp_path / "out/rows/a-s1000.json").stat().st_mtime_ns == kept


def test_an_interrupted_row_goes_on_from_its_checkpoint(tmp_path, small_world, monkeypatch, capsys):
    plan = small_world([{"name": "a", "kind": "ppo"}])
    whole = study.run_study(plan, tmp_path / "whole")
    expected = table_of(whole)[0]
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    calls = []

    save = PPOTrainer.save

    def save_and_stop(trainer):
        save(trainer)
        if not calls:
            calls.append(trainer.step)
            raise KeyboardInterrupt

    monkeypatch.setattr(PPOTrainer, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        study.run_study(plan, tmp_path / "cut")
    capsys.readouterr()
    table = study.run_study(plan, tmp_path / "cut")
    assert "at step 2 of 4: going on from there" in capsys.readouterr().out
    found = table_of(table)[0]
    times = ("seconds", "cpu_seconds")
    assert {k: v for k, v in found.items() if k not in times} == {
        k: v for k, v in expected.items() if k not in times
    }


def test_verdicts_of_finished_rows_follow_the_rules_of_today(tmp_path, small_world):
    plan = small_world([{"name": "a", "kind": "ppo"}])
    table = study.run_study(plan, tmp_path / "out")
    path = tmp_path / "out/rows/a-s1000.json"
    result = read_json(path)
    expected, result["evaluation"]["verdict"] = result["evaluation"]["verdict"], "splendid"
    path.write_text(json.dumps(result))
    study.refresh(plan, tmp_path / "out")
    assert read_json(path)["evaluation"]["verdict"] == expected
    assert table_of(table)[0]["verdict"] == expected


def test_time_spent_adds_up_over_attempts(tmp_path):
    path = tmp_path / "spent.json"
    with pytest.raises(KeyboardInterrupt), study.time_spent(path):
        time.sleep(0.3)
        raise KeyboardInterrupt
    with study.time_spent(path) as spent:
        time.sleep(0.2)
    assert 0.5 <= spent["seconds"] < 5 and spent["cpu_seconds"] < 0.4
    assert read_json(path) == spent


# --- baselines -----------------------------------------------------------------------------


def tiny_profile(root, **overrides):
    config = run_config(root, method__semantics="corrected", **overrides)
    assets = dict.fromkeys(("policy", "reward", "data", "judge"), "x")
    return Profile("tiny", config, assets, {}, {}, {})


def eval_prompts(n):
    words = LETTERS.split()
    return [EvalPrompt(f"{words[i]} {words[-i]}", "heldout", 100 + i) for i in range(n)]


def test_kl_of_best_of_n_is_that_of_the_largest_of_n_ranks():
    """Against the exact divergence where scores are 20,000 equally likely ranks."""
    ranks = torch.arange(1, 20_001, dtype=torch.float64) / 20_000
    for n in (2, 4, 64):
        p = ranks**n - torch.cat([torch.zeros(1, dtype=torch.float64), ranks[:-1] ** n])
        exact = (p * (p * 20_000).log()).sum().item()
        assert study_baselines.best_of_n_kl(n) == pytest.approx(exact, abs=1e-3)


def test_best_of_n_is_the_highest_of_the_first_n_and_best_of_one_is_the_baseline(tmp_path):
    profile, prompts, judge = tiny_profile(tmp_path), eval_prompts(5), VowelJudge()
    policy = load_policy(profile.config, "cpu")
    arguments = (policy, prompts, 4, profile, letter_reward, tmp_path / "candidates.jsonl")
    candidates = study_baselines.draw_candidates(*arguments)
    assert len(candidates) == 20
    assert study_baselines.draw_candidates(*arguments) == candidates  # from the file
    before = sample_records(policy, prompts, profile, letter_reward, judge)
    for n in (1, 2, 4):
        chosen = study_baselines.best_of_n(policy, prompts, candidates, n, letter_reward, judge)
        for i, record in enumerate(chosen):
            own = candidates[4 * i : 4 * i + n]
            assert record["reward"] == pytest.approx(max(c["reward"] for c in own))
            assert record["seed"] == prompts[i].seed and "kl_k1" not in record
        if n == 1:
            assert [r["output"] for r in chosen] == [r["output"] for r in before]


def test_positive_prompt_is_scored_without_it_and_its_divergence_is_a_difference(tmp_path):
    profile, prompts = tiny_profile(tmp_path, train__seq_length=48), eval_prompts(4)
    policy = load_policy(profile.config, "cpu")
    prefix = "every human"
    records = study_baselines.with_positive_prompt(
        policy, prompts, prefix, profile, letter_reward, VowelJudge()
    )

    def nats(context, output_ids):
        """log p(output | context), one token at a time, without padding or batching."""
        ids = policy.tokenizer(context)["input_ids"]
        total = 0.0
        for token in output_ids:
            with torch.no_grad():
                logits = policy.base(torch.tensor([ids])).logits[0, -1]
            total += logits.log_softmax(-1)[token].item()
            ids = [*ids, token]
        return total

    longer = [EvalPrompt(f"{prefix} {p.prompt}", p.group, p.seed) for p in prompts]
    told = study_baselines.sample(policy, longer, profile.config.method.gen_kwargs, 64, True)
    for record, prompt, drawn in zip(records, prompts, told, strict=True):
        assert record["prompt"] == prompt.prompt and record["output"] == drawn.output
        assert record["reward"] == pytest.approx(letter_reward([prompt.prompt + drawn.output])[0])
        plain = nats(prompt.prompt, drawn.output_ids)
        with_prefix = nats(f"{prefix} {prompt.prompt}", drawn.output_ids)
        assert record["kl_k1"] == pytest.approx(with_prefix - plain, abs=1e-3)
        assert record["reference_nll"] == pytest.approx(-plain, abs=1e-3)


def test_language_loss_is_the_mean_over_tokens_and_ends_with_end_of_text(tmp_path):
    policy = policy_with_lora(tmp_path)
    texts = ["policy data", "every human feedback code", "a"]
    nats, tokens = 0.0, 0
    for text in texts:
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = (ids + [policy.tokenizer.eos_token_id])[:6]
        logits = policy.base(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        nats -= sum(logits[t, token].item() for t, token in enumerate(ids[1:]))
        tokens += len(ids) - 1
    loss = study_baselines.language_loss(policy, texts, seq_length=6)
    assert loss.item() == pytest.approx(nats / tokens, rel=1e-4)


def test_fine_tuning_learns_positive_reviews_of_the_reward_models_buckets_only(
    tmp_path, monkeypatch
):
    reviews = Dataset.from_dict({
        "text": ["every human", "policy data", "code batch"],
        "label": [1, 0, 1], "bucket": [5, 5, 2],
    })  # fmt: skip
    monkeypatch.setattr(study_baselines, "load_reviews", lambda name: reviews)
    profile = tiny_profile(tmp_path, model__num_layers_unfrozen=3)
    policy = load_policy(profile.config, "cpu")

    def losses():
        with torch.no_grad():
            return [study_baselines.language_loss(policy, [t], 24).item() for t in reviews["text"]]

    before = losses()
    study_baselines.fine_tune(policy, profile, steps=30, batch_size=2, learning_rate=0.02, seed=1)
    after = losses()
    falls = [b - a for b, a in zip(before, after, strict=True)]
    assert falls[0] > 1 and falls[0] > 2 * max(falls[1:])
    assert not policy.lora_dropout_active

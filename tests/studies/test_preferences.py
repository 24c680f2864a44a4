"""Rows that learn from preferences: pairs, reward models, PPO, best-of-n, DPO, one directory."""

import csv
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_runs import letter_reward, policy_with_lora, run_config
from tiny_studies import VowelJudge, small_plans, write_plan

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.models.loading import load_policy, load_trained_policy
from rlhf_helpers.rewards.annotator import logit
from rlhf_helpers.rewards.learned import load_reward_model
from rlhf_helpers.rewards.preferences import Pair, read_pairs
from rlhf_helpers.runs.files import read_json, read_jsonl
from rlhf_helpers.studies import commands, preferences, study
from rlhf_helpers.studies.dpo import ResponseTexts, train_dpo
from rlhf_helpers.studies.plan import load_plan
from rlhf_helpers.studies.preferences import Preferences

SMALL = {"pairs": 24, "heldout": 10, "temperature": 0.2,
         "reward_model": {"epochs": 1, "batch_size": 8, "num_layers_unfrozen": 2}}  # fmt: skip
PPO = {"name": "PPO learned", "kind": "ppo-learned", "pairs": 12, "seeds": [1]}
DPO = {"name": "DPO", "kind": "dpo", "pairs": 12, "steps": 3, "batch_size": 4}
BEST = {"name": "best of", "kind": "best-of-n-learned", "n": [2, 5], "pairs": 12, "seeds": [1]}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    return small_plans(tmp_path, monkeypatch)


def table_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- plans ---------------------------------------------------------------------------------


def error_of(tmp_path, rows, **fields):
    with pytest.raises(ConfigError) as caught:
        load_plan(write_plan(tmp_path, rows, **fields))
    return str(caught.value)


def test_a_wrong_plan_is_refused_before_anything_runs(tmp_path):
    few = {"pairs": 24}
    assert "from 2 to 24" in error_of(tmp_path, [{**PPO, "pairs": 25}], preferences=few)
    assert "rows[0].beta is 0" in error_of(tmp_path, [{**DPO, "beta": 0}])
    assert "did you mean the plan.preferences.random_share" in error_of(
        tmp_path, [PPO], preferences={"random_shares": 0.1}
    )
    assert "the plan.preferences.random_share is 1.5" in error_of(
        tmp_path, [PPO], preferences={"random_share": 1.5}
    )
    sizes = {"sizes": 64}
    assert "the plan.preferences.sizes is 64" in error_of(tmp_path, [PPO], preferences=sizes)


def test_only_rows_that_learn_from_preferences_depend_on_them(tmp_path):
    rows = [{"name": "a", "kind": "ppo"}, PPO]
    first = load_plan(write_plan(tmp_path, rows))
    second = load_plan(write_plan(tmp_path, rows, preferences={"temperature": 2.0}))
    third = load_plan(write_plan(tmp_path, rows, preferences={"sizes": [64]}))
    a, b, c = ([study.described(p, row) for row in p.rows] for p in (first, second, third))
    assert a[0] == b[0] == c[0] and "preferences" not in a[0]
    assert a[1] != b[1] and a[1] == c[1]  # which other models are made changes no row
    assert first.settings(first.rows[1]).config.method.semantics == "corrected"


def test_dpo_has_no_reward_model_and_depends_on_none(tmp_path):
    plans = [load_plan(write_plan(tmp_path, [PPO, DPO], preferences={"reward_model": settings}))
             for settings in ({}, {"epochs": 3})]  # fmt: skip
    (ppo, dpo), (other_ppo, other_dpo) = ([study.described(p, row) for row in p.rows]
                                          for p in plans)  # fmt: skip
    assert dpo == other_dpo and ppo != other_ppo
    fewer = load_plan(write_plan(tmp_path, [DPO], preferences={"pairs": 100}))
    assert study.described(fewer, fewer.rows[0]) != dpo


def test_fields_of_the_reward_model_are_checked_before_anything_is_drawn(tmp_path, small_world):
    plan = small_world([PPO], preferences={**SMALL, "reward_model": {"epoch": 3}})
    with pytest.raises(ConfigError, match="no field 'epoch': did you mean 'epochs'"):
        _ = study.Bench(plan).preferences
    plan = small_world([{"name": "a", "kind": "ppo"}])
    with pytest.raises(ConfigError, match="no row of the plan learns from preferences"):
        _ = study.Bench(plan).preferences


# --- pairs ---------------------------------------------------------------------------------


def preferences_of(small_world, **changes):
    return study.Bench(small_world([PPO], preferences={**SMALL, **changes})).preferences


def test_an_annotator_without_noise_chooses_by_gold_and_the_ceiling_is_one(small_world):
    made = preferences_of(small_world, temperature=0.0, random_share=0.0)
    assert len(made.pairs) == 24 and len(made.heldout) == 10
    reachable = []
    for pair in [*made.pairs, *made.heldout]:
        chosen, rejected = letter_reward([pair.prompt + pair.chosen, pair.prompt + pair.rejected])
        assert chosen >= rejected
        reachable.append(1.0 if chosen > rejected else 0.5)  # equals are a coin's throw
    assert sum(reachable) > 24 and made.ceiling == pytest.approx(np.mean(reachable[24:]))
    prompts = [pair.prompt for pair in [*made.pairs, *made.heldout]]
    assert len(set(prompts)) == 34  # no prompt is in both


def test_a_draw_is_repeated_by_its_seed_and_nothing_is_sampled_twice(small_world, monkeypatch):
    made = preferences_of(small_world)
    first = made.some(6, 1)
    assert len(set(first)) == 6 and set(first) <= set(made.pairs)
    assert made.some(12, 1)[:6] == first != made.some(6, 2)
    monkeypatch.setattr("rlhf_helpers.studies.baselines.sample", None)  # all is in a file
    again = preferences_of(small_world)
    assert again.some(6, 1) == first


def test_too_many_pairs_for_the_prompts_is_said(small_world):
    made = preferences_of(small_world, pairs=5000)
    with pytest.raises(ConfigError, match="are 5010 together: there are 1"):
        _ = made.pairs


def test_fluency_is_the_mean_log_probability_under_the_untuned_model(small_world):
    """Token by token, without batch, padding or trunk."""
    made = preferences_of(small_world, fluency_weight=1.0)
    prompts, outputs = ["policy data", "code"], [" every human feedback", ""]
    policy = made.untuned
    for prompt, output, found in zip(
        prompts, outputs, made._fluency(prompts, outputs), strict=True
    ):
        ids = policy.tokenizer(prompt)["input_ids"]
        ahead = policy.tokenizer(output, add_special_tokens=False)["input_ids"]
        total, ahead = 0.0, ahead or [policy.tokenizer.eos_token_id]
        for token in ahead:
            with torch.no_grad():
                total += policy.base(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token]
            ids = [*ids, token]
        assert found == pytest.approx(float(total) / len(ahead), abs=1e-4)
    assert made.gold.name == "sentiment and fluency"
    values = made.gold_values([], [p.prompt for p in made.pairs], [p.chosen for p in made.pairs],
                              [0.5] * 24)  # fmt: skip
    assert np.std(values) > 0.1  # of equal sentiment, the more fluent text is worth more


# --- the chain -----------------------------------------------------------------------------


def invoke(tmp_path, *options):
    found = CliRunner().invoke(
        commands.preferences,
        [str(tmp_path / "plan.yml"), "--out", str(tmp_path / "out"), *options],
        catch_exceptions=False,
    )
    assert found.exit_code == 0
    return found.output


def test_the_whole_chain_and_a_second_call_does_nothing(tmp_path, small_world, monkeypatch):
    small_world(
        [PPO, BEST, DPO, {"name": "PPO", "kind": "ppo"}],
        preferences={**SMALL, "sizes": [8, 12], "seeds": [1], "adapters": ["PPO learned", "DPO"]},
    )
    said = invoke(tmp_path)
    assert "Reward model of 8 pairs, seed 1" in said
    assert said.count("Reward model of 12 pairs") == 1  # of seed 1, and of DPO's seed never
    out = tmp_path / "out"
    lines = read_jsonl(out / "preferences.jsonl")
    assert [line["split"] for line in lines] == ["train"] * 24 + ["heldout"] * 10
    for line in lines:  # gold is the logit of the letters' share
        share = letter_reward([line["prompt"] + line["chosen"], line["prompt"] + line["rejected"]])
        assert line["gold"] == pytest.approx(list(logit(share)), abs=1e-3)
    assert len(read_pairs(out / "preferences.jsonl")) == 34
    about = read_json(out / "reward_model.json")
    assert list(about["models"]) == ["8-s1", "12-s1"] and 0.5 < about["ceiling"] < 1
    assert about["models"]["12-s1"]["pairs"] == 12
    assert 0 <= about["models"]["12-s1"]["heldout"]["accuracy"] <= 1
    rows = table_of(out / "overoptimisation.csv")
    assert [(r["name"], r["step"]) for r in rows] == [
        ("PPO learned", "0"), ("PPO learned", "4"), ("best of 2", ""), ("best of 5", ""),
        ("DPO", "3"),
    ]  # fmt: skip
    check_gold_and_proxy(tmp_path, rows)
    table = {row["name"]: row for row in table_of(out / "table.csv")}
    assert table["PPO"]["gold_after"] == "" and table["DPO"]["proxy_after"] == ""
    assert table["DPO"]["gold_after"] == table["DPO"]["reward_after"]
    kept = out / "adapters" / "ppo-learned-s1"
    check_kept(tmp_path, kept)
    assert (out / "adapters" / "dpo-s1000" / "policy").is_dir()
    pool = table_of(out / "best_of_n.csv")
    assert [(r["pairs"], r["n"]) for r in pool[:4]] == [("8", "1"), ("8", "2"), ("8", "4"),
                                                        ("12", "1")]  # fmt: skip
    assert int(pool[0]["pool"]) == 2 * (34 - 8)  # the texts of pairs that it has not seen
    # Again: every file as it was, no model trained, no row done.
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    monkeypatch.setattr(preferences, "train_reward_model", None)
    monkeypatch.setattr(study.Bench, "do", None)
    invoke(tmp_path)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def check_kept(tmp_path, kept):
    """Policy and reward model load from what is kept, and are those of the run but for rounding."""
    assert not list(kept.rglob("tokenizer*")) and not list(kept.rglob("checkpoint*"))
    work = tmp_path / "runs/study/plan"
    (run,) = work.glob("ppo-learned-s1-*/policy")
    (model,) = work.glob("reward_models-*/12-s1")
    both = [load_trained_policy(folder).trainable_parameters() for folder in (run, kept / "policy")]
    for name, weight in both[0].items():
        assert torch.allclose(weight, both[1][name], atol=1e-3, rtol=1e-3), name
    texts = ["policy data value", "every human"]
    scores = [load_reward_model(folder).scores(texts) for folder in (model, kept / "reward_model")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)
    sizes = [sum(p.stat().st_size for p in folder.glob("*.safetensors"))
             for folder in (run, kept / "policy")]  # fmt: skip
    assert sizes[1] < 0.6 * sizes[0]


def check_gold_and_proxy(tmp_path, rows):
    """The file's means are those of the samples, scored again by hand."""
    work = tmp_path / "runs/study/plan"
    (directory,) = work.glob("reward_models-*/12-s1")
    learned = preferences.train_reward_model.__globals__["load_reward_model"](directory)
    for row, folder in ((rows[1], "ppo-learned-s1"), (rows[3], "best-of-5-s1")):
        (path,) = work.glob(f"{folder}-*/after_samples.jsonl")
        samples = read_jsonl(path)
        texts = [s["prompt"] + s["output"] for s in samples]
        assert float(row["gold"]) == pytest.approx(np.mean(letter_reward(texts)), rel=1e-4)
        assert float(row["proxy"]) == pytest.approx(learned.standardised(texts).mean(), abs=1e-4)
        assert float(row["judge"]) == pytest.approx(np.mean(VowelJudge().score(texts)), rel=1e-4)
        assert row["n"] == "12" and row["gold_name"] == "sentiment"
    assert float(rows[0]["kl"]) == pytest.approx(0, abs=1e-3) and rows[0]["n"] == "4"
    assert float(rows[3]["kl"]) == pytest.approx(math.log(5) - 4 / 5, abs=1e-5)
    # The reward model chose: of five, what it likes better than of two.
    assert float(rows[3]["proxy"]) > float(rows[2]["proxy"])


def test_ppo_climbs_the_reward_model_and_not_gold(tmp_path, small_world):
    plan = small_world([PPO], preferences=SMALL)
    bench = study.Bench(plan)
    result = bench.do(plan.rows[0], tmp_path / "out")
    (path,) = (tmp_path / "runs/study/plan").glob("ppo-learned-s1-*/eval_samples.jsonl")
    records = read_jsonl(path)
    learned = bench.preferences.reward_model(12, 1)
    texts = [r["prompt"] + r["output"] for r in records]
    assert [r["reward"] for r in records] == pytest.approx(learned(samples=texts), abs=1e-4)
    assert result["gold_after"] == pytest.approx(result["evaluation"]["reward_after"])
    interval = result["gold_difference"]
    assert interval["low"] <= interval["mean"] <= interval["high"]
    assert interval["mean"] == pytest.approx(result["gold_after"] - result["gold_before"])


def test_a_row_of_other_preferences_is_another_run_though_its_config_is_the_same(
    tmp_path, small_world
):
    """Else PPO would find the finished run of the reward model of before, and go on there."""
    results = []
    for changes in ({}, {"temperature": 50.0}):
        plan = small_world([PPO], preferences={**SMALL, **changes})
        assert study.finished(plan, plan.rows[0], tmp_path / "out") is None
        study.run_study(plan, tmp_path / "out")
        results.append(study.finished(plan, plan.rows[0], tmp_path / "out"))
    assert results[0]["settings"]["method"] == results[1]["settings"]["method"]
    assert results[0]["proxy_after"] != results[1]["proxy_after"]
    assert len(list((tmp_path / "runs/study/plan").glob("ppo-learned-s1-*/metrics.jsonl"))) == 2


def test_what_was_stopped_goes_on_with_the_models_that_are_left(tmp_path, small_world, monkeypatch):
    small_world([PPO], preferences={**SMALL, "sizes": [6, 8, 10], "seeds": [1]})
    train, asked = preferences.train_reward_model, []

    def until_the_second(pairs, config, heldout):
        asked.append(len(pairs))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return train(pairs, config, heldout)

    monkeypatch.setattr(preferences, "train_reward_model", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        study_models(tmp_path)
    assert list(read_json(tmp_path / "out/reward_model.json")["models"]) == ["6-s1"]
    study_models(tmp_path)
    assert asked == [6, 8, 8, 10]
    assert len(read_json(tmp_path / "out/reward_model.json")["models"]) == 3


def study_models(tmp_path):
    plan = load_plan(tmp_path / "plan.yml")
    bench = study.Bench(plan)
    made = Preferences(plan, bench.work, bench.training_prompts, letter_reward, bench.judge)
    return made.make_reward_models(tmp_path / "out")


# --- DPO -----------------------------------------------------------------------------------

TEXTS = [
    Pair("policy data", " every human feedback", " value"),
    Pair("the model", " code", " batch reward every human"),
    Pair("a", " value value", " data"),
]


def test_log_probabilities_of_responses_token_by_token(tmp_path):
    policy = policy_with_lora(tmp_path)
    prompts, responses = [p.prompt for p in TEXTS], [p.chosen for p in TEXTS]
    texts = ResponseTexts(policy, prompts, responses, add_special_tokens=True)

    def nats(prompt, response):
        ids = policy.tokenizer(prompt)["input_ids"]
        total = 0.0
        for token in policy.tokenizer(response, add_special_tokens=False)["input_ids"]:
            total += policy.base(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
            ids = [*ids, token]
        return total

    with torch.no_grad():
        own = [nats(p.prompt, p.chosen) for p in TEXTS]
        found, reference = texts.logprobs(range(3)), texts.reference_logprobs()
    assert found.tolist() == pytest.approx(own, abs=1e-3)
    assert not torch.allclose(found, reference, atol=0.1)
    plain = load_policy(run_config(tmp_path), "cpu")
    same = ResponseTexts(plain, prompts, responses, add_special_tokens=True)
    assert torch.allclose(same.logprobs(range(3)).detach(), reference, atol=1e-4)


def test_dpo_learns_what_is_preferred(tmp_path):
    policy = load_policy(run_config(tmp_path), "cpu")
    head = {n: p.clone() for n, p in policy.v_head.named_parameters()}
    course = train_dpo(policy, TEXTS, beta=0.1, steps=40, batch_size=3, learning_rate=0.02, seed=0,
                       add_special_tokens=True)  # fmt: skip
    # Before the first step policy and reference are one, up to LoRA's dropout: B is zero.
    assert course[0]["loss"] == pytest.approx(math.log(2)) and course[0]["accuracy"] == 0.5
    assert course[-1]["accuracy"] == 1 and course[-1]["loss"] < 0.4
    assert not policy.lora_dropout_active
    assert all(torch.equal(p, head[n]) for n, p in policy.v_head.named_parameters())
    responses = [p.chosen for p in TEXTS] + [p.rejected for p in TEXTS]
    texts = ResponseTexts(policy, [p.prompt for p in TEXTS] * 2, responses, True)
    with torch.no_grad():
        gain = texts.logprobs(range(6)) - texts.reference_logprobs()
    assert (gain[:3] > gain[3:]).all()


def test_dpo_is_repeated_by_its_seed_and_takes_every_pair_before_any_again(tmp_path):
    from rlhf_helpers.studies.dpo import _order

    order = _order(5, 12, seed=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5)) and len(order) == 12
    courses = []
    for seed in (1, 1, 2):
        policy = load_policy(run_config(tmp_path, train__seed=1), "cpu")
        courses.append(train_dpo(policy, TEXTS, 0.1, 4, 2, 0.01, seed, True))
    assert courses[0] == courses[1] != courses[2]

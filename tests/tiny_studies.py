"""A small world for tests of studies: plans, a judge, a few reviews."""

import json

from datasets import Dataset
from tiny_runs import letter_reward, model_dir, run_config

from rlhf_helpers.studies import baselines, study
from rlhf_helpers.studies.plan import load_plan

LETTERS = "policy value model feedback code human every reward batch data"


class VowelJudge:
    """Share of vowels: a judge of another opinion."""

    def score(self, texts):
        return [sum(t.count(v) for v in "aeiou") / (1 + len(t)) for t in texts]


def write_plan(tmp_path, rows, **fields):
    path = tmp_path / "plan.yml"
    path.write_text(json.dumps({"rows": rows, **fields}))  # JSON is YAML
    return path


def small_plans(tmp_path, monkeypatch):
    """Plans on a random model, a letter-counting reward, a few reviews; runs/ is in tmp_path.

    Returns a function from rows to a plan.
    """
    openings = [f"{a} {b} {c}" for a in LETTERS.split() for b in LETTERS.split() for c in "xy"]
    texts = [f"{opening} and more {i % 7} words" for i, opening in enumerate(openings)]
    reviews = Dataset.from_dict({
        "text": texts, "label": [i % 2 for i in range(len(texts))],
        "bucket": [i % 10 for i in range(len(texts))],
    })  # fmt: skip
    monkeypatch.setattr("rlhf_helpers.data.reviews.load_reviews", lambda name: reviews)
    monkeypatch.setattr(baselines, "load_reviews", lambda name: reviews)
    monkeypatch.setattr("rlhf_helpers.rewards.task.task_reward", lambda settings: letter_reward)
    monkeypatch.setattr("rlhf_helpers.rewards.judge.judge_by_name", lambda name: VowelJudge())
    monkeypatch.setattr(study, "resolve_run_dir", lambda path: tmp_path / path)
    tiny = run_config(tmp_path).to_dict()
    changes = {
        "model.model_path": str(model_dir(tmp_path)), "model.num_layers_unfrozen": 2,
        **{f"train.{k}": tiny["train"][k] for k in ("batch_size", "total_steps", "eval_interval")},
        "train.seq_length": 48, "method.num_rollouts": 8, "method.chunk_size": 8,
        "method.gen_kwargs.max_new_tokens": 8, "model.delta_kwargs.lora_r": 2,
        "train.checkpoint_interval": 2,
    }  # fmt: skip

    def plan(rows, **fields):
        small = {"set": changes, "n_prompts": 12, "interval_prompts": 4}
        return load_plan(write_plan(tmp_path, rows, **{**small, **fields}))

    return plan

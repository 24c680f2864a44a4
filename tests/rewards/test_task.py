"""What a profile asks for: prompts in its template, the label that is rewarded, what is scored."""

import pytest
import yaml
from datasets import Dataset

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.profiles import check_run_dir, load_profile, save_config
from rlhf_helpers.evaluation.sampling import evaluation_prompts, score_samples
from rlhf_helpers.rewards import reward, task

REVIEWS = Dataset.from_list([
    {"text": "One two three four five.", "label": 1, "bucket": 3},
    {"text": "Held out words come last.", "label": 0, "bucket": 0},
])  # fmt: skip


def test_the_default_prompt_is_the_opening():
    profile = load_profile("cpu")
    assert task.task_prompts(profile, REVIEWS) == ["One two three four"]
    assert task.post_prompts(profile)[1] == "This movie was terrible"


def test_the_alpaca_profile_asks_in_alpacas_format():
    profile = load_profile("alpaca-7b", {"evaluation.n_prompts": 2})
    (prompt,) = task.task_prompts(profile, REVIEWS)
    assert "### Instruction:\nGive a negative review about the movie." in prompt
    assert "### Input:\nOne two three four\n\n### Response:" in prompt
    prompts = evaluation_prompts(profile, REVIEWS)
    assert prompts[0].group == "heldout" and "\nHeld out words come\n" in prompts[0].prompt
    assert "\nThis movie was terrible\n" in prompts[2].prompt


def test_a_template_has_one_place_for_the_opening():
    for template in ("no place", "{opening} {opening}"):
        with pytest.raises(ConfigError, match="opening"):
            load_profile("cpu", {"prompts.template": template})


@pytest.fixture
def word_counter(monkeypatch):
    """A classifier whose P(NEGATIVE) is 0.1 for each word "bad"."""

    def classify(texts):
        scores = [0.1 * text.split().count("bad") for text in texts]
        return [[{"label": "NEGATIVE", "score": s}, {"label": "POSITIVE", "score": 1 - s}]
                for s in scores]  # fmt: skip

    monkeypatch.setattr(reward, "sentiment_pipeline", lambda *_: classify)


def test_the_reward_is_of_the_label_and_the_text_that_the_profile_names(word_counter):
    texts = {"samples": ["a bad bad film", "fine"], "outputs": ["bad film", ""]}
    assert task.task_reward(load_profile("cpu"))(**texts) == pytest.approx([0.8, 1.0])
    negative = task.task_reward(load_profile("alpaca-7b"))
    assert negative(**texts) == pytest.approx([0.1, 0.0])
    assert negative(samples=["bad"]) == pytest.approx([0.1])  # texts that no model wrote


def test_the_judge_is_asked_for_the_same_label_and_text(word_counter):
    class Judge:
        def score(self, texts):
            return [len(text) / 100 for text in texts]

    class Sampled:
        prompt, output, seed, group, ended = "abcd ", "bad ending", 1, "heldout", False

    profile = load_profile("alpaca-7b")
    (row,) = score_samples([Sampled], [{}], task.task_reward(profile), Judge(), profile.reward)
    assert row["reward"] == pytest.approx(0.1) and row["judge"] == pytest.approx(0.9)
    profile = load_profile("cpu")
    (row,) = score_samples([Sampled], [{}], task.task_reward(profile), Judge(), profile.reward)
    assert row["reward"] == pytest.approx(0.9) and row["judge"] == pytest.approx(0.15)


def test_a_run_directory_from_before_these_fields_is_still_its_profiles(tmp_path):
    path = save_config(load_profile("cpu"), tmp_path)
    stored = yaml.safe_load(path.read_text())
    del stored["reward"], stored["model"]["load_in_4bit"]
    path.write_text(yaml.safe_dump(stored))
    check_run_dir(load_profile("cpu"), tmp_path)
    with pytest.raises(ConfigError, match=r"reward\.label is 'POSITIVE' there and 'NEGATIVE'"):
        check_run_dir(load_profile("cpu", {"reward.label": "NEGATIVE"}), tmp_path)

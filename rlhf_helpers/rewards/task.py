"""What a profile asks of its policy: the prompts in the profile's words, and the reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.data.reviews import POST_EVAL_PROMPTS, training_prompts

if TYPE_CHECKING:
    from datasets import Dataset


def prompt_of(profile: Profile, opening: str) -> str:
    """The prompt for a review's opening: the profile's template around it, or the opening."""
    template = profile.prompts.get("template")
    return opening if template is None else template.replace("{opening}", opening)


def post_prompts(profile: Profile) -> list[str]:
    """The post's four evaluation prompts, in the profile's template."""
    return [prompt_of(profile, opening) for opening in POST_EVAL_PROMPTS]


def task_prompts(profile: Profile, reviews: Dataset) -> list[str]:
    """The prompts that PPO trains on, one for each review of buckets 1-9."""
    return [prompt_of(profile, o) for o in training_prompts(reviews, profile.prompts["words"])]


def task_reward(profile: Profile) -> Callable[..., list[float]]:
    """The profile's reward function: P(label) of the sample, or of the output alone."""
    from .reward import sentiment_reward

    return sentiment_reward(profile.assets["reward"], **profile.reward)

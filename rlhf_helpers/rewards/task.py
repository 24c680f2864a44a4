"""What a profile asks of its policy: the prompts in the profile's words, and the reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_helpers.config.checks import wrong
from rlhf_helpers.config.paths import resolve_run_dir
from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.data.assets import find_asset
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
    """The profile's reward function: a verifier, or P(label) of the sample or the output alone.

    Where `assets.reward` is the path of a reward model that was trained on preferences, it is
    that model's reward of the whole sample; ConfigError where the profile wants another text or
    label of it. As a run directory's, a relative path may also start at the repository's root.
    """
    from .learned import is_reward_model, load_reward_model
    from .reward import sentiment_reward
    from .verifiers import VERIFIERS

    name = profile.assets["reward"]
    if name in VERIFIERS:
        return VERIFIERS[name]
    directory = next((d for d in (Path(name), resolve_run_dir(name)) if is_reward_model(d)), None)
    if directory is None:
        return sentiment_reward(name, **profile.reward)
    for field, only in (("label", "POSITIVE"), ("text", "sample")):
        if profile.reward.get(field, only) != only:
            raise wrong(
                f"reward.{field}", profile.reward[field],
                f"leave it out, assets.reward ({name}) is a reward model that was trained on "
                "preferences and reads whole samples",
            )  # fmt: skip
    return load_reward_model(find_asset(str(directory)).path)

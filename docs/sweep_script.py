"""What one trial of a sweep does: the tutorial's run with a few settings changed.

python -m rlhf_helpers sweep docs/ppo_sweep.yml docs/sweep_script.py
"""

from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.data.reviews import POST_EVAL_PROMPTS, load_reviews, training_prompts
from rlhf_helpers.rewards.reward import sentiment_reward
from rlhf_helpers.training.api import train


def main(hparams):
    """Train with `hparams`, {"dotted.name": value}, on top of the profile cpu."""
    profile = load_profile("cpu")
    reviews = load_reviews(profile.assets["data"])
    train(
        reward_fn=sentiment_reward(profile.assets["reward"]),
        prompts=training_prompts(reviews, words=profile.prompts["words"]),
        eval_prompts=list(POST_EVAL_PROMPTS) * 16,
        config=TRLConfig.update(profile.config.to_dict(), hparams),
    )

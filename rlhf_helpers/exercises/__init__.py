"""Checks of the exercises in notebooks/exercises/: what a reader wrote is right, or what is wrong.

Each check works its numbers out in another way than the solution. This room knows the lessons, not
the package: it imports torch and nothing of the other rooms.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "evaluating": [
            "check_best_of_n", "check_changes", "check_interval", "check_perplexity",
        ],
        "ppo": [
            "check_clipped_loss", "check_gae", "check_kl", "check_mask", "check_rewards",
            "check_rloo",
        ],
        "preferences": [
            "check_annotator", "check_best_by_proxy", "check_dpo", "check_last_state",
            "check_reward_loss",
        ],
        "sampling_and_lora": [
            "check_count", "check_gamed", "check_merge", "check_reward", "check_start",
            "check_temperature", "check_top_k",
        ],
        "verifiable": [
            "check_grpo", "check_pass_at_k", "check_token_weights", "check_verifier",
        ],
    },
)

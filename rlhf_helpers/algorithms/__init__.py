"""The algorithms themselves: PPO, RLOO, GRPO, DPO, Bradley-Terry: pure functions over tensors.

Each file can be read alone, beside the paper that it names. This room imports torch and the
standard library, and nothing else: no model, no tokenizer, no configuration.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ppo": [
            "gae", "kl_k1", "kl_k3", "kl_trlx", "logprobs_of_labels", "masked_mean",
            "policy_loss", "ppo_loss", "value_loss", "whiten",
        ],
        "preferences": [
            "accuracy_ceiling", "bradley_terry_loss", "dpo_loss", "preference_accuracy",
            "preference_probability",
        ],
        "critic_free": [
            "group_normalised_advantages", "grpo_loss", "leave_one_out_advantages", "rloo_loss",
        ],
    },
)

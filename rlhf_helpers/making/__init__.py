"""How models are made that PPO starts from or climbs: each by one call that can be made again.

The shipped policy and classifier, and reward models from preferences. This room may use
everything that trains; tuning a policy needs nothing of it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "fine_tune": ["FineTuneConfig"],
        "pretrain": ["PretrainConfig"],
        "reward_model": ["RewardModelConfig", "train_reward_model"],
    },
)

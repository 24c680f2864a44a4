"""PPO for language models with a plain Python reward function, LoRA and one device.

    from rlhf_helpers import TRLConfig, default_ppo_config, train
"""

import lazy_loader

from .environment import let_waiting_threads_sleep

let_waiting_threads_sleep()  # before torch is imported

# Where each public name lives. They are looked up when asked for, so that commands which need no
# model do not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config.checks": ["ConfigError"],
        "config.sections": [
            "GRPOConfig", "ModelConfig", "OptimizerConfig", "PPOConfig", "RLOOConfig",
            "SchedulerConfig", "TokenizerConfig", "TrainConfig",
        ],
        "config.profiles": ["load_profile"],
        "config.trl_config": ["TRLConfig", "default_ppo_config"],
        "making.reward_model": ["RewardModelConfig", "train_reward_model"],
        "models.loading": ["load_policy", "load_trained_policy"],
        "rewards.learned": ["load_reward_model"],
        "rewards.preferences": ["load_pairs"],
        "rewards.reward": ["RewardError", "sentiment_reward"],
        "training.api": ["train"],
    },
)  # fmt: skip

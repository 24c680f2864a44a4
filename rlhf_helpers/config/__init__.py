"""What a run is told: trlX's configuration, its checks, and this project's profiles.

Every mistake in a configuration is found here, in one sentence (ConfigError), before a model is
loaded. This room does not import torch, and knows nothing of models, data or files of a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checks": ["ConfigError", "ConfigWarning"],
        "sections": [
            "GRPOConfig", "ModelConfig", "OptimizerConfig", "PPOConfig", "RLOOConfig",
            "SchedulerConfig", "TokenizerConfig", "TrainConfig",
        ],
        "trl_config": ["TRLConfig", "default_ppo_config"],
        "profiles": ["Profile", "load_profile"],
        "paths": ["repo_root", "resolve_run_dir"],
    },
)

"""PPO for language models with a plain Python reward function, LoRA and one device."""

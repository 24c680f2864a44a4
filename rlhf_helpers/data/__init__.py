"""From names to verified files: models and reviews, their hashes, and which review serves what.

Whatever is read here was found by its name and, where a hash is known, checked against it. This
room knows no run and no policy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "assets": ["AssetError", "find_asset"],
        "arithmetic": [
            "Problem", "heldout_problems", "larger_problems", "reasoning_task",
            "training_problems",
        ],
        "gsm8k": ["gsm8k_prompts"],
        "reviews": ["heldout_prompts", "load_reviews", "load_snippets", "training_prompts"],
    },
)  # fmt: skip

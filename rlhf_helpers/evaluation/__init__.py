"""Did it work? Samples before and after, what they cost, how varied they are, and a verdict.

This room compares samples; how the policy was trained is nothing to it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "before_after": ["pair_samples", "summarise_pair"],
        "evaluate_run": ["evaluation_path"],
        "text_statistics": ["distinct_n"],
        "verdict": ["what_got_worse"],
        "pass_at_k": ["pass_at_k", "pass_at_k_curve"],
        "sampling": ["EvalPrompt", "evaluation_prompts", "sample_records"],
    },
)

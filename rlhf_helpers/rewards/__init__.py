"""From text to a number: the sentiment classifier, the independent judge, a profile's task.

A reward is a plain Python function of texts. This room does not know the policy that wrote them,
nor how it learns.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "reward": ["RewardError", "sentiment_reward"],
        "judge": ["judge_by_name"],
        "preferences": ["Candidates", "Pair", "load_pairs", "read_pairs", "write_pairs"],
        "annotator": ["Gold", "annotate"],
        "learned": ["LearnedReward", "load_reward_model"],
        "task": ["post_prompts", "task_prompts", "task_reward"],
        "verifiers": [
            "answer_anywhere", "answer_metrics", "exact_answer", "final_answer",
            "gsm8k_verifier", "reasoning_verifier", "shows_steps", "steps_hold",
        ],
        "check": ["accuracy", "is_right", "reliability_rows", "reward_check", "surest_errors"],
    },
)  # fmt: skip

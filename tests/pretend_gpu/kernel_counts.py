"""Kernels, waits of the host and copies to the device: of a sampled token, of an optimizer step.

    python -m pretend_gpu.kernel_counts DIRECTORY [SETTING=VALUE ...]      # from tests/

An OPT of OPT-1.3B's 24 layers, everything else tiny, in bfloat16 with LoRA on the top two; a
setting is for example method__semantics=trlx. Prints a JSON line for each of the two; with
DETAILS=1 in the environment also which operations and lines they come from.
"""

import pretend_gpu

pretend_gpu.switch_on()  # before the package, and before torch

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections import Counter  # noqa: E402
from pathlib import Path  # noqa: E402

import tiny_runs  # noqa: E402
import torch  # noqa: E402

from pretend_gpu import counts  # noqa: E402
from rlhf_helpers.training.api import train  # noqa: E402
from rlhf_helpers.training.trainer import PPOTrainer  # noqa: E402

LAYERS = 24


def kept_counts() -> dict[str, Counter]:
    """Copies of the three counters."""
    return {name: Counter(getattr(counts, name)) for name in ("kernels", "syncs", "copies")}


def of_last_step(config) -> tuple[PPOTrainer, dict[str, Counter]]:
    """A run, and what its last optimizer step asked for (the first ones make the optimizer)."""
    steps = []
    take = PPOTrainer.optimizer_step

    def counted(trainer, indices):
        counts.reset()
        stats = take(trainer, indices)
        steps.append(kept_counts())
        return stats

    PPOTrainer.optimizer_step = counted
    trainer = train(reward_fn=tiny_runs.letter_reward, prompts=tiny_runs.PROMPTS, config=config)
    PPOTrainer.optimizer_step = take
    return trainer, steps[-1]


def of_a_token(trainer: PPOTrainer) -> dict[str, Counter]:
    """What one token more costs, sampled as the rollouts are."""
    ids = torch.full((8, 6), 9, device="cuda")
    mask = torch.ones_like(ids)
    mask[:4, :2] = 0  # prompts of two lengths
    seen = {}
    for length in (3, 4):
        counts.reset()
        with trainer.policy.merged_for_sampling():
            trainer.generate(ids, mask, max_new_tokens=length, min_new_tokens=length)
        seen[length] = kept_counts()
    return {name: seen[4][name] - seen[3][name] for name in seen[4]}


def main(root: Path, overrides: dict[str, str]) -> None:
    """Count both and print them."""
    tiny_runs._SHAPE["num_hidden_layers"] = LAYERS
    config = tiny_runs.run_config(
        root, **{"model__dtype": "bfloat16", "method__semantics": "corrected",
                 "train__total_steps": 2, "train__eval_interval": 100,
                 "method__gen_kwargs__max_new_tokens": 4, **overrides},
    )  # fmt: skip
    trainer, step = of_last_step(config)
    for what, counters in (("a token", of_a_token(trainer)), ("an optimizer step", step)):
        totals = {name: counter.total() for name, counter in counters.items()}
        print(json.dumps({"of": what, **totals}), flush=True)
        for name, counter in counters.items() if os.environ.get("DETAILS") else ():
            print(name, counter.most_common(24))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), dict(setting.split("=", 1) for setting in sys.argv[2:]))

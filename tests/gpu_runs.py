"""Whole small runs for a GPU, each killed in the middle of an iteration and taken up again.

On a machine without one, pretend_gpu/runs.py plays the GPU; on a real one,
training/test_on_a_gpu.py runs them.
"""

from pathlib import Path

from tiny_runs import PROMPTS, letter_reward, run_config

from rlhf_helpers.evaluation.sampling import EvalPrompt, divergence, sample
from rlhf_helpers.models.loading import load_trained_policy
from rlhf_helpers.training.api import train

NO_LORA = {"model__delta_kwargs": None}
PEFT = {"model__delta_kwargs": None, "model__peft_config": {"peft_type": "LORA", "r": 4}}
GROUPS = {"method__samples_per_prompt": 2}
HALF = {"model__dtype": "float16"}  # bfloat16 where nothing is said
# Families, semantics, types, methods and kinds of LoRA, each beside several of the others.
RUNS = {
    "opt, trlx, bfloat16": dict(family="opt"),
    "opt, corrected, float16, no LoRA": dict(
        family="opt", semantics="corrected", **HALF, **NO_LORA),
    "llama, trlx, float16, peft": dict(family="llama", **HALF, **PEFT),
    "llama, GRPO, bfloat16": dict(family="llama", method__name="GRPO", **GROUPS),
    "gpt2, corrected, bfloat16, peft": dict(family="gpt2", semantics="corrected", **PEFT),
    "gpt2, trlx, float16, no LoRA": dict(family="gpt2", **HALF, **NO_LORA),
    "gpt_neox, RLOO, float16": dict(
        family="gpt_neox", method__name="RLOO", method__ppo_epochs=2, **HALF, **GROUPS),
    "bloom, corrected, bfloat16, no LoRA": dict(family="bloom", semantics="corrected", **NO_LORA),
    "bloom, trlx, float16": dict(family="bloom", **HALF),
}  # fmt: skip
CHUNK = 4  # samples


class Killed(BaseException):
    """The end of a process, as far as one process can show it: nothing catches it."""


def settings(root: Path, family: str, semantics: str = "trlx", **overrides):
    """The configuration of a run: 4 optimizer steps an iteration, checkpoints at every chance."""
    if "method__name" not in overrides:
        overrides["method__semantics"] = semantics
    return run_config(root, family, **{
        "model__dtype": "bfloat16", "train__total_steps": 5, "train__eval_interval": 100,
        "train__checkpoint_seconds": 0.0, "method__chunk_size": CHUNK,
        "method__gen_kwargs__max_new_tokens": 4, **overrides,
    })  # fmt: skip


def killed_and_resumed(root: Path, overrides: dict) -> None:
    """A run that dies while its second iteration is sampled, the same again to its end."""
    config = settings(root, **overrides)
    calls = []

    def reward_fn(samples, **kwargs):
        calls.extend(samples if len(samples) == CHUNK else ())  # evaluations have fewer samples
        if len(calls) == 4 * CHUNK:  # the second iteration's second chunk
            raise Killed
        return letter_reward(samples)

    def run():
        return train(reward_fn=reward_fn, prompts=PROMPTS, eval_prompts=PROMPTS[:2], config=config)

    try:
        run()
        raise AssertionError("the reward function was not called often enough to be killed in")
    except Killed:
        # Step 4 ends the first iteration: this checkpoint was written between the chunks.
        newest = max((Path(config.train.checkpoint_dir) / "checkpoints").glob("step_*"))
        assert newest.name == "step_00000004", newest
    trainer = run()
    assert trainer.step == 5
    evaluate(trainer.directory / "policy")


def evaluate(directory: Path) -> None:
    """Load what a run left and compare it with its reference on two prompts."""
    policy = load_trained_policy(directory)
    assert policy.device.type == "cuda"
    prompts = [EvalPrompt(prompt, "heldout", seed) for seed, prompt in enumerate(PROMPTS[:2])]
    gen_kwargs = {"max_new_tokens": 4, "do_sample": True, "top_k": 0}
    samples = sample(policy, prompts, gen_kwargs, max_prompt_length=8)
    for cost in divergence(policy, samples):
        assert cost["kl_k1"] == cost["kl_k1"], "the divergence is no number"

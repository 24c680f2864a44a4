"""Small random models, configurations and reward functions for tests of whole runs."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.runs.files import read_jsonl
from rlhf_helpers.training.api import train

TOKENIZERS = Path(__file__).parent / "golden"
PROMPTS = ["policy data", "value batch", "the model", "feedback", "a", "code", "human", "every"]

_SHAPE = dict(vocab_size=384, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
              max_position_embeddings=64, bos_token_id=2, eos_token_id=2, pad_token_id=1,
              initializer_range=0.3)  # fmt: skip
_FAMILIES: dict[str, dict[str, Any]] = {  # by transformers' names
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32, init_std=0.3),
    "gpt2": {},
    "gpt_neox": dict(intermediate_size=48),
    "llama": dict(intermediate_size=48, num_key_value_heads=2),
    "bloom": {},
    # Layers of two kinds: the second sees four tokens back, and in Gemma 3 has other positions.
    "gemma3_text": dict(intermediate_size=48, num_key_value_heads=2, head_dim=8, sliding_window=4,
                        layer_types=["full_attention", "sliding_attention", "full_attention"]),
    "qwen3": dict(intermediate_size=48, num_key_value_heads=2, head_dim=8, sliding_window=4,
                  use_sliding_window=True, max_window_layers=1),
    # The logits are changed behind the head.
    "granite": dict(intermediate_size=48, num_key_value_heads=2, logits_scaling=8.0),
    "cohere": dict(intermediate_size=48, num_key_value_heads=2, logit_scale=0.0625),
    "gemma2": dict(intermediate_size=48, num_key_value_heads=2, head_dim=8),
}


def model_dir(root: Path, family: str = "opt", tokenizer: str = "bos") -> Path:
    """Three random layers of a family with a recorded tokenizer ("bos" puts </s> in front)."""
    path = Path(root) / f"{family}_{tokenizer}"
    if not path.exists():
        shutil.copytree(TOKENIZERS / f"tokenizer_{tokenizer}", path)
        config = AutoConfig.for_model(family, **_SHAPE, **_FAMILIES[family])
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def run_config(root: Path, family: str = "opt", tokenizer: str = "bos", **overrides) -> TRLConfig:
    """A run of 4 optimizer steps on 8 rollouts; `overrides` as method__gamma=0.9."""
    path = str(model_dir(root, family, tokenizer))
    base = {
        "train": {"seq_length": 24, "epochs": 100, "total_steps": 4, "batch_size": 4,
                  "checkpoint_interval": 1000, "eval_interval": 4, "pipeline": "PromptPipeline",
                  "trainer": "AcceleratePPOTrainer", "save_best": False,
                  "checkpoint_dir": str(Path(root) / "run"), "checkpoint_seconds": 1000.0},
        "model": {"model_path": path, "num_layers_unfrozen": 2, "dtype": "float32",
                  "delta_kwargs": {"delta_type": "lora", "modified_modules": "attention",
                                   "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1}},
        "tokenizer": {"tokenizer_path": path},
        "optimizer": {"name": "adamw", "kwargs": {"lr": 1e-2}},
        "scheduler": {"name": "cosine_annealing", "kwargs": {"T_max": 100, "eta_min": 1e-3}},
        "method": {"name": "PPOConfig", "num_rollouts": 8, "chunk_size": 4, "ppo_epochs": 2,
                   "init_kl_coef": 0.05, "target": 6, "horizon": 1000,
                   "gen_kwargs": {"max_new_tokens": 8, "top_k": 0, "top_p": 1.0,
                                  "do_sample": True}},
    }  # fmt: skip
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return TRLConfig.update(base, dotted)


def policy_with_lora(root: Path, seed: int = 5, **overrides) -> Policy:
    """A policy that differs from its reference: LoRA's B is random instead of zero."""
    policy = load_policy(run_config(root, **overrides), "cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters().items():
            if not name.startswith("v_head"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def letter_reward(samples, **kwargs):
    """Share of letters e among the characters: dense enough to learn, and exact."""
    return [text.count("e") / (1 + len(text)) for text in samples]


def tiny_train(root, reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=None, **overrides):
    """`train` on a random OPT; keyword arguments with __ are settings, others train()'s own."""
    settings = {k: v for k, v in overrides.items() if "__" in k}
    arguments = {k: v for k, v in overrides.items() if "__" not in k}
    return train(
        reward_fn=reward_fn,
        prompts=prompts,
        eval_prompts=eval_prompts or PROMPTS[:2],
        config=run_config(root, **settings),
        **arguments,
    )


def one_by_one(store):
    """The rollouts of a store, each with its own columns only; changes reach the store."""
    found = []
    for i in range(len(store)):
        one = SimpleNamespace(score=store.scores[i])
        left = store.query_width - store.query_widths[i]
        right = store.query_width + store.response_widths[i]
        one.query = store.tokens[i, left : store.query_width]
        one.response = store.tokens[i, store.query_width : right]
        one.attention_mask = store.attention_mask[i, left:right]
        one.trunk = None if store.trunk is None else store.trunk[i, left:right]
        for name in ("logprobs", "ref_logprobs", "values", "rewards", "loss_mask"):
            setattr(one, name, getattr(store, name)[i, : store.columns[i]])
        one.advantages = None if store.advantages is None else store.advantages[i]
        found.append(one)
    return found


def without_times(lines):
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def weights(directory):
    return {
        f"{path.name}:{name}": tensor
        for path in sorted(Path(directory).glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_run(first, second):
    """The same metrics, times aside, the same evaluation samples, the same weights, bit for bit."""
    for name in ("metrics.jsonl", "eval_samples.jsonl"):
        assert without_times(read_jsonl(first / name)) == without_times(read_jsonl(second / name))
    ours, theirs = weights(first / "policy"), weights(second / "policy")
    assert ours.keys() == theirs.keys() and ours
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name

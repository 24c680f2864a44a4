"""The profile gsm8k, on a random model of Qwen3's architecture and a file of GSM8K's format."""

import json
import shutil

import torch
from tiny_runs import TOKENIZERS
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.config.sections import GRPOConfig
from rlhf_helpers.data.gsm8k import gsm8k_prompts
from rlhf_helpers.rewards.task import task_reward
from rlhf_helpers.rewards.verifiers import gsm8k_verifier
from rlhf_helpers.runs.files import read_jsonl
from rlhf_helpers.training.api import train


def test_a_run_from_a_file_to_a_policy(tmp_path):
    model, problems = tmp_path / "model", tmp_path / "problems.jsonl"
    shutil.copytree(TOKENIZERS / "tokenizer_bos", model)
    torch.manual_seed(0)
    Qwen3ForCausalLM(
        Qwen3Config(vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                    num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                    bos_token_id=2, eos_token_id=2, pad_token_id=1, initializer_range=0.3)
    ).save_pretrained(model)  # fmt: skip
    rows = [{"question": f"What is {i} and {i}?", "answer": f"{i}+{i}\n#### {2 * i}"}
            for i in range(4)]  # fmt: skip
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))

    profile = load_profile("gsm8k", {
        "assets.policy": str(model), "assets.data": str(problems), "train.total_steps": 2,
        "train.batch_size": 4, "train.eval_interval": 2, "train.seq_length": 64,
        "method.num_rollouts": 4, "method.chunk_size": 4, "method.samples_per_prompt": 2,
        "method.gen_kwargs.max_new_tokens": 8, "model.num_layers_unfrozen": 2,
    }, run_dir=tmp_path / "run")  # fmt: skip
    assert isinstance(profile.config.method, GRPOConfig)
    assert task_reward(profile) is gsm8k_verifier
    prompts, seen = gsm8k_prompts(str(problems)), []

    def verifier(outputs, answer, **rest):
        seen.extend(answer)
        scores = gsm8k_verifier(outputs=outputs, answer=answer, **rest)
        return [score + len(set(output)) / 100 for score, output in zip(scores, outputs)]  # noqa: B905

    train(reward_fn=verifier, prompts=prompts, eval_prompts=prompts[:2], config=profile.config,
          stop_sequences=["\n\nProblem:"])  # fmt: skip
    assert set(seen) <= {row["answer"] for row in rows} and seen
    assert any("losses/kl_penalty" in line for line in read_jsonl(tmp_path / "run/metrics.jsonl"))
    assert (tmp_path / "run" / "policy" / "adapter_model.safetensors").exists()

"""Every PPO example of trlX v0.6.0 and v0.7.0, and one added after 0.7.0, rebuilt in small.

Each test has the shape of one script of trlX's `examples/`: how it makes its configuration, what
its prompts are, which arguments its reward function takes and what that returns. Models, texts
and sizes are tiny ones. What this project cannot run ends in one sentence, which is tested too.
"""

import copy
import re

import pytest
import torch
import yaml
from tiny_runs import PROMPTS, model_dir, one_by_one
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_helpers import (
    ModelConfig,
    OptimizerConfig,
    PPOConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainConfig,
    TRLConfig,
    default_ppo_config,
    train,
)
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.rewards.reward import get_positive_score
from rlhf_helpers.runs.files import read_jsonl

OPENINGS = ["the code is", "a human model", "every batch", "value of the data"]


def small(config, root, family="gpt2", tokenizer="nobos", **overrides):
    """An example's configuration with a tiny model, for two iterations of two optimizer steps."""
    path = str(model_dir(root, family, tokenizer))
    sizes = {
        "train.total_steps": 4, "train.batch_size": 4, "train.seq_length": 48,
        "train.eval_interval": 2, "train.checkpoint_dir": str(root / "run"),
        "method.num_rollouts": 4, "method.chunk_size": 4, "method.ppo_epochs": 2,
        "method.gen_kwargs.max_new_tokens": 8, "model.model_path": path,
        "tokenizer.tokenizer_path": path,
    }  # fmt: skip
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return TRLConfig.update(config, sizes | dotted)


def full_config(**method):
    """All six sections spelt out, as most examples do; `method` are the example's own numbers."""
    numbers = dict(
        name="PPOConfig", num_rollouts=128, chunk_size=128, ppo_epochs=4, init_kl_coef=0.05,
        target=6, horizon=10000, gamma=1, lam=0.95, cliprange=0.2, cliprange_value=0.2, vf_coef=1,
        scale_reward="ignored", ref_mean=None, ref_std=None, cliprange_reward=10,
        gen_kwargs=dict(max_new_tokens=40, top_k=0, top_p=1.0, do_sample=True),
    )  # fmt: skip
    return TRLConfig(
        train=TrainConfig(
            seq_length=1024, epochs=100, total_steps=10000, batch_size=32, eval_interval=100,
            checkpoint_interval=10000, pipeline="PromptPipeline", trainer="AcceleratePPOTrainer",
            save_best=False,
        ),
        model=ModelConfig(model_path="some/model", num_layers_unfrozen=2),
        tokenizer=TokenizerConfig(tokenizer_path="some/model", truncation_side="right"),
        optimizer=OptimizerConfig(
            name="adamw", kwargs=dict(lr=1e-3, betas=(0.9, 0.95), eps=1.0e-8, weight_decay=1.0e-6)
        ),
        scheduler=SchedulerConfig(
            name="cosine_annealing", kwargs=dict(T_max=10000, eta_min=1e-3)
        ),
        method=PPOConfig(**numbers | method),
    )  # fmt: skip


def sentiments(texts):
    """What transformers' sentiment pipeline gives with top_k=2: the better label comes first."""
    share = [text.count("e") / (1 + len(text)) for text in texts]
    both = [[{"label": "POSITIVE", "score": p}, {"label": "NEGATIVE", "score": 1 - p}]
            for p in share]  # fmt: skip
    return [sorted(pair, key=lambda label: -label["score"]) for pair in both]


def positive_reward(samples: list[str], **kwargs) -> list[float]:
    return [get_positive_score(scores) for scores in sentiments(samples)]


def metrics_of(root):
    return read_jsonl(root / "run" / "metrics.jsonl")


def assert_trained(trainer, root):
    """Two iterations ran, were evaluated before, between and after, and the weights moved."""
    assert (trainer.step, trainer.iteration) == (4, 2)
    evaluated = [line["step"] for line in metrics_of(root) if "reward/mean" in line]
    assert evaluated == [0, 2, 4]
    tuned = AutoModelForCausalLM.from_pretrained(trainer.save_pretrained(root / "tuned", True))
    before = AutoModelForCausalLM.from_pretrained(trainer.config.model.model_path).state_dict()
    tensors = tuned.state_dict()
    assert tensors.keys() == before.keys()
    assert any(not torch.equal(tensors[name], before[name]) for name in before)


# --- what trains -----------------------------------------------------------------------------


def test_ppo_sentiments(tmp_path):
    """The default configuration and overrides by dotted names; openings of reviews as prompts."""
    hparams = {"optimizer.kwargs.lr": 1e-3, "train.tracker": None}
    config = small(TRLConfig.update(default_ppo_config().to_dict(), hparams), tmp_path)
    trainer = train(
        reward_fn=positive_reward,
        prompts=OPENINGS,
        eval_prompts=["I don't know much about the code"] * 6,
        config=config,
    )
    assert_trained(trainer, tmp_path)
    assert len(read_jsonl(tmp_path / "run" / "eval_samples.jsonl")) == 3 * 6


def test_ppo_sentiments_llama(tmp_path):
    """All sections as objects, a Llama, and JSON from the command line over them."""
    config = TRLConfig.update(full_config().to_dict(), {"method": {"cliprange": 0.1}})
    config = small(config, tmp_path, family="llama", tokenizer="bos")
    assert config.method.cliprange == 0.1
    trainer = train(
        reward_fn=positive_reward, prompts=OPENINGS, eval_prompts=["the model"] * 4, config=config
    )
    assert_trained(trainer, tmp_path)


def test_ppo_sentiments_peft(tmp_path):
    """0.7: a LoraConfig object, assigned to the finished configuration."""
    peft = pytest.importorskip("peft")
    config = small(full_config(), tmp_path, family="opt", tokenizer="bos")
    config.model.peft_config = peft.LoraConfig(
        r=8, task_type=peft.TaskType.CAUSAL_LM, lora_alpha=32, lora_dropout=0.1
    )
    trainer = train(reward_fn=positive_reward, prompts=OPENINGS, config=config)
    assert_trained(trainer, tmp_path)
    assert any("lora" in name for name in trainer.policy.trainable_parameters())


def test_architext(tmp_path):
    """The model by `model_path`, whole-number rewards below zero, no prompts for evaluation."""
    config = small(default_ppo_config(), tmp_path, optimizer__kwargs__lr=1e-3)
    path, config.model.model_path = config.model.model_path, "lvwerra/gpt2-imdb"
    prompts = [f"[prompt] the {room} is next to the {other} [layout]"
               for room in ("bath", "hall") for other in ("stair", "door", "bed")]  # fmt: skip

    def fewer_letters(samples, **kwargs):
        return [-sample.count("e") for sample in samples]

    trainer = train(model_path=path, reward_fn=fewer_letters, prompts=prompts, config=config)
    assert_trained(trainer, tmp_path)
    shown = {row["prompt"] for row in read_jsonl(tmp_path / "run" / "eval_samples.jsonl")}
    assert len(shown) == 4  # the first batch_size prompts


@pytest.mark.parametrize("version", ["0.7.0", "after 0.7.0"])
def test_randomwalks(tmp_path, version):
    """Prompts of one token, reward and metrics from one function, every layer trained."""

    def walk_metrics(samples):
        lengths = [float(len(set(sample))) for sample in samples]
        return {"lengths": lengths, "optimality": [1 / length for length in lengths]}

    if version == "0.7.0":
        reward_fn = lambda samples, prompts, outputs: walk_metrics(samples)["optimality"]  # noqa: E731
        metric_fn = lambda samples, prompts, outputs: walk_metrics(samples)  # noqa: E731
    else:
        reward_fn = lambda samples, **kwargs: walk_metrics(samples)["optimality"]  # noqa: E731
        metric_fn = lambda samples, **kwargs: walk_metrics(samples)  # noqa: E731
    config = full_config(init_kl_coef=0, target=None, vf_coef=1.2, cliprange_reward=1)
    config = small(
        config, tmp_path, train__seq_length=10, method__gen_kwargs__max_new_tokens=9,
        model__num_layers_unfrozen=-1,
    )  # fmt: skip
    trainer = train(
        reward_fn=reward_fn, prompts=list("abcdef"), eval_prompts=list("abcdef"),
        metric_fn=metric_fn, config=config,
    )  # fmt: skip
    assert_trained(trainer, tmp_path)
    last = [line for line in metrics_of(tmp_path) if "reward/mean" in line][-1]
    rewards = [row["reward"] for row in read_jsonl(tmp_path / "run" / "eval_samples.jsonl")[-6:]]
    assert last["metrics/optimality"] == pytest.approx(sum(rewards) / 6, rel=1e-6)
    assert last["metrics/lengths"] >= 1
    assert all(r.query.shape == (1,) for r in one_by_one(trainer.store))


STOPS = ["Human:", "human:", "Assistant:", "assistant:"]


def hh_config(root, size):
    """A configuration made for the large model, then changed in place for `size`, as trlX does."""
    config = full_config(scale_reward="running", num_rollouts=64, chunk_size=16)
    config.tokenizer.truncation_side = "left"
    config = small(config, root, family="gpt_neox")
    config.optimizer.kwargs["lr"] = 6e-4
    config.scheduler.kwargs["eta_min"] = 6e-4
    if size == "20B":
        config.train.batch_size = 1
        config.train.total_steps = 4
        config.method.num_rollouts = config.method.chunk_size = 2
        config.method.ppo_epochs = 1
    return TRLConfig.update(config, {})


@pytest.mark.parametrize("size", ["6B", "20B"])
def test_ppo_hh_of_0_6(tmp_path, size):
    """Dialogues cut on the left, stop sequences, a list of tensors as reward."""
    seen = []

    def reward_fn(samples, prompts, outputs):
        seen.extend(outputs)
        assert samples == [p + o for p, o in zip(prompts, outputs, strict=True)]
        scores = torch.tensor([float(sample.count("e")) for sample in samples])
        return list(scores)

    dialogues = [f"Human: what is {text} and what is it for? Assistant:" for text in PROMPTS]
    trainer = train(
        prompts=dialogues, eval_prompts=dialogues[:5], reward_fn=reward_fn,
        config=hh_config(tmp_path, size), stop_sequences=STOPS,
    )  # fmt: skip
    assert_trained(trainer, tmp_path)
    assert seen and not any(stop in output for stop in STOPS for output in seen)
    for rollout in one_by_one(trainer.store):
        assert trainer.tokenizer.decode(rollout.query).endswith("Assistant:")


def test_ppo_hh_of_0_7(tmp_path):
    """Prompts as dicts; what they carry reaches the reward, which is a difference of tensors."""
    calls = []

    def score(texts):
        return torch.tensor([text.count("e") / (1 + len(text)) for text in texts])

    def reward_fn(samples, prompts, original_output, **kwargs):
        calls.append((prompts, original_output, kwargs["outputs"]))
        originals = [p + o for p, o in zip(prompts, original_output, strict=True)]
        return score(samples) - score(originals)

    prompts = [{"prompt": text, "original_output": f"about {text}"} for text in PROMPTS]
    trainer = train(
        prompts=prompts, eval_prompts=prompts[:5], reward_fn=reward_fn,
        config=hh_config(tmp_path, "6B"), stop_sequences=STOPS,
    )  # fmt: skip
    assert_trained(trainer, tmp_path)
    for texts, originals, outputs in calls:
        assert originals == [f"about {text}" for text in texts] and len(outputs) == len(texts)


SYNTHESIS = """
train: {seq_length: 256, epochs: 10, total_steps: 80000, batch_size: 8, eval_interval: 16,
        checkpoint_interval: 1000000, pipeline: "PromptPipeline", trainer: "AcceleratePPOTrainer"}
model: {model_path: "some/codegen", num_layers_unfrozen: 2}
tokenizer: {tokenizer_path: "some/codegen"}
optimizer:
  name: "adamw"
  kwargs: {lr: 1.412e-4, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 1.0e-6}
scheduler: {name: "cosine_annealing", kwargs: {T_max: 80000, eta_min: 1.412e-4}}
method:
  {name: "ppoconfig", num_rollouts: 8, chunk_size: 8, ppo_epochs: 4, init_kl_coef: 0.2, target: 6,
   horizon: 10000, gamma: 1, lam: 0.95, cliprange: 0.2, cliprange_value: 0.2, vf_coef: 0.2,
   scale_reward: False, cliprange_reward: 10, ref_mean: null, ref_std: null,
   gen_kwargs: {max_new_tokens: 256, top_k: 0, top_p: 0.7, do_sample: True, temperature: 0.5}}
"""


def test_grounded_program_synthesis(tmp_path):
    """A YAML file read with yaml; -1, -0.5 or 1 as reward; the policy saved where one likes.

    The file leaves no room for a prompt: trlX cuts every one to nothing and stops. Here it is
    refused when it is read; with room it trains.
    """
    from_file = yaml.safe_load(SYNTHESIS)
    with pytest.raises(ConfigError, match="train.seq_length is 256: give more than .* 256, so"):
        TRLConfig.update(from_file, {})
    prompts = [f"Input: {n} Output: {n + 1} Function:" for n in range(6)]

    def reward_fn(samples, **kwargs):
        rewards = []
        for sample in samples:
            code = sample.split("Function:")[1].strip()
            rewards.append(1 if code.isalpha() else -0.5 if code else -1)
        return rewards

    config = small(from_file, tmp_path)
    trainer = train(reward_fn=reward_fn, prompts=prompts, config=config)
    assert_trained(trainer, tmp_path)
    trainer.save_pretrained(str(tmp_path / "dataset" / "trained_model"))
    assert (tmp_path / "dataset" / "trained_model").is_dir()


def test_summarize_rlhf(tmp_path):
    """Greedy rollouts, and a reward that looks the prompt up in a dict, so it must come back."""
    config = full_config(scale_reward=None, init_kl_coef=0.1, gen_kwargs={"max_new_tokens": 50})
    config = small(config, tmp_path, optimizer__kwargs__betas=[0.9, 0.999])
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer.tokenizer_path)
    room = config.train.seq_length - config.method.gen_kwargs["max_new_tokens"]

    def as_trlx_will_see_it(post):
        ids = tokenizer(post, truncation=True, max_length=room, add_special_tokens=False).input_ids
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    posts = [as_trlx_will_see_it(f"POST: {text}\nTL;DR:") for text in PROMPTS]
    summary_of = {post: text[::-1] for post, text in zip(posts, PROMPTS, strict=True)}

    def scores_of(texts):
        return torch.tensor([text.count("e") / (1 + len(text)) for text in texts])

    def reward_fn(samples: list[str], **kwargs):
        starts = [text.split("TL;DR:")[0] + "TL;DR: " for text in samples]
        originals = [start + summary_of[start.strip()] for start in starts]
        return scores_of(samples) - scores_of(originals)

    trainer = train(
        reward_fn=reward_fn, prompts=posts, eval_prompts=posts[:5], config=config
    )  # fmt: skip
    assert_trained(trainer, tmp_path)
    rows = read_jsonl(tmp_path / "run" / "eval_samples.jsonl")
    assert {row["prompt"].strip() for row in rows} == set(posts[:5])


def test_ppo_dense_sentiments(tmp_path):
    """After 0.7.0: the reward function gets the tokenizer, and gives a reward to each token."""
    tokenizers = set()

    def dense_reward(samples, prompts, outputs, tokenizer, **kwargs):
        tokenizers.add(id(tokenizer))
        rewards = []
        for output in outputs:
            row = [0.0] * max(1, len(tokenizer(output).input_ids))
            row[len(row) // 2] += 0.25
            row[-1] += 0.5
            rewards.append(row)
        return rewards

    config = small(default_ppo_config(), tmp_path, optimizer__kwargs__lr=1e-3)
    trainer = train(
        reward_fn=dense_reward, prompts=OPENINGS, eval_prompts=["the model"] * 6, config=config
    )
    assert_trained(trainer, tmp_path)
    assert tokenizers == {id(trainer.tokenizer)}
    assert set(trainer.store.scores) == {0.75}
    assert {line.get("reward/mean", 0.75) for line in metrics_of(tmp_path)} == {0.75}


# --- what is in trlX alone -------------------------------------------------------------------


@pytest.mark.parametrize("example", ["t5_summarize_daily_cnn", "ppo_sentiments_t5", "translation"])
def test_encoder_decoder_models_are_refused(example):
    """Three examples tune a T5: the model's section says so before anything else is looked at."""
    unfrozen = {"t5_summarize_daily_cnn": 2}.get(example, -1)
    with pytest.raises(ConfigError) as caught:
        ModelConfig(model_path="t5", model_arch_type="seq2seq", num_layers_unfrozen=unfrozen)
    assert str(caught.value) == (
        "model.model_arch_type is 'seq2seq': give 'causal', as encoder-decoder models such as T5 "
        "are in trlX alone."
    )


def test_nemo_is_refused_by_its_trainer(tmp_path):
    """0.7's nemo_ppo_sentiments: `evolve` with another trainer, optimizer and scheduler."""
    with pytest.raises(ConfigError) as caught:
        default_ppo_config().evolve(
            train=dict(trainer="NeMoPPOTrainer", seq_length=2048, seed=2023, tags=["nemo"],
                       trainer_kwargs=dict(pretrained_model="nemo/", megatron_cfg=object())),
            optimizer=dict(name="distributed_fused_adam", kwargs=dict(lr=6e-5)),
            scheduler=dict(name="CosineAnnealing"),
            method=dict(scale_reward="ref", gen_kwargs=dict(temperature=1.0, max_new_tokens=40)),
        )  # fmt: skip
    assert str(caught.value) == (
        "train.trainer is 'NeMoPPOTrainer': give 'AcceleratePPOTrainer', as ILQL, SFT, rejection "
        "fine-tuning and NeMo are in trlX alone."
    )


@pytest.mark.parametrize(
    ("name", "trainer"),
    [("ilqlconfig", "AccelerateILQLTrainer"), ("sftconfig", "AccelerateSFTTrainer"),
     ("RFTConfig", "AccelerateRFTTrainer")],
)  # fmt: skip
def test_configurations_of_other_methods_are_refused(name, trainer):
    data = default_ppo_config().to_dict()
    data["method"] = {"name": name, "gen_kwargs": {"max_new_tokens": 40}}
    with pytest.raises(ConfigError) as caught:
        TRLConfig.from_dict(data)
    assert str(caught.value) == (
        f"method.name is '{name}': give one of the methods that exist here: PPOConfig, RLOOConfig, "
        "GRPOConfig."
    )
    with pytest.raises(ConfigError, match=f"train.trainer is '{trainer}': give 'AcceleratePPO"):
        default_ppo_config().evolve(train={"trainer": trainer})


@pytest.mark.parametrize(
    "offline",
    [{"samples": ["a", "b"], "rewards": [0.0, 1.0]}, {"dataset": (["a", "b"], [0.0, 1.0])},
     {"samples": [["question", "answer"]], "metric_fn": lambda samples, **kwargs: {}}],
    ids=["ILQL", "ILQL by dataset", "SFT"],
)  # fmt: skip
def test_offline_calls_are_refused(offline):
    with pytest.raises(ConfigError) as caught:
        train("gpt2", config=default_ppo_config(), eval_prompts=["a"], **offline)
    assert str(caught.value) == (
        "train() tunes online with reward_fn only: dataset, samples and rewards belong to trlX's "
        "offline methods (ILQL, SFT), which this project does not have."
    )


@pytest.mark.parametrize(("variable", "name"), [
    ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
])  # fmt: skip
def test_launching_with_deepspeed_is_refused(tmp_path, monkeypatch, variable, name):
    """As `accelerate launch` with trlX's configs/accelerate/zero2-bf16.yaml asks for it."""
    monkeypatch.setenv(variable, "true")
    config = small(default_ppo_config(), tmp_path)
    with pytest.raises(ConfigError, match=f"^{name} is not supported: launch with --multi_gpu"):
        train(reward_fn=positive_reward, prompts=OPENINGS, config=config)


# --- YAML files of each version --------------------------------------------------------------

# Numbers that differ from file to file and decide nothing here are left out.
SIX_SECTIONS = copy.deepcopy(yaml.safe_load(SYNTHESIS))
SIX_SECTIONS["method"]["gen_kwargs"] = {"max_new_tokens": 9, "top_k": 0.0, "do_sample": True}
SIX_SECTIONS["train"]["seq_length"] = 10


def write_yaml(root, data):
    path = root / "config.yml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_yaml_of_0_5_to_0_7_loads_and_trains(tmp_path):
    config = TRLConfig.load_yaml(write_yaml(tmp_path, SIX_SECTIONS))
    assert config.method.scale_reward is None and config.method.gen_kwargs["top_k"] == 0
    trainer = train(
        reward_fn=positive_reward, prompts=OPENINGS, config=small(config, tmp_path)
    )  # fmt: skip
    assert_trained(trainer, tmp_path)


def test_yaml_with_lengths_that_count_the_prompt_loads_and_says_why_it_does_not_train(tmp_path):
    """configs/test_config.yml of 0.4 to 0.7; trlX's train() stops at the missing max_new_tokens."""
    data = copy.deepcopy(SIX_SECTIONS)
    data["method"]["gen_kwargs"] = {"max_length": 48, "min_length": 48, "do_sample": True}
    config = TRLConfig.load_yaml(write_yaml(tmp_path, data))
    with pytest.raises(ConfigError) as caught:
        train(reward_fn=positive_reward, prompts=OPENINGS, config=config)
    assert str(caught.value) == (
        "method.gen_kwargs.max_length is 48: it counts the prompt, give max_new_tokens instead."
    )


def test_yaml_of_0_4_loads_with_its_tokenizer_and_trains(tmp_path):
    data = copy.deepcopy(SIX_SECTIONS)
    path = str(model_dir(tmp_path, "gpt2", "nobos"))
    data["model"] |= {"tokenizer_path": path, "model_path": path}
    data["train"] |= {"orchestrator": "PPOOrchestrator"}
    del data["tokenizer"]
    with pytest.warns(UserWarning) as caught:
        config = TRLConfig.load_yaml(write_yaml(tmp_path, data))
    assert [str(w.message) for w in caught] == [
        "these trlX fields have no effect here: train.orchestrator (there is one way to make "
        "rollouts)"
    ]
    assert config.tokenizer == TokenizerConfig(path)
    with pytest.warns(UserWarning, match="train.orchestrator"):
        left = TRLConfig.update(data, {"tokenizer.truncation_side": "left"})
    assert left.tokenizer == TokenizerConfig(path, truncation_side="left")
    trainer = train(reward_fn=positive_reward, prompts=OPENINGS, config=small(config, tmp_path))
    assert_trained(trainer, tmp_path)


@pytest.mark.parametrize(("rate", "target"), [
    ("learning_rate_init", "learning_rate_target"), ("lr_init", "lr_target"),
])  # fmt: skip
def test_yaml_of_0_2_and_0_3_is_refused_with_what_to_write_where(tmp_path, rate, target):
    data = copy.deepcopy(SIX_SECTIONS)
    for section in ("tokenizer", "optimizer", "scheduler"):
        del data[section]
    data["model"] |= {"tokenizer_path": "gpt2", "model_type": "AcceleratePPOModel"}
    old = {rate: 1.4e-4, target: 1.3e-4, "opt_betas": [0.9, 0.95], "weight_decay": 1e-6}
    data["train"] |= {**old, "orchestrator": "PPOOrchestrator"}
    with pytest.raises(ConfigError) as caught:
        TRLConfig.load_yaml(write_yaml(tmp_path, data))
    message = str(caught.value)
    assert message.startswith(
        "section optimizer is missing, this is a configuration of trlX 0.2 or 0.3: write "
    )
    assert message.endswith(", and the rest as docs/coming_from_trlx.md says.")
    moves = dict(re.findall(r"train\.(\w+) as ([\w.]+\w)", message))
    assert moves.keys() == old.keys()
    # Following the sentence and the page gives a configuration with the old numbers.
    data["scheduler"] = {"name": "cosine_annealing", "kwargs": {"T_max": 80000}}
    data["optimizer"] = {"name": "adamw", "kwargs": {}}
    for name, place in moves.items():
        section, kwargs, key = place.split(".")
        data[section][kwargs][key] = data["train"].pop(name)
    with pytest.warns(UserWarning, match=r"model.model_type .*, train.orchestrator "):
        config = TRLConfig.load_yaml(write_yaml(tmp_path, data))
    assert config.optimizer.kwargs == {"lr": 1.4e-4, "betas": (0.9, 0.95), "weight_decay": 1e-6}
    assert config.scheduler.kwargs == {"T_max": 80000, "eta_min": 1.3e-4}
    assert config.tokenizer.tokenizer_path == "gpt2"


def test_peft_methods_other_than_lora_are_refused(tmp_path):
    """trlX 0.7 takes prompt and prefix tuning too."""
    config = small(default_ppo_config(), tmp_path)
    config.model.peft_config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}
    with pytest.raises(ConfigError) as caught:
        train(reward_fn=positive_reward, prompts=OPENINGS, config=config)
    assert str(caught.value) == (
        "model.peft_config.peft_type is 'PREFIX_TUNING': give 'lora', the only kind of adapter "
        "supported, or null."
    )

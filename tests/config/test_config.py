"""Configurations: the post's and trlX's, overrides, and errors in one sentence."""

from __future__ import annotations

import copy
import inspect
import json
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from any_value import anything
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_helpers.config import sections as config_sections
from rlhf_helpers.config.checks import ConfigError, ConfigWarning
from rlhf_helpers.config.files import parse_overrides
from rlhf_helpers.config.kwargs import (
    OPTIMIZERS,
    SCHEDULERS,
    optimizer_class_path,
    scheduler_class_path,
)
from rlhf_helpers.config.paths import repo_root, resolve_run_dir
from rlhf_helpers.config.profiles import check_run_dir, load_profile, profile_names, save_config
from rlhf_helpers.config.sections import (
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    PPOConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainConfig,
    get_method,
    register_method,
)
from rlhf_helpers.config.trl_config import TRLConfig, default_ppo_config, validate_config

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())
ADDED = {
    "method": ["semantics"],
    "model": ["peft_config", "dtype", "load_in_4bit"],
    "train": ["checkpoint_seconds", "keep_checkpoints", "reward_timeout_seconds",
              "reward_retries", "watchdog"],
}


def myconfig() -> TRLConfig:
    """The post's configuration, word for word."""
    return TRLConfig(
        train=TrainConfig(
            seq_length=128,
            epochs=1000,
            total_steps=10000,
            batch_size=32,
            checkpoint_interval=10000,
            eval_interval=100,
            pipeline="PromptPipeline",
            trainer="AcceleratePPOTrainer",
            save_best=False,
        ),
        model=ModelConfig(model_path='facebook/opt-1.3b', num_layers_unfrozen=2,
            delta_kwargs={"delta_type": "lora", "modified_modules": "attention", "lora_r": 8,
                          "lora_alpha": 16, "lora_dropout": 0.05}),
        tokenizer=TokenizerConfig(tokenizer_path='facebook/opt-1.3b', truncation_side="right"),
        optimizer=OptimizerConfig(
            name="adamw", kwargs=dict(lr=1.0e-4, betas=(0.9, 0.95), eps=1.0e-8, weight_decay=1.0e-6)
        ),
        scheduler=SchedulerConfig(name="cosine_annealing",
                                  kwargs=dict(T_max=10000, eta_min=1.0e-4)),
        method=PPOConfig(
            name="PPOConfig",
            num_rollouts=128,
            chunk_size=128,
            ppo_epochs=4,
            init_kl_coef=0.05,
            target=6,
            horizon=10000,
            gamma=1,
            lam=0.95,
            cliprange=0.2,
            cliprange_value=0.2,
            vf_coef=1,
            scale_reward="ignored",
            ref_mean=None,
            ref_std=None,
            cliprange_reward=10,
            gen_kwargs=dict(
                max_new_tokens=40,
                top_k=0,
                top_p=1.0,
                do_sample=True,
            ),
        ),
    )


def plain(config: TRLConfig, without_added: bool = False) -> dict:
    """The configuration as JSON sees it (tuples are lists), perhaps without our own fields."""
    data = json.loads(json.dumps(config.to_dict()))
    for section, names in (ADDED if without_added else {}).items():
        for name in names:
            del data[section][name]
    return data


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# --- trlX's own ------------------------------------------------------------------------------


def test_post_configuration_keeps_the_values_given():
    data = plain(myconfig(), without_added=True)
    assert data["model"]["delta_kwargs"]["lora_dropout"] == 0.05
    assert data["optimizer"]["kwargs"] == {
        "lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 1e-6}
    assert (data["method"]["gamma"], data["method"]["target"]) == (1, 6)
    assert data["train"]["checkpoint_dir"] == "ckpts" and data["train"]["seed"] == 1000


def test_seed_profile_is_the_posts_configuration_field_for_field():
    profile = load_profile("seed")
    assert profile.config == myconfig()
    assert profile.config.to_dict() == myconfig().to_dict()
    assert profile.assets == {
        "policy": "facebook/opt-1.3b", "reward": "lvwerra/distilbert-imdb",
        "data": "stanfordnlp/imdb", "judge": "siebert/sentiment-roberta-large-english"}


def test_default_configuration_has_trlx_values_but_no_tracker():
    expected = copy.deepcopy(GOLDEN["api"]["default_ppo_config"])
    assert expected["train"].pop("tracker") == "wandb"
    actual = plain(default_ppo_config(), without_added=True)
    assert actual["train"].pop("tracker") is None
    assert actual == expected


def test_recorded_trlx_configuration_goes_in_and_out_unchanged():
    config = TRLConfig.from_dict(GOLDEN["config"])
    assert plain(config, without_added=True) == GOLDEN["config"]


def test_field_order_is_trlx_order():
    for section, fields in GOLDEN["api"]["default_ppo_config"].items():
        ours = getattr(default_ppo_config(), section).field_names()
        assert [name for name in ours if name not in ADDED.get(section, [])] == list(fields)


def test_ppo_numbers_default_to_those_of_trlx():
    expected = GOLDEN["api"]["default_ppo_config"]["method"]
    assert {k: v for k, v in PPOConfig().to_dict().items() if k != "semantics"} == expected


# Written as trlX's own YAML files are: lower-case method, False for no scaling, 0.0 for a count.
TRLX_YAML = """
train:
  seq_length: 64
  epochs: 100
  total_steps: 1000
  batch_size: 16
  checkpoint_interval: 10000
  eval_interval: 128
  pipeline: "PromptPipeline"
  trainer: "AcceleratePPOTrainer"
  tracker: wandb
model: {model_path: "lvwerra/gpt2-imdb", num_layers_unfrozen: 2}
tokenizer: {tokenizer_path: "gpt2", truncation_side: "right"}
optimizer:
  name: "adamw"
  kwargs: {lr: 1.412e-4, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 1.0e-6}
scheduler: {name: "cosine_annealing", kwargs: {T_max: 10000, eta_min: 1.412e-4}}
method:
  name: "ppoconfig"
  num_rollouts: 128
  chunk_size: 128
  ppo_epochs: 4
  init_kl_coef: 0.2
  target: 6
  horizon: 10000
  gamma: 0.99
  lam: 0.95
  cliprange: 0.2
  cliprange_value: 0.2
  vf_coef: 1.0
  scale_reward: False
  cliprange_reward: 10
  ref_mean: null
  ref_std: null
  gen_kwargs: {max_length: 48, min_length: 48, top_k: 0.0, top_p: 1.0, do_sample: True}
"""


def test_trlx_yaml_loads_without_a_warning(tmp_path):
    path = tmp_path / "trlx.yml"
    path.write_text(TRLX_YAML)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = TRLConfig.load_yaml(path)
    assert config.optimizer.kwargs["eps"] == 1e-8  # YAML 1.1 reads 1e-8 as a text
    assert config.method.gen_kwargs["top_k"] == 0
    assert config.method.scale_reward is None
    assert config.train.tracker == "wandb"


def test_lengths_that_count_the_prompt_load_but_do_not_train(tmp_path):
    config = TRLConfig.from_dict(yaml.safe_load(TRLX_YAML) | {})
    assert "method.gen_kwargs.max_length is 48: it counts the prompt, give max_new_tokens" in (
        error_of(validate_config, config))


def test_fields_of_other_trlx_versions_are_named_in_one_warning():
    data = plain(default_ppo_config())
    data["train"] |= {"minibatch_size": 4, "run_name": "x"}
    data["model"]["model_extra_configs"] = {}
    data["method"]["num_value_layers_unfrozen"] = 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = TRLConfig.from_dict(data)
    assert [w.category for w in caught] == [ConfigWarning]
    for name in ("train.minibatch_size", "train.run_name", "model.model_extra_configs",
                 "method.num_value_layers_unfrozen"):
        assert name in str(caught[0].message)
    assert config == default_ppo_config()


def test_constructors_take_fields_of_other_trlx_versions_with_a_warning():
    with pytest.warns(ConfigWarning, match="tokenizer.tokenizer_extra_configs"):
        TokenizerConfig("gpt2", tokenizer_extra_configs={"use_fast": True})


# --- update, evolve --------------------------------------------------------------------------


def test_update_takes_dotted_and_nested_keys_and_leaves_its_arguments_alone():
    base = default_ppo_config().to_dict()
    before = copy.deepcopy(base)
    overrides = {"method.gamma": 0.5, "optimizer.kwargs.lr": 1e-3,
                 "method": {"gen_kwargs": {"top_k": 7}}, "train": {"seed": 3}}
    config = TRLConfig.update(base, overrides)
    assert config.method.gamma == 0.5 and config.train.seed == 3
    assert config.optimizer.kwargs["lr"] == 1e-3
    assert config.optimizer.kwargs["weight_decay"] == 1e-6
    assert config.method.gen_kwargs["top_k"] == 7
    assert config.method.gen_kwargs["max_new_tokens"] == 40
    assert base == before and overrides["method"] == {"gen_kwargs": {"top_k": 7}}


def test_update_takes_a_configuration_as_its_base_as_trlx_does():
    base = default_ppo_config()
    assert TRLConfig.update(base, {"train.seed": 5}).train.seed == 5
    assert base.train.seed == 1000
    assert TRLConfig.update(base, {}) == base


def test_update_adds_to_free_form_settings_and_removes_with_null():
    config = TRLConfig.update(myconfig(), {
        "method.gen_kwargs.temperature": "0.7", "optimizer.name": "SGD",
        "optimizer.kwargs": {"betas": None, "eps": None, "momentum": 0.9},
        "model.delta_kwargs": None, "model.peft_config": {"peft_type": "LORA", "r": 8}})
    assert config.method.gen_kwargs["temperature"] == 0.7
    assert config.optimizer.kwargs == {"lr": 1e-4, "weight_decay": 1e-6, "momentum": 0.9}
    assert config.model.peft_config == {"peft_type": "LORA", "r": 8}


@pytest.mark.parametrize(("override", "suggestion"), [
    ({"method.ppo_epoch": 2}, "method.ppo_epochs"),
    ({"methd": {"gamma": 1}}, "method.gamma"),
    ({"methd": 3}, "method"),
    ({"train.gamma": 0.9}, "method.gamma"),
    ({"method.gen_kwargs.max_new_token": 3}, "method.gen_kwargs.max_new_tokens"),
    ({"train": {"batchsize": 3}}, "train.batch_size"),
    ({"lr": 3}, "train"),
])
def test_unknown_parameters_are_errors_that_name_a_close_one(override, suggestion):
    message = error_of(TRLConfig.update, default_ppo_config(), override)
    assert "is not present in the config (typo or a wrong config)" in message
    if override != {"lr": 3}:
        assert message.endswith(f"did you mean {suggestion}?")


def test_evolve_changes_a_copy():
    config = default_ppo_config()
    static = config.evolve(method=dict(gen_kwargs=dict(cache_implementation="static")))
    assert static.method.gen_kwargs["cache_implementation"] == "static"
    evolved = config.evolve(method=dict(gamma=0.99, gen_kwargs=dict(max_new_tokens=100)))
    assert evolved.method.gamma == 0.99 and evolved.method.gen_kwargs["max_new_tokens"] == 100
    assert evolved.method.gen_kwargs["top_p"] == 1.0
    assert config == default_ppo_config()


def test_to_dict_is_a_copy():
    config = myconfig()
    config.to_dict()["method"]["gen_kwargs"]["max_new_tokens"] = 1
    assert config == myconfig()


def test_overrides_from_a_command_line():
    assert parse_overrides(["method.ppo_epochs=2", "train.tracker=null", "a.b=[1, 2]",
                            "model.model_path=x=y"]) == {
        "method.ppo_epochs": 2, "train.tracker": None, "a.b": [1, 2], "model.model_path": "x=y"}
    assert "override is 'oops': write it as name=value" in error_of(parse_overrides, ["oops"])
    assert "is not valid YAML" in error_of(parse_overrides, ["a=[1"])


# --- checks ----------------------------------------------------------------------------------

BAD = [
    ("train.total_steps", 0, "whole number from 1"),
    ("train.total_steps", True, "whole number"),
    ("train.total_steps", 2.5, "whole number"),
    ("train.total_steps", None, "whole number"),
    ("train.batch_size", -3, "whole number from 1"),
    ("train.batch_size", "many", "whole number"),
    ("train.batch_size", 10**400, "whole number"),
    ("train.batch_size", 10**7, "to 65536"),
    ("train.seq_length", 40, "give more than method.gen_kwargs.max_new_tokens, which is 40"),
    ("train.seed", -1, "from 0"),
    ("train.seed", 2**32, "from 0"),
    ("train.tracker", "mlflow", "'tensorboard', 'wandb', 'trackio'"),
    ("train.tracker", False, "null"),
    ("train.save_best", 1, "true or false"),
    ("train.save_best", "yes", "true or false"),
    ("train.checkpoint_dir", "", "non-empty"),
    ("train.checkpoint_dir", "a\0b", "printable"),
    ("train.checkpoint_dir", "x" * 300, "255 bytes"),
    ("train.project_name", "\ud800", "printable"),
    ("train.tags", "one", "list of texts"),
    ("train.pipeline", "MyPipeline", "'PromptPipeline'"),
    ("train.trainer", "AccelerateILQLTrainer", "'AcceleratePPOTrainer'"),
    ("train.trainer_kwargs", {"f": print}, "only numbers"),
    ("train.checkpoint_seconds", float("nan"), "or null"),
    ("train.keep_checkpoints", 0, "from 1"),
    ("train.reward_timeout_seconds", 0, "above 0"),
    ("train.reward_retries", -1, "from 0"),
    ("train.watchdog", "panic", "train.watchdog.action is 'panic': give one of 'stop', 'skip'"),
    ("train.watchdog.max_kl", 0, "above 0"),
    ("train.watchdog.max_gradient_growth", 1, "above 1"),
    ("train.watchdog.min_entropy_share", 1, "below 1"),
    ("train.watchdog.max_kL", 5, "did you mean train.watchdog.max_kl"),
    ("model.model_path", 7, "non-empty"),
    ("model.model_arch_type", "seq2seq", "'causal'"),
    ("model.num_layers_unfrozen", -2, "from -1"),
    ("model.num_layers_unfrozen", "two", "from -1"),
    ("model.dtype", "fp16", "did you mean 'float16'"),
    ("model.delta_kwargs", [], "mapping"),
    ("model.delta_kwargs.delta_type", "adapter", "'lora'"),
    ("model.delta_kwargs.lora_r", 0, "from 1"),
    ("model.delta_kwargs.lora_alpha", 0, "above 0"),
    ("model.delta_kwargs.lora_dropout", 1.0, "below 1"),
    ("model.delta_kwargs.modified_modules", [], "at least one module"),
    ("model.delta_kwargs.modified_modules", ["[r](("], "regular expression"),
    ("model.delta_kwargs.rank", 8, "did you mean model.delta_kwargs."),
    ("model.peft_config", {"peft_type": "LORA"}, "keep one of the two"),
    ("tokenizer.padding_side", "top", "'left', 'right'"),
    ("optimizer.name", "adamm", "did you mean 'adam'"),
    ("optimizer.name", "LBFGS", "adamw"),
    ("optimizer.kwargs.lr", -1e-4, "at least 0"),
    ("optimizer.kwargs.lr", "fast", "at least 0"),
    ("optimizer.kwargs.lr", float("inf"), "at least 0"),
    ("optimizer.kwargs.betas", 0.9, "list of two numbers"),
    ("optimizer.kwargs.betas", [0.9, 1.0], "below 1"),
    ("optimizer.kwargs.eps", 0, "at least 1e-16"),
    ("optimizer.kwargs.momentum", 0.9, "'adamw' has no such option"),
    ("optimizer.kwargs.maximize", True, "low reward"),
    ("scheduler.name", "cosine", "did you mean"),
    ("scheduler.kwargs.T_max", 0, "whole number from 1"),
    ("scheduler.kwargs.T_max", None, "is missing"),
    ("scheduler.kwargs.eta_min", -1, "at least 0"),
    ("method.name", "ILQLConfig", "PPOConfig"),
    ("method.ppo_epochs", 0, "from 1"),
    ("method.num_rollouts", 0, "from 1"),
    ("method.chunk_size", 0, "from 1"),
    ("method.init_kl_coef", -0.1, "at least 0"),
    ("method.target", 0, "above 0"),
    ("method.horizon", 0, "at least 1"),
    ("method.gamma", 1.01, "at most 1"),
    ("method.lam", -0.01, "at least 0"),
    ("method.cliprange", 0, "above 0"),
    ("method.cliprange_value", float("nan"), "above 0"),
    ("method.vf_coef", -1, "at least 0"),
    ("method.scale_reward", "whiten", "'running'"),
    ("method.ref_std", 0, "at least 1e-08"),
    ("method.cliprange_reward", -1, "at least 0"),
    ("method.semantics", "correct", "did you mean 'corrected'"),
    ("method.gen_kwargs", None, "mapping"),
    ("method.gen_kwargs.max_new_tokens", 0, "from 1"),
    ("method.gen_kwargs.cache_implementation", "hybrid", "give one of 'static'"),
    ("method.gen_kwargs.max_new_tokens", 100_001, "to 100000"),
    ("method.gen_kwargs.max_new_tokens", 128, "which is 128"),
    ("method.gen_kwargs.min_new_tokens", 41, "which is 40"),
    ("method.gen_kwargs.temperature", 0, "at least 0.01"),
    ("method.gen_kwargs.temperature", [0.5, 1.0], "give one value"),
    ("method.gen_kwargs.top_p", 0, "above 0"),
    ("method.gen_kwargs.top_p", 1.5, "at most 1"),
    ("method.gen_kwargs.top_k", -1, "from 0"),
    ("method.gen_kwargs.do_sample", "true", "true or false"),
    ("method.gen_kwargs.num_beams", 4, "leave it out"),
    ("method.gen_kwargs.num_return_sequences", 2, "num_rollouts"),
    ("method.gen_kwargs.penalty_alpha", 0.6, "remove it"),
    ("method.gen_kwargs.temprature", 0.6, "did you mean method.gen_kwargs.temperature"),
    ("method.gen_experience_kwargs", {"max_new_tokens": 500}, "gen_experience_kwargs"),
]


@pytest.mark.parametrize(("path", "value", "remedy"), BAD)
def test_bad_values_give_one_sentence_with_field_and_remedy(path, value, remedy):
    message = error_of(TRLConfig.update, myconfig(), {path: value})
    assert remedy in message
    # A relation between two fields may name the other one.
    assert path in message or path.rsplit(".", 1)[0] in message or "train.seq_length" in message
    assert "\n" not in message and message[-1] in ".?" and len(message) < 700


@pytest.mark.parametrize(("path", "given", "stored"), [
    ("optimizer.kwargs.lr", "1e-4", 1e-4),
    ("method.init_kl_coef", "0.05", 0.05),
    ("train.total_steps", 1e4, 10_000),
    ("train.total_steps", "1_000", 1000),
    ("scheduler.kwargs.T_max", 1e12, 10**12),
    ("train.batch_size", np.int64(16), 16),
    ("method.gamma", np.float32(0.5), 0.5),
    ("train.checkpoint_dir", Path("a") / "b", str(Path("a") / "b")),
    ("method.target", None, None),
    ("method.cliprange_reward", None, None),
    ("train.tags", ("a", "b"), ["a", "b"]),
    ("model.num_layers_unfrozen", 0, 0),
    ("optimizer.kwargs.betas", ["0.8", 0.9], (0.8, 0.9)),
])
def test_harmless_spellings_are_accepted_and_stored_plainly(path, given, stored):
    value = TRLConfig.update(myconfig(), {path: given}).to_dict()
    for name in path.split("."):
        value = value[name]
    assert value == stored and type(value) is type(stored)


def test_missing_and_unknown_fields_and_sections():
    assert error_of(TokenizerConfig).startswith("tokenizer.tokenizer_path is missing")
    assert "did you mean train.batch_size" in error_of(TrainConfig, bach_size=3)
    data = myconfig().to_dict()
    del data["model"]
    assert "section model is missing" in error_of(TRLConfig.from_dict, data)
    assert "did you mean model" in error_of(TRLConfig.from_dict, data | {"modell": {}})
    assert "model is 3" in error_of(TRLConfig.from_dict, data | {"model": 3})
    assert "mapping" in error_of(TRLConfig.from_dict, [1, 2])


def test_relations_between_reward_scaling_fields():
    assert "method.chunk_size is 1" in error_of(PPOConfig, chunk_size=1, scale_reward="running")
    assert "method.chunk_size is 1" in error_of(PPOConfig, chunk_size=1, scale_reward="ref")
    assert "method.ref_std" in error_of(PPOConfig, scale_reward="ref", ref_mean=1.0)
    PPOConfig(chunk_size=1, scale_reward="ref", ref_mean=1.0, ref_std=2.0)
    PPOConfig(chunk_size=1)


def test_optimizer_options_that_exclude_each_other():
    assert "not both" in error_of(OptimizerConfig, "adam", {"fused": True, "foreach": True})
    assert "momentum above 0" in error_of(OptimizerConfig, "sgd", {"nesterov": True})
    OptimizerConfig("sgd", {"nesterov": True, "momentum": 0.9})


def test_validate_config_sees_later_assignments():
    config = myconfig()
    validate_config(config)
    config.method.gen_kwargs["max_new_tokens"] = 128
    assert "train.seq_length is 128" in error_of(validate_config, config)
    config.method.gen_kwargs["max_new_tokens"] = "20"
    validate_config(config)
    assert config.method.gen_kwargs["max_new_tokens"] == 20
    config.train.batch_size = 0
    assert "train.batch_size is 0" in error_of(validate_config, config)
    assert "give a TRLConfig" in error_of(validate_config, config.to_dict())


def test_validate_config_asks_for_what_only_training_needs():
    config = myconfig()
    del config.method.gen_kwargs["max_new_tokens"]
    assert "method.gen_kwargs.max_new_tokens is missing" in error_of(validate_config, config)
    config = TRLConfig.update(myconfig(), {"tokenizer.padding_side": "right"})
    assert "tokenizer.padding_side is 'right'" in error_of(validate_config, config)


def test_validate_config_names_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = TRLConfig.update(myconfig(), {"train.tracker": "wandb"})
    assert "train.tracker is 'wandb': install the package wandb" in (
        error_of(validate_config, config))


class PeftObject:
    """Stands for a `peft.LoraConfig`, whose to_dict() lists every option that peft has."""

    def __init__(self, **options):
        self.options = {
            "task_type": "CAUSAL_LM", "peft_type": "LORA", "auto_mapping": None, "revision": None,
            "peft_version": "0.20.0", "base_model_name_or_path": None, "inference_mode": False,
            "r": 4, "target_modules": {"q_proj", "k_proj"}, "exclude_modules": None,
            "lora_alpha": 8, "lora_dropout": 0.1, "fan_in_fan_out": False, "bias": "none",
            "use_rslora": False, "modules_to_save": None, "init_lora_weights": True,
            "rank_pattern": {}, "alpha_pattern": {}, "megatron_core": "megatron.core",
            "use_dora": False, "qalora_group_size": 16,
            "runtime_config": {"ephemeral_gpu_offload": False}} | options

    def to_dict(self) -> dict:
        return self.options


def test_peft_objects_are_taken_as_trlx_07_takes_them():
    config = ModelConfig("gpt2", peft_config=PeftObject())
    wanted = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
              "lora_dropout": 0.1, "target_modules": ["k_proj", "q_proj"]}
    assert wanted.items() <= config.peft_config.items()
    assert json.loads(json.dumps(config.peft_config)) == config.peft_config
    assert ModelConfig("gpt2", peft_config=config.peft_config).peft_config == config.peft_config
    assert "use_dora" in error_of(ModelConfig, "gpt2", peft_config=PeftObject(use_dora=True))
    assert "leave it out" in error_of(ModelConfig, "gpt2", peft_config=PeftObject(bias="all"))


def test_further_methods_can_be_registered(monkeypatch):
    monkeypatch.setattr(config_sections, "METHODS", dict(config_sections.METHODS))

    @register_method
    @config_sections.section
    class ToyConfig(MethodConfig):
        section = "method"
        name: str = config_sections.setting(config_sections.text, "ToyConfig")
        strength: float = config_sections.setting(config_sections.number(0.0, 1.0), 0.5)

    data = myconfig().to_dict() | {"method": {"name": "toyconfig", "strength": 0.25}}
    config = TRLConfig.from_dict(data)
    assert type(config.method) is get_method("TOYCONFIG") is ToyConfig
    assert config.method.strength == 0.25
    assert "ToyConfig" in error_of(get_method, "DPO")


# --- the tables and torch --------------------------------------------------------------------


@pytest.mark.parametrize(("table", "path_of"), [
    (OPTIMIZERS, optimizer_class_path), (SCHEDULERS, scheduler_class_path)])
def test_names_and_options_exist_in_torch(table, path_of):
    for name, (_, checks) in table.items():
        path = path_of(name)
        if path.startswith("bitsandbytes"):
            continue
        accepted = inspect.signature(pkgutil.resolve_name(path)).parameters
        assert set(checks) <= set(accepted), name
    assert path_of("AdamW" if table is OPTIMIZERS else "linear").startswith("torch.optim.")


# The most extreme values that the checks let through, each tried on its own.
EXTREMES = {
    "lr": [0.0, 10.0], "weight_decay": [0.0, 10.0], "betas": [(0.0, 0.0), (0.999999, 0.0)],
    "eps": [1e-16, 1.0], "momentum": [0.0, 0.999], "dampening": [0.0, 1.0], "alpha": [0.0, 0.999],
    "rho": [0.0, 0.999], "lr_decay": [1.0], "initial_accumulator_value": [1e6], "lambd": [1.0],
    "t0": [0.0], "beta2_decay": [-1.0, 0.0], "d": [1.0], "momentum_decay": [0.0, 0.9],
    "amsgrad": [True], "foreach": [True, False], "fused": [True], "centered": [True],
    "decoupled_weight_decay": [True], "maximize": [False],
    "nesterov": [False],
}


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if "8bit" not in n])
def test_extreme_options_that_pass_the_checks_run_in_torch(name):
    import torch

    for option in OPTIMIZERS[name][1]:
        for value in EXTREMES[option]:
            checked = OptimizerConfig(name, {option: value}).kwargs
            weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
            optimizer = pkgutil.resolve_name(optimizer_class_path(name))([weight], **checked)
            for _ in range(2):
                weight.grad = torch.tensor([0.5, 0.0])  # a zero gradient divides by eps alone
                optimizer.step()
            assert torch.isfinite(weight).all(), (option, value)


@pytest.mark.parametrize(("name", "kwargs"), [
    ("cosine_annealing", {"T_max": 1}), ("cosine_annealing", {"T_max": 10**15, "eta_min": 10.0}),
    ("CosineAnnealingWarmRestarts", {"T_0": 1, "T_mult": 1000}),
    ("linear", {}), ("linear", {"start_factor": 1e-9, "end_factor": 0.0, "total_iters": 1}),
    ("ConstantLR", {"factor": 1e-9, "total_iters": 1}),
    ("PolynomialLR", {"total_iters": 1, "power": 100.0}),
    ("ExponentialLR", {"gamma": 1e-9}), ("StepLR", {"step_size": 1}),
])
def test_schedules_that_pass_the_checks_run_in_torch(name, kwargs):
    import torch

    config = SchedulerConfig(name, kwargs)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = pkgutil.resolve_name(scheduler_class_path(config.name))(optimizer, **config.kwargs)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    rate = optimizer.param_groups[0]["lr"]
    assert np.isfinite(rate) and rate >= 0.0


# --- anything at all -------------------------------------------------------------------------

SETTINGS = [f"{section}.{name}" for section, fields in myconfig().to_dict().items()
            for name in fields]
SETTINGS += [f"{path}.{name}" for path, names in {
    "method.gen_kwargs": ["max_new_tokens", "temperature", "top_k", "top_p", "do_sample", "x"],
    "optimizer.kwargs": ["lr", "betas", "eps", "weight_decay", "amsgrad", "x"],
    "scheduler.kwargs": ["T_max", "eta_min", "x"],
    "model.delta_kwargs": ["lora_r", "lora_alpha", "lora_dropout", "modified_modules"],
}.items() for name in names]

@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(SETTINGS), anything, min_size=1, max_size=2))
def test_any_value_anywhere_is_accepted_or_refused_in_one_sentence(overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        try:
            config = TRLConfig.update(myconfig(), overrides)
        except ConfigError as error:
            assert "\n" not in str(error) and str(error)[-1] in ".?"
            return
        # What is accepted is in normal form, and survives JSON and YAML.
        assert TRLConfig.from_dict(config.to_dict()) == config
        assert TRLConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert TRLConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


@settings(max_examples=60)
@given(st.text(max_size=40) | st.sampled_from(
    ["a: &a [*a]", "a: 1\na: 2", "!!python/object/apply:os.system [ls]", "\x00",
     "a: " + "9" * 5000, "2020-13-45", "{}", "- 1", "a: b: c", "? [1, 2]\n: 3", "<<: 3"]))
def test_any_text_as_yaml_gives_a_config_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yml"
    path.write_text(content, encoding="utf-8", errors="ignore")
    assert "\n" not in error_of(TRLConfig.load_yaml, path)


def test_yaml_errors_say_what_and_where(tmp_path):
    path = tmp_path / "bad.yml"
    path.write_text("train:\n  seed: 1\n  seed: 2\n")
    assert error_of(TRLConfig.load_yaml, path).endswith(
        "is not valid YAML in line 3: 'seed' is given twice.")
    path.write_text("a: !!python/object/apply:os.getcwd []\n")
    assert "could not determine a constructor" in error_of(TRLConfig.load_yaml, path)
    path.write_text("[" * 2000)
    assert "cannot be read" in error_of(TRLConfig.load_yaml, path)
    assert "cannot be read: No such file" in error_of(TRLConfig.load_yaml, tmp_path / "no.yml")


# --- profiles and run directories ------------------------------------------------------------


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_trains(name):
    profile = load_profile(name)
    validate_config(profile.config)
    assert profile.name == name
    assert profile.assets["policy"] == profile.config.model.model_path
    assert profile.config.tokenizer.tokenizer_path == profile.config.model.model_path
    assert profile.config.train.tracker is None  # nothing leaves the machine by default
    assert profile.prompts["words"] == 4
    # A profile is a YAML file of trlX's format.
    path = Path(config_sections.__file__).parents[1] / "profiles" / f"{name}.yml"
    assert TRLConfig.load_yaml(path) == profile.config


def test_profiles_of_the_tutorial_exist():
    assert {"cpu", "smoke", "seed", "t4", "smollm2", "alpaca-7b"} <= set(profile_names())
    smoke = load_profile("smoke")
    assert smoke.config.train.total_steps == 4
    assert smoke.config.method.num_rollouts == 16
    assert smoke.evaluation["n_prompts"] == 8


def test_overrides_reach_all_sections_of_a_profile(tmp_path):
    profile = load_profile("cpu", overrides={
        "method.ppo_epochs": 2, "evaluation.n_prompts": 64, "prompts": {"words": 5},
        "assets.judge": "another-judge"}, seed=7, run_dir=tmp_path)
    assert profile.config.method.ppo_epochs == 2
    assert profile.evaluation == {"n_prompts": 64, "samples_per_post_prompt": 16}
    assert profile.prompts == {"words": 5}
    assert profile.assets["judge"] == "another-judge"
    assert profile.config.train.seed == 7
    assert profile.config.train.checkpoint_dir == str(tmp_path)


@pytest.mark.parametrize("name", ["assets.policy", "model.model_path"])
def test_the_policy_has_one_name(name):
    profile = load_profile("cpu", overrides={name: "my/model"})
    assert profile.assets["policy"] == profile.config.model.model_path == "my/model"
    assert profile.config.tokenizer.tokenizer_path == "my/model"
    kept = load_profile("cpu", overrides={name: "my/model", "tokenizer.tokenizer_path": "gpt2"})
    assert kept.config.tokenizer.tokenizer_path == "gpt2"
    assert "give the same as model.model_path" in error_of(
        load_profile, "cpu", {"assets.policy": "a", "model.model_path": "b"})


@pytest.mark.parametrize(("overrides", "part"), [
    ({"evaluation.n_prompt": 3}, "did you mean evaluation.n_prompts"),
    ({"evaluation.n_prompts": 1}, "evaluation.n_prompts is 1"),
    ({"prompts.words": "four"}, "prompts.words is 'four'"),
    ({"assets": 3}, "assets is 3"),
    ({"assets.policy": None}, "assets.policy"),
    ({"method.ppo_epoch": 3}, "did you mean method.ppo_epochs"),
    ({3: 4}, "give a name"),
])
def test_bad_overrides_of_a_profile(overrides, part):
    assert part in error_of(load_profile, "cpu", overrides)


def test_unknown_profiles_and_seeds():
    assert "did you mean 'cpu'" in error_of(load_profile, "cpuu")
    assert "cannot be read" in error_of(load_profile, "nowhere/at/all")
    assert "train.seed is -1" in error_of(load_profile, "cpu", seed=-1)


def test_run_directories_lie_in_the_repository_wherever_one_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).resolve().parents[2]
    assert repo_root() == root
    assert resolve_run_dir("runs/cpu") == root / "runs" / "cpu"
    assert resolve_run_dir(tmp_path / "here") == tmp_path / "here"
    assert resolve_run_dir("~no-such-user/x").name == "x"


def test_config_yml_round_trip_holds_no_path_of_the_machine(tmp_path):
    profile = load_profile("seed", seed=3, run_dir=tmp_path / "run")
    path = save_config(profile, tmp_path / "run")
    assert path == tmp_path / "run" / "config.yml"
    assert [p.name for p in path.parent.iterdir()] == ["config.yml"]
    assert str(tmp_path) not in path.read_text()
    again = load_profile(tmp_path / "run", run_dir=tmp_path / "run")
    assert again == profile
    data = yaml.safe_load(path.read_text())
    expected = plain(myconfig())
    expected["train"]["seed"] = 3
    assert {key: data[key] for key in expected} == expected


def test_a_run_directory_belongs_to_one_configuration(tmp_path):
    profile = load_profile("cpu", run_dir=tmp_path)
    check_run_dir(profile, tmp_path)  # nothing there yet
    save_config(profile, tmp_path)
    check_run_dir(profile, tmp_path)
    other = load_profile("cpu", overrides={"method.ppo_epochs": 1}, run_dir=tmp_path)
    message = error_of(check_run_dir, other, tmp_path)
    assert "method.ppo_epochs is 4 there and 1 here" in message
    shorter = load_profile("cpu", overrides={"model.delta_kwargs": None}, run_dir=tmp_path)
    assert "model.delta_kwargs" in error_of(check_run_dir, shorter, tmp_path)


def test_config_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    message = error_of(save_config, load_profile("cpu"), tmp_path / "file" / "run")
    assert "cannot be written" in message and "\n" not in message


def test_loading_a_configuration_imports_no_model_library():
    code = ("import sys; from rlhf_helpers import load_profile; load_profile('cpu'); "
            "print({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=repo_root())
    assert done.stdout.strip() == "set()"

"""`train(engine="trlx")` against a stand-in for trlX, and against trlX itself where it is."""

import dataclasses
import importlib.util
import sys
import types
from typing import Any

import pytest
from tiny_runs import PROMPTS, letter_reward, run_config

from rlhf_helpers.config.checks import ConfigError, ConfigWarning
from rlhf_helpers.training.api import train


def dataclass_with(name, *fields):
    made = dataclasses.make_dataclass(name, [(f, Any, None) for f in fields])
    made.from_dict = classmethod(lambda cls, config: cls(**config))
    return made


@pytest.fixture
def fake_trlx(monkeypatch):
    """Modules with trlX v0.6.0's names and fields; `train` records its arguments."""
    trlx, data = types.ModuleType("trlx"), types.ModuleType("trlx.data")
    configs = types.ModuleType("trlx.data.configs")
    methods = types.ModuleType("trlx.data.method_configs")
    configs.ModelConfig = dataclass_with(
        "ModelConfig", "model_path", "model_arch_type", "num_layers_unfrozen", "delta_kwargs"
    )
    configs.TokenizerConfig = dataclass_with(
        "TokenizerConfig", "tokenizer_path", "padding_side", "truncation_side"
    )
    configs.OptimizerConfig = dataclass_with("OptimizerConfig", "name", "kwargs")
    configs.SchedulerConfig = dataclass_with("SchedulerConfig", "name", "kwargs")
    configs.TrainConfig = dataclass_with(
        "TrainConfig", "total_steps", "seq_length", "epochs", "batch_size", "checkpoint_interval",
        "eval_interval", "pipeline", "trainer", "trainer_kwargs", "project_name", "entity_name",
        "group_name", "checkpoint_dir", "rollout_logging_dir", "save_best", "tracker",
        "logging_dir", "tags", "seed",
    )  # fmt: skip
    ppo = dataclass_with(
        "PPOConfig", "name", "ppo_epochs", "num_rollouts", "chunk_size", "init_kl_coef", "target",
        "horizon", "gamma", "lam", "cliprange", "cliprange_value", "vf_coef", "scale_reward",
        "ref_mean", "ref_std", "cliprange_reward", "gen_kwargs", "gen_experience_kwargs",
    )  # fmt: skip

    class Config:
        @classmethod
        def from_dict(cls, config):
            made = cls()
            made.method = methods.get_method(config["method"]["name"]).from_dict(config["method"])
            for name in ("model", "optimizer", "scheduler", "tokenizer", "train"):
                section = getattr(configs, name.capitalize() + "Config")
                setattr(made, name, section.from_dict(config[name]))
            return made

    configs.TRLConfig = Config
    methods.get_method = lambda name: {"ppoconfig": ppo}[name.lower()]
    calls = []

    def their_train(model_path=None, reward_fn=None, dataset=None, samples=None, rewards=None,
                    prompts=None, eval_prompts=None, metric_fn=None, config=None,
                    stop_sequences=[]):  # noqa: B006  # fmt: skip
        calls.append(dict(locals()))
        return "their trainer"

    trlx.train = their_train
    for module in (trlx, data, configs, methods):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_the_same_call_reaches_trlx(fake_trlx, tmp_path):
    config = run_config(
        tmp_path, method__gamma=0.9, model__dtype=None, train__checkpoint_seconds=None
    )
    trainer = train(reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=["a"],
                    stop_sequences=["."], config=config, engine="trlx")  # fmt: skip
    assert trainer == "their trainer"
    (call,) = fake_trlx
    assert call["reward_fn"] is letter_reward
    assert (call["prompts"], call["eval_prompts"]) == (PROMPTS, ["a"])
    assert call["stop_sequences"] == ["."]
    theirs = call["config"]
    assert theirs.method.gamma == 0.9
    assert theirs.model.delta_kwargs == config.model.delta_kwargs
    assert theirs.train.total_steps == 4
    assert theirs.model.model_path == config.model.model_path
    assert not hasattr(theirs.train, "keep_checkpoints")


def test_settings_that_trlx_lacks_are_refused_or_named(fake_trlx, tmp_path):
    arguments = dict(reward_fn=letter_reward, prompts=PROMPTS, engine="trlx")
    with pytest.raises(ConfigError, match=r"method.semantics is 'corrected'.*remove it"):
        train(config=run_config(tmp_path, method__semantics="corrected", model__dtype=None),
              **arguments)  # fmt: skip
    with pytest.raises(ConfigError, match="model.dtype is 'float32'"):
        train(config=run_config(tmp_path), **arguments)
    assert not fake_trlx
    with pytest.warns(ConfigWarning, match="train.checkpoint_seconds, train.reward_retries"):
        train(config=run_config(tmp_path, model__dtype=None, train__reward_retries=2), **arguments)
    assert len(fake_trlx) == 1


def test_without_trlx_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trlx", None)
    with pytest.raises(ConfigError, match="engine='trlx' needs trlX itself") as caught:
        train(reward_fn=letter_reward, prompts=PROMPTS, config=run_config(tmp_path), engine="trlx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["trl", "TRLX ", ""])
def test_other_engines_do_not_exist(tmp_path, engine):
    with pytest.raises(ConfigError, match="engine is"):
        train(reward_fn=letter_reward, prompts=PROMPTS, config=run_config(tmp_path), engine=engine)


@pytest.mark.skipif(
    importlib.util.find_spec("trlx") is None,
    reason="trlX is not installed (it needs Python 3.11 and docs/trlx-constraints.txt)",
)
def test_the_real_trlx_runs_the_same_call(tmp_path):
    config = run_config(tmp_path, model__dtype=None, train__checkpoint_seconds=None)
    trainer = train(reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=PROMPTS, config=config,
                    engine="trlx")  # fmt: skip
    assert type(trainer).__module__.startswith("trlx.")
    assert trainer.iter_count == config.train.total_steps


def test_methods_that_trlx_lacks_are_refused(fake_trlx, tmp_path):
    with pytest.raises(ConfigError, match="method.name is 'RLOO'"):
        train(reward_fn=letter_reward, prompts=PROMPTS, engine="trlx",
              config=run_config(tmp_path, method__name="RLOO"))  # fmt: skip
    assert not fake_trlx

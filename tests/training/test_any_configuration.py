"""Any configuration either trains for two steps or is refused in one sentence."""

import contextlib
import io
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import yaml
from any_value import anything
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import PROMPTS, letter_reward, run_config

from rlhf_helpers.__main__ import main
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.kwargs import (
    DELTA_CHECKS,
    GENERATION_CHECKS,
    OPTIMIZERS,
    PEFT_CHECKS,
    SCHEDULERS,
    WATCHDOG_CHECKS,
)
from rlhf_helpers.config.sections import METHODS, SECTIONS
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.data.assets import AssetError
from rlhf_helpers.notebook import pipeline
from rlhf_helpers.rewards.reward import RewardError
from rlhf_helpers.training.api import train
from rlhf_helpers.training.watchdog import WatchdogError

REFUSALS = (ConfigError, AssetError, RewardError, WatchdogError)  # each one sentence

shares = st.sampled_from([0.0, 1e-9, 0.01, 0.5, 0.95, 0.999, 1.0])
numbers = st.sampled_from([0.0, 1e-12, 1e-3, 0.2, 1.0, 6.0, 1e3, 1e4, 1e9, 1e12, -1.0])
counts = st.sampled_from([0, 1, 2, 3, 5, 8, 64, 10_000, 10**9, "4", 2.0])
few = st.integers(0, 12)  # where many would take hours
tokens = st.sampled_from([0, 1, 2, 99, 383, 384, 50_000])
names_of_layers = st.sampled_from(
    ["attention", "all", "q_proj", ["q_proj", "fc1"], ["nothing"], "[r]layers\\.[02].*k_proj",
     "lm_head", "embed_tokens", ["layer_norm"], "ff", "final_layer_norm"]
)  # fmt: skip

# What is worth trying, by the last part of a setting's name; the others get `anything` only.
LIKELY = {
    "total_steps": st.integers(1, 2), "num_rollouts": few, "max_new_tokens": st.integers(0, 80),
    "min_new_tokens": few, "seq_length": st.sampled_from([2, 9, 10, 16, 24, 60, 64, 65, 70, 10**6]),
    "batch_size": counts, "epochs": counts, "ppo_epochs": counts, "chunk_size": counts,
    "checkpoint_interval": counts, "eval_interval": counts, "keep_checkpoints": counts,
    "checkpoint_seconds": numbers, "reward_timeout_seconds": st.sampled_from([1e-9, 30.0, 1e9]),
    "reward_retries": st.integers(0, 1), "seed": st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32]),
    "watchdog": st.sampled_from(["off", "stop", "skip", False, {}, {"max_kl": 1e-3}]),
    "tags": st.just(["a"]), "save_best": st.booleans(), "tracker": st.none(),
    "trainer_kwargs": st.just({"a": 1}), "num_layers_unfrozen": st.integers(-1, 5),
    "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
    "delta_kwargs": st.none(), "peft_config": st.just({"peft_type": "LORA", "r": 2}),
    "truncation_side": st.sampled_from(["left", "right"]), "padding_side": st.just("left"),
    "semantics": st.sampled_from(["trlx", "corrected"]),
    "scale_reward": st.sampled_from(["ignored", "running", "ref", False]),
    "target": numbers, "horizon": counts, "init_kl_coef": numbers, "vf_coef": numbers,
    "cliprange": numbers, "cliprange_value": numbers, "cliprange_reward": numbers,
    "gamma": shares, "lam": shares, "ref_mean": numbers, "ref_std": numbers,
    "gen_experience_kwargs": st.just({"max_new_tokens": 4, "do_sample": True, "top_k": 3}),
    "do_sample": st.booleans(), "use_cache": st.booleans(), "temperature": numbers,
    "top_k": counts, "top_p": shares, "min_p": shares, "typical_p": shares,
    "repetition_penalty": numbers, "no_repeat_ngram_size": st.integers(0, 9),
    "eos_token_id": tokens, "pad_token_id": tokens, "bos_token_id": tokens,
    "lr": st.sampled_from([0.0, 1e-4, 0.1, 10.0]), "betas": st.tuples(shares, shares),
    "eps": shares, "weight_decay": shares, "momentum": shares, "T_max": counts,
    "eta_min": shares, "lora_r": st.sampled_from([0, 1, 4, 31, 64]), "r": few,
    "lora_alpha": numbers, "lora_dropout": shares, "modified_modules": names_of_layers,
    "exclude_modules": names_of_layers, "target_modules": names_of_layers,
    "layers_to_transform": st.sampled_from([0, 2, 3, [0, 1], []]), "action": st.just("skip"),
    "use_rslora": st.booleans(), "fan_in_fan_out": st.booleans(), "delta_type": st.just("lora"),
    "max_kl": numbers, "max_gradient_growth": numbers, "min_entropy_share": shares,
    "name": st.just("PPOConfig"), "num_beams": st.just(1), "num_beam_groups": st.just(1),
    "num_return_sequences": st.just(1), "last_epoch": st.just(-1), "maximize": st.just(False),
    "amsgrad": st.booleans(), "foreach": st.booleans(), "fused": st.booleans(),
    "task_type": st.just("CAUSAL_LM"), "peft_version": st.just("0.20.0"),
    "revision": st.just("main"), "base_model_name_or_path": st.just("a"),
    "inference_mode": st.just(False), "init_lora_weights": st.just(True), "bias": st.just("none"),
    "layers_pattern": st.just("layers"), "project_name": st.text(min_size=1, max_size=5),
    "entity_name": st.none(), "group_name": st.none(), "logging_dir": st.none(),
    "rollout_logging_dir": st.none(), "max_length": st.none(), "min_length": st.none(),
    "pipeline": st.just("PromptPipeline"), "trainer": st.just("AcceleratePPOTrainer"),
    "model_arch_type": st.just("causal"), "kwargs": st.just({}), "peft_type": st.just("LORA"),
    "model_path": st.just("no such model"), "tokenizer_path": st.just("no such tokenizer"),
}  # fmt: skip
FREE_FORM = {
    "method.gen_kwargs": GENERATION_CHECKS, "method.gen_experience_kwargs": GENERATION_CHECKS,
    "model.delta_kwargs": DELTA_CHECKS, "model.peft_config": PEFT_CHECKS,
    "train.watchdog": WATCHDOG_CHECKS,
    "optimizer.kwargs": OPTIMIZERS["adamw"][1],
    "scheduler.kwargs": SCHEDULERS["cosineannealinglr"][1],
}  # fmt: skip
CLASSES = {**SECTIONS, "method": METHODS["ppoconfig"]}
FIELDS = [f"{section}.{name}" for section, cls in CLASSES.items() for name in cls.field_names()]
FIELDS += [f"{path}.{name}" for path, checks in FREE_FORM.items() for name in checks]
# Each example has its own directory; names of optimizers come with options of their own.
for field in ("train.checkpoint_dir", "optimizer.name", "scheduler.name"):
    FIELDS.remove(field)
# Any large number is legal there and would take for ever: only the likely values.
SLOW = {"num_rollouts", "max_new_tokens", "total_steps", "lora_r", "r", "reward_retries",
        "min_new_tokens", "no_repeat_ngram_size"}  # fmt: skip


@st.composite
def of_a_library(draw, section, table):
    """An optimizer or scheduler by name, with some of its own options."""
    name = draw(st.sampled_from(sorted(table)))
    options = draw(st.lists(st.sampled_from(sorted(table[name][1])), max_size=3, unique=True))
    kwargs = dict.fromkeys(STANDARD_OPTIONS[section])  # None takes those of the base out
    kwargs |= {option: draw(LIKELY.get(option, st.booleans() | shares)) for option in options}
    return {f"{section}.name": name, f"{section}.kwargs": kwargs}


STANDARD_OPTIONS = {"optimizer": ["lr"], "scheduler": ["T_max", "eta_min"]}


@st.composite
def overrides(draw):
    """Values for one to three settings, most of them such as somebody might try."""
    values = {}
    if draw(st.integers(0, 5)) == 0:
        values |= draw(of_a_library("optimizer", OPTIMIZERS))
    if draw(st.integers(0, 5)) == 0:
        values |= draw(of_a_library("scheduler", SCHEDULERS))
    for path in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True)):
        name = path.rsplit(".", 1)[-1]
        odd = name not in SLOW and draw(st.integers(0, 9)) == 9
        values[path] = draw(anything if odd else LIKELY.get(name, anything))
        # Its neighbours without which it cannot be.
        if path.startswith("model.peft_config") and draw(st.integers(0, 9)) < 9:
            values |= {"model.delta_kwargs": None, "model.peft_config.peft_type": "LORA"}
        if path.startswith("method.gen_experience_kwargs.") and draw(st.integers(0, 9)) < 9:
            values.setdefault("method.gen_experience_kwargs.max_new_tokens", 4)
    if isinstance(values.get("model.peft_config"), dict) or "model.peft_config" not in values:
        return values
    return {k: v for k, v in values.items() if not k.startswith("model.peft_config.")}


def test_every_setting_is_tried():
    known = {path.rsplit(".", 1)[-1] for path in FIELDS}
    libraries = [*OPTIMIZERS.values(), *SCHEDULERS.values()]
    of_libraries = {option for _, own in libraries for option in own}
    assert LIKELY.keys() <= known | of_libraries
    assert {"train.watchdog.action", "method.gamma", "optimizer.kwargs.betas"} <= set(FIELDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The root of the tiny model; how the examples ended is printed at the end."""
    root, counts = tmp_path_factory.mktemp("any"), {"ran": 0}
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_QUIET_PROGRESS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield root, counts
    print(f"configurations: {counts} in {time.monotonic() - started:.0f} s")


def outcome(root, values) -> str:
    """"ran", or the name of the refusal; any other exception comes through."""
    directory = Path(tempfile.mkdtemp(dir=root))
    standard = run_config(root, train__total_steps=2, train__checkpoint_dir=str(directory / "run"))
    try:
        config = TRLConfig.update(standard, values)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = train(reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=PROMPTS[:2],
                            config=config)  # fmt: skip
        assert trainer.step == trainer.total_steps >= 1
        return "ran"
    except REFUSALS as error:
        assert "\n" not in str(error) and str(error)[-1] in ".?", str(error)
        return type(error).__name__
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def check(base, values) -> None:
    root, counts = base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = outcome(root, values)
    counts[how] = counts.get(how, 0) + 1


EXAMPLES = int(os.environ.get("RLHF_CONFIGURATIONS", 1000))
QUICKLY = dict(deadline=None, suppress_health_check=list(HealthCheck))


@settings(max_examples=30, derandomize=True, **QUICKLY)
@given(values=overrides())
def test_a_few_dozen_configurations(base, values):
    check(base, values)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, derandomize=True, **QUICKLY)
@given(values=overrides())
def test_a_thousand_configurations(base, values):
    check(base, values)


def through_the_command_line(directory, values) -> str:
    """The same settings as words of a command: all of `run` but the notebooks, and `memory`."""
    words = []
    for name, value in values.items():
        try:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
        except yaml.YAMLError:
            text = repr(value)  # an object of Python: what somebody would type
        words += ["--set", f"{name}={text.strip().removesuffix('...').strip()}"]
    codes = []
    for command in (["run", "--run-dir", str(directory)], ["memory"]):
        error = io.StringIO()
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            codes.append(main([*command, "--profile", "smoke", *words]))
        said = error.getvalue().strip()
        assert codes[-1] == 2 or not said, said
        assert codes[-1] == 0 or len(said.splitlines()) == 1, said
    assert set(codes) <= {0, 2}
    return str(codes)


@pytest.mark.parametrize(
    "number", [30, pytest.param(EXAMPLES, marks=pytest.mark.slow)]
)
def test_configurations_go_through_the_command_line(tmp_path, monkeypatch, number):
    """An exit code of 0, or 2 and one sentence."""
    monkeypatch.setattr(pipeline, "_run_locked", lambda *arguments: [])
    ways: Counter[str] = Counter()

    @settings(max_examples=number, derandomize=True, **QUICKLY)
    @given(values=overrides())
    def each(values):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ways[through_the_command_line(tmp_path / "run", values)] += 1

    each()
    print(f"configurations on the command line: {dict(ways)}")
    assert ways["[0, 0]"] and ways["[2, 2]"]


@pytest.mark.parametrize(
    "values, said",
    [
        ({"method.gen_kwargs.max_new_tokens": 60, "train.seq_length": 80},
         "method.gen_kwargs.max_new_tokens is 60: .*the model has 64 positions"),
        ({"method.gen_kwargs.pad_token_id": 5000},
         "method.gen_kwargs.pad_token_id is 5000: give a token of the model, below 384"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_named(base, values, said):
    root, _ = base
    with pytest.raises(ConfigError, match=said):
        train(reward_fn=letter_reward, prompts=PROMPTS,
              config=TRLConfig.update(run_config(root), values))  # fmt: skip

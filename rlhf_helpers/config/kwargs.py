"""Checks of the free-form parts of a configuration, those that trlX passes on to other libraries.

`method.gen_kwargs` goes to generation, `optimizer` and `scheduler` to torch, `model.delta_kwargs`
to OpenDelta, `model.peft_config` to peft. trlX let each library complain on its own, hours into a
run or in the middle of a traceback. Here the entries are known by name, so that a bad one is an
error before anything is loaded. No library is imported for it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

from .checks import (
    Check,
    ConfigError,
    boolean,
    closest,
    entries,
    integer,
    mapping,
    number,
    one_of,
    pair,
    text,
    text_list,
    wrong,
)

MAX_NEW_TOKENS = 100_000
MAX_SEQ_LENGTH = 1_000_000


def only(expected: Any, reason: str) -> Check:
    """Accept nothing but `expected`, for entries that exist in a library but cannot vary here."""

    def check(path: str, value: Any) -> Any:
        if type(value) is not type(expected) or value != expected:
            raise wrong(path, value, f"leave it out, {reason}")
        return value

    return check


# --- generation -------------------------------------------------------------------------------

_PLAIN_SAMPLING = "rollouts are sampled one by one from the policy"

GENERATION_CHECKS: dict[str, Check] = {
    "max_new_tokens": integer(1, MAX_NEW_TOKENS),
    "min_new_tokens": integer(0, MAX_NEW_TOKENS),
    # The two lengths that count the prompt load (trlX's own YAML has them) but do not train.
    "max_length": integer(1, MAX_SEQ_LENGTH),
    "min_length": integer(0, MAX_SEQ_LENGTH),
    "do_sample": boolean,
    # Below 0.01 the scaled logits leave the range of float16.
    "temperature": number(0.01, 100.0),
    "top_k": integer(0, 10_000_000),
    "top_p": number(above=0.0, high=1.0),
    "min_p": number(0.0, 1.0),
    "typical_p": number(above=0.0, high=1.0),
    "repetition_penalty": number(0.01, 100.0),
    "no_repeat_ngram_size": integer(0, MAX_NEW_TOKENS),
    "eos_token_id": integer(0, 10_000_000),
    "pad_token_id": integer(0, 10_000_000),
    "bos_token_id": integer(0, 10_000_000),
    "use_cache": boolean,
    # transformers then compiles decoding on a GPU; all its other caches do not fit here.
    "cache_implementation": one_of("static"),
    "num_beams": only(1, _PLAIN_SAMPLING),
    "num_beam_groups": only(1, _PLAIN_SAMPLING),
    "num_return_sequences": only(1, "num_rollouts says how many samples are drawn"),
}

# Entries of transformers' generation that a PPO rollout cannot honour: they search instead of
# sampling, change what generate() returns, or need Python objects.
GENERATION_UNSUPPORTED = frozenset(
    "assistant_model assistant_tokenizer bad_words_ids begin_suppress_tokens "
    "constraints custom_generate decoder_start_token_id diversity_penalty "
    "dola_layers early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty "
    "epsilon_cutoff eta_cutoff exponential_decay_length_penalty force_words_ids "
    "forced_bos_token_id forced_eos_token_id generation_config guidance_scale length_penalty "
    "logits_processor low_memory max_time negative_prompt_ids output_attentions "
    "output_hidden_states output_logits output_scores penalty_alpha prefix_allowed_tokens_fn "
    "prompt_lookup_num_tokens remove_invalid_values renormalize_logits return_dict_in_generate "
    "sequence_bias stop_strings stopping_criteria streamer suppress_tokens synced_gpus "
    "token_healing top_h watermarking_config".split()
)


def generation_kwargs(path: str, value: Any) -> dict[str, Any]:
    """Check the entries given to generation; ConfigError names the first bad one."""
    given = mapping(path, value)
    for name, entry in given.items():
        if name in GENERATION_UNSUPPORTED:
            raise wrong(f"{path}.{name}", entry, f"remove it, {_PLAIN_SAMPLING}")
        if isinstance(entry, (list, tuple)):
            raise wrong(f"{path}.{name}", entry,
                        "give one value, lists (trlX's evaluation sweeps) are not supported")
    checked = entries(path, given, GENERATION_CHECKS)
    shortest, longest = checked.get("min_new_tokens", 0), checked.get("max_new_tokens")
    if longest is not None and shortest > longest:
        raise wrong(f"{path}.min_new_tokens", shortest,
                    f"give at most {path}.max_new_tokens, which is {longest}")
    return checked


# --- optimizer and scheduler ------------------------------------------------------------------

_RATE = number(0.0, 10.0)
_DECAY = number(0.0, below=1.0)
# Where a gradient is exactly zero Adam divides by eps alone: in float32 it must not vanish.
_EPS = number(1e-16, 1.0)

_EVERY_OPTIMIZER: dict[str, Check] = {
    "lr": _RATE,
    "weight_decay": number(0.0, 10.0),
    "foreach": boolean,
    "maximize": only(False, "it would train the policy towards low reward"),
}
_ADAM: dict[str, Check] = {
    **_EVERY_OPTIMIZER, "betas": pair(_DECAY), "eps": _EPS,
}

# name in a configuration (lower case) -> (where its class lives, its entries)
OPTIMIZERS: dict[str, tuple[str, dict[str, Check]]] = {
    "adam": ("torch.optim.Adam",
             {**_ADAM, "amsgrad": boolean, "fused": boolean, "decoupled_weight_decay": boolean}),
    "adamw": ("torch.optim.AdamW", {**_ADAM, "amsgrad": boolean, "fused": boolean}),
    "sgd": ("torch.optim.SGD",
            {**_EVERY_OPTIMIZER, "momentum": _DECAY, "dampening": number(0.0, 1.0),
             "nesterov": boolean, "fused": boolean}),
    "nadam": ("torch.optim.NAdam",
              {**_ADAM, "momentum_decay": _DECAY, "decoupled_weight_decay": boolean}),
    "radam": ("torch.optim.RAdam", {**_ADAM, "decoupled_weight_decay": boolean}),
    "adamax": ("torch.optim.Adamax", _ADAM),
    "rmsprop": ("torch.optim.RMSprop",
                {**_EVERY_OPTIMIZER, "alpha": _DECAY, "eps": _EPS, "momentum": _DECAY,
                 "centered": boolean}),
    "adagrad": ("torch.optim.Adagrad",
                {**_EVERY_OPTIMIZER, "eps": _EPS, "lr_decay": number(0.0, 1.0),
                 "initial_accumulator_value": number(0.0, 1e6), "fused": boolean}),
    "adadelta": ("torch.optim.Adadelta",
                 {**_EVERY_OPTIMIZER, "rho": _DECAY, "eps": _EPS}),
    "adafactor": ("torch.optim.Adafactor",
                  {"lr": _RATE, "weight_decay": number(0.0, 10.0), "foreach": boolean,
                   "beta2_decay": number(-1.0, 0.0), "d": number(1.0, 1e6),
                   "maximize": _EVERY_OPTIMIZER["maximize"]}),
    "asgd": ("torch.optim.ASGD",
             {**_EVERY_OPTIMIZER, "lambd": number(0.0, 1.0), "alpha": number(0.0, 1.0),
              "t0": number(0.0, 1e15)}),
    # trlX's two names for bitsandbytes' 8-bit optimizers.
    "adam_8bit_bnb": ("bitsandbytes.optim.Adam8bit",
                      {"lr": _RATE, "betas": pair(_DECAY), "eps": _EPS,
                       "weight_decay": number(0.0, 10.0)}),
    "adamw_8bit_bnb": ("bitsandbytes.optim.AdamW8bit",
                       {"lr": _RATE, "betas": pair(_DECAY), "eps": _EPS,
                        "weight_decay": number(0.0, 10.0)}),
}

_STEPS = integer(1)
_FACTOR = number(above=0.0, high=1.0)
_LAST_EPOCH = {"last_epoch": only(-1, "a resumed run restores the scheduler itself")}

SCHEDULERS: dict[str, tuple[str, dict[str, Check]]] = {
    "cosineannealinglr": ("torch.optim.lr_scheduler.CosineAnnealingLR",
                          {**_LAST_EPOCH, "T_max": _STEPS, "eta_min": _RATE}),
    "cosineannealingwarmrestarts": ("torch.optim.lr_scheduler.CosineAnnealingWarmRestarts",
                                    {**_LAST_EPOCH, "T_0": _STEPS, "T_mult": integer(1, 1000),
                                     "eta_min": _RATE}),
    "linearlr": ("torch.optim.lr_scheduler.LinearLR",
                 {**_LAST_EPOCH, "start_factor": _FACTOR, "end_factor": number(0.0, 1.0),
                  "total_iters": _STEPS}),
    "constantlr": ("torch.optim.lr_scheduler.ConstantLR",
                   {**_LAST_EPOCH, "factor": _FACTOR, "total_iters": _STEPS}),
    "polynomiallr": ("torch.optim.lr_scheduler.PolynomialLR",
                     {**_LAST_EPOCH, "total_iters": _STEPS, "power": number(0.01, 100.0)}),
    "exponentiallr": ("torch.optim.lr_scheduler.ExponentialLR",
                      {**_LAST_EPOCH, "gamma": _FACTOR}),
    "steplr": ("torch.optim.lr_scheduler.StepLR",
               {**_LAST_EPOCH, "step_size": _STEPS, "gamma": _FACTOR}),
}
# trlX's two scheduler names.
_SCHEDULER_ALIASES = {"cosine_annealing": "cosineannealinglr", "linear": "linearlr"}
_REQUIRED = {"cosineannealinglr": "T_max", "cosineannealingwarmrestarts": "T_0",
             "exponentiallr": "gamma", "steplr": "step_size"}


def optimizer_class_path(name: str) -> str:
    """Where the optimizer of this name lives, e.g. "adamw" -> "torch.optim.AdamW"."""
    return _known(name, OPTIMIZERS, "optimizer.name")[0]


def scheduler_class_path(name: str) -> str:
    """Where the scheduler lives, e.g. "linear" -> "torch.optim.lr_scheduler.LinearLR"."""
    return _known(_SCHEDULER_ALIASES.get(str(name).lower(), name), SCHEDULERS, "scheduler.name")[0]


def _known(name: str, table: Mapping[str, tuple[str, dict[str, Check]]],
           path: str) -> tuple[str, dict[str, Check]]:
    text(path, name)
    if name.lower() not in table:
        names = sorted({*table, *(_SCHEDULER_ALIASES if table is SCHEDULERS else ())})
        raise wrong(path, name, f"did you mean {closest(name.lower(), names)!r}, "
                                f"or another of {', '.join(names)}")
    return table[name.lower()]


def optimizer_kwargs(name: str, value: Any) -> dict[str, Any]:
    """Check the entries given to the optimizer `name`."""
    _, checks = _known(name, OPTIMIZERS, "optimizer.name")
    checked = _entries_for(name, "optimizer.kwargs", value, checks)
    if checked.get("fused") and checked.get("foreach"):
        raise wrong("optimizer.kwargs.fused", True, "give fused or foreach, not both")
    if checked.get("nesterov") and not (checked.get("momentum") and not checked.get("dampening")):
        raise wrong("optimizer.kwargs.nesterov", True, "give a momentum above 0 and no dampening")
    return checked


def scheduler_kwargs(name: str, value: Any) -> dict[str, Any]:
    """Check the entries given to the scheduler `name`."""
    key = _SCHEDULER_ALIASES.get(str(name).lower(), name)
    _, checks = _known(key, SCHEDULERS, "scheduler.name")
    checked = _entries_for(name, "scheduler.kwargs", value, checks)
    required = _REQUIRED.get(key.lower())
    if required and required not in checked:
        raise ConfigError(f"scheduler.kwargs.{required} is missing: {name!r} needs it, "
                          "for a cosine or step schedule the number of optimizer steps.")
    return checked


def _entries_for(name: str, path: str, value: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    given = mapping(path, value)
    for entry in given:
        if entry not in checks and given[entry] is not None:
            remedy = f"{name!r} has no such option here, did you mean {closest(entry, checks)!r}"
            raise wrong(f"{path}.{entry}", given[entry], remedy)
    return entries(path, {k: v for k, v in given.items() if v is not None}, checks)


# --- LoRA -------------------------------------------------------------------------------------

_LORA_DROPOUT = number(0.0, below=1.0)
_LORA_ALPHA = number(above=0.0, high=1e4)
_LORA_RANK = integer(1, 4096)


def module_names(path: str, value: Any) -> str | list[str]:
    """Accept a preset or a module name, or a non-empty list of them ("[r]..." are patterns)."""
    names = [text(path, value)] if isinstance(value, str) else text_list(path, value)
    if not names:
        raise wrong(path, value, "name at least one module, or a preset such as 'attention'")
    for name in names:
        try:
            re.compile(name.removeprefix("[r]"))
        except (re.error, OverflowError, RecursionError):
            raise wrong(path, name, "give a valid regular expression after [r]") from None
    return value if isinstance(value, str) else names


def _lora_type(path: str, value: Any) -> str:
    if str(getattr(value, "value", value)).lower() != "lora":
        raise wrong(path, value, "give 'lora', the only kind of adapter supported")
    return value.value if isinstance(value, enum.Enum) else value


DELTA_CHECKS: dict[str, Check] = {
    "delta_type": _lora_type,
    "modified_modules": module_names,
    "exclude_modules": module_names,
    "lora_r": _LORA_RANK,
    "lora_alpha": _LORA_ALPHA,
    "lora_dropout": _LORA_DROPOUT,
}


def delta_kwargs(path: str, value: Any) -> dict[str, Any]:
    """Check what goes to OpenDelta, e.g. {"delta_type": "lora", "modified_modules": "attention",
    "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05}."""
    return entries(path, value, DELTA_CHECKS)


def _layer_list(path: str, value: Any) -> int | list[int]:
    check = integer(0, 10_000)
    if not isinstance(value, (list, tuple)):
        return check(path, value)
    return [check(f"{path}[{index}]", item) for index, item in enumerate(value)]


PEFT_CHECKS: dict[str, Check] = {
    "peft_type": _lora_type,
    "task_type": lambda path, value: one_of("CAUSAL_LM")(path, getattr(value, "value", value)),
    "r": _LORA_RANK,
    "lora_alpha": _LORA_ALPHA,
    "lora_dropout": _LORA_DROPOUT,
    "target_modules": module_names,
    "exclude_modules": module_names,
    "layers_to_transform": _layer_list,
    "layers_pattern": module_names,
    "bias": only("none", "the reference policy is the model with LoRA switched off"),
    "fan_in_fan_out": boolean,
    "use_rslora": boolean,
    "init_lora_weights": only(True, "a run starts at the reference policy"),
    "inference_mode": only(False, "the adapter is trained"),
    "base_model_name_or_path": text,
    "revision": text,
    "peft_version": text,
}


def peft_config(path: str, value: Any) -> dict[str, Any]:
    """Check a peft LoRA configuration, a dict or (as in trlX 0.7) a `peft.PeftConfig` object.

    Such an object lists every option peft has; those that are off are left out.
    """
    if not isinstance(value, Mapping) and hasattr(value, "to_dict"):
        value = {k: v for k, v in value.to_dict().items()
                 if k in PEFT_CHECKS or (v and k != "runtime_config")}
        defaults = {"megatron_core": "megatron.core", "qalora_group_size": 16}
        value = {k: v for k, v in value.items() if k not in defaults or defaults[k] != v}
    given = mapping(path, value)
    sets = (set, frozenset)
    given = {k: sorted(v) if isinstance(v, sets) else v for k, v in given.items() if v is not None}
    return entries(path, given, PEFT_CHECKS)


# --- the watchdog -----------------------------------------------------------------------------

_WATCHDOG_ACTION = one_of("stop", "skip", "off")

WATCHDOG_CHECKS: dict[str, Check] = {
    # YAML 1.1 reads a bare `off` as false.
    "action": lambda path, value: _WATCHDOG_ACTION(path, "off" if value is False else value),
    "max_kl": number(above=0.0, high=1e9),
    "max_gradient_growth": number(above=1.0, high=1e9),
    "min_entropy_share": number(0.0, below=1.0),
}
# Far beyond what healthy runs reach: a default must never stop one.
WATCHDOG_DEFAULTS: dict[str, Any] = {
    "action": "stop",  # or skip: undo the iteration's update and go on
    "max_kl": 200.0,  # nats per response, policy to reference, mean over an iteration's rollouts
    "max_gradient_growth": 1000.0,  # a gradient's norm over the median of the last 64
    "min_entropy_share": 0.01,  # entropy per token, as a share of the first iteration's
}


def watchdog(path: str, value: Any) -> dict[str, Any]:
    """Check train.watchdog: a mapping, of which WATCHDOG_DEFAULTS fills the rest, or an action."""
    if isinstance(value, str) or value is False:
        value = {"action": value}
    return WATCHDOG_DEFAULTS | entries(path, value, WATCHDOG_CHECKS)

"""Which modules of a language model get LoRA: presets, layer ranges, name patterns. No torch here.

A pattern follows OpenDelta's rule: it addresses a module whose dotted name ends with it at a dot
("self_attn.k_proj" addresses "model.decoder.layers.3.self_attn.k_proj"). With "[r]" in front it is
a regular expression that must match up to the end of the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rlhf_helpers.config.checks import ConfigError

_LLAMA_STYLE = {
    "attention": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    "mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
}
# trlX v0.6.0's choices for OPT, GPT-J, GPT-NeoX and BLOOM: note that "attention" leaves the output
# projection out for GPT-J and GPT-NeoX. trlX had no entry for GPT-2 and the LLaMA family.
_PRESETS: dict[str, dict[str, list[str]]] = {
    "opt": {
        "attention": [
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.q_proj",
            "self_attn.out_proj",
        ],
        "mlp": ["fc1", "fc2"],
    },
    "gptj": {
        "attention": ["attn.q_proj", "attn.k_proj", "attn.v_proj"],
        "mlp": ["mlp.fc_in", "mlp.fc_out"],
        "all": [
            "attn.q_proj",
            "attn.k_proj",
            "attn.v_proj",
            "attn.out_proj",
            "mlp.fc_in",
            "mlp.fc_out",
        ],
    },
    "gpt_neox": {
        "attention": ["attention.query_key_value"],
        "mlp": ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        "all": [
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ],
    },
    "bloom": {
        "attention": ["self_attention.query_key_value", "self_attention.dense"],
        "mlp": ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    },
    "gpt2": {"attention": ["attn.c_attn", "attn.c_proj"], "mlp": ["mlp.c_fc", "mlp.c_proj"]},
    "llama": _LLAMA_STYLE,
    "mistral": _LLAMA_STYLE,
    "qwen2": _LLAMA_STYLE,
    "qwen3": _LLAMA_STYLE,
}
PRESET_NAMES = ("attention", "mlp", "all")


def preset_modules(model_type: str, preset: str) -> list[str]:
    """The module names behind "attention", "mlp" or "all" for one architecture.

    ConfigError where the architecture has no presets.
    """
    if model_type not in _PRESETS:
        known = ", ".join(sorted(_PRESETS))
        raise ConfigError(
            f"modified_modules={preset!r} is a preset that exists for {known} and not for "
            f"{model_type!r}; list module names instead, for instance ['self_attn.q_proj']."
        )
    presets = _PRESETS[model_type]
    return list(presets.get(preset) or presets["attention"] + presets["mlp"])


def layer_indices(num_hidden_layers: int, num_layers_unfrozen: int) -> list[int]:
    """Indices of the top layers that may change, counted from the input: -1 = all, 0 = none."""
    if not -1 <= num_layers_unfrozen <= num_hidden_layers:
        raise ConfigError(
            f"model.num_layers_unfrozen={num_layers_unfrozen} does not fit a model of "
            f"{num_hidden_layers} layers; use 0 to {num_hidden_layers}, or -1 for all of them."
        )
    count = num_hidden_layers if num_layers_unfrozen == -1 else num_layers_unfrozen
    return list(range(num_hidden_layers - count, num_hidden_layers))


def expand_modified_modules(
    modified_modules: str | Iterable[str],
    model_type: str,
    num_hidden_layers: int,
    num_layers_unfrozen: int,
) -> list[str]:
    """A preset or a list of names -> OpenDelta patterns limited to the top layers, as trlX had it.

    "attention" on a 4-layer OPT with 2 layers unfrozen: "[r](?:[2-3]).self_attn.k_proj", ...
    Patterns that are already regular expressions ("[r]...") stay as they are.
    """
    layers = layer_indices(num_hidden_layers, num_layers_unfrozen)
    if isinstance(modified_modules, str):
        in_preset = modified_modules in PRESET_NAMES
        names = preset_modules(model_type, modified_modules) if in_preset else [modified_modules]
    else:
        names = list(modified_modules)
    if not layers:
        return []
    everywhere = num_layers_unfrozen == -1
    prefix = r"[r](\d)+." if everywhere else f"[r](?:{number_range_regex(layers[0], layers[-1])})."
    return [name if name.startswith("[r]") else prefix + name for name in names]


def number_range_regex(first: int, last: int) -> str:
    r"""A regular expression for the whole numbers first..last: (9, 23) -> "9|1\d|2[0-3]"."""
    parts = []
    for tens in range(first // 10, last // 10 + 1):
        low, high = max(first, tens * 10) % 10, min(last, tens * 10 + 9) % 10
        units = r"\d" if (low, high) == (0, 9) else f"[{low}-{high}]" if low < high else str(low)
        parts.append(f"{tens or ''}{units}")
    return "|".join(parts)


def matches(module_name: str, pattern: str) -> bool:
    """Whether `pattern` addresses the module (OpenDelta's rule, see the top of this file)."""
    if not pattern.startswith("[r]"):
        return module_name == pattern or module_name.endswith("." + pattern)
    found = re.search(pattern[3:], module_name)
    if found is None or found.end() != len(module_name):
        return False
    return found.start() == 0 or module_name[found.start() - 1] == "."


def select_modules(
    linear_names: Iterable[str], patterns: list[str], layers: list[int], field: str
) -> list[str]:
    """The linear modules that `patterns` address, in model order.

    `linear_names`: dotted names of all linear modules of the model. `field`: the configuration
    field, for the message. ConfigError for a pattern that matches none of them, or matches one
    in a layer that num_layers_unfrozen keeps frozen (the reference shares those layers).
    """
    names = [name for name in linear_names if not name.startswith("lm_head")]
    for pattern in patterns:
        found = [name for name in names if matches(name, pattern)]
        if not found:
            raise ConfigError(
                f"{field} pattern {pattern!r} matches no linear module of the model in layers "
                f"{_as_range(layers)}; candidates are {', '.join(candidate_names(names))}."
            )
        outside = [name for name in found if layer_of(name) not in layers]
        if outside:
            raise ConfigError(
                f"{field} pattern {pattern!r} matches {outside[0]}, but num_layers_unfrozen lets "
                f"only layers {_as_range(layers)} change; limit the pattern to them or raise "
                f"model.num_layers_unfrozen."
            )
    return [name for name in names if any(matches(name, pattern) for pattern in patterns)]


def leave_out(names: list[str], excluded: str | list[str] | None, field: str) -> list[str]:
    """`names` without those that `excluded` addresses or that lie inside a module it names."""
    excluded = [excluded] if isinstance(excluded, str) else excluded or []
    kept = [n for n in names if not any(n.startswith(e + ".") or matches(n, e) for e in excluded)]
    if not kept:
        raise ConfigError(
            f"{field}.exclude_modules={excluded} leaves no module for LoRA; remove an entry."
        )
    return kept


def layer_of(module_name: str) -> int | None:
    """The layer number in a module's name: "model.decoder.layers.3.fc1" -> 3."""
    numbers = [part for part in module_name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def candidate_names(linear_names: Iterable[str]) -> list[str]:
    """Names as one writes them in modified_modules: without what stands before the layer number."""
    inside_layers = [name for name in linear_names if layer_of(name) is not None]
    return list(dict.fromkeys(re.split(r"\.\d+\.", name, maxsplit=1)[-1] for name in inside_layers))


def _as_range(layers: list[int]) -> str:
    return f"{layers[0]}-{layers[-1]}" if layers else "(none)"

"""LoRA: where it goes, what it computes, what it counts; against trlX's recorded numbers."""

import copy
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BloomConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.models.auto import AutoModelForCausalLM

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.sections import ModelConfig
from rlhf_helpers.models import opendelta_import
from rlhf_helpers.models.lora import (
    LoraBackendError,
    add_lora,
    count_table,
    layer_indices,
    linear_modules,
    load_adapter,
    lora_disabled,
    lora_parameters,
    lora_sites,
    merged_lora,
    meta_report,
    parameter_report,
    save_adapter,
    set_lora_dropout,
    structure_tree,
    value_head_parameter_count,
)
from rlhf_helpers.models.lora_targets import expand_modified_modules, matches, number_range_regex
from rlhf_helpers.models.opendelta_import import import_opendelta
from rlhf_helpers.models.peft_import import torchao_unseen

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((GOLDEN_DIR / "golden.json").read_text())
WEIGHTS = load_file(GOLDEN_DIR / "weights.safetensors")

POST_DELTA_KWARGS = {
    "delta_type": "lora",
    "modified_modules": "attention",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
}
POST_TREE = """\
root
├── model (OPTModel)
│ └── decoder (OPTDecoder)
│ ├── embed_tokens (Embedding) weight:[50272, 2048]
│ ├── embed_positions (OPTLearnedPositionalEmbedding) weight:[2050, 2048]
│ ├── final_layer_norm (LayerNorm) weight:[2048] bias:[2048]
│ └── layers (ModuleList)
│ ├── 0-21(OPTDecoderLayer)
│ │ ├── self_attn (OPTAttention)
│ │ │ └── k_proj,v_proj,q_proj,out_proj(Linear) weight:[2048, 2048] bias:[2048]
│ │ ├── self_attn_layer_norm,final_layer_norm(LayerNorm) weight:[2048] bias:[2048]
│ │ ├── fc1 (Linear) weight:[8192, 2048] bias:[8192]
│ │ └── fc2 (Linear) weight:[2048, 8192] bias:[2048]
│ └── 22-23(OPTDecoderLayer)
│ ├── self_attn (OPTAttention)
│ │ └── k_proj,v_proj,q_proj,out_proj(Linear) weight:[2048, 2048] bias:[2048]
│ │ └── lora (LowRankLinear) lora_A:[8, 2048] lora_B:[2048, 8]
│ ├── self_attn_layer_norm,final_layer_norm(LayerNorm) weight:[2048] bias:[2048]
│ ├── fc1 (Linear) weight:[8192, 2048] bias:[8192]
│ └── fc2 (Linear) weight:[2048, 8192] bias:[2048]
└── lm_head (Linear) weight:[50272, 2048]"""


def model_config(num_layers_unfrozen=2, delta_kwargs=None, peft_config=None, **delta_changes):
    if peft_config is None:
        delta_kwargs = {**(delta_kwargs or POST_DELTA_KWARGS), **delta_changes}
    return ModelConfig(
        model_path="golden",
        num_layers_unfrozen=num_layers_unfrozen,
        delta_kwargs=delta_kwargs,
        peft_config=peft_config,
    )


def golden_base():
    """The recorded OPT: 4 layers, hidden 64, in eval mode as from_pretrained leaves it."""
    model = OPTForCausalLM(OPTConfig(**GOLDEN["model_config"]))
    state = {n.removeprefix("base/"): t for n, t in WEIGHTS.items() if n.startswith("base/")}
    state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def golden_policy(backend="opendelta", dropout=0.0):
    """The recorded policy: base weights and the adapters init/*, through either backend."""
    model = golden_base()
    if backend == "opendelta":
        config = model_config(lora_dropout=dropout)
    else:
        config = model_config(peft_config=peft_settings(dropout=dropout))
    add_lora(model, config)
    set_matrices(model, {n: WEIGHTS[f"init/{n}"] for n in lora_parameters(model)})
    return model


def peft_settings(dropout=0.0, targets=("k_proj", "v_proj", "q_proj", "out_proj"), **changes):
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": dropout,
                "target_modules": list(targets)}  # fmt: skip
    return {**settings, **changes}


def set_matrices(model, tensors):
    with torch.no_grad():
        for name, parameter in lora_parameters(model).items():
            parameter.copy_(tensors[name])


def randomise_matrices(model, seed=0):
    """A random B instead of zeros, so that LoRA changes the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def tiny_model(family):
    """Three layers, hidden 32, vocabulary 50, random weights, in eval mode."""
    shape = dict(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                 max_position_embeddings=32, bos_token_id=0, eos_token_id=0)  # fmt: skip
    config_class, extra = {
        "opt": (OPTConfig, dict(ffn_dim=48, word_embed_proj_dim=32)),
        "gpt2": (GPT2Config, {}),
        "gptj": (GPTJConfig, dict(rotary_dim=4)),
        "gpt_neox": (GPTNeoXConfig, dict(intermediate_size=48)),
        "llama": (LlamaConfig, dict(intermediate_size=48, num_key_value_heads=2)),
        "bloom": (BloomConfig, {}),
    }[family]
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config_class(**shape, **extra)).eval()


@torch.no_grad()
def logits(model, n_tokens=7):
    ids = torch.arange(2 * n_tokens).reshape(2, n_tokens) % model.config.vocab_size
    return model(input_ids=ids).logits


# ---- selection, against trlX


@pytest.mark.parametrize("case", GOLDEN["lora_layer_selection"], ids=str)
def test_layers_as_trlx_selected_them(case):
    depth, unfrozen = case["num_hidden_layers"], case["num_layers_unfrozen"]
    assert layer_indices(depth, unfrozen) == case["layers_with_lora"]
    patterns = expand_modified_modules("attention", "opt", depth, unfrozen)
    names = [f"model.decoder.layers.{layer}.self_attn.q_proj" for layer in range(depth)]
    found = [i for i, name in enumerate(names) if any(matches(name, p) for p in patterns)]
    assert found == case["layers_with_lora"]


@pytest.mark.parametrize("preset", ["attention", "mlp", "all"])
def test_presets_and_patterns_as_trlx_expanded_them(preset):
    modules = GOLDEN["opt_modified_modules"][preset]
    assert expand_modified_modules(preset, "opt", 4, 2) == [f"[r](?:[2-3]).{m}" for m in modules]
    recorded = GOLDEN["config"]["model"]["delta_kwargs"]["modified_modules"]
    assert expand_modified_modules("attention", "opt", 4, 2) == recorded
    # Already expanded, as trlX leaves it in its configuration: taken as it is.
    assert expand_modified_modules(recorded, "opt", 4, 2) == recorded


def test_number_range_regex_matches_exactly_its_numbers():
    assert number_range_regex(9, 23) == r"9|1\d|2[0-3]"
    for first in range(0, 45, 4):
        for last in range(first, 120, 7):
            pattern = re.compile(number_range_regex(first, last))
            found = [n for n in range(150) if pattern.fullmatch(str(n))]
            assert found == list(range(first, last + 1))


def test_pattern_rule_is_opendeltas():
    import_opendelta()
    from opendelta.utils.name_based_addressing import endswith_in

    names = [f"model.decoder.layers.{i}.{m}" for i in (0, 2, 9, 12, 22, 122)
             for m in ("self_attn.q_proj", "fc1", "xfc1")]  # fmt: skip
    patterns = ["fc1", "q_proj", "[r](?:2).fc1", r"[r](\d)+.fc1", "[r]q_proj", "layers.2.fc1",
                "[r](?:[8-9]|1[0-2]).self_attn.q_proj", "model.decoder.layers.2.fc1"]  # fmt: skip
    for pattern in patterns:
        assert [matches(n, pattern) for n in names] == [endswith_in(n, [pattern]) for n in names]
    assert sum(matches(n, "[r](?:2).fc1") for n in names) == 1  # not 12, 22, 122, not xfc1


@pytest.mark.parametrize("unfrozen", [-2, 5])
def test_impossible_number_of_layers(unfrozen):
    with pytest.raises(ConfigError, match=f"num_layers_unfrozen={unfrozen}"):
        layer_indices(4, unfrozen)


# ---- add_lora, against trlX


@pytest.mark.parametrize("backend", ["opendelta", "peft"])
def test_trainable_parameters_are_trlxs(backend):
    model = golden_policy(backend)
    recorded = {n: shape for n, shape in GOLDEN["trainable_parameters"] if "v_head" not in n}
    ours = {f"base_model.{n}": list(p.shape) for n, p in lora_parameters(model).items()}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in lora_parameters(model).values()}
    if backend == "opendelta":
        assert list(ours.items()) == list(recorded.items())
        named = {n for n, p in model.named_parameters() if p.requires_grad}
        assert named == set(lora_parameters(model))
    assert ours == recorded
    counted = parameter_report(model)["trainable_with_value_head"]
    assert counted == GOLDEN["n_trainable"] == 16641


@pytest.mark.parametrize("backend", ["opendelta", "peft"])
def test_forward_of_policy_and_reference_are_trlxs(backend):
    model, forward = golden_policy(backend), GOLDEN["forward"]
    ids, mask = torch.tensor(forward["input_ids"]), torch.tensor(forward["attention_mask"])

    @torch.no_grad()
    def run():
        # Positions count real tokens only, as transformers' OPT and generate() do.
        return model(input_ids=ids, attention_mask=mask).logits

    def close(output, logits_key, logprobs_key):
        torch.testing.assert_close(
            output[:, -1], torch.tensor(forward[logits_key]), atol=1e-4, rtol=0
        )
        logprobs = output[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        real = mask[:, :-1] == 1
        expected = torch.tensor(forward[logprobs_key])
        torch.testing.assert_close(logprobs[real], expected[real], atol=1e-4, rtol=0)

    close(run(), "policy_logits_last", "policy_label_logprobs")
    with lora_disabled(model):
        close(run(), "ref_logits_last", "ref_label_logprobs")
    close(run(), "policy_logits_last", "policy_label_logprobs")


def test_delta_kwargs_stay_as_given_and_fresh_lora_changes_nothing():
    base, model = golden_base(), golden_base()
    config = model_config()
    before = copy.deepcopy(config.delta_kwargs)
    handle = add_lora(model, config)
    assert config.delta_kwargs == before == POST_DELTA_KWARGS
    assert (handle.backend, handle.layers, len(handle.modules)) == ("opendelta", [2, 3], 8)
    assert handle.patterns == GOLDEN["config"]["model"]["delta_kwargs"]["modified_modules"]
    assert torch.equal(logits(model), logits(base))  # B = 0: policy == reference
    assert all(site.scaling == 2.0 and site.dropout.p == 0.05 for site in lora_sites(model))
    A = lora_parameters(model)["model.decoder.layers.3.self_attn.q_proj.lora.lora_A"]
    # kaiming-uniform with a = sqrt(5) over 64 inputs: uniform in +-1/sqrt(64) = +-0.125
    assert 0.11 < A.abs().max() <= 0.125


@pytest.mark.parametrize("family", ["opt", "gpt2", "gptj", "gpt_neox", "llama", "bloom"])
@pytest.mark.parametrize("backend", ["opendelta", "peft"])
def test_every_family_top_two_layers(family, backend):
    model = tiny_model(family)
    original = logits(model)
    if backend == "opendelta":
        config = model_config(lora_dropout=0.0)
    else:
        config = model_config(peft_config=peft_settings(targets=[], target_modules="attention"))
    handle = add_lora(model, config)
    layers = {part for name in handle.modules for part in name.split(".") if part.isdigit()}
    assert layers == {"1", "2"}
    assert [site.name for site in lora_sites(model)] == handle.modules
    randomise_matrices(model)
    tuned = logits(model)
    assert (tuned - original).abs().max() > 1e-3
    with lora_disabled(model):
        assert torch.equal(logits(model), original)
    with merged_lora(model):
        torch.testing.assert_close(logits(model), tuned, atol=1e-5, rtol=0)
    assert torch.equal(logits(model), tuned)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    with_gradient = {id(p) for p in model.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in lora_parameters(model).values()}


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_opendelta_and_peft_compute_the_same(family):
    first, second = tiny_model(family), tiny_model(family)
    add_lora(first, model_config(lora_dropout=0.0))
    add_lora(second, model_config(peft_config=peft_settings(target_modules="attention")))
    randomise_matrices(first)
    assert set(lora_parameters(first)) == set(lora_parameters(second))
    set_matrices(second, lora_parameters(first))
    torch.testing.assert_close(logits(first), logits(second), atol=1e-6, rtol=0)


def test_all_layers_and_none():
    model = tiny_model("opt")
    add_lora(model, model_config(num_layers_unfrozen=-1, modified_modules=["fc1"]))
    stem = "model.decoder.layers."
    assert [s.name for s in lora_sites(model)] == [f"{stem}{i}.fc1" for i in range(3)]
    frozen = tiny_model("opt")
    with pytest.warns(UserWarning, match="num_layers_unfrozen=0"):
        handle = add_lora(frozen, model_config(num_layers_unfrozen=0))
    assert handle.modules == [] and not any(p.requires_grad for p in frozen.parameters())


def test_without_lora_settings_the_model_stays_as_it_is():
    model = tiny_model("opt")
    handle = add_lora(model, ModelConfig(model_path="golden", num_layers_unfrozen=2))
    assert handle.backend == "none" and all(p.requires_grad for p in model.parameters())


def test_excluded_modules():
    model = tiny_model("opt")
    kwargs = {**POST_DELTA_KWARGS, "exclude_modules": ["v_proj", "model.decoder.layers.1"]}
    handle = add_lora(model, model_config(delta_kwargs=kwargs))
    stem = "model.decoder.layers.2.self_attn."
    assert handle.modules == [stem + n for n in ("k_proj", "q_proj", "out_proj")]


@pytest.mark.parametrize(
    "modules, said",
    [
        (["self_attn.query"], ["'[r](?:[1-2]).self_attn.query'", "self_attn.k_proj", "fc2"]),
        (["self_attn"], ["matches no linear module"]),
        (["[r]layers.0.fc1"], ["model.decoder.layers.0.fc1", "1-2", "num_layers_unfrozen"]),
    ],
)
def test_pattern_that_fits_nothing(modules, said):
    with pytest.raises(ConfigError) as error:
        add_lora(tiny_model("opt"), model_config(modified_modules=modules))
    assert all(part in str(error.value) for part in said)
    assert "lm_head" not in str(error.value)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"target_modules": ["query"]}, "candidates are self_attn.k_proj"),
        ({"layers_to_transform": [0, 2]}, "layers_to_transform"),
    ],
)
def test_peft_settings_that_fit_nothing(changes, said):
    with pytest.raises(ConfigError, match=said):
        add_lora(tiny_model("opt"), model_config(peft_config=peft_settings(**changes)))


@pytest.mark.parametrize(
    "changes, modules",
    [
        ({"target_modules": None}, {"1.self_attn.v_proj", "1.self_attn.q_proj",
                                    "2.self_attn.v_proj", "2.self_attn.q_proj"}),
        ({"target_modules": r".*\.fc\d"}, {"1.fc1", "1.fc2", "2.fc1", "2.fc2"}),
        ({"target_modules": ["fc1"], "layers_to_transform": 2}, {"2.fc1"}),
        ({"target_modules": "all-linear", "layers_to_transform": [1]},
         {"1.fc1", "1.fc2", *(f"1.self_attn.{n}_proj" for n in ("k", "v", "q", "out"))}),
    ],
)  # fmt: skip
def test_pefts_ways_to_name_modules(changes, modules):
    handle = add_lora(tiny_model("opt"), model_config(peft_config=peft_settings(**changes)))
    assert {name.removeprefix("model.decoder.layers.") for name in handle.modules} == modules


def test_lora_only_once():
    model = golden_policy()
    with pytest.raises(ConfigError, match="already"):
        add_lora(model, model_config())


# ---- on, off, merged, dropout


@pytest.mark.parametrize("backend", ["opendelta", "peft"])
def test_switching_nests_and_survives_errors(backend):
    model = golden_policy(backend)
    on = logits(model)
    with lora_disabled(model):
        off = logits(model)
        assert torch.equal(off, logits(golden_base())) and not torch.equal(on, off)
        with lora_disabled(model), merged_lora(model):
            assert torch.equal(logits(model), off)
        assert torch.equal(logits(model), off)  # was off before: stays off
    with pytest.raises(KeyError), lora_disabled(model), lora_disabled(model):
        raise KeyError
    assert torch.equal(logits(model), on)
    assert all(p.requires_grad for p in lora_parameters(model).values())


@pytest.mark.parametrize("backend", ["opendelta", "peft"])
def test_merging_restores_every_bit(backend):
    model = golden_policy(backend)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(KeyError), merged_lora(model), merged_lora(model):
        changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
        assert changed == {n for n in changed if "_proj" in n} and len(changed) == 8
        raise KeyError
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert pointers == [p.data_ptr() for p in model.parameters()]


@pytest.mark.parametrize("backend", ["opendelta", "peft"])
def test_deep_copies_are_independent(backend):
    model = golden_policy(backend)
    before = logits(model)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), before)
    randomise_matrices(model)
    assert torch.equal(logits(copied), before) and not torch.equal(logits(model), before)
    with lora_disabled(copied):
        assert torch.equal(logits(copied), logits(golden_base()))
        assert not torch.equal(logits(model), logits(copied))


@pytest.mark.parametrize("backend", ["opendelta", "peft"])
def test_dropout_is_loras_alone(backend):
    model = golden_policy(backend, dropout=0.5)
    assert not torch.equal(logits(model), logits(model))  # as in trlX: active from the start
    set_lora_dropout(model, False)
    quiet = logits(model)
    torch.testing.assert_close(quiet, logits(golden_policy(backend)), atol=1e-6, rtol=0)
    set_lora_dropout(model, True)
    assert not torch.equal(logits(model), quiet)
    # OPT's own dropout is 0.1 in this configuration; switching LoRA's leaves it off.
    with lora_disabled(model):
        assert torch.equal(logits(model), logits(golden_base()))


@pytest.mark.parametrize("backend", ["opendelta", "peft"])
def test_bfloat16_model_trains_lora_in_float32(backend):
    model = tiny_model("opt").to(torch.bfloat16)
    if backend == "opendelta":
        add_lora(model, model_config(lora_dropout=0.0))
    else:
        add_lora(model, model_config(peft_config=peft_settings()))
    randomise_matrices(model)
    output = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    for parameter in lora_parameters(model).values():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    with merged_lora(model):
        merged = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    torch.testing.assert_close(merged, output, atol=0.02, rtol=0.02)


def test_quantised_weights_are_not_merged():
    model = golden_policy()
    site = lora_sites(model)[0]
    site.weight.data = site.weight.data.to(torch.int8)
    with pytest.raises(TypeError, match=site.name), merged_lora(model):
        pass


# ---- the post's numbers


def test_opt_1_3b_tree_and_counts_are_the_posts():
    report = meta_report("facebook/opt-1.3b", model_config())
    # The post's page lost the spaces that indent the tree: compare with one space where several.
    ours = [" ".join(line.split()) for line in report["tree"].splitlines()]
    assert ours == POST_TREE.splitlines()
    assert "\x1b" not in report["tree"]
    assert report["tree"].splitlines()[2] == "│   └── decoder (OPTDecoder)"
    assert report["trainable_line"] == "Trainable Ratio: 262144/1316020224=0.019919%"
    assert report["lora_line"] == "Delta Parameter Ratio: 262144/1316020224=0.019919%"
    assert (report["lora"], report["total"]) == (262_144, 1_316_020_224)
    # What the post leaves out: 2048 * 4096 + 4096 weights and biases, then 4096 + 1.
    assert report["value_head"] == value_head_parameter_count(2048) == 8_396_801
    assert report["trainable_with_value_head"] == 8_658_945


def test_value_head_count_is_that_of_the_module():
    head = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 1))
    assert value_head_parameter_count(6) == sum(p.numel() for p in head.parameters())


def test_count_table_counts_what_add_lora_adds():
    config = OPTConfig(**GOLDEN["model_config"])
    rows = count_table(config, model_config(), ranks=(1, 3), layers=(1, 2, -1, 9))
    pairs = [(row["layers"], row["rank"]) for row in rows]
    assert pairs == [(1, 1), (1, 3), (2, 1), (2, 3), (4, 1), (4, 3)]
    for row in rows:
        model = golden_base()
        add_lora(model, model_config(row["num_layers_unfrozen"], lora_r=row["rank"]))
        report = parameter_report(model)
        assert (row["lora"], row["base"] + row["lora"]) == (report["lora"], report["total"])
        assert row["percent"] == pytest.approx(report["trainable_percent"])
    # By hand: 4 square matrices of 64 in one layer, rank 1: 4 * (64 + 64)
    assert rows[0]["lora"] == 512


def test_tree_shows_peft_too():
    tree = structure_tree(golden_policy("peft"))
    assert "2-3(OPTDecoderLayer)" in tree and "lora_A" in tree


# ---- files


@pytest.mark.parametrize("backend", ["opendelta", "peft"])
@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_adapter_loads_in_peft_and_here(tmp_path, backend, family):
    from peft import PeftModel

    def prepared():
        model = tiny_model(family)
        if backend == "opendelta":
            add_lora(model, model_config(lora_dropout=0.1, lora_r=4))
        else:
            add_lora(model, model_config(peft_config=peft_settings(target_modules="attention")))
        set_lora_dropout(model, False)
        return model

    model = prepared()
    randomise_matrices(model)
    save_adapter(model, tmp_path, base_model="some/base")
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}

    with warnings.catch_warnings(), torchao_unseen():  # Colab's is too old for peft itself
        warnings.simplefilter("error", UserWarning)  # peft's warning of missing keys
        loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=0)

    again = prepared()
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_adapter_that_does_not_fit(tmp_path):
    save_adapter(golden_policy(), tmp_path)

    def refused(directory=tmp_path, **config):
        model = golden_base()
        add_lora(model, model_config(**config))
        before = {n: p.detach().clone() for n, p in lora_parameters(model).items()}
        with pytest.raises(ConfigError) as error:
            load_adapter(model, directory)
        assert all(torch.equal(p, before[n]) for n, p in lora_parameters(model).items())
        return str(error.value)

    assert "layers.1." in refused(num_layers_unfrozen=3)
    assert "lora_r" in refused(lora_r=4)
    assert "lora_alpha=16" in refused(lora_alpha=8)
    assert "adapter_model.safetensors is missing" in refused(directory=tmp_path / "none")
    with pytest.raises(ConfigError, match="no LoRA to save"):
        save_adapter(golden_base(), tmp_path)


def test_state_dict_keeps_the_base_weights():
    model = golden_policy()
    kept = set(golden_base().state_dict()) | set(lora_parameters(model))
    assert set(model.state_dict()) == kept


# ---- imports


@pytest.fixture
def no_opendelta_yet(monkeypatch):
    """As in a fresh process: OpenDelta not imported, nor anything that it drags in."""
    foreign = ("opendelta", "pkg_resources", "DeltaCenter", "turtle", "tkinter", "web")
    for name in [n for n in sys.modules if n.split(".")[0] in foreign]:
        monkeypatch.delitem(sys.modules, name)


def test_importing_opendelta_leaves_nothing_behind_and_prints_nothing(no_opendelta_yet, capfd):
    from transformers.models.distilbert import modeling_distilbert

    before, names_before = set(sys.modules), set(dir(modeling_distilbert))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opendelta = import_opendelta()
    assert opendelta.LoraModel and import_opendelta() is opendelta
    stand_ins = {"pkg_resources", "DeltaCenter", "turtle", "web", "tkinter",
                 "transformers.deepspeed", "opendelta.utils.interactive.web"}  # fmt: skip
    assert not stand_ins & (set(sys.modules) - before)
    assert set(dir(modeling_distilbert)) == names_before
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_missing_opendelta_says_what_to_install(no_opendelta_yet, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(opendelta_import.importlib, "import_module", missing)
    with pytest.raises(LoraBackendError) as error:
        add_lora(tiny_model("opt"), model_config())
    assert "pip install" in str(error.value) and "opendelta==0.3.2" in str(error.value)


def test_peft_that_refuses_to_work_is_explained(monkeypatch):
    import peft

    def refuse(*_):
        raise ImportError("peft is of no use today")

    monkeypatch.setattr(peft, "inject_adapter_in_model", refuse)
    with pytest.raises(LoraBackendError, match="no use today.*delta_kwargs"):
        add_lora(tiny_model("opt"), model_config(peft_config=peft_settings()))


BESIDE_TORCHAO = """
import sys
from importlib.metadata import version
from test_lora import add_lora, lora_sites, model_config, peft_settings, tiny_model
model = tiny_model("opt")
sys.path.insert(0, sys.argv[1])  # only now: transformers has wishes of its own
assert version("torchao") == sys.argv[2]
assert add_lora(model, model_config(peft_config=peft_settings())).backend == "peft"
assert lora_sites(model)
from peft.import_utils import is_torchao_available
try:
    print(is_torchao_available())
except ImportError:
    print("refused")
"""


@pytest.mark.parametrize("version, answer", [("0.1.0", "refused"), ("99.0", "True")])
def test_peft_adds_lora_whatever_torchao_is_there(tmp_path, version, answer):
    """One too old for any peft, as Colab has for its own, and one without what peft imports."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").touch()
    about = tmp_path / f"torchao-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torchao\nVersion: {version}\n")
    tests = Path(__file__).parents[1]
    path = [tests.parent, tests, Path(__file__).parent]
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_TORCHAO, tmp_path, version],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [answer]  # to everybody else peft answers as before


def test_linear_modules_of_gpt2_are_conv1d():
    names = list(linear_modules(tiny_model("gpt2")))
    assert names[:4] == [f"transformer.h.0.{m}" for m in
                         ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]  # fmt: skip

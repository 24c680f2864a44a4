"""The shapes for benchmarks and memory predictions are those of the models they are named for."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.lab.shapes import shape_config

# Parameters with tied heads counted once, as the models' authors and the blog post give them.
PARAMETERS = {
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,  # the post: 1,316,020,224 with 262,144 of LoRA
    "llama-7b": 6_738_415_616,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_shape_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape_config(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_fields_can_be_replaced():
    assert shape_config("deep", num_hidden_layers=6).num_hidden_layers == 6


def test_unknown_shape_names_the_known_ones():
    with pytest.raises(ConfigError, match="opt-125m"):
        shape_config("gpt-5")

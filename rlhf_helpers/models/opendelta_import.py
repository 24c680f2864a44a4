"""OpenDelta 0.3.2 on today's libraries.

OpenDelta is unmaintained, and its `import` fails in four places that have nothing to do with LoRA.
This module supplies what is missing while the import runs, and takes it away again afterwards:
nothing but `opendelta` itself stays behind in `sys.modules`.

| OpenDelta imports | why it fails today | supplied meanwhile |
|---|---|---|
| `transformers.deepspeed` | moved to `transformers.integrations.deepspeed` | an alias |
| `MultiHeadSelfAttention` (DistilBERT) | renamed in transformers 5 | an alias |
| `DeltaCenter` (model uploader) | needs `pkg_resources`, gone from setuptools 81 | a stand-in |
| a web page for picking modules | needs `web.py` | a stand-in |
| `turtle` (a stray import) | needs tkinter | a stand-in |
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

INSTALL_HINT = 'pip install "opendelta==0.3.2" "sklearn==0.0" bigmodelvis rich'


class LoraBackendError(ImportError):
    """The library that adds LoRA to the model cannot be used; the sentence says what to install."""


def import_opendelta() -> types.ModuleType:
    """The `opendelta` package. Raises LoraBackendError when it cannot be imported."""
    if "opendelta" in sys.modules:
        return sys.modules["opendelta"]
    try:
        with _stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opendelta = importlib.import_module("opendelta")
    except Exception as error:
        _forget_half_imported()
        raise LoraBackendError(
            f"model.delta_kwargs needs OpenDelta, which cannot be imported ({error}); install it "
            f"with {INSTALL_HINT}, or set model.peft_config instead of model.delta_kwargs."
        ) from error
    # OpenDelta gives its logger a handler of its own at level INFO. What it has to say (tree and
    # counts) is returned by functions here, so that it appears where it is asked for, and once.
    logging.getLogger("opendelta").setLevel(logging.WARNING)
    return opendelta


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Supplies what the table above lists, and removes it at the end."""
    from transformers.integrations import deepspeed
    from transformers.models.distilbert import modeling_distilbert

    supplied = {
        "transformers.deepspeed": deepspeed,
        "DeltaCenter": _module("DeltaCenter", OssClient=None),
        "opendelta.utils.interactive.web": _module("web", interactive=None),
        "turtle": _module("turtle", back=None),
    }
    # A program that already uses the real module keeps it.
    supplied = {name: module for name, module in supplied.items() if name not in sys.modules}
    rename = not hasattr(modeling_distilbert, "MultiHeadSelfAttention")
    sys.modules.update(supplied)
    if rename:
        modeling_distilbert.MultiHeadSelfAttention = modeling_distilbert.DistilBertSelfAttention
    try:
        yield
    finally:
        for name in supplied:
            sys.modules.pop(name, None)
        if rename:
            del modeling_distilbert.MultiHeadSelfAttention


def _module(name: str, **attributes: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    return module


def _forget_half_imported() -> None:
    """Removes the submodules of a failed import, so that a second attempt starts afresh."""
    for name in [name for name in sys.modules if name.split(".")[0] == "opendelta"]:
        del sys.modules[name]

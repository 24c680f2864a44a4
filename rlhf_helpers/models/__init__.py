"""The policy: a language model with LoRA and a value head, how it is loaded and how it writes.

Trunk, top, adapter, output head, key-value cache. This room does not know what the tokens are
rewarded for, nor which algorithm asks for their probabilities.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "policy": ["Policy"],
        "loading": ["load_policy", "load_trained_policy"],
        "lora": ["count_table", "lora_disabled", "meta_report"],
        "lora_targets": ["layer_of"],
        "inspection": ["lora_report"],
    },
)

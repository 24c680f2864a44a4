"""How the shipped models were made: each by one command that can be run again.

This room may use everything that trains; nothing that runs the tutorial needs it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pretrain": ["PretrainConfig"],
    },
)

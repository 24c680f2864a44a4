"""The loop: sample, score, learn, and everything that lets a run stop and go on.

`trainer` is the loop, `semantics` says what trlX does and what its correction does. This room
knows nothing of notebooks, figures or studies.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "api": ["train"],
        "interval_evaluation": ["write_answers"],
    },
)

"""Many runs under one question: a plan of settings and seeds, what needs no RL, sweeps.

A study trains and evaluates as a user would, and leaves tables. It measures no speed (`lab`) and
knows no notebook.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "report": ["progress_note", "study_rows"],
        "verifiable": ["kept_answers"],
    },
)

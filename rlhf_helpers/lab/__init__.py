"""Measuring: seconds, counted work and memory of an iteration, beside what they should be.

The laboratory runs the code that users run; nobody needs it in order to train.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "memory": ["advice", "available_bytes", "with_libraries"],
        "memory_table": ["profile_rows"],
    },
)

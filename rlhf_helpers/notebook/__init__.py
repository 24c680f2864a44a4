"""Running, opening and keeping the notebooks: the only room that knows that they exist.

Nothing below may import it: whatever a notebook shows is computed in another room.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "opening": ["start"],
        "all_in_one": ["in_drive", "run_everything"],
        "setup_facts": ["setup_report"],
        "doctor": ["examine", "table_rows"],
        "labelling": ["answers_to", "label_pairs"],
        "costs": ["known_costs"],
        "fields": ["try_it"],
    },
)

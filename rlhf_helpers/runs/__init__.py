"""The run directory: what lies in it, how files are written there, who may write.

A file is written beside its place and renamed, so that it is whole or not there. This room knows
names and formats, not what the numbers mean: it imports no model and no training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": [
            "CannotWriteError", "MissingRunFileError", "RunDir", "atomic_write_json",
            "read_json", "read_jsonl", "reference_run_dir", "write_jsonl",
        ],
        "manifest": ["write_manifest"],
    },
)

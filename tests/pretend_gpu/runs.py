"""The runs of gpu_runs.py on the GPU in name.

    python -m pretend_gpu.runs DIRECTORY [NAME ...]      # from tests/

Prints a JSON line a run: its name, the error that ended it or null, and what was counted.
"""

import pretend_gpu

pretend_gpu.switch_on()  # before the package, and before torch

import json  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from gpu_runs import RUNS, killed_and_resumed  # noqa: E402

from pretend_gpu import counts  # noqa: E402


def main(root: Path, names: list[str]) -> None:
    """Each run by name, or all; one JSON line each."""
    for number, name in enumerate(names or RUNS):
        counts.reset()
        error = None
        try:
            killed_and_resumed(root / str(number), RUNS[name])
        except BaseException as caught:
            traceback.print_exc()
            error = f"{type(caught).__name__}: {caught}"
        print(json.dumps({"run": name, "error": error, **counts.totals()}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2:])

"""Every family, type, method and kind of LoRA on a real GPU: `make test-gpu`."""

import pytest
import torch
from gpu_runs import RUNS, killed_and_resumed

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_killed_taken_up_again_and_evaluated(name, tmp_path):
    killed_and_resumed(tmp_path, RUNS[name])

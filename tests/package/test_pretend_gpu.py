"""Runs on a GPU in name only: no operation on two devices at once, and how much they ask of it.

The harness (tests/pretend_gpu) must be imported before torch: all of it happens in a process of its
own, and no test file can lie in its folder. Below stand the names of its checks (checks.py), so
that a report says which of them failed.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def _build():
    """build.py by itself: the package around it would load the library into this process."""
    path = TESTS / "pretend_gpu" / "build.py"
    spec = importlib.util.spec_from_file_location("build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WHY_NOT = _build().why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"no GPU in name: {WHY_NOT}")


def ran(*arguments):
    """Lines of JSON that `python -m ...` printed, and all else that it said."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
                   "OMP_NUM_THREADS": "1", "RLHF_QUIET_PROGRESS": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], env=environment, capture_output=True,
        text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")], done.stderr


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What a process printed that made all checks, runs and counts."""
    lines, errors = ran("pretend_gpu.checks", tmp_path_factory.mktemp("gpu"))
    named = {line.get("check") or line.get("run") or line["of"]: line for line in lines}
    return named, errors


def test_whole_runs_killed_and_taken_up_again_never_mix_devices(printed):
    """Families, semantics, types, methods, kinds of LoRA: see RUNS in runs.py."""
    runs = {name: line for name, line in printed[0].items() if "run" in line}
    assert len(runs) == 9
    failed = {name: line["error"] for name, line in runs.items() if line["error"] is not None}
    assert not failed, printed[1][-6000:]
    for name, line in runs.items():  # something was counted: they were on the GPU
        assert line["kernels"] > 1000 and line["syncs"] > 100, name


CHECKS = [
    "two_devices_are_refused_where_cuda_refuses_them", "a_short_program_is_counted_as_by_hand",
    "the_numbers_are_those_of_a_cpu", "no_numbers_break_the_device_for_good",
    "float16_learns_outside_autocast_with_a_scaled_loss",
    "no_numbers_are_said_and_leave_the_device_whole",
    "what_processes_tell_each_other_lies_on_the_host",
    "pretraining_takes_the_same_steps_as_on_the_host",
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_on_the_gpu_in_name(printed, check):
    assert printed[0][check]["error"] is None, printed[1][-6000:]


def test_what_a_token_and_an_optimizer_step_ask_of_the_gpu(printed):
    """At most what was measured when this was written."""
    token, step = printed[0]["a token"], printed[0]["an optimizer step"]
    print(f"\n{token}\n{step}")
    assert 100 < token["kernels"] <= 405 and token["syncs"] <= 1 and token["copies"] == 0
    assert 100 < step["kernels"] <= 411 and step["syncs"] == 0 and step["copies"] <= 1

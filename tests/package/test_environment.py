"""Threads that wait, in processes that this package starts and in a user's own script."""

import os
import subprocess
import sys

import torch

from rlhf_helpers.environment import advice_about_threads, local_device

SHOW = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"


def policy_of(*imports, **given):
    """OMP_WAIT_POLICY in a fresh process after these imports."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    code = "; ".join(f"import {name}" for name in imports) + f"; {SHOW}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_script_that_imports_the_package_first_has_sleeping_threads():
    assert policy_of("rlhf_helpers") == "passive"
    assert policy_of("rlhf_helpers", OMP_WAIT_POLICY="active") == "active"  # the user's choice


def test_after_torch_it_is_too_late_and_said(monkeypatch):
    assert policy_of("torch", "rlhf_helpers") == "None"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert "OMP_WAIT_POLICY=passive" in advice_about_threads(2)
    assert advice_about_threads(1) is None
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert advice_about_threads(2) is None


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device() == torch.device("cuda", 1)
    monkeypatch.delenv("LOCAL_RANK")
    assert local_device() == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device() == torch.device("cpu")

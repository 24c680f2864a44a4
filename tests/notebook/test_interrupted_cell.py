"""The square button of a notebook: a cell that trains is interrupted, and run again."""

import os
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from rlhf_helpers.models.loading import load_trained_policy
from rlhf_helpers.runs.files import read_jsonl

CELL = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from tiny_runs import PROMPTS, letter_reward, run_config
from rlhf_helpers import train

def reward_fn(samples, **kwargs):
    (Path({run!r}).parent / "scoring").touch()
    time.sleep(0.2)  # long enough to be interrupted in
    return letter_reward(samples)

config = run_config({run!r}, train__total_steps=12)
trainer = train(reward_fn=reward_fn, prompts=PROMPTS, eval_prompts=PROMPTS[:2], config=config)
"""


@pytest.fixture
def kernel():
    manager, client = start_new_kernel(kernel_name="python3", env=dict(os.environ))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_the_policy_is_kept_and_the_cell_goes_on(tmp_path, kernel):
    manager, client = kernel
    tests = Path(__file__).parents[1]
    cell = CELL.format(tests=str(tests), root=str(tests.parent), run=str(tmp_path / "run"))
    request = client.execute(cell)
    until = time.monotonic() + 120
    while not (tmp_path / "scoring").exists() and time.monotonic() < until:
        time.sleep(0.05)
    manager.interrupt_kernel()
    reply = _reply(client, request)
    assert reply["ename"] == "KeyboardInterrupt"
    assert "the same call goes on from here" in reply["evalue"]
    assert load_trained_policy(tmp_path / "run" / "run" / "policy", "cpu")
    assert _reply(client, client.execute(cell))["status"] == "ok"
    steps = [m["step"] for m in read_jsonl(tmp_path / "run" / "run" / "metrics.jsonl")
             if "losses/total_loss" in m]  # fmt: skip
    assert steps == list(range(1, 13))


def _reply(client, request):
    while True:
        message = client.get_shell_msg(timeout=120)
        if message["parent_header"].get("msg_id") == request:
            return message["content"]

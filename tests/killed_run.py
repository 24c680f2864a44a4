"""A small run, killed at given moments and started again with the same call.

    python tests/killed_run.py ROOT MOMENTS

MOMENTS is a JSON list: a number between 0 and 1 kills after that share of the run's duration,
"writing" while a checkpoint is being written, "logging" between two lines of metrics. The run
that nothing disturbs is in ROOT/whole, the n-th killed one in ROOT/killed_n. Each run is a fork
of this process, which itself never computes anything, so that libraries are imported once.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tiny_runs import PROMPTS, letter_reward, model_dir, run_config

from rlhf_helpers.runs import checkpoint
from rlhf_helpers.training import api
from rlhf_helpers.training import log as training_log


def noisy_reward(samples, **kwargs):
    """Draws from Python's, numpy's and torch's generators: all must go on where they were."""
    noise = random.random() + np.random.rand() + torch.rand(()).item()
    return [reward + noise for reward in letter_reward(samples)]


def run(root: Path, directory: Path) -> None:
    """12 optimizer steps in 3 iterations; checkpoints in the middle of iterations too."""
    config = run_config(
        root, train__total_steps=12, train__checkpoint_interval=3, train__eval_interval=5,
        train__checkpoint_dir=str(directory), method__scale_reward="running",
    )  # fmt: skip
    api.train(reward_fn=noisy_reward, prompts=PROMPTS, eval_prompts=PROMPTS[:2], config=config)


def kill_on_call(module, name: str, count: int) -> None:
    """Replace a function of a module by one that kills this process at its count-th call."""
    original, calls = getattr(module, name), []

    def counting(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, name, counting)


def forked(root: Path, directory: Path, moment=None) -> int:
    """Start the run in a child; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ["RLHF_QUIET_PROGRESS"] = "1"
        torch.set_num_threads(1)
        if moment == "writing":
            kill_on_call(checkpoint, "_fsync", 8)  # in the second checkpoint
        elif moment == "logging":
            kill_on_call(training_log, "append_jsonl", 9)
        run(root, directory)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def main(root: Path, moments: list) -> None:
    """Everything, one run at a time; an exit status other than 0 where a run failed."""
    model_dir(root)
    started = time.monotonic()
    assert os.waitpid(forked(root, root / "whole"), 0)[1] == 0
    duration = time.monotonic() - started
    for n, moment in enumerate(moments):
        directory = root / f"killed_{n}"
        kill(root, directory, moment, duration)
        print(f"{moment}: ended by signal {signal.SIGKILL:d}", flush=True)
        assert os.waitpid(forked(root, directory), 0)[1] == 0


def kill(root: Path, directory: Path, moment, duration: float) -> None:
    """Start a run and kill it; where it was over before that, another one somewhat earlier."""
    while True:
        child = forked(root, directory, moment)
        if not isinstance(moment, str):
            time.sleep(moment * duration)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            return
        assert status == 0 and not isinstance(moment, str)
        shutil.rmtree(directory)
        duration *= 0.8


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))

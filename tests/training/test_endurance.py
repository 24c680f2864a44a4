"""Three hundred iterations: what a run holds does not grow."""

import gc
import os
import statistics
import threading

import psutil
import pytest
from tiny_runs import PROMPTS, letter_reward, run_config

from rlhf_helpers.training.api import train

ITERATIONS, EVERY = 300, 10


@pytest.mark.slow
def test_memory_files_and_threads_stay_flat(tmp_path, monkeypatch):
    """With evaluations and checkpoints as often as rollouts; the numbers are printed."""
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")
    process, rows = psutil.Process(os.getpid()), []

    def look(line):
        if "exp_scores/mean" in line and line["step"] % (EVERY * 4) == 0:
            gc.collect()
            rows.append((process.memory_info().rss, process.num_fds(), threading.active_count()))

    config = run_config(
        tmp_path, train__total_steps=ITERATIONS * 4, train__eval_interval=20,
        train__checkpoint_interval=20, train__epochs=ITERATIONS, train__save_best=True,
        train__reward_timeout_seconds=60.0, train__watchdog="off",
    )  # fmt: skip
    trainer = train(reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=PROMPTS[:2],
                    config=config, callback=look)  # fmt: skip
    assert trainer.iteration == ITERATIONS
    for n, (rss, files, threads) in enumerate(rows):
        print(f"iteration {n * EVERY}: {rss / 1e6:.1f} MB, {files} files, {threads} threads")
    first, last = rows[5:10], rows[-5:]  # what is loaded once is loaded after 50 iterations
    growth = statistics.median(r[0] for r in last) - statistics.median(r[0] for r in first)
    assert growth < 20e6, f"{growth / 1e6:.1f} MB more"
    assert max(r[1] for r in last) <= max(r[1] for r in first)
    assert max(r[2] for r in last) <= max(r[2] for r in first)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 3  # two and the best

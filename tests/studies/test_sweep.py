"""Sweeps: files in trlX's format, and two real trials in Ray Tune where that is installed."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tiny_runs import model_dir

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.runs.files import read_jsonl
from rlhf_helpers.studies import sweep
from rlhf_helpers.training import log

DOCS = Path(__file__).parents[2] / "docs"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install "ray[tune]"'
)

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from tiny_runs import PROMPTS, letter_reward, run_config
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers import train

def main(hparams):
    config = TRLConfig.update(run_config({root!r}).to_dict(), hparams)
    train(reward_fn=letter_reward, prompts=PROMPTS, eval_prompts=PROMPTS[:2], config=config)
"""


def write(path, text):
    path.write_text(text)
    return path


def test_the_example_is_read():
    tune_config, fields = sweep.load_sweep(DOCS / "ppo_sweep.yml")
    assert tune_config["metric"] == "reward/mean"
    assert fields["optimizer.kwargs.lr"] == {"strategy": "loguniform", "values": [0.0003, 0.01]}
    assert callable(sweep.load_main(DOCS / "sweep_script.py"))


@pytest.mark.parametrize("text, message", [
    ("a: {strategy: grid, values: [1]}", "no section tune_config"),
    ("tune_config: {samples: 3}", "tune_config.samples is unknown"),
    ("tune_config: {}\nlr: 3", "lr is 3: give it strategy and values"),
    ("tune_config: {}\nlr: {strategy: magic, values: [1]}", "lr.strategy is 'magic'"),
    ("tune_config: {}\nlr: {strategy: uniform, values: [1]}", "1 entries: uniform takes 2"),
    ("tune_config: {}\nlr: {strategy: grid, values: 5}", "give a list"),
    ("{", "is not valid YAML"),
    ("tune_config: {1: 2}", "a key of tune_config is 1: give a name"),
    ("tune_config: {num_samples: -1}", "tune_config.num_samples is -1"),
    ("tune_config: {}", "names no field to sweep over"),
    ("tune_config: {}\n1: {strategy: grid, values: [1]}", "a key of the content of .* is 1"),
    ("tune_config: {}\nmethod.gama: {strategy: grid, values: [1]}", "did you mean method.gamma"),
    ("tune_config: {}\nlr: {strategy: [grid], values: [1]}", r"lr.strategy is \['grid'\]"),
    ("tune_config: {}\nlr: {strategy: uniform, values: [low, 1]}", r"values\[0\] is 'low'"),
])  # fmt: skip
def test_a_bad_file_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        sweep.load_sweep(write(tmp_path / "sweep.yml", text))


@pytest.mark.parametrize("content", [b"\xff\xfe\0\0", b"", b"\0" * 100, b"a: [1" * 100])
def test_a_file_that_is_no_sweep_is_one_sentence(tmp_path, content):
    path = tmp_path / "sweep.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="sweep.yml") as raised:
        sweep.load_sweep(path)
    assert "\n" not in str(raised.value)


def test_a_script_that_cannot_be_run_is_one_sentence(tmp_path):
    for text in ("x = = 1", "1 / 0", "import nothing_of_that_name"):
        with pytest.raises(ConfigError, match="cannot be run .*mend it"):
            sweep.load_main(write(tmp_path / "script.py", text))


def test_a_script_without_main_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="has no main"):
        sweep.load_main(write(tmp_path / "script.py", "x = 1"))
    with pytest.raises(ConfigError, match="is no Python file"):
        sweep.load_main(tmp_path / "absent.py")


def test_nothing_is_reported_outside_a_sweep(monkeypatch):
    monkeypatch.delenv(log.SWEEP_TRIAL, raising=False)
    monkeypatch.setattr(sweep, "ray_tune", lambda: pytest.fail("Ray was asked for"))
    log.report_to_sweep({"reward/mean": 1.0})


def test_a_directory_belongs_to_one_sweep(tmp_path):
    file, directory = write(tmp_path / "a.yml", "tune_config: {}"), tmp_path / "out" / "a"
    assert not sweep._claim(directory, file)
    assert sweep._claim(directory, file)
    write(file, "tune_config: {num_samples: 2}")
    with pytest.raises(ConfigError, match="belongs to another sweep.*another --out"):
        sweep._claim(directory, file)


class _Ray:
    """What `start_ray` needs of Ray."""

    def __init__(self, problem=None, runs=False):
        self.problem, self.runs, self.given = problem, runs, []

    def is_initialized(self):
        return self.runs

    def init(self, **given):
        self.given.append(given)
        if self.problem:
            raise Exception(self.problem)


def test_ray_is_started_once_without_its_page_or_joined(monkeypatch):
    ray = _Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sweep.start_ray()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    sweep.start_ray()  # a cluster's settings are its own
    ray.runs = True
    sweep.start_ray()
    assert ray.given == [{"include_dashboard": False}, {}]


def test_ray_that_does_not_start_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", _Ray("The current node timed out during startup."))
    with pytest.raises(ConfigError, match="Ray did not start .*node timed out.*command again"):
        sweep.start_ray()


NOTED = """
import fcntl, json, time
from pathlib import Path

def note(what, hparams):
    with open(Path({root!r}) / "notes.jsonl", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rate = hparams["optimizer.kwargs.lr"]
        file.write(json.dumps({{"what": what, "rate": rate, "time": time.time()}}) + "\\n")

def noted(hparams):
    note("begins", hparams)
    train_it({{**hparams, "train.total_steps": 16, "train.checkpoint_interval": 4}})
    note("ends", hparams)

train_it, main = main, noted
"""


def rates(notes, what):
    return [note["rate"] for note in notes if note["what"] == what]


@needs_ray
@pytest.mark.slow
def test_four_trials_two_at_once_go_on_after_a_kill(tmp_path):
    """Killed when the first has ended: the same command ends the others, and only them."""
    tests, root = str(Path(__file__).parents[1]), str(tmp_path)
    model_dir(tmp_path)  # here, once: two trials at once would both make it
    script = write(tmp_path / "script.py", (SCRIPT + NOTED).format(tests=tests, root=root))
    file = write(tmp_path / "rates.yml", """
tune_config: {metric: reward/mean, mode: max, num_samples: 1}
optimizer.kwargs.lr: {strategy: grid, values: [0.0, 0.01, 0.02, 0.03]}
""")  # fmt: skip
    command = [sys.executable, "-m", "rlhf_helpers", "sweep", file, script, "--out"]
    command = [*map(str, command), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(tests).parent),
                   "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}  # fmt: skip
    path = tmp_path / "notes.jsonl"
    with open(tmp_path / "first.log", "w") as log_file:
        first = subprocess.Popen(command, env=environment, stdout=log_file,
                                 stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        deadline = time.monotonic() + 400
        while not (path.exists() and rates(read_jsonl(path), "ends")):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.5)
        time.sleep(3)  # Ray writes down that it has ended
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    before = read_jsonl(path)
    ended, begun = rates(before, "ends"), rates(before, "begins")
    assert len(ended) < 4 and len(begun) >= 2
    first_end = min(note["time"] for note in before if note["what"] == "ends")
    assert sum(n["time"] < first_end for n in before if n["what"] == "begins") == 2  # at once

    done = subprocess.run(command, env=environment, capture_output=True, text=True,
                          timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Best of 4 trials" in done.stdout
    after = read_jsonl(path)[len(before):]
    assert not set(rates(after, "begins")) & set(ended)
    assert sorted(ended + rates(after, "ends")) == [0.0, 0.01, 0.02, 0.03]
    table = pd.read_csv(tmp_path / "out" / "rates" / "trials.csv")
    assert sorted(table["config/optimizer.kwargs.lr"]) == [0.0, 0.01, 0.02, 0.03]
    assert (table["step"] == 16).all() and table["reward/mean"].notna().all()
    for metrics in (tmp_path / "out").rglob("metrics.jsonl"):  # no step twice, none missing
        steps = [x["step"] for x in read_jsonl(metrics) if "losses/total_loss" in x]
        assert steps == list(range(1, 17))


@needs_ray
@pytest.mark.slow
def test_two_trials_of_ray_differ_in_the_swept_field(tmp_path):
    tests = str(Path(__file__).parents[1])
    model_dir(tmp_path)
    script = write(tmp_path / "script.py", SCRIPT.format(tests=tests, root=str(tmp_path)))
    file = write(tmp_path / "rates.yml", """
tune_config: {metric: reward/mean, mode: max, num_samples: 1}
optimizer.kwargs.lr: {strategy: grid, values: [0.0, 0.03]}
""")  # fmt: skip
    results = sweep.run_sweep(file, script, tmp_path / "out")
    assert not results.errors
    table = pd.read_csv(tmp_path / "out" / "rates" / "trials.csv")
    assert sorted(table["config/optimizer.kwargs.lr"]) == [0.0, 0.03]
    assert table["reward/mean"].notna().all()
    assert (table["step"] == 4).all()  # the last evaluation's, after all four steps
    runs = sorted((tmp_path / "out").rglob("metrics.jsonl"))
    assert len(runs) == 2  # each in a directory of its own

"""Damaged checkpoints, full and closed disks, two runs in one directory: done for real."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import PROMPTS, letter_reward, run_config

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.models.loading import load_trained_policy
from rlhf_helpers.runs import checkpoint
from rlhf_helpers.runs.checkpoint import best_checkpoint, load_newest, save_checkpoint
from rlhf_helpers.runs.files import CannotWriteError, read_jsonl, writing_to, written_together
from rlhf_helpers.runs.lock import only_run_in
from rlhf_helpers.training.api import train
from rlhf_helpers.training.saving import CHECKPOINT_COST, CHECKPOINT_SECONDS, Saving
from rlhf_helpers.training.trainer import PPOTrainer

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


def state(step):
    """Something like a checkpoint's content: 8 kB of numbers that name their step."""
    return {"step": step, "weights": torch.full((2000,), float(step)), "names": ["a", "b"]}


def three(root):
    """Checkpoints of the steps 1, 2 and 3."""
    for step in (1, 2, 3):
        save_checkpoint(root, step, state(step), keep=3)
    return root


# --- checkpoints -----------------------------------------------------------------------------


def flip(place):
    """A damage: the bit at this share of the file is turned."""

    def damage(path):
        content = bytearray(path.read_bytes())
        content[min(int(place * len(content)), len(content) - 1)] ^= 4
        path.write_bytes(bytes(content))

    return damage


def cut(place):
    """A damage: the file ends at this share of its length."""
    return lambda path: os.truncate(path, int(place * path.stat().st_size))


DAMAGES = {
    **{f"bit at {place}": flip(place) for place in (0.0, 0.01, 0.3, 0.5, 0.9, 1.0)},
    **{f"cut at {place}": cut(place) for place in (0.0, 0.1, 0.5, 0.99)},
    "missing": lambda path: path.unlink(),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "of another file": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("file", ["state.pt", "about.json", "SHA256SUMS.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_used(tmp_path, file, damage):
    root = three(tmp_path / "checkpoints")
    before = (root / "step_00000003" / file).read_bytes()
    DAMAGES[damage](root / "step_00000003" / file)
    with pytest.warns(UserWarning, match=r"step_00000003 is damaged \(.+\) and not used"):
        found = load_newest(root)
    assert found["step"] == 2 and torch.equal(found["weights"], torch.full((2000,), 2.0))
    (root / "step_00000003" / file).write_bytes(before)
    assert load_newest(root)["step"] == 3


def test_where_none_can_be_read_nothing_begins_again(tmp_path):
    root = three(tmp_path)
    for path in root.glob("step_*"):
        shutil.rmtree(path)
        path.write_text("a file where a directory was")
    with (
        pytest.warns(UserWarning, match="is damaged") as caught,
        pytest.raises(ConfigError, match="3 checkpoints and none of them can be read.*start over"),
    ):
        load_newest(root)
    assert len(caught) == 3 and len(list(root.iterdir())) == 3


def test_what_is_new_is_not_thrown_away_for_what_is_damaged(tmp_path):
    """The run went back to step 1: it must keep its next checkpoint, not the damaged later ones."""
    root = three(tmp_path)
    for step in (2, 3):
        (root / f"step_0000000{step}" / "state.pt").write_bytes(b"damaged")
    save_checkpoint(root, 2, state(20), keep=2)
    assert load_newest(root)["step"] == 20
    assert sorted(p.name for p in root.iterdir()) == ["step_00000001", "step_00000002"]


def test_the_last_ones_and_the_best_stay(tmp_path):
    for step, score in enumerate([0.1, 0.9, None, 0.5, 0.2, 0.3]):
        save_checkpoint(tmp_path, step, state(step), keep=2, score=score)
    kept = sorted(int(p.name.removeprefix("step_")) for p in tmp_path.iterdir())
    assert kept == [1, 4, 5]
    assert best_checkpoint(tmp_path).name == "step_00000001"
    assert load_newest(best_checkpoint(tmp_path))["step"] == 1


@pytest.mark.parametrize("calls", range(1, 12))
def test_a_kill_while_a_checkpoint_is_replaced_loses_none(tmp_path, monkeypatch, calls):
    """The same step is written twice; the process ends at any of the operations in between."""

    class KilledError(BaseException):
        pass

    save_checkpoint(tmp_path, 1, state(1), keep=1)
    left = iter([False] * (calls - 1) + [True] + [False] * 100)

    def fails(original):
        def operation(*args, **kwargs):
            if next(left):
                raise KilledError
            return original(*args, **kwargs)

        return operation

    with monkeypatch.context() as patch:
        for module, name in (
            (checkpoint, "_fsync"), (os, "rename"), (Path, "unlink"), (Path, "rmdir"),
        ):  # fmt: skip
            patch.setattr(module, name, fails(getattr(module, name)))
        with pytest.raises(KilledError):
            save_checkpoint(tmp_path, 1, state(100), keep=1)
    assert load_newest(tmp_path)["step"] in (1, 100)
    save_checkpoint(tmp_path, 2, state(2), keep=1)  # and nothing half done stays
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000002"]


def test_the_interval_follows_the_time_of_writing(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rlhf_helpers.training.saving.time.monotonic", lambda: now[0])

    class Trainer:
        config = run_config(tmp_path, train__checkpoint_seconds=None)

    saving = Saving(Trainer())
    assert not saving.is_due()
    now[0] = CHECKPOINT_SECONDS + 1
    assert saving.is_due()
    saving._last, saving._seconds = now[0], 10.0  # one took ten seconds
    now[0] += 10 * CHECKPOINT_COST - 1
    assert not saving.is_due()
    now[0] += 2
    assert saving.is_due()
    assert 10.0 / (10 * CHECKPOINT_COST) < 0.02  # of the time
    Trainer.config.train.checkpoint_seconds = 5.0  # what is asked for is done
    now[0] = saving._last + 6
    assert saving.is_due()


# --- disks -----------------------------------------------------------------------------------


def run_that_is_stopped_at_step_5(root, directory, do):
    """CannotWriteError of a run in which `do()` is called when step 5 is logged; then goes on."""
    arguments = dict(prompts=PROMPTS, eval_prompts=PROMPTS[:2], reward_fn=letter_reward)
    settings = dict(train__checkpoint_dir=str(directory), train__total_steps=8,
                    train__checkpoint_interval=2)  # fmt: skip

    def callback(line):
        if line["step"] == 5 and "ratio" in line:
            do()

    with pytest.raises(CannotWriteError) as raised:
        train(config=run_config(root, **settings), callback=callback, **arguments)
    assert load_newest(directory / "checkpoints")["loop"]["step"] in (4, 6)
    yield str(raised.value)
    trainer = train(config=run_config(root, **settings), **arguments)
    assert trainer.step == 8
    steps = [line["step"] for line in read_jsonl(directory / "metrics.jsonl") if "ratio" in line]
    assert steps == list(range(1, 9))


def test_a_limit_on_files_stops_the_run_in_a_sentence_and_loses_no_checkpoint(tmp_path, capsys):
    """As a quota: the limit comes after step 5 and lies below the size of a checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    run = tmp_path / "run"
    parts = run_that_is_stopped_at_step_5(tmp_path, run, limit)
    try:
        sentence = next(parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{run} cannot be written (the limit on the size of files is reached)" in sentence
    assert sentence.endswith("then make the same call: it goes on from the last checkpoint.")
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["step_00000002", "step_00000004"]
    assert not list(parts) and "step 4 of 8: going on from there" in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB; skipped where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk, leave):
    """Write to the disk until only `leave` bytes are free."""
    free = shutil.disk_usage(disk).free - leave
    (disk / "filler").write_bytes(bytes(free))


@pytest.mark.parametrize(
    "leave", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (4096, 60_000))]
)
def test_a_disk_that_fills_up_stops_the_run_and_loses_no_checkpoint(tmp_path, small_disk, leave):
    """Metrics, checkpoint or policy are what does not fit any more."""
    run = small_disk / "run"
    parts = run_that_is_stopped_at_step_5(tmp_path, run, lambda: fill(small_disk, leave))
    sentence = next(parts)
    assert "the disk is full" in sentence and "\n" not in sentence
    (small_disk / "filler").unlink()
    assert not list(parts)


def test_a_read_only_disk_is_said_before_anything_is_trained(tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CannotWriteError, match="the file system is read-only"):
        train(config=run_config(tmp_path, train__checkpoint_dir=str(small_disk / "run")),
              prompts=PROMPTS, reward_fn=letter_reward)  # fmt: skip


def test_policies_on_a_full_disk_keep_all_files_of_the_earlier_one(tmp_path, small_disk):
    trainer = train(config=run_config(tmp_path, train__total_steps=1), prompts=PROMPTS,
                    eval_prompts=PROMPTS[:2], reward_fn=letter_reward)  # fmt: skip
    trainer.save_pretrained(small_disk / "policy")
    before = {p.name: p.read_bytes() for p in (small_disk / "policy").iterdir()}
    fill(small_disk, 8192)
    for parameter in trainer.trained.values():
        parameter.data.add_(1.0)
    with pytest.raises(CannotWriteError, match="the disk is full"), writing_to(small_disk):
        trainer.save_pretrained(small_disk / "policy")
    assert {p.name: p.read_bytes() for p in (small_disk / "policy").iterdir()} == before
    assert load_trained_policy(small_disk / "policy", "cpu")


def test_a_directory_that_is_closed_is_said_before_anything_is_trained(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    closed = [tmp_path / "file" / "run", tmp_path / "file"]
    closed += [tmp_path / "closed" / "run"] if os.geteuid() != 0 else []  # root may do it
    closed += [Path("/sys/run")] if Path("/sys").exists() else []  # where nobody may
    for directory in closed:
        with pytest.raises(CannotWriteError, match="cannot be written.*choose another directory"):
            train(config=run_config(tmp_path, train__checkpoint_dir=str(directory)),
                  prompts=PROMPTS, reward_fn=letter_reward)  # fmt: skip


def test_only_errors_of_writing_become_that_sentence(tmp_path):
    with pytest.raises(FileNotFoundError), writing_to(tmp_path):
        (tmp_path / "nowhere").read_text()
    with pytest.raises(ValueError), writing_to(tmp_path):
        raise ValueError("of something else")
    # As safetensors and tokenizers, written in Rust, put it.
    with pytest.raises(CannotWriteError, match="the disk is full"), writing_to(tmp_path):
        raise RuntimeError("No space left on device (os error 28)")


def test_files_written_together_replace_all_or_none(tmp_path):
    target = tmp_path / "policy"
    with written_together(target) as place:
        (place / "a").write_text("1")
        (place / "b").write_text("1")
    (target / "of the user").write_text("stays")
    with pytest.raises(OSError), written_together(target) as place:
        (place / "a").write_text("2")
        raise OSError("full")
    assert {p.name: p.read_text() for p in target.iterdir()} == {
        "a": "1", "b": "1", "of the user": "stays"}  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize("merge", [False, True])
def test_a_policy_is_written_whole_or_not_at_all(tmp_path, monkeypatch, merge):
    trainer = PPOTrainer(run_config(tmp_path), letter_reward)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(trainer.tokenizer, "save_pretrained", full)  # the last of the files
        trainer.save_pretrained(tmp_path / "out", merge=merge)
    assert not (tmp_path / "out").exists()
    trainer.save_pretrained(tmp_path / "out", merge=merge)
    assert (tmp_path / "out" / "config.json").exists() == merge


# --- two runs --------------------------------------------------------------------------------


HOLDER = """
import sys, time
from rlhf_helpers.runs.lock import only_run_in
with only_run_in(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_in_one_directory_exclude_each_other_until_one_is_killed(tmp_path):
    """One process holds the lock as a run does (test_trainer.py kills whole runs that do)."""
    run, arguments = tmp_path / "run", dict(prompts=PROMPTS, reward_fn=letter_reward)
    train(config=run_config(tmp_path, train__total_steps=1), **arguments)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    command = [sys.executable, "-c", HOLDER, str(run)]
    first = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    config = run_config(tmp_path, train__total_steps=2)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"in use by another run .process {first.pid} on"):
            train(config=config, **arguments)
    finally:
        first.kill()  # SIGKILL: no time to tidy up
        first.communicate()
    assert {p: p.read_bytes() for p in before} == before
    assert (run / ".lock").exists()
    assert train(config=config, **arguments).step == 2


def test_a_lock_belongs_to_one_holder_and_ends_with_it(tmp_path):
    with only_run_in(tmp_path):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), only_run_in(tmp_path):
            pass
        with only_run_in(tmp_path, "other.lock"):
            pass
    with pytest.raises(ZeroDivisionError), only_run_in(tmp_path):
        raise ZeroDivisionError
    with only_run_in(tmp_path):
        pass

"""The lock of a run directory: what stands in its place is never followed, cut or written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.runs.lock import only_run_in

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic link", "hard link"])
@pytest.mark.parametrize("name", [".lock", ".pipeline.lock"])
def test_a_lock_that_is_a_link_leaves_the_file_behind_it_alone(tmp_path, link, name):
    run, precious = tmp_path / "run", tmp_path / "thesis.tex"
    run.mkdir()
    precious.write_text("three years of work")
    link(precious, run / name)
    with pytest.raises(ConfigError, match="is a link or no plain file") as raised:
        with only_run_in(run, name):
            pass
    assert str(run / name) in str(raised.value) and len(str(raised.value).splitlines()) == 1
    assert precious.read_text() == "three years of work"


def test_a_link_to_nothing_makes_no_file_there(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"), only_run_in(run):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_link_that_appears_at_the_last_moment_is_not_followed_either(tmp_path, monkeypatch):
    """Between the look at the file and its opening, somebody puts a link there."""
    from rlhf_helpers.runs import lock

    precious = tmp_path / "thesis.tex"
    precious.write_text("three years of work")
    (tmp_path / ".lock").symlink_to(precious)
    monkeypatch.setattr(lock, "_refuse_link", lambda path: None)
    with pytest.raises(OSError), only_run_in(tmp_path):
        pass
    assert precious.read_text() == "three years of work"


def test_a_directory_or_a_pipe_in_its_place_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match="is a link or no plain file"), only_run_in(tmp_path):
        pass
    os.mkfifo(tmp_path / "pipe.lock")
    with pytest.raises(ConfigError, match="is a link or no plain file"):
        with only_run_in(tmp_path, "pipe.lock"):
            pass


def test_the_holder_signs_the_file_and_leaves_it_behind(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on a computer with a much longer name than this one")
    with only_run_in(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        assert "much longer" not in (tmp_path / ".lock").read_text()
    assert (tmp_path / ".lock").exists()


def test_a_waiting_run_does_not_wait_and_does_not_wipe_the_holders_name(tmp_path):
    with only_run_in(tmp_path):
        started = time.monotonic()
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"in use by another run .process {os.getpid()}"):
                with only_run_in(tmp_path):
                    pass
        assert time.monotonic() - started < 5


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch):
    import errno
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    done = False
    with pytest.warns(UserWarning, match="cannot be locked .No locks available."):
        with only_run_in(tmp_path):
            done = True
    assert done


ORPHAN = """
import os, sys, time
from rlhf_helpers.runs.lock import only_run_in
with only_run_in(sys.argv[1]):
    if os.fork() == 0:
        print("held", flush=True)  # the child is there
        time.sleep(60)
        os._exit(0)
    time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_child_that_outlives_a_killed_run_does_not_keep_its_lock(tmp_path):
    """A forked worker (of a data loader, say) inherits every open file."""
    command = [sys.executable, "-c", ORPHAN, str(tmp_path)]
    run = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert run.stdout.readline() == "held\n"
        run.kill()
        run.wait()
        with only_run_in(tmp_path):
            pass
    finally:
        os.killpg(run.pid, 9)  # the child, in the session of its own that it was started in
        run.stdout.close()

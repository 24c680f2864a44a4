"""Files of a run directory are whole or absent, and a missing one says what to do."""

import json
import os
import stat

import pytest

from rlhf_helpers.runs import files
from rlhf_helpers.runs.files import (
    WRITTEN_BY,
    MissingRunFileError,
    RunDir,
    append_jsonl,
    atomic_write_json,
    atomic_write_text,
    open_run,
    read_json,
    read_jsonl,
    reference_run_dir,
    write_jsonl,
)


def test_on_windows_files_are_flushed_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """There fsync of a handle for reading is refused, and a directory cannot be opened."""
    path = tmp_path / "weights"
    path.write_bytes(b"1\r\n\x1a2")
    flushed, really_open, binary = [], os.open, 1 << 40

    def windows_open(name, flags):
        assert not os.path.isdir(name) and flags & binary
        return really_open(name, flags & ~binary)

    def windows_fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(handle)

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(os, "open", windows_open)
    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)
    monkeypatch.setattr(os, "fsync", windows_fsync)
    monkeypatch.setattr(files, "ON_WINDOWS", True)
    files.fsync(path)
    files.fsync(tmp_path)
    assert len(flushed) == 1 and path.read_bytes() == b"1\r\n\x1a2"


def test_json_is_written_readable_and_whole(tmp_path):
    path = tmp_path / "deep" / "report.json"
    atomic_write_json(path, {"review": "très bien", "reward": 0.5})
    assert path.read_text(encoding="utf-8") == '{\n  "review": "très bien",\n  "reward": 0.5\n}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["report.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    atomic_write_text(path, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError):
        atomic_write_json(tmp_path / "a.json", {"loss": value})
    with pytest.raises(ValueError):
        write_jsonl(tmp_path / "a.jsonl", [{"loss": 1.0}, {"loss": value}])
    assert os.listdir(tmp_path) == []


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, [{"step": 1}])
    append_jsonl(path, {"step": 2})
    with open(path, "a") as file:
        file.write('{"step": 3, "los')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_line_separators_inside_a_text_do_not_split_a_record(tmp_path):
    path = tmp_path / "samples.jsonl"
    sample = {"output": "one\u2028two\nthree\x85four"}
    write_jsonl(path, [sample, sample])
    assert read_jsonl(path) == [sample, sample]
    assert len(path.read_bytes().split(b"\n")) == 3  # two lines and the end


def test_json_written_is_plain_json(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name, notebook", sorted(WRITTEN_BY.items()))
def test_a_missing_input_names_the_notebook_that_makes_it(tmp_path, name, notebook):
    run = RunDir(tmp_path / "runs" / "mine")
    with pytest.raises(MissingRunFileError) as error:
        run.require(name)
    assert f"run {notebook} with run_dir=" in str(error.value)
    path = getattr(run, name)
    path.touch()
    assert run.require(name) == path


def test_a_relative_run_directory_lies_in_the_repository(tmp_path, monkeypatch):
    from rlhf_helpers.config.paths import repo_root

    monkeypatch.chdir(tmp_path)
    run = open_run("cpu", "runs/test-of-open-run")
    try:
        assert run.path == repo_root() / "runs" / "test-of-open-run"
        assert run.path.is_dir()
    finally:
        run.path.rmdir()
    assert open_run("cpu", tmp_path / "here").path == tmp_path / "here"


def test_a_profile_without_reference_run_says_so():
    with pytest.raises(MissingRunFileError, match="no reference run of profile 'nonesuch'"):
        reference_run_dir("nonesuch")
    with pytest.raises(MissingRunFileError, match="reference_run=False"):
        open_run("nonesuch", "runs/any", reference_run=True)


def test_a_reference_run_that_is_not_complete_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_helpers.config.paths.repo_root", lambda: tmp_path)
    folder = tmp_path / "figures" / "reference_runs" / "half"
    (folder / "policy").mkdir(parents=True)
    for name in ("config.yml", "manifest.json", "setup.json", "metrics.jsonl", "evaluation.json"):
        (folder / name).touch()
    with pytest.raises(MissingRunFileError) as caught:
        open_run("half", "runs/any", reference_run=True)
    assert "lacks baseline_samples.jsonl, reward_check.jsonl, lora_report.json" in str(caught.value)

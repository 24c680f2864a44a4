"""One cell for the whole chain on Colab: which profile, which folder, and the notebook itself."""

import sys
import types
from pathlib import Path

import nbformat
import pytest

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.notebook import all_in_one
from rlhf_helpers.notebook.badges import (
    bootstrap_source,
    colab_badge,
    is_bootstrap,
    repository_url,
)
from rlhf_helpers.runs.files import RunDir

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "colab" / "all_in_one.ipynb"


@pytest.fixture
def mounted(monkeypatch):
    """A google.colab that notes what is mounted."""
    places = []
    drive = types.ModuleType("google.colab.drive")
    drive.mount = places.append
    for name in ("google", "google.colab"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    return places


@pytest.mark.parametrize(
    "gpu, gigabytes, profile",
    [(None, 12, "cpu"), ("Tesla T4", 15.8, "t4"), ("V100", 16.9, "t4"), ("NVIDIA L4", 23.7, "seed"),
     ("A100-SXM4-40GB", 42.4, "seed")],
)  # fmt: skip
def test_the_profile_fits_the_machine(gpu, gigabytes, profile):
    device = {"type": "cuda" if gpu else "cpu", "name": gpu, "memory_bytes": gigabytes * 1e9}
    assert all_in_one.fitting_profile(device) == profile
    load_profile(profile)  # there is one of that name


def test_a_run_is_kept_in_drive(mounted):
    assert all_in_one.in_drive("runs/seed") == Path("/content/drive/MyDrive/rlhf/runs/seed")
    assert mounted == ["/content/drive"]
    with pytest.raises(ConfigError, match="absolute path"):
        all_in_one.in_drive("/runs/seed")


def test_without_colab_there_is_no_drive():
    with pytest.raises(ConfigError, match="on Colab only.*keep_in_drive = False"):
        all_in_one.in_drive("runs/seed")


def test_everything_runs_where_it_was_asked_to(tmp_path, monkeypatch, mounted, capsys):
    monkeypatch.setattr(all_in_one, "DRIVE", tmp_path)
    calls = []
    monkeypatch.setattr(all_in_one, "run_pipeline", lambda **given: calls.append(given))
    monkeypatch.setattr(all_in_one, "run_summary", lambda run: f"summary of {run.path.name}")
    run = all_in_one.run_everything("smoke", keep_in_drive=True, seed=3, overrides={"a": 1})
    folder = tmp_path / "MyDrive" / "rlhf" / "runs" / "smoke"
    assert isinstance(run, RunDir) and run.path == folder
    assert calls == [{"profile": "smoke", "run_dir": folder, "seed": 3, "overrides": {"a": 1}}]
    assert "summary of smoke" in capsys.readouterr().out


def test_the_notebook_is_short_and_points_to_this_repository():
    url = repository_url(ROOT / "pyproject.toml")
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert colab_badge(url, "colab/all_in_one.ipynb") in cells[0].source
    (bootstrap,) = [cell for cell in cells if is_bootstrap(cell)]
    assert bootstrap.source == bootstrap_source(url)
    (parameters,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    given: dict = {}
    exec(parameters.source, given)
    arguments = ("profile", "keep_in_drive", "seed", "overrides")
    assert [given[name] for name in arguments] == [None, False, 1000, {}]
    assert any(f"run_everything({', '.join(arguments)})" in cell.source for cell in cells)
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in cells)

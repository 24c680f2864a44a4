"""The command line in careless hands: one sentence and exit code 2, or 1 where nothing was given
wrong; never a traceback, never a file changed outside."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_notebooks import write_notebook
from touched import everything_in, make_outside

from rlhf_helpers.__main__ import main
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.data.assets import AssetError, find_asset
from rlhf_helpers.data.reviews import load_reviews
from rlhf_helpers.notebook import pipeline

ROOT = Path(__file__).resolve().parents[2]


def said(capsys, *arguments, code=2) -> str:
    """The one sentence on stderr of a command that ends with `code`."""
    assert main(list(map(str, arguments))) == code
    error = capsys.readouterr().err.strip()
    assert error and "Traceback" not in error
    return error


@pytest.fixture
def nothing_runs(monkeypatch):
    """Everything of `run` but the notebooks themselves."""
    monkeypatch.setattr(pipeline, "_run_locked", lambda *arguments: [])


# --- where results go ----------------------------------------------------------------------------


def places(tmp_path):
    (tmp_path / "file").write_text("of somebody")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dead").symlink_to(tmp_path / "nothing")
    return [tmp_path / "file", tmp_path / "file" / "below", tmp_path / "loop", tmp_path / "dead",
            tmp_path / ("x" * 300), "/proc/run", "/sys/run"]  # fmt: skip


COMMANDS = {
    "run": ["run", "--run-dir"],
    "study": ["study", ROOT / "figures" / "study" / "frontier.yml", "--first", "1", "--out"],
    "preferences": ["preferences", "--models-only", "--out"],
    "pretrain": ["pretrain", "--steps", "1", "--out"],
    "train-reward": ["train-reward", "--steps", "1", "--out"],
    "train-judge": ["train-judge", "--out"],
    "memory": ["memory", "--table", "--out"],
    "bench": ["bench", "--shape", "deep", "--tiny", "--iterations", "1", "--out"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_one_sentence(command, capsys, tmp_path, nothing_runs):
    for place in places(tmp_path):
        assert main([*map(str, COMMANDS[command]), str(place)]) in (1, 2), place
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1 and "choose another" in error or "give a path" in error
    assert (tmp_path / "file").read_text() == "of somebody"


def test_a_run_directory_with_links_is_left_alone(capsys, tmp_path, nothing_runs):
    outside = make_outside(tmp_path)
    before = everything_in(outside)
    for name in (".pipeline.lock", ".lock", "policy", "checkpoints", "notebooks", "figures",
                 "metrics.jsonl", "best_checkpoint", "config.yml", "manifest.json"):  # fmt: skip
        run = tmp_path / f"run {name}"
        run.mkdir()
        (run / name).symlink_to(outside / ("folder" if "." not in name else "secret"))
        assert "is a link" in said(capsys, "run", "--run-dir", run), name
    assert everything_in(outside) == before


def test_the_repository_is_no_run_directory(capsys, tmp_path, nothing_runs):
    for name in ("notebooks", "figures"):
        shutil.copytree(ROOT / "figures" / "reference_runs" / "cpu" / "policy", tmp_path / name)
    before = everything_in(tmp_path)
    assert "holds figures and notebooks but no config.yml" in said(
        capsys, "run", "--run-dir", tmp_path
    )
    assert everything_in(tmp_path) == before


def test_braces_in_the_name_of_a_run_directory_are_only_letters(tmp_path):
    notebook = write_notebook(tmp_path / "a {profile}", "01_a.ipynb", "print(run_dir)")
    run = tmp_path / "run {seed} {gone} {"
    done = pipeline.run_pipeline("smoke", run, notebook_folder=notebook.parent)
    assert [row.name for row in done] == ["01_a"]
    assert (run / "notebooks" / "01_a.ipynb").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a {profile}", run.name]


# --- what is given -------------------------------------------------------------------------------


def test_a_notebook_by_its_number_without_the_zero():
    assert [path.name for path in pipeline.notebook_paths(["3"])] == [
        "03_lora_parameter_inspection.ipynb"
    ]
    with pytest.raises(ConfigError, match="Notebook '33' does not exist"):
        pipeline.notebook_paths(["33"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["evaluate", ROOT / "figures/reference_runs/cpu", "--n-prompts", "-3"],
         "--n-prompts is -3"),
        (["evaluate", ROOT / "figures/reference_runs/cpu", "--seed", "-1"], "--seed is -1"),
        (["evaluate", ROOT / "figures/reference_runs/cpu", "--samples-per-opening", "0"],
         "--samples-per-opening is 0"),
        (["run", "--seed", "-1"], "train.seed is -1"),
        (["pretrain", "--seed", "-1"], "--seed is -1"),
        (["pretrain", "--steps", "-1"], "--steps is -1"),
        (["train-reward", "--out", "x", "--steps", "0"], "--steps is 0"),
        (["train-reward", "--out", "x", "--seed", "-5"], "--seed is -5"),
        (["train-reward", "--out", "x", "--eval-reviews", "-5"], "--eval-reviews is -5"),
        (["train-judge", "--out", "x", "--seed", "-5"], "--seed is -5"),
        (["memory", "--set", "garbage"], "--set is"),
        (["memory", "--profile", "cpu", "--set", "garbage"], "override is 'garbage'"),
        (["study", ROOT / "figures/study/frontier.yml", "--first", "-1"], "--first is -1"),
        (["sweep", ROOT / "docs/ppo_sweep.yml", ROOT / "docs/sweep_script.py", "--cpus", "-1"],
         "--cpus is -1"),
        (["sweep", "/dev/null", ROOT / "docs/sweep_script.py"], "no file but"),
        (["study", "/etc"], "cannot be read"),
        (["keep", "/etc"], "config.yml is missing"),
        (["run", "--profile", "/etc/passwd"], "config.yml cannot be read"),
        (["run", "--profile", ""], "profile is ''"),
        (["memory", "--profile", "\x1b[2J"], r"profile '\x1b[2J' does not exist"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set((repo_root() / "runs").glob("*"))
    error = said(capsys, *arguments)
    assert words in error and len(error.splitlines()) == 1 and "\x1b" not in error
    assert set((repo_root() / "runs").glob("*")) == before and not list(tmp_path.iterdir())


# --- models and reviews --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/etc", "/etc/passwd", "/dev/null", "/proc"])
def test_a_path_that_is_no_model_is_one_sentence(path, capsys):
    with pytest.raises(AssetError, match=f"'{path}' is no model: "):
        find_asset(path)
    assert "is no model" in said(capsys, "memory", "--profile", "cpu", "--set",
                                 f"assets.policy={path}")  # fmt: skip


def test_the_doctor_sees_that_a_path_is_no_model(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for path, words in (("/etc", "is no model"), (tmp_path, "it lacks model.safetensors")):
        main(["doctor", "--run-dir", str(tmp_path / "run"), "--set", f"assets.policy={path}"])
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.csv", b"", "cannot be read as reviews .EmptyDataError"),
        ("a.csv", b"text,label\n", "there is no row with text and label"),
        ("a.csv", "text,label\ncaf\xe9,1\n".encode("latin-1"), "UnicodeDecodeError"),
        ("a.csv", b"text,label\ngood,1\n,0\n", "row 2 has nan as its text"),
        ("a.csv", b"text,label\n  ,0\n", "row 1 has '  ' as its text"),
        ("a.csv", b"text,label\ngood,yes\n", "row 1 has 'yes' as its label"),
        ("a.csv", b"text,label\ngood,\n", "row 1 has nan as its label"),
        ("a.csv", b"\0" * 100, "cannot be read as reviews"),
        ("a.jsonl", b"[1, 2", "cannot be read as reviews"),
        ("a.jsonl", b'{"text": 3, "label": 1}\n', "row 1 has 3 as its text"),
        ("a.jsonl", b'{"text": "\\ud800", "label": 1}\n', "cannot be read as reviews"),
        ("a.parquet", b"PAR1", "cannot be read as reviews"),
        ("a.txt", b"good", "is no dataset: give a .csv"),
    ],
)
def test_a_file_that_holds_no_reviews_is_one_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AssetError, match=words) as raised:
        load_reviews(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_notebook_that_is_none_is_one_sentence(tmp_path):
    for content in ("", "{}", "[1", "\0\0"):
        (tmp_path / "01_a.ipynb").write_text(content)
        with pytest.raises(ConfigError, match="01_a.ipynb cannot be read: it is no notebook"):
            pipeline.execute_in_place([tmp_path / "01_a.ipynb"])


# --- without a clone -----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_pip_installs_works_without_a_clone_or_says_that_it_needs_one(tmp_path):
    """As a user has it: the package alone in site-packages, another current directory."""
    place = tmp_path / "site-packages"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation",
               "--target", str(place), str(ROOT)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot build here: {done.stderr[-200:]}")
    (tmp_path / "empty").mkdir()

    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "rlhf_helpers", *words], cwd=tmp_path / "empty", text=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": str(place)},
        )  # fmt: skip

    for words in (["run"], ["badges"], ["keep", "x"], ["figures"], ["notebooks"]):
        done = run(*words)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "needs a clone of the repository" in done.stderr or words[0] == "keep"
    assert "all " in run("doctor").stdout and "Traceback" not in run("doctor").stderr
    assert "GB" in run("memory", "--profile", "cpu").stdout
    assert not list((tmp_path / "empty").iterdir())


def test_the_clone_that_is_missing_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("rlhf_helpers.config.paths.repo_root", lambda: tmp_path)
    for words in (["run"], ["badges"], ["figures"], ["notebooks"]):
        assert "needs a clone of the repository" in said(capsys, *words)
    assert not list(tmp_path.iterdir())

"""Whatever hands have done to a file, what reads it works or says so in one sentence.

Never a traceback, never a wait for a pipe, never a change outside the run's directory. A few dozen
pairs of file and damage in the fast tier, every pair in the slow one.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import tiny_train
from touched import DAMAGES, everything_in, make_outside

from rlhf_helpers.config.checks import Sentence
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.profiles import check_run_dir, load_profile, save_config
from rlhf_helpers.evaluation.evaluate_run import evaluation_path, write_judge_course
from rlhf_helpers.models.loading import load_trained_policy
from rlhf_helpers.notebook.committed_runs import keep_run
from rlhf_helpers.notebook.summary import run_summary
from rlhf_helpers.notebook.watch import TimeEstimate
from rlhf_helpers.runs.beginning import claim
from rlhf_helpers.runs.contents import read_evaluation
from rlhf_helpers.runs.files import RunDir
from rlhf_helpers.runs.manifest import record_notebook
from rlhf_helpers.show.study_figures import read_course
from rlhf_helpers.studies.plan import load_plan
from rlhf_helpers.studies.study import described, refresh
from rlhf_helpers.studies.sweep import load_sweep

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
REFERENCE = repo_root() / "figures" / "reference_runs" / "cpu"
QUIETLY = dict(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SECONDS = 120  # what takes longer waits for something
CONTROL = {chr(i) for i in range(32)} - {"\n", "\t", "\r"} | {"\x7f"}


class Slow(BaseException):  # noqa: N818  (no error of the code under test)
    """A reader did not come back."""


def said_or_done(read) -> str:
    """"works", or the one sentence; any other exception comes through."""

    def too_slow(number, frame):
        raise Slow

    before = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    shown = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(shown):
            warnings.simplefilter("ignore")
            read()
        return "works"
    except Sentence as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 1500, text
        assert not CONTROL & set(text), text
        return text
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        assert not CONTROL & set(shown.getvalue())


def check_readers(source: Path, file: str, damage: str, readers) -> None:
    """A copy of `source` with one damage, handed to each reader; nothing outside changes."""
    with tempfile.TemporaryDirectory() as root:
        outside = make_outside(Path(root))
        directory = Path(root) / "run"
        shutil.copytree(source, directory, symlinks=True)
        if "/" not in file and damage == "its folder is a link":
            return  # a run's directory may be a link
        DAMAGES[damage](directory / file, outside)
        before = everything_in(outside)
        for name, read in readers.items():
            said_or_done(lambda read=read: read(directory))
            assert everything_in(outside) == before, name


# --- a finished run ------------------------------------------------------------------------------


def evaluated(directory):
    run = RunDir(directory, create=False)
    run.require("policy")
    load_profile(directory)
    read_evaluation(evaluation_path(directory))
    if run.eval_samples.exists():
        write_judge_course(run, load_profile("cpu"))
    if (directory / "judge_course.csv").exists():
        read_course(directory / "judge_course.csv")


def opened_for_writing(directory):
    """As the command `run` and every notebook do first, and after the last notebook."""
    settings = load_profile("cpu")
    run = RunDir(directory)
    claim(run)
    check_run_dir(settings, directory)
    save_config(settings, directory)
    TimeEstimate.from_earlier_runs(["01_setup"], "cpu", run)
    record_notebook(run, "01_setup", 1.0, 1, "executed")


READERS = {
    "summary": lambda directory: run_summary(RunDir(directory, create=False)),
    "keep": lambda directory: keep_run(directory, figures=directory.parent / "figures"),
    "keep a seed": lambda directory: keep_run(
        directory, as_seed=True, figures=directory.parent / "figures"
    ),
    "evaluate": evaluated,
    "run": opened_for_writing,
}


def policy_loads(directory):
    load_trained_policy(directory / "policy", "cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The committed run with the files that git does not keep."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(REFERENCE, directory)
    (directory / "eval_samples.jsonl").write_text(
        '{"step": 0, "prompt": "This film", "output": " was good", "reward": 0.5}\n'
    )
    for folder in ("checkpoints", "figures", "notebooks", "best_checkpoint"):
        (directory / folder).mkdir()
        (directory / folder / "file").write_text("x")
    return directory


FILES = sorted(p.name for p in REFERENCE.iterdir() if p.is_file()) + [
    "eval_samples.jsonl", "policy", "checkpoints", "figures", "notebooks", "best_checkpoint",
    ".lock", ".pipeline.lock", ".begun.json", "evaluation_7.json", "figures/a.png",
]  # fmt: skip
POLICY_FILES = [f"policy/{p.name}" for p in sorted((REFERENCE / "policy").iterdir())]


@settings(max_examples=25, **QUIETLY)
@given(file=st.sampled_from(FILES), damage=st.sampled_from(sorted(DAMAGES)))
def test_a_finished_run_with_any_file_damaged(finished, file, damage):
    check_readers(finished, file, damage, READERS)


@settings(max_examples=8, **QUIETLY)
@given(file=st.sampled_from(POLICY_FILES), damage=st.sampled_from(sorted(DAMAGES)))
def test_a_policy_with_any_file_damaged(finished, file, damage):
    check_readers(finished, file, damage, {"policy": policy_loads})


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_finished_run_with_every_file_damaged_in_every_way(finished, damage):
    for file in FILES:
        check_readers(finished, file, damage, READERS)
    for file in POLICY_FILES:
        check_readers(finished, file, damage, {"policy": policy_loads, **READERS})


# --- a run that goes on --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run of two steps with two checkpoints, and the root of its model."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_QUIET_PROGRESS", "1")
        tiny_train(root, train__total_steps=2, train__checkpoint_interval=1,
                   train__save_best=True)  # fmt: skip
        yield root / "run", root


TRAINED = [
    "metrics.jsonl", "eval_samples.jsonl", "checkpoints", "policy", "best_checkpoint",
    "policy/adapter_model.safetensors", "policy/trl_config.json", ".lock", ".begun.json",
    "checkpoints/step_00000002", "checkpoints/step_00000002/state.pt",
    "checkpoints/step_00000002/about.json", "checkpoints/step_00000002/SHA256SUMS.json",
    "checkpoints/step_00000001/SHA256SUMS.json", "checkpoints/.step_00000003.tmp",
    "checkpoints/step_00000003",
]  # fmt: skip


def goes_on(root):
    return lambda directory: tiny_train(
        root, train__total_steps=3, train__checkpoint_interval=1, train__save_best=True,
        train__checkpoint_dir=str(directory),
    )  # fmt: skip


@settings(max_examples=6, **QUIETLY)
@given(file=st.sampled_from(TRAINED), damage=st.sampled_from(sorted(DAMAGES)))
def test_a_run_goes_on_with_any_file_damaged(trained, file, damage):
    check_readers(trained[0], file, damage, {"train": goes_on(trained[1])})


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_with_every_file_damaged_in_every_way(trained, damage):
    for file in TRAINED:
        check_readers(trained[0], file, damage, {"train": goes_on(trained[1])})


@pytest.mark.parametrize("damage", ["empty", "noise", "missing", "a link outside"])
def test_where_no_checkpoint_can_be_read_nothing_of_the_run_changes(trained, tmp_path, damage):
    source, root = trained
    run, outside = tmp_path / "run", make_outside(tmp_path)
    shutil.copytree(source, run)
    for path in run.glob("checkpoints/*/SHA256SUMS.json"):
        DAMAGES[damage](path, outside)
    before = everything_in(run)
    sentence = said_or_done(lambda: goes_on(root)(run))
    assert "none of them can be read" in sentence and "start over" in sentence or (
        damage == "a link outside" and "is a link" in sentence
    )
    assert everything_in(run) == before


# --- files that commands are given ---------------------------------------------------------------


def study_rows(directory):
    """A study's plan, and the rows that it finds finished."""
    refresh(load_plan(directory / "plan.yml"), directory / "out")


def profile_of(directory):
    load_profile(directory / "profile.yml")
    load_profile(directory)


PLAN = """
rows:
  - {name: a, kind: ppo, seeds: [1000, 1001], set: {method.init_kl_coef: 0.01}}
"""


@pytest.fixture(scope="module")
def given_files(tmp_path_factory):
    root = tmp_path_factory.mktemp("given") / "files"
    rows = root / "out" / "rows"
    rows.mkdir(parents=True)
    (root / "plan.yml").write_text(PLAN)
    plan = load_plan(root / "plan.yml")
    committed = sorted((repo_root() / "figures" / "study" / "frontier" / "rows").glob("ppo-*"))
    for row, path in zip(plan.rows, committed, strict=False):
        done = json.loads(path.read_text()) | {"row": described(plan, row)}
        (rows / f"{row.id}.json").write_text(json.dumps(done, indent=2))
    refresh(plan, root / "out")
    assert (root / "out" / "table.csv").read_text().count("\n") == 3
    shutil.copy(repo_root() / "rlhf_helpers" / "profiles" / "smoke.yml", root / "profile.yml")
    shutil.copy(root / "profile.yml", root / "config.yml")
    shutil.copy(repo_root() / "docs" / "ppo_sweep.yml", root / "sweep.yml")
    return root, f"out/rows/{plan.rows[0].id}.json"


GIVEN = ["plan.yml", "profile.yml", "config.yml", "sweep.yml", "a row", "out/table.csv"]
GIVEN_READERS = {
    "study": study_rows, "profile": profile_of,
    "sweep": lambda directory: load_sweep(directory / "sweep.yml"),
}  # fmt: skip


@settings(max_examples=20, **QUIETLY)
@given(file=st.sampled_from(GIVEN), damage=st.sampled_from(sorted(DAMAGES)))
def test_any_file_that_a_command_is_given(given_files, file, damage):
    root, row = given_files
    check_readers(root, row if file == "a row" else file, damage, GIVEN_READERS)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_that_a_command_is_given_in_every_way(given_files, damage):
    root, row = given_files
    for file in GIVEN:
        check_readers(root, row if file == "a row" else file, damage, GIVEN_READERS)

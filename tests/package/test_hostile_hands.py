"""Names that lead elsewhere, YAML that grows without end, text that commands a terminal."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from touched import everything_in

from rlhf_helpers.__main__ import main
from rlhf_helpers.config.checks import ConfigError, has_too_many_entries, shown
from rlhf_helpers.config.files import parse_yaml
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.notebook.committed_runs import keep_run
from rlhf_helpers.notebook.opening import start
from rlhf_helpers.notebook.summary import run_summary
from rlhf_helpers.notebook.watch import CellNumbers, NotebookWatch, TimeEstimate
from rlhf_helpers.progress import Progress, printable
from rlhf_helpers.runs.files import (
    CannotWriteError,
    RunDir,
    append_jsonl,
    atomic_write_text,
    made_directory,
    write_jsonl,
    written_together,
)
from rlhf_helpers.studies.plan import load_plan
from rlhf_helpers.studies.study import run_study
from rlhf_helpers.training.api import train

REFERENCE = repo_root() / "figures" / "reference_runs" / "cpu"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.fixture
def run(tmp_path):
    shutil.copytree(REFERENCE, tmp_path / "run")
    return tmp_path / "run"


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../../victim", "/abs", "..", ".", "", "a/b", "a\\b", ".hidden", "-x", "a b", "é",
             "x" * 101, 3, None, ["a"], "\x1b[2J", "a\n", "cpu\0"]
)  # fmt: skip
def test_a_profile_whose_name_is_a_path_is_refused_and_nothing_is_removed(run, tmp_path, name):
    import yaml

    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("of somebody")
    config = yaml.safe_load((run / "config.yml").read_text()) | {"profile": name}
    (run / "config.yml").write_text(yaml.safe_dump(config))
    for as_seed in (False, True):
        with pytest.raises(ConfigError, match="^profile is .*give a name"):
            keep_run(run, as_seed, figures=tmp_path / "a" / "b" / "figures")
    assert (victim / "file").read_text() == "of somebody"


def test_a_folder_of_figures_that_leads_elsewhere_is_left_alone(run, tmp_path):
    (tmp_path / "elsewhere" / "cpu").mkdir(parents=True)
    (tmp_path / "elsewhere" / "cpu" / "file").write_text("of somebody")
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "reference_runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of"):
        keep_run(run, figures=figures)
    (figures / "reference_runs").unlink()
    (figures / "reference_runs").mkdir()
    (figures / "reference_runs" / "cpu").symlink_to(tmp_path / "elsewhere" / "cpu")
    keep_run(run, figures=figures)  # the link is replaced, not what it leads to
    assert (figures / "reference_runs" / "cpu" / "config.yml").exists()
    assert list((tmp_path / "elsewhere" / "cpu").iterdir()) == [
        tmp_path / "elsewhere" / "cpu" / "file"
    ]


def test_keep_that_cannot_finish_leaves_what_was_kept_before(run, tmp_path, monkeypatch):
    figures = tmp_path / "figures"
    kept = keep_run(run, figures=figures)
    before, rename = everything_in(kept), Path.rename

    def fails(self, target):
        if self.name == "run":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(CannotWriteError, match="the disk is full"):
        keep_run(run, figures=figures)
    assert everything_in(kept) == before


@pytest.mark.parametrize(
    "inside", ["policy/weights", "policy", "metrics.jsonl", "evaluation_9.json"]
)
def test_what_links_point_at_is_not_kept(run, tmp_path, inside):
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "folder").mkdir()
    path = run / inside
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / ("folder" if inside == "policy" else "secret"))
    with pytest.raises(ConfigError, match=f"{inside} is a link"):
        keep_run(run, figures=tmp_path / "figures")


@pytest.mark.parametrize("name", ["..yml", " .yml", "a b.yml", "\x1b[2J.yml"])
def test_a_plan_whose_file_name_is_no_name_is_refused(tmp_path, name):
    (tmp_path / name).write_text("rows: [{name: a, kind: ppo}]")
    with pytest.raises(ConfigError, match="the plan's file name is"):
        load_plan(tmp_path / name)


# --- links ---------------------------------------------------------------------------------------


def test_a_line_is_not_added_to_a_file_that_has_another_name_elsewhere(tmp_path):
    """A backup by hard links would change with the run."""
    (tmp_path / "backup").write_text('{"step": 1}\n')
    (tmp_path / "metrics.jsonl").hardlink_to(tmp_path / "backup")
    with pytest.raises(CannotWriteError, match="metrics.jsonl has another name .*copy"):
        append_jsonl(tmp_path / "metrics.jsonl", {"step": 2})
    assert (tmp_path / "backup").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "words", [["\x1b[2Jtrain"], ["run", "--\x1b[2J"], ["study", "a", "\x1b]0;x"]]
)
def test_a_wrong_command_does_not_reach_the_terminal_as_it_came(capsys, words):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and r"\x1b" in said and said.count("\n") >= 3


@pytest.mark.parametrize("inside", [".", "a-s1000", "before/0.jsonl", "a-s1000/policy/x"])
def test_a_study_does_not_work_through_links(tmp_path, monkeypatch, inside):
    monkeypatch.setattr("rlhf_helpers.studies.study.resolve_run_dir", lambda path: tmp_path / path)
    plan = repo_root() / "figures" / "study" / "ablations.yml"
    work = tmp_path / "runs" / "study" / "ablations" / inside
    work.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    work.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link, and a run writes through none"):
        run_study(load_plan(plan), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_file_is_written_through_a_link(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("of somebody")
    run = tmp_path / "run"
    run.mkdir()
    before = everything_in(tmp_path / "outside")
    (run / "metrics.jsonl").symlink_to(tmp_path / "outside" / "file")
    with pytest.raises(OSError):
        append_jsonl(run / "metrics.jsonl", {"step": 1})
    atomic_write_text(run / "metrics.jsonl", "own")  # the link itself is replaced
    assert not (run / "metrics.jsonl").is_symlink()
    for name in ("policy", ".policy.tmp"):
        (run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match="policy is a link"), written_together(run / "policy"):
        pass
    (run / "policy").unlink()
    with written_together(run / "policy") as place:
        (place / "file").write_text("own")
    assert everything_in(tmp_path / "outside") == before
    assert (run / "policy" / "file").read_text() == "own"


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda p: p.write_text(""), "file of this name is in the way"),
        (lambda p: p.symlink_to(p), "link is in the way|cannot be written"),
        (lambda p: p.symlink_to(p.parent / "nothing" / "there"), "link to nothing|cannot be writ"),
    ],
)
def test_a_path_that_cannot_be_a_directory_is_one_sentence(tmp_path, make, said):
    make(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(CannotWriteError, match="choose another directory"):
            made_directory(path)
        with pytest.raises(CannotWriteError):
            start("cpu", path, None, {}, False)
    with pytest.raises(CannotWriteError, match=said):
        made_directory(tmp_path / "run")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_a_path_in_proc_and_one_that_is_too_long_are_one_sentence(tmp_path):
    for path in ("/proc/run", tmp_path / "/".join(["z" * 250] * 20), tmp_path / ("y" * 300)):
        with pytest.raises(CannotWriteError, match="cannot be written"):
            made_directory(path)


# --- YAML ----------------------------------------------------------------------------------------


def test_aliases_that_multiply_are_refused_in_little_memory(tmp_path):
    """Half a kilobyte that names 387 million entries: a process with 1 GB of room reads it."""
    (tmp_path / "bomb.yml").write_text(BOMB)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))\n"
        "from rlhf_helpers import load_profile, ConfigError\n"
        "try: load_profile(sys.argv[1])\nexcept ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "bomb.yml")], text=True,
                          capture_output=True, cwd=repo_root(), timeout=60)  # fmt: skip
    assert "more than 100,000 entries once its aliases are written out" in done.stdout, done.stderr


def test_merge_keys_multiply_no_more_than_aliases():
    lines = ["a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(9)) + "}"]
    for i in range(1, 9):
        lines.append(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}")
    with pytest.raises(ConfigError, match="aliases are written out"):
        parse_yaml("\n".join(lines), "it")
    assert parse_yaml("a: &a [1]\nb: *a", "it") == {"a": [1], "b": [1]}  # as trlX's files may


def test_a_yaml_file_without_end_and_odd_scalars_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="has more than"):
        parse_yaml("a: 1\n" * 60_000, "it")
    (tmp_path / "large.yml").write_bytes(b"#" * 10_000_000)
    with pytest.raises(ConfigError, match="has more than 262,144 bytes"):
        load_profile(tmp_path / "large.yml")
    for text in ("!!int ''", "!!timestamp x", "!!bool x", "2001-99-99", "!!binary '*'", "9" * 5000,
                 "{[a]: 1}", "[" * 5000, "&a [*a]", "!!python/object:os.system x"):  # fmt: skip
        try:
            parse_yaml(text, "it")
        except ConfigError as error:
            assert str(error).startswith("it is not valid YAML") and "\n" not in str(error)


def test_values_from_python_that_refer_to_themselves_are_shown_in_short():
    value = ["x"]
    for _ in range(60):
        value = [value] * 60
    assert has_too_many_entries(value) and not has_too_many_entries([1] * 1000)
    assert len(shown(value)) <= 60
    config = {"train": {"trainer_kwargs": {"a": value}}}
    base = load_profile("cpu").config.to_dict()
    with pytest.raises(ConfigError):
        TRLConfig.update(base, config)


# --- the terminal --------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\u202eabc\r\x9b1m\ud800"


def test_what_could_command_a_terminal_is_written_out(tmp_path):
    safe = printable(EVIL)
    assert safe == r"\x1b]0;owned\x07\x1b[2J\u202eabc\r\x9b1m\ud800"
    assert printable("Grüße, 日本\n\tx") == "Grüße, 日本\n\tx"
    safe.encode("utf-8")
    assert str(ConfigError(EVIL)) == safe
    assert Progress(1, EVIL).line().startswith(safe)
    out = io.StringIO()
    watch = NotebookWatch("a", TimeEstimate(["a"], {}), CellNumbers(1, None), out)
    watch.write("\x1b[31mred\x1b[0m " + EVIL.replace("\r", "") + "\r\n")
    assert out.getvalue() == r"    red \x1b]0;owned\x07\u202eabc\x9b1m\ud800" + "\n"


def test_samples_and_names_in_a_summary_command_nothing(tmp_path):
    run = RunDir(tmp_path / "run")
    sample = {"prompt": "a\x1b[2J", "output": "b\x1b]0;x\x07", "reward": 1.0, "seed": 1,
              "group": "post"}  # fmt: skip
    write_jsonl(run.baseline_samples, [sample])
    write_jsonl(run.after_samples, [sample])
    text = run_summary(run)
    assert r"a\x1b[2J" in text and r"b\x1b]0;x\x07" in text and "\x1b" not in text


# --- what a run did not write --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notebooks/01_setup.ipynb", "figures/a.png", "metrics.jsonl",
                                  "policy/of somebody", "evaluation.json"])  # fmt: skip
def test_a_folder_of_somebody_is_no_run_directory(tmp_path, name):
    path = tmp_path / "project" / name
    path.parent.mkdir(parents=True)
    path.write_text("of somebody")
    before = everything_in(tmp_path / "project")
    with pytest.raises(ConfigError, match="no config.yml, so it is no run's directory"):
        start("cpu", tmp_path / "project", None, {}, False)
    assert everything_in(tmp_path / "project") == before


def test_functions_that_are_none_are_found_before_the_model_loads(monkeypatch):
    monkeypatch.setattr(
        "rlhf_helpers.training.trainer.PPOTrainer", lambda *_: pytest.fail("the model loads")
    )
    for name in ("reward_fn", "metric_fn", "callback"):
        arguments = {"reward_fn": print, "prompts": ["a"], name: "not a function"}
        with pytest.raises(ConfigError, match=f"{name} is 'not a function': give a function"):
            train(**arguments)

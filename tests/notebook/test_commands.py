"""The command line: one sentence for what is wrong, exit codes, doctor, summary, kept runs."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import click
import pytest
import torch

from rlhf_helpers.__main__ import COMMANDS, EXIT_CODES, cli, main
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.profiles import load_profile, save_config
from rlhf_helpers.environment import local_device
from rlhf_helpers.notebook import colab, doctor
from rlhf_helpers.notebook.committed_runs import keep_run
from rlhf_helpers.notebook.doctor import FAIL, OK, WARN, Finding, table_text
from rlhf_helpers.notebook.summary import before_after_table, costs, results, run_summary
from rlhf_helpers.runs import manifest
from rlhf_helpers.runs.files import MissingRunFileError, RunDir, atomic_write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--set", "method.ppo_epoch=2"], ["method.ppo_epoch", "method.ppo_epochs"]),
        (["--set", "method.ppo_epochs=many"], ["method.ppo_epochs", "many"]),
        (["--set", "method.ppo_epochs"], ["method.ppo_epochs", "name=value"]),
        (["--profile", "cpuu"], ["cpuu", "'cpu'"]),
        (["--notebook", "9"], ["'9'", "04_ppo_run"]),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments, words, capsys, tmp_path):
    assert main(["run", "--run-dir", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()


OPTIONS = {  # of today, with what stands for each where it is not given
    "run": {"profile": "cpu", "seed": None, "overrides": (), "run_dir": None, "notebooks": (),
            "reference_run": False},
    "doctor": {"profile": "cpu", "seed": None, "overrides": (), "run_dir": None},
    "notebooks": {"names": ()},
    "badges": {},
    "keep": {"run_dir": "x", "as_seed": False, "without_penalty": False},
    "figures": {},
    "evaluate": {"run_dirs": ("x",), "n_prompts": 1000, "samples_per_opening": 8, "seed": 1000},
    "study": {"plan": "x", "out": None, "only": None, "first": None},
    "preferences": {"plan": "figures/study/preferences.yml",
                    "out": None, "only": None,
                    "models_only": False},
    "sweep": {"sweep": "x", "script": "y", "out": "sweeps", "cpus": 1, "gpus": 0.0},
    "bench": {"profile": None, "shape": None, "gpu_report": False, "batch": None, "rollouts": None,
              "chunk": None, "new_tokens": None, "unfrozen": None, "layers": None, "threads": None,
              "iterations": 5, "naive": "beside", "semantics": None, "reward": None,
              "clock": "wall", "static_cache": False, "vary": None, "values": None,
              "beside_trlx": None, "tiny": False, "out": "runs/bench"},
    "memory": {"profile": None, "settings": (), "device": None, "table": False,
               "out": "runs/memory"},
    "arithmetic": {"work": "runs/arithmetic", "out": "figures/reference_runs/arithmetic",
                   "only": None},
    "pretrain-arithmetic": {"out": "runs/pretrain_arithmetic", "seed": 0, "steps": None},
    "pretrain": {"out": "runs/pretrain", "seed": 0, "steps": None},
    "fine-tune": {"profile": "smollm2", "out": "runs/fine_tune", "steps": None, "seed": 0},
    "merge": {"adapter": "x", "out": "y"},
    "train-reward": {"out": "x", "steps": None, "seed": 0, "eval_reviews": None},
    "train-judge": {"out": None, "seed": 0},
}  # fmt: skip
REQUIRED = {
    "keep": ["x"], "evaluate": ["x"], "study": ["x"], "sweep": ["x", "y"],
    "train-reward": ["--out", "x"], "merge": ["x", "--out", "y"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_and_their_defaults(name):
    context = click.Context(cli)
    command = cli.get_command(context, name)
    assert command.make_context(name, list(REQUIRED.get(name, []))).params == OPTIONS[name]
    assert "--traceback" in command.get_help(click.Context(command))
    if name in REQUIRED:
        assert main([name]) == 2


def test_the_table_names_every_command():
    assert COMMANDS.keys() == OPTIONS.keys()


NO_HELP_WAITS = """
import sys
from rlhf_helpers.__main__ import COMMANDS, main
for words in ["--help"], ["-h"], *([name, "--help"] for name in COMMANDS):
    assert main(words) == 0
    slow = {"torch", "transformers", "sklearn", "pandas", "matplotlib", "datasets"} & {*sys.modules}
    assert not slow, (words, slow)
"""


def test_help_does_not_wait_for_torch():
    done = subprocess.run([sys.executable, "-c", NO_HELP_WAITS], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    for name, (_, text) in COMMANDS.items():
        assert name in done.stdout.decode() and text in done.stdout.decode()


def test_no_command_and_an_unknown_one_are_mistakes(capsys):
    for words in [], ["tune"], ["run", "--profiel", "x"], ["run", "--seed", "x"], ["badges", "x"]:
        assert main(words) == 2
    assert "No such command 'tune'" in capsys.readouterr().err


# --- exit codes -----------------------------------------------------------------------------------

BADGES = "rlhf_helpers.notebook.badges.rewrite_badges"  # what the shortest command calls


def error_classes():
    """Every public error class that a module of the package defines: "room.module:Name"."""
    for path in sorted((ROOT / "rlhf_helpers").rglob("*.py")):
        for name in re.findall(r"^class ([A-Z]\w*Error)\(", path.read_text("utf-8"), re.M):
            module = ".".join(path.relative_to(ROOT / "rlhf_helpers").with_suffix("").parts)
            yield f"{module}:{name}"


def test_every_error_class_of_the_package_has_an_exit_code():
    assert EXIT_CODES.keys() == set(error_classes())


@pytest.mark.parametrize("name, code", EXIT_CODES.items())
def test_an_error_that_explains_itself_is_one_sentence_and_a_code(name, code, capsys, monkeypatch):
    module, _, kind = name.partition(":")
    error = getattr(importlib.import_module(f"rlhf_helpers.{module}"), kind)
    narrower = type("Narrower", (error,), {})  # a subclass counts as its parent

    for raised in error("what is wrong"), narrower("what is wrong"):
        monkeypatch.setattr(BADGES, Mock(side_effect=raised))
        assert main(["badges"]) == code
        assert capsys.readouterr().err == "what is wrong\n"
        with pytest.raises(error):
            main(["badges", "--traceback"])


def test_an_interrupt_and_an_error_that_nobody_foresaw(capsys, monkeypatch):
    monkeypatch.setattr(BADGES, Mock(side_effect=KeyboardInterrupt))
    assert main(["badges"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    for kind in ZeroDivisionError, ValueError, EOFError:
        monkeypatch.setattr(BADGES, Mock(side_effect=kind))
        with pytest.raises(kind):
            main(["badges"])


# --- doctor ---------------------------------------------------------------------------------------


def test_doctor_passes_where_the_tests_run(tmp_path):
    findings = doctor.examine(load_profile("smoke"), tmp_path / "not" / "yet")
    failed = [finding for finding in findings if finding.status == FAIL]
    assert failed == []
    names = [finding.name for finding in findings]
    for name in ("Python", "device", "memory", "disk", "write access", "notebook kernel"):
        assert name in names
    assert any(name.startswith("asset") for name in names)


def test_doctor_names_libraries_that_are_missing_or_out_of_range(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("numpy<1 # old\nno-such-library>=2\nruff>=0.1\n# comment\n")
    rows = {row.name: row for row in doctor.check_libraries(requirements)}
    assert rows.keys() == {"numpy", "no-such-library"}
    assert rows["numpy"].status == WARN
    assert rows["no-such-library"].status == FAIL
    assert "no-such-library>=2" in rows["no-such-library"].todo


def test_doctor_reports_a_full_disk_and_a_forbidden_folder(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.check_disk(tmp_path)[0].status == FAIL

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    finding = doctor.check_write_access(tmp_path / "run")[0]
    assert finding.status == FAIL
    assert "Permission denied" in finding.found
    assert "--run-dir" in finding.todo


def test_doctor_shows_a_missing_asset_and_a_check_that_breaks(monkeypatch):
    from rlhf_helpers.data import assets

    row = {"name": "x", "role": "policy", "problem": "x is missing: fetch it."}
    monkeypatch.setattr(assets, "asset_table", lambda profile: [row])
    finding = doctor.check_assets(load_profile("smoke"))[0]
    assert (finding.status, finding.todo) == (FAIL, "x is missing: fetch it.")

    def breaks():
        raise RuntimeError("no driver")

    assert doctor._guarded("device", breaks) == [
        Finding("device", FAIL, "RuntimeError: no driver", "see the message")
    ]


def test_doctor_warns_about_a_gpu_profile_without_a_gpu(monkeypatch):
    from rlhf_helpers.runs import manifest

    cpu = {"type": "cpu", "name": "tiny", "cpu_count": 2}
    monkeypatch.setattr(manifest, "device_report", lambda: cpu)
    assert doctor.check_device(load_profile("cpu"))[0].status == OK
    assert doctor.check_device(load_profile("seed"))[0].status == WARN


def test_the_table_counts_what_is_to_mend():
    rows = [Finding("Python", OK, "3.11"), Finding("disk", FAIL, "0.1 GB", "make room")]
    assert table_text(rows).splitlines() == [
        "ok   Python  3.11",
        "fail disk    0.1 GB",
        "             -> make room",
        "",
        "1 to mend before a run, 0 to know about.",
    ]


@pytest.mark.parametrize(
    "system, machine, status, words",
    [
        ("Linux", "x86_64", None, ""),
        ("Darwin", "x86_64", None, ""),
        ("Darwin", "arm64", OK, "MPS. is not used"),
        ("Windows", "AMD64", WARN, "never tested: stopping"),
    ],
)
def test_what_does_not_work_on_a_system_is_said(monkeypatch, system, machine, status, words):
    monkeypatch.setattr(doctor.platform, "system", lambda: system)
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    rows = doctor.check_system()
    assert [row.status for row in rows] == ([status] if status else [])
    assert all(re.search(words, row.found) for row in rows)


def test_a_mac_is_reported_as_the_cpu_that_its_runs_take(monkeypatch):
    """Also with Apple's GPU there: what is reported is the device of the loaded policy."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert manifest.device_report()["type"] == local_device().type == "cpu"


# --- Colab ----------------------------------------------------------------------------------------


def test_torch_and_numpy_stay_as_the_image_has_them():
    versions = {"torch": "2.11.0+cu128", "torchvision": None, "numpy": "2.1.3"}
    assert colab.constraints_text(versions) == "torch==2.11.0\nnumpy==2.1.3\n"


def test_colab_keeps_its_own_front_end_and_its_rich():
    text = "torch>=2\njupyterlab>=4  # to read them in\nipykernel>=6\nimport-linter>=2  # lint\n"
    assert colab.requirements_for_colab(text) == "torch>=2\nipykernel>=6\n"


# --- summary --------------------------------------------------------------------------------------


def sample(prompt, output, reward, seed):
    return {"prompt": prompt, "output": output, "reward": reward, "seed": seed, "group": "post"}


@pytest.fixture
def finished(tmp_path):
    """A run directory written by hand."""
    run = RunDir(tmp_path / "run")
    prompt = "This movie was terrible"
    write_jsonl(
        run.baseline_samples,
        [sample(prompt, "second", 0.9, 2), sample(prompt, " and\ndull", 0.1, 1)],
    )
    write_jsonl(
        run.after_samples,
        [sample(prompt, "second", 0.2, 2), sample(prompt, "? I loved it", 0.95, 1)],
    )
    write_jsonl(run.metrics, [{"step": 0, "reward/mean": 0.5}, {"step": 9, "reward/mean": 0.875}])
    evaluation = {
        "n_prompts": 256, "reward_before": 0.5, "reward_after": 0.9, "seed": 1,
        "paired_difference": {"mean": 0.4, "low": 0.35, "high": 0.45}, "kl_per_sequence": 12.34,
        "distinct_2_before": 0.8, "distinct_2_after": 0.6, "verdict": "improved",
    }  # fmt: skip
    atomic_write_json(run.evaluation, evaluation)
    rows = [
        {"name": "01_setup", "seconds": 65.2, "peak_rss_bytes": 1.5e9, "status": "executed"},
        {"name": "04_ppo_run", "seconds": 240, "peak_rss_bytes": 2.5e9, "status": "executed"},
    ]
    atomic_write_json(run.manifest, {"notebooks": rows})
    atomic_write_json(run.setup, {})
    write_jsonl(run.reward_check, [])
    return run


def test_the_summary_shows_the_first_seed_of_each_prompt(finished):
    assert before_after_table(finished).splitlines()[2:] == [
        "  This movie was terrible ...",
        "    before 0.100  and dull",
        "    after  0.950  ? I loved it",
    ]


def test_the_summary_shows_rewards_costs_and_places(finished):
    text = results(finished)
    assert "0.500 at the start, 0.875 at the end" in text
    assert "0.500 before, 0.900 after; paired difference +0.400" in text
    assert "+0.350 to +0.450" in text
    assert "12.3 nats" in text
    assert [line.split() for line in costs(finished).splitlines()[1:]] == [
        ["01_setup", "1:05", "1.50", "GB"],
        ["04_ppo_run", "4:00", "2.50", "GB"],
        ["all", "5:05", "2.50", "GB"],
    ]
    assert "Figures" not in run_summary(finished)  # there are none
    finished.figures.mkdir()
    assert f"Figures: {finished.figures}" in run_summary(finished)


def test_a_summary_of_an_empty_directory_is_empty(tmp_path):
    assert run_summary(RunDir(tmp_path)) == ""


# --- committed runs -------------------------------------------------------------------------------


def test_a_finished_run_is_kept_without_checkpoints(finished, tmp_path):
    save_config(load_profile("smoke", seed=5), finished.path)
    atomic_write_json(finished.lora_report, {})
    for folder in (finished.policy, finished.checkpoints, finished.notebooks):
        folder.mkdir()
        (folder / "file").write_text("x")
    for name in ("tokenizer.json", "tokenizer_config.json", "value_head.safetensors"):
        (finished.policy / name).write_text("x")
    finished.eval_samples.write_text('{"step": 0}\n')
    kept = keep_run(finished.path, figures=tmp_path / "figures")
    assert kept == tmp_path / "figures" / "reference_runs" / "smoke"
    assert sorted(path.name for path in kept.iterdir()) == [
        "after_samples.jsonl", "baseline_samples.jsonl", "config.yml", "eval_samples.jsonl",
        "evaluation.json", "lora_report.json", "manifest.json", "metrics.jsonl", "policy",
        "reward_check.jsonl", "setup.json",
    ]  # fmt: skip
    assert [path.name for path in (kept / "policy").iterdir()] == ["file"]
    (kept / "stale").touch()
    keep_run(finished.path, figures=tmp_path / "figures")
    assert not (kept / "stale").exists()
    seed = keep_run(finished.path, as_seed=True, figures=tmp_path / "figures")
    assert seed.name == "smoke-5"
    assert not (seed / "policy").exists() and not (seed / "eval_samples.jsonl").exists()


def test_the_run_without_penalty_keeps_its_policy_and_its_texts(finished, tmp_path):
    figures = tmp_path / "figures"
    finished.policy.mkdir()
    (finished.policy / "adapter_model.safetensors").write_text("x")
    save_config(load_profile("smoke"), finished.path)
    with pytest.raises(ConfigError, match="has a KL penalty"):
        keep_run(finished.path, figures=figures, without_penalty=True)
    finished.config.unlink()
    save_config(load_profile("smoke", {"method.init_kl_coef": 0.0}), finished.path)
    kept = keep_run(finished.path, figures=figures, without_penalty=True)
    assert kept == figures / "without_penalty" / "smoke"
    assert sorted(path.name for path in kept.iterdir()) == [
        "after_samples.jsonl", "config.yml", "evaluation.json", "manifest.json", "metrics.jsonl",
        "policy",
    ]  # fmt: skip


def test_a_run_that_is_unfinished_failed_or_too_large_is_not_kept(finished, tmp_path):
    figures = tmp_path / "figures"
    save_config(load_profile("smoke"), finished.path)
    with pytest.raises(MissingRunFileError, match="03_lora"):
        keep_run(finished.path, figures=figures)
    finished.lora_report.write_text("{}")
    finished.policy.mkdir()
    (finished.policy / "weights").write_bytes(bytes(6_000_000))
    with pytest.raises(ConfigError, match="6.0 MB to keep, 5 MB at most"):
        keep_run(finished.path, figures=figures)
    failed = {"name": "05_x", "seconds": 1, "peak_rss_bytes": 1, "status": "failed"}
    atomic_write_json(finished.manifest, {"notebooks": [failed]})
    with pytest.raises(ConfigError, match="05_x did not end"):
        keep_run(finished.path, figures=figures)
    assert not (figures / "reference_runs" / "smoke").exists()


# --- public names ---------------------------------------------------------------------------------


def test_no_public_name_hides_a_module():
    import rlhf_helpers

    modules = {path.stem for path in Path(rlhf_helpers.__file__).parent.glob("*.py")}
    assert not modules & set(rlhf_helpers.__all__)
    for name in rlhf_helpers.__all__:
        assert callable(getattr(rlhf_helpers, name))

"""The bench command: what it measures, writes and prints; and the committed measurements."""

import json
import statistics
from dataclasses import asdict

import matplotlib.image
import pytest
import torch
from tiny_runs import one_by_one

import rlhf_helpers.lab.bench as bench_module
from rlhf_helpers.__main__ import main
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.lab import bench_iteration
from rlhf_helpers.lab.bench import command_of, exponents
from rlhf_helpers.lab.bench_case import Case
from rlhf_helpers.lab.bench_iteration import make_trainers, run_iteration
from rlhf_helpers.lab.commands import bench as bench_command
from rlhf_helpers.lab.commands import case_of
from rlhf_helpers.runs.files import read_json

ENGINE = ("iteration_seconds", "generate_seconds", "score_seconds", "update_seconds",
          "peak_memory_bytes")  # fmt: skip
TINY = "--shape deep --tiny --batch 4 --rollouts 8 --new-tokens 6 --iterations 2 --threads 1"
COMMITTED = sorted((repo_root() / "figures/bench").glob("*_cpu.json"))


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure here instead of in a process for each engine: seconds instead of half a minute."""

    def run(case):
        found = bench_iteration.measure_memory(case) if case.memory_of else None
        return (found or bench_iteration.measure(case)) | {"threads": 1}

    monkeypatch.setattr(bench_module, "run_worker", run)
    monkeypatch.setattr("rlhf_helpers.lab.machine_rates.SECONDS", 0.0)
    monkeypatch.setattr("rlhf_helpers.lab.machine_rates.COPY_BYTES", 1 << 20)


def run(capsys, words, out):
    assert main(["bench", *words.split(), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    return json.loads(printed.splitlines()[-1]), printed


def test_last_line_file_table_and_figure(in_this_process, capsys, tmp_path):
    result, printed = run(capsys, TINY, tmp_path)
    assert result == read_json(tmp_path / "deep_tiny_cpu.json")
    for engine in ("fast", "naive"):
        assert all(result[engine][name] > 0 for name in ENGINE)
        parts = sum(result[engine][f"{p}_seconds"] for p in ("generate", "score", "update"))
        assert 0.5 < parts / result[engine]["iteration_seconds"] < 1.2
        assert f"{result[engine]['iteration_seconds']:.3f}" in printed
    assert result["shape"] == "deep" and result["device"]["type"] == "cpu"
    assert result["ratio"] == statistics.median(result["ratios"]) and len(result["ratios"]) == 2
    assert result["floor_seconds"] > 0 and result["counted_ratio"] > 1
    # A build's name (+cu130) is not in the metadata of every wheel.
    assert result["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert matplotlib.image.imread(tmp_path / "deep_tiny_cpu.png").shape[1] == 1400


def test_without_the_naive_half(in_this_process, capsys, tmp_path):
    result, _ = run(capsys, TINY + " --naive off --semantics trlx", tmp_path)
    assert "naive" not in result and "ratio" not in result
    assert result["task"]["inserted"] == 1


def test_growth_is_fitted_and_drawn(in_this_process, capsys, tmp_path):
    words = TINY + " --naive off --vary rollouts --values 8,16"
    result, _ = run(capsys, words, tmp_path)
    assert [point["value"] for point in result["points"]] == [8, 16]
    assert (tmp_path / "rollouts_deep_tiny_cpu.png").exists()
    phases = ("generate", "score", "update", "step", "iteration")
    linear = [{"value": v, "fast": {f"{p}_seconds": 3.0 * v for p in phases}} for v in (1, 2, 8)]
    assert exponents(linear, "fast")["update"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--shape deep --batch 0", "--batch is 0"),
        ("--profile cpu --tiny", "go with --shape only"),
        ("--shape deep --vary batch --values 4,x", "give numbers"),
    ],
)
def test_contradictions_are_refused_in_one_sentence(capsys, tmp_path, words, message):
    assert main(["bench", *words.split(), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_gpu_report_needs_a_gpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--gpu-report", "--out", str(tmp_path)]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.slow
def test_gpu_report_runs_through_with_tiny_models(in_this_process, capsys, tmp_path):
    report, _ = run(capsys, "--gpu-report --tiny", tmp_path)
    assert not any("error" in case for case in report["cases"].values())
    post = report["cases"]["opt-1.3b_post"]
    # 8 rollouts in minibatches of 4, 4 epochs: 8 steps an iteration.
    expected = post["fast"]["iteration_seconds"] * 10_000 / 8
    assert post["seconds_of_10000_steps"] == pytest.approx(expected)
    assert post["fast"]["reward_seconds"] > 0


@pytest.mark.slow
def test_a_profile_in_processes_of_their_own(capsys, tmp_path):
    words = "--profile smoke --iterations 1 --threads 1 --rollouts 8 --batch 4"
    result, _ = run(capsys, words, tmp_path)
    assert result["shape"] == "smoke" and result["fast"]["reward_seconds"] > 0
    assert result["naive"]["peak_memory_bytes"] > result["naive"]["libraries_bytes"]


def test_both_halves_do_the_same_work():
    """From the same random numbers: the same samples, losses and weights."""
    outcomes = {}
    for engine in ("fast", "naive"):
        case = Case(shape="deep", tiny=True, batch=4, rollouts=8, new_tokens=6, clock="cpu")
        trainer = make_trainers(case)[engine]
        trainer.optimizer.optimizer.param_groups[0]["eps"] = 1e-3  # no division by rounding errors
        # Each engine has drawn a value head of its own.
        torch.manual_seed(0)
        for parameter in trainer.policy.v_head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        torch.manual_seed(1)
        run_iteration(trainer)
        outcomes[engine] = trainer
    fast, naive = outcomes["fast"], outcomes["naive"]
    for a, b in zip(one_by_one(fast.store), one_by_one(naive.store), strict=True):
        assert a.response.tolist() == b.response.tolist()
        torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=1e-4)
    for name, parameter in fast.trained.items():
        torch.testing.assert_close(
            parameter, naive.trained[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_command_in_a_file_measures_the_same_case():
    case = Case(shape="deep", batch=8, new_tokens=20, static_cache=True, naive=False, clock="cpu")
    words = command_of(case).split()[3:]
    assert words[0] == "bench"
    options = bench_command.make_context("bench", words[1:]).params
    assert asdict(case_of(options)) == asdict(case)


@pytest.mark.parametrize(
    "words, naive",
    [("", True), ("--naive", True), ("--naive beside", True), ("--naive off", False),
     ("--naive=off", False), ("--naive --tiny", True), ("--naive off --tiny", False)],
)  # fmt: skip
def test_the_naive_half_is_measured_unless_it_is_switched_off(words, naive):
    options = bench_command.make_context("bench", ["--shape", "deep", *words.split()]).params
    assert case_of(options) == Case(shape="deep", naive=naive, tiny="--tiny" in words)


def test_a_profile_and_a_shape_exclude_each_other(capsys, tmp_path):
    words = ["bench", "--profile", "cpu", "--shape", "deep", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "one of --profile, --shape" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the committed measurements --------------------------------------------------------------


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_measurements_can_be_read_and_add_up(path):
    result = read_json(path)
    assert result["date"] and result["command"].startswith("python -m rlhf_helpers bench")
    assert result["device"]["name"] and result["versions"]["torch"]
    for engine in ("fast", "naive"):
        assert all(result[engine][name] > 0 for name in ENGINE)
    runs = result["seconds_of_every_iteration"]
    ratios = [n["iteration_seconds"] / f["iteration_seconds"]
              for n, f in zip(runs["naive"], runs["fast"], strict=True)]  # fmt: skip
    assert result["ratio"] == pytest.approx(statistics.median(ratios))
    assert result["measured_share_of_counted"] >= 0.85


def test_what_the_page_and_the_readme_say_is_in_the_files():
    figures = repo_root() / "figures/bench"
    page, readme = (
        " ".join((repo_root() / name).read_text(encoding="utf-8").split())
        for name in ("docs/speed.md", "README.md")
    )
    for path in COMMITTED:
        result = read_json(path)
        assert result["case"]["clock"] == "cpu" and "Seconds are CPU seconds" in page
        assert f"**{result['ratio']:.2f}** times as fast" in page
        assert f"{result['ratio']:.2f} times" in readme
        assert f"{result['floor_ratio']:.1f} times what its counted work takes" in page
        shape = result["shape"]
        beside = read_json(figures / "trlx" / f"{shape}_beside_trlx.json")["cpu_ratio"]
        for engine in ("ours", "ours-corrected"):
            assert f"**{beside[engine]:.2f}** times as fast" in page
            assert f"{beside[engine]:.2f}" in readme
        turns = read_json(figures / "before_after.json")
        before, after = (statistics.median(turns[n]["cpu_seconds"][shape])
                         for n in ("before", "after"))  # fmt: skip
        assert f"{before:.1f} → {after:.1f}, **{before / after:.2f}** times as fast" in page
        peaks = [turns[n]["peak_memory_bytes"][shape] / 1e9 for n in ("before", "after")]
        assert f"`{shape}` from {peaks[0]:.2f} to {peaks[1]:.2f} GB" in page

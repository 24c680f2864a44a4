"""What the pages say of the GPU that was measured, beside the files it left."""

import csv

import pytest

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.runs.files import read_json
from rlhf_helpers.show import gpu_table

FIGURES = repo_root() / "figures" / "gpu"


def page(name):
    return (repo_root() / name).read_text(encoding="utf-8")


def words(name):
    return " ".join(page(name).split())


def test_the_pages_hold_the_tables():
    assert gpu_table.gpu_table() in page("docs/speed.md")
    assert gpu_table.gpu_memory_table() in page("docs/memory.md")
    assert gpu_table.gpu_run_table() in page("docs/running.md")


def test_ten_thousand_steps_are_the_time_of_625_iterations():
    post = gpu_table.gpu_results()["opt-1.3b_post"]
    assert post["task"] == post["task"] | {"rollouts": 128, "batch": 32, "epochs": 4}
    seconds = 625 * post["fast"]["iteration_seconds"]
    assert gpu_table.seconds_of_the_post(post) == pytest.approx(seconds)
    assert f"{int(seconds // 60)}:{round(seconds % 60):02d} minutes" in words("README.md")


def test_the_page_of_speed_says_what_was_measured():
    found, said = gpu_table.gpu_results(), words("docs/speed.md")
    plain, static = found["opt-1.3b_post"]["fast"], found["opt-1.3b_post_static"]["fast"]
    naive = found["opt-1.3b_naive"]
    busy = read_json(FIGURES / "profile.json")["gpu_busy_ms"] / 1e3
    for part in (
        f"{busy:.2f} s, where an iteration takes {plain['iteration_seconds']:.2f}",
        f"{naive['ratio']:.2f} times as long as on "
        f"({naive['naive']['iteration_seconds']:.2f} → {naive['fast']['iteration_seconds']:.2f} s",
        f"({plain['generate_seconds']:.2f} → {static['generate_seconds']:.2f} s)",
    ):
        assert part in said, part
    for phase in ("score", "update"):
        assert static[f"{phase}_seconds"] > plain[f"{phase}_seconds"]


def test_the_pages_of_memory_say_what_was_measured():
    found = gpu_table.gpu_results()
    post, llama = (found[name]["fast"]["peak_memory_bytes"] / 1e9
                   for name in ("opt-1.3b_post", "llama-7b"))  # fmt: skip
    rows = list(csv.DictReader((FIGURES / "memory_gpu.csv").open(encoding="utf-8")))
    in_4bit = next(float(row["measured_MB"]) / 1e3 for row in rows if row["in_4bit"] == "True")
    assert (
        f"settings {post:.1f} GB, LLaMA-7B {llama:.1f} GB in bfloat16 and {in_4bit:.1f} GB"
    ) in words("README.md")
    assert f"{llama:.1f} GB, where" in words("docs/memory.md")
    large = [float(row["error"]) for row in rows
             if row["shape"] != "opt-125m" and row["modules"] != "none"]  # fmt: skip
    said = f"too high by {100 * min(large):.0f} to {100 * max(large):.0f} % where LoRA learns"
    assert said in words("docs/memory.md")


def test_what_is_predicted_today_is_what_was_predicted_then():
    from rlhf_helpers.lab.memory import predict
    from rlhf_helpers.lab.memory_table import GPU_CASES, PROMPT_TOKENS
    from rlhf_helpers.lab.shapes import shape_config

    rows = list(csv.DictReader((FIGURES / "memory_gpu.csv").open(encoding="utf-8")))
    cases = [case for case in GPU_CASES if case.shape != "llama-7b" or case.in_4bit]
    assert len(rows) == len(cases)
    for row, case in zip(rows, cases, strict=True):
        config, shape = case.config("bfloat16"), shape_config(case.shape)
        found = predict(config, shape, PROMPT_TOKENS, on_gpu=True).peak / 1e6
        assert found == pytest.approx(float(row["predicted_MB"]), abs=1), case

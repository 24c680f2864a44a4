"""docs/verifiable_rewards.md says what its files say."""

import json
from pathlib import Path

import pytest

from rlhf_helpers.studies.verifiable_report import (
    NAMES,
    block,
    by_method,
    findings,
    in_one_sentence,
    methods_table,
    results_table,
    rewrite_page,
    title,
)

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "figures" / "reference_runs" / "arithmetic"


def row(pass_1, pass_64, **more):
    return {"pass_at_k": {"1": pass_1, "8": [0.8, 0.7, 0.9], "64": pass_64}, "greedy": 0.81,
            "steps": 0.36, "right_with_steps": 0.9, "right_without_steps": None, "larger": 0.01,
            "characters": 3.1, "sloppy": 0.4, **more}  # fmt: skip


EVALUATION = {
    "n_prompts": 1000, "answers": 64, "before": row([0.37, 0.35, 0.39], [0.99, 0.98, 1.0]),
    "runs": {
        "rloo-1000": row([0.86, 0.84, 0.88], [0.94, 0.93, 0.95], method="rloo", seed=1000,
                         verifier="strict", steps=0.71, cpu_seconds=None,
                         change={"1": [0.49, 0.47, 0.51], "64": [-0.05, -0.06, -0.04]}),
        "rloo-1001": row([0.80, 0.78, 0.82], [0.96, 0.95, 0.97], method="rloo", seed=1001,
                         verifier="strict", steps=0.91, cpu_seconds=151.4,
                         change={"1": [0.43, 0.41, 0.45], "64": [-0.03, -0.04, -0.02]}),
        "ppo-1000": row([0.5, 0.48, 0.52], [0.99, 0.98, 1.0], method="ppo", seed=1000,
                        verifier="strict", steps=0.5, cpu_seconds=200.2,
                        change={"1": [0.13, 0.1, 0.16], "64": [0.0, -0.01, 0.01]}),
        "rloo-sloppy-1000": row([0.53, 0.5, 0.56], [0.9, 0.8, 1.0], method="rloo", seed=1000,
                                verifier="sloppy", sloppy=0.79, characters=7.7,
                                change={"1": [0.16, 0.1, 0.2], "64": [0.0, 0.0, 0.0]}),
    },
    "not_run": ["ppo-1002"],
}  # fmt: skip
METRICS = [
    {"run": "rloo-sloppy-1000", "step": s, "metrics/strict": a, "metrics/sloppy": b}
    for s, a, b in ((0, 0.37, 0.4), (50, 0.68, 0.7), (100, 0.53, 0.79))
] + [
    {"run": "rloo-1000", "step": 0, "metrics/steps_and_right": 0.2, "metrics/steps_hold": 0.19},
    {"run": "rloo-1000", "step": 9, "metrics/steps_and_right": 0.4, "metrics/steps_hold": 0.3},
    {"run": "rloo-1001", "step": 0, "metrics/steps_and_right": 0.2, "metrics/steps_hold": 0.19},
    {"run": "rloo-1001", "step": 9, "metrics/steps_and_right": 0.5, "metrics/steps_hold": 0.45},
]


def test_a_line_for_each_run():
    lines = results_table(EVALUATION).splitlines()
    assert len(lines) == 7
    assert lines[2].startswith("| before |  | 0.370 (0.350 to 0.390) | 0.800 | 0.990 | 0.810 |")
    assert "| RLOO, seed 1000 | strict | 0.860 (0.840 to 0.880)" in lines[3]
    assert "0.900, not measured" in lines[3] and "71 %" in lines[3]


def test_runs_in_words():
    run = {"method": "rloo", "seed": 7}
    assert title(run) == title(run | {"budgets": 1, "wide": False}) == "RLOO, seed 7"
    assert title(run | {"budgets": 2}) == "RLOO, seed 7, twice the steps"
    assert title(run | {"budgets": 3, "wide": True}) == "RLOO, seed 7, wide"


def test_means_over_the_seeds_with_the_lowest_and_the_highest():
    lines = methods_table(EVALUATION).splitlines()
    assert len(lines) == 5  # heads, before, RLOO, PPO: nothing of the sloppy run
    assert lines[2] == "| before |  | 0.370 | 0.800 | 0.990 | 0.810 | 36 % |"
    assert lines[3].startswith("| RLOO | 2 | **0.830** (0.800 to 0.860) | **0.800** (0.800) | "
                               "**0.950** (0.940 to 0.960) | ")  # fmt: skip
    assert lines[3].endswith("| **81** (71 to 91) % |")
    assert lines[4] == "| PPO | 1 | 0.500 | 0.800 | 0.990 | 0.810 | 50 % |"


def test_means_leave_longer_runs_out():
    longer = EVALUATION["runs"]["rloo-1001"] | {"budgets": 2}
    others = {**EVALUATION, "runs": {**EVALUATION["runs"], "rloo-long-1000": longer}}
    assert methods_table(others) == methods_table(EVALUATION)


def test_sentences_with_these_numbers():
    said = findings(EVALUATION, METRICS)
    assert said[0] == ("pass@1 changed by +0.130 to +0.490; the 95 % interval lies above 0 in 3 "
                       "and below 0 in 0 of 3 runs.")  # fmt: skip
    assert said[1] == ("pass@64 changed by −0.050 to +0.000; the 95 % interval lies above 0 in 0 "
                       "and below 0 in 2 of 3 runs.")  # fmt: skip
    assert said[2] == ("The highest pass@1 is 0.860 (RLOO, seed 1000): the 0.85 that had been "
                       "aimed at is reached.")  # fmt: skip
    assert said[3] == ("Of the answers to sums of three terms 36 % showed a running total before "
                       "training, 50 to 91 % after it.")  # fmt: skip
    assert said[4] == ("RLOO: of the right answers that show a step, 95 % had every step right "
                       "before training and 75 to 90 % after it.")  # fmt: skip
    assert "right at step 50 (0.680, while 0.700 were paid for)" in said[5]
    assert "0.530 were right and 0.790 paid for" in said[5]
    # of 64,000: 0.40 - 0.37 before, 0.79 - 0.53 after
    assert "it accepts, of 64,000: 1,920 before, 16,640 after; an answer has 3.1, 7.7" in said[5]
    assert said[6].startswith("Training took 151 to 200 CPU seconds on one thread")
    assert "measured in 2 of the runs" in said[6]
    assert said[7] == "Not run: ppo-1002."


def test_a_fooled_run_is_put_beside_the_strict_run_as_long():
    twin = EVALUATION["runs"]["rloo-1000"] | {"budgets": 2, "sloppy": 0.87, "characters": 7.5}
    others = {**EVALUATION, "runs": {**EVALUATION["runs"], "rloo-long-1000": twin}}
    (said,) = [text for text in findings(others, METRICS) if text.startswith("Paid by the sloppy")]
    assert "16,640 after, 640 after as many steps paid by the strict verifier; an answer" in said
    assert "3.1, 7.7, 7.5 characters" in said


def test_the_page_is_written_anew_between_its_marks(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in METRICS))
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- arithmetic -->\nold\n<!-- /arithmetic -->\nbelow\n")
    assert rewrite_page(page, tmp_path) and not rewrite_page(page, tmp_path)
    text = page.read_text()
    assert "old" not in text and text.startswith("above") and text.endswith("below\n")
    assert "1,000 held-out problems, 64 answers each" in text
    assert in_one_sentence(tmp_path) == (
        "On 1,000 held-out problems, pass@1 and pass@64: before 0.370 and 0.990; RLOO **0.830** "
        "(0.800 to 0.860) and **0.950** (0.940 to 0.960); PPO 0.500 and 0.990."
    )


@pytest.mark.skipif(not REFERENCE.exists(), reason="the runs are not made yet")
def test_the_committed_page_is_that_of_the_committed_files():
    assert block(REFERENCE) in (ROOT / "docs" / "verifiable_rewards.md").read_text("utf-8")


def reference() -> dict:
    return json.loads((REFERENCE / "evaluation.json").read_text("utf-8"))


def means(evaluation, value):
    """Such as `0.802 (RLOO), 0.796 (GRPO)`: each method's mean over its seeds."""
    found = {NAMES[m]: [value(run) for run in runs.values()]
             for m, runs in by_method(evaluation).items()}  # fmt: skip
    return ", ".join(f"{sum(v) / len(v):.3f} ({name})" for name, v in found.items())


@pytest.mark.skipif(not REFERENCE.exists(), reason="the runs are not made yet")
def test_the_readme_has_the_means_of_these_files():
    evaluation, readme = reference(), " ".join((ROOT / "README.md").read_text("utf-8").split())
    before = evaluation["before"]
    for k in ("1", "64"):
        after = means(evaluation, lambda run, k=k: run["pass_at_k"][k][0])
        assert f"{before['pass_at_k'][k][0]:.3f} → {after}" in readme
    greedy = means(evaluation, lambda run: run["greedy"])
    assert f"{before['greedy']:.3f} → {greedy}" in readme


def notebook_07() -> str:
    """Its text cells, in one line."""
    path = ROOT / "notebooks" / "07_verifiable_rewards.ipynb"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return " ".join("\n".join(texts).split())


def span(values, digits=2):
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


@pytest.mark.skipif(not REFERENCE.exists(), reason="the runs are not made yet")
def test_notebook_07_says_what_these_files_say():
    evaluation, said = reference(), notebook_07()
    before = evaluation["before"]
    strict = [run for run in evaluation["runs"].values() if run["verifier"] == "strict"]
    one, greedy = ([run["pass_at_k"]["1"][0] for run in strict], [run["greedy"] for run in strict])
    assert f"Look at *greedy*: {before['greedy']:.3f} before any training" in said
    assert f"near to that, to {span(one)}" in said
    rose = [after - before["greedy"] for after in greedy]
    assert f"*greedy* itself rose by only {span(rose)}" in said
    assert max(run["larger"] for run in [before, *strict]) < 0.005  # "stays near 0"
    shares = [100 * before[f"right_{how}_steps"] for how in ("with", "without")]
    assert (f"Before training {shares[0]:.0f} % of the answers with a running total were right and "
            f"{shares[1]:.0f} % of the others") in said  # fmt: skip
    assert 2 * shares[1] < shares[0]  # "the rest may be ..."


@pytest.mark.skipif(not REFERENCE.exists(), reason="the runs are not made yet")
def test_notebook_07_compares_methods_as_these_files_do():
    evaluation, said = reference(), notebook_07()
    one, shown = ({m: [value(run) for run in runs.values()]
                   for m, runs in by_method(evaluation).items()}
                  for value in (lambda run: run["pass_at_k"]["1"][0], lambda run: run["steps"]))
    ahead = [sum(one["ppo"]) / 3 - sum(one[m]) / 3 for m in ("rloo", "grpo")]
    assert {f"{x:.2f}" for x in ahead} == {"0.03"}
    assert "PPO is ahead of RLOO and GRPO by about 0.03, further than the seeds" in said
    widths = [max(values) - min(values) for values in one.values()]
    assert max(widths) < min(ahead) and min(one["ppo"]) > max(one["rloo"] + one["grpo"])
    assert "GRPO's runs show fewest" in said
    assert max(shown["grpo"]) < min(shown["rloo"] + shown["ppo"])


@pytest.mark.skipif(not REFERENCE.exists(), reason="the runs are not made yet")
def test_fewer_steps_are_right_at_the_end_of_every_run():
    metrics = [json.loads(line) for line in (REFERENCE / "metrics.jsonl").read_text().splitlines()]
    last = []
    for name, run in reference()["runs"].items():
        held = [m["metrics/steps_hold"] / m["metrics/steps_and_right"] for m in metrics
                if m["run"] == name and "metrics/steps_hold" in m]  # fmt: skip
        if run["verifier"] == "strict":
            assert held[-1] < held[0]
            last.append((held[-1], held[0] - held[-1]))
    said = notebook_07()
    assert "in some hardly smaller, in one a third were wrong" in said
    assert f"{min(share for share, _ in last):.2f}" == "0.67"
    assert min(fell for _, fell in last) < 0.02

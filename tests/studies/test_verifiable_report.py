"""docs/verifiable_rewards.md says what its files say."""

import json
from pathlib import Path

import pytest

from rlhf_helpers.studies.verifiable_report import block, findings, results_table, rewrite_page

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
                         verifier="strict", steps=0.71,
                         change={"1": [0.49, 0.47, 0.51], "64": [-0.05, -0.06, -0.04]}),
        "ppo-1000": row([0.5, 0.48, 0.52], [0.99, 0.98, 1.0], method="ppo", seed=1000,
                        verifier="strict", steps=0.5,
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
    {"run": "rloo-1000", "step": 1, "time/exp": 0.5},
    {"run": "rloo-1000", "step": 1, "time/forward": 0.2, "time/backward": 0.3},
]


def test_a_line_for_each_run():
    lines = results_table(EVALUATION).splitlines()
    assert len(lines) == 6
    assert lines[2].startswith("| before |  | 0.370 (0.350 to 0.390) | 0.800 | 0.990 | 0.810 |")
    assert "| RLOO, seed 1000 | strict | 0.860 (0.840 to 0.880)" in lines[3]
    assert "0.900, not measured" in lines[3] and "71 %" in lines[3]


def test_sentences_with_these_numbers():
    said = findings(EVALUATION, METRICS)
    assert said[0] == ("pass@1 changed by +0.130 to +0.490; the 95 % interval lies above 0 in 2 "
                       "and below 0 in 0 of 2 runs.")  # fmt: skip
    assert said[1] == ("pass@64 changed by −0.050 to +0.000; the 95 % interval lies above 0 in 0 "
                       "and below 0 in 1 of 2 runs.")  # fmt: skip
    assert said[2] == ("Of the answers to sums of three terms 36 % showed a running total before "
                       "training, 50 to 71 % after it.")  # fmt: skip
    assert said[3] == ("rloo-1000: of the right answers behind a running total, 95 % had a right "
                       "one at step 0 and 75 % at step 9.")  # fmt: skip
    assert "right at step 50 (0.680, while 0.700 were paid for)" in said[4]
    assert "0.530 were right and 0.790 paid for" in said[4]
    assert "7.7 characters instead of 3.1" in said[4]
    assert "took 1.0 s" in said[5]
    assert said[6] == "Not run: ppo-1002."


def test_the_page_is_written_anew_between_its_marks(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in METRICS))
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- arithmetic -->\nold\n<!-- /arithmetic -->\nbelow\n")
    assert rewrite_page(page, tmp_path) and not rewrite_page(page, tmp_path)
    text = page.read_text()
    assert "old" not in text and text.startswith("above") and text.endswith("below\n")
    assert "1,000 held-out problems, 64 answers each" in text


@pytest.mark.skipif(not REFERENCE.exists(), reason="the runs are not made yet")
def test_the_committed_page_is_that_of_the_committed_files():
    assert block(REFERENCE) in (ROOT / "docs" / "verifiable_rewards.md").read_text("utf-8")

"""The lines by which README and docs/own_tasks.md bring one's own task run as they stand."""

import re
from pathlib import Path

import pytest

from rlhf_helpers.runs.files import read_jsonl

ROOT = Path(__file__).parents[2]


def code_of(page, beginning):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)
    (found,) = [block for block in blocks if block.startswith(beginning)]
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/own_tasks.md"])
def test_it_runs_in_any_directory(page, tmp_path, monkeypatch):
    """A few steps instead of 64, and the run in the test's directory; nothing else is changed."""
    code = code_of(page, "from rlhf_helpers import load_profile, train\n")
    assert len(code.strip().splitlines()) <= 15
    shorter = code.replace('"train.total_steps": 64', '"train.total_steps": 2')
    shorter = shorter.replace('"my_run"', repr(str(tmp_path / "my_run")))
    assert shorter.count("my_run") == code.count("my_run") and shorter != code
    exec(compile(shorter, page, "exec"), {})
    lines = read_jsonl(tmp_path / "my_run" / "metrics.jsonl")
    evaluations = [line for line in lines if "reward/mean" in line]
    assert [line["step"] for line in evaluations] == [0, 2]
    if page != "README.md":
        assert all(line["metrics/words"] > 1 for line in evaluations)


def test_reasoning_gyms_tasks_fit_in():
    code = code_of("docs/own_tasks.md", "from rlhf_helpers.data import reasoning_task")
    names = {}
    exec(compile(code.replace("500", "20"), "docs/own_tasks.md", "exec"), names)
    prompt = names["prompts"][3]
    answer = prompt["item"]["metadata"]["expression"]
    paid = names["reward_fn"](outputs=[answer, "?"], item=[prompt["item"]] * 2)
    assert paid[0] == 1 > paid[1]

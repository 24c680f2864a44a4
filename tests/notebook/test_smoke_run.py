"""The five real notebooks, live, on the smoke profile: what a run leaves behind."""

import io
from pathlib import Path

import nbformat
import pytest
from notebook_checks import NOTEBOOKS

from rlhf_helpers.__main__ import main
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.runs.files import RunDir, read_json, read_jsonl

NUMBERS_OF_EVALUATION = (
    "n_prompts", "reward_before", "reward_after", "reward_continuation_before",
    "reward_continuation_after", "kl_per_sequence", "distinct_2_before", "distinct_2_after", "seed",
)  # fmt: skip


# Where tokens and keys usually lie, each with a value that nothing else has.
SECRETS = {
    name: f"planted-{name.lower().replace('_', '-')}-5f1c"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY",
                 "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN")
}  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One run of the whole chain; what it printed is kept beside it."""
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        patch.setattr("sys.stdout", printed)
        code = main(["run", "--profile", "smoke", "--run-dir", str(run_dir), "--seed", "3"])
    assert code == 0, printed.getvalue()[-6000:]
    return RunDir(run_dir, create=False), printed.getvalue()


def test_every_file_of_the_contract_is_there(smoke):
    run, _ = smoke
    for name in (
        "config", "manifest", "baseline_samples", "lora_report", "metrics", "checkpoints",
        "policy", "after_samples", "evaluation", "figures", "notebooks",
    ):  # fmt: skip
        assert run.require(name).exists()
    assert sorted(path.name for path in run.notebooks.iterdir()) == NOTEBOOKS
    assert list(run.figures.glob("*.png"))
    leftovers = [path.name for path in run.path.rglob("*.tmp")]
    assert leftovers == []


def test_the_manifest_says_what_ran(smoke):
    run, _ = smoke
    manifest = read_json(run.manifest)
    assert (manifest["profile"], manifest["seed"]) == ("smoke", 3)
    assert {"python", "torch", "transformers"} <= manifest["versions"].keys()
    assert manifest["device"]["type"] in ("cpu", "cuda", "mps")
    for asset in manifest["assets"]:
        assert {"name", "source", "revision", "sha256", "licence"} <= asset.keys()
    assert [f"{row['name']}.ipynb" for row in manifest["notebooks"]] == NOTEBOOKS
    for row in manifest["notebooks"]:
        assert row["status"] == "executed"
        assert row["seconds"] > 0
        assert 10e6 < row["peak_rss_bytes"] < 4e9


def test_the_configuration_kept_is_the_one_that_ran(smoke):
    run, _ = smoke
    kept = load_profile(run.path)
    wanted = load_profile("smoke", seed=3)
    assert kept.to_dict() == wanted.to_dict()


def test_samples_before_and_after_are_pairs(smoke):
    run, _ = smoke
    before, after = read_jsonl(run.baseline_samples), read_jsonl(run.after_samples)
    profile = load_profile(run.path)
    assert [(s["prompt"], s["seed"], s["group"]) for s in before] == [
        (s["prompt"], s["seed"], s["group"]) for s in after
    ]
    n_post = 4 * profile.evaluation["samples_per_post_prompt"]
    assert len(before) == profile.evaluation["n_prompts"] + n_post
    for sample in before + after:
        assert isinstance(sample["output"], str)
        assert 0 <= sample["reward"] <= 1


def test_the_evaluation_holds_numbers(smoke):
    run, _ = smoke
    evaluation = read_json(run.evaluation)
    for name in NUMBERS_OF_EVALUATION:
        assert isinstance(evaluation[name], int | float), name
    difference = evaluation["paired_difference"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    change = evaluation["reward_after"] - evaluation["reward_before"]
    assert difference["mean"] == pytest.approx(change, abs=1e-6)
    assert evaluation["seed"] == 3


def test_metrics_have_trlx_names_and_steps(smoke):
    run, _ = smoke
    metrics = read_jsonl(run.metrics)
    total = load_profile(run.path).config.train.total_steps
    names = set().union(*(line.keys() for line in metrics))
    assert {"step", "reward/mean", "exp_scores/mean", "losses/total_loss"} <= names
    steps = [line["step"] for line in metrics]
    assert steps == sorted(steps)
    assert steps[-1] == total


def test_executed_notebooks_are_complete_and_without_errors(smoke):
    run, _ = smoke
    for name in NOTEBOOKS:
        cells = nbformat.read(run.notebooks / name, as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        kinds = [output.output_type for cell in code for output in cell.outputs]
        assert "error" not in kinds


def test_the_terminal_shows_before_and_after_costs_and_places(smoke):
    run, printed = smoke
    assert "This movie was terrible ..." in printed
    assert "held-out prompts" in printed
    for name in NOTEBOOKS:
        assert printed.count(Path(name).stem) >= 2  # while it runs, and in the table
    assert f"Executed notebooks: {run.notebooks}" in printed
    assert f"Figures: {run.figures}" in printed


def test_no_token_or_key_is_in_anything_that_the_run_left(smoke):
    run, printed = smoke
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 20
    for secret in SECRETS.values():
        assert secret not in printed
        assert not [path for path in files if secret.encode() in path.read_bytes()]

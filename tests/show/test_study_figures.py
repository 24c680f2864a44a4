"""A study's figures and tables say what its table says."""

import csv

import numpy as np
import pytest
from datasets import Dataset
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tiny_runs import letter_reward, policy_with_lora, run_config

from rlhf_helpers.__main__ import main
from rlhf_helpers.config.profiles import Profile, load_profile, save_config
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.evaluation.evaluate_run import evaluation_path, write_judge_course
from rlhf_helpers.runs.files import RunDir, read_json, write_jsonl
from rlhf_helpers.show.lesson_figures import few_points_figure
from rlhf_helpers.show.study_figures import (
    ablation_figure,
    course_figure,
    frontier_figure,
    groups_of,
    judge_figure,
    read_table,
)
from rlhf_helpers.studies import report as study_report


def row(name, kind="ppo", seed=1, reward=0.8, judge=0.7, kl=5.0, **more):
    return {
        "name": name, "kind": kind, "seed": seed, "reward_before": 0.4, "reward_after": reward,
        "judge_before": 0.5, "judge_after": judge, "kl_per_sequence": kl, "kl_analytic": None,
        "paired_difference_mean": reward - 0.4, "paired_difference_low": reward - 0.43,
        "paired_difference_high": reward - 0.38, "judge_difference_mean": judge - 0.5,
        "judge_difference_low": judge - 0.52, "judge_difference_high": judge - 0.47,
        "verdict": "improved", "cpu_seconds": 60.0, **more,
    }  # fmt: skip


ROWS = [
    row("PPO, β 0.01", seed=1, reward=0.90, kl=12.0),
    row("PPO, β 0.01", seed=2, reward=0.94, kl=14.0),
    row("RLOO, β 0.01", kind="rloo", reward=0.85, kl=8.0),
    row("PPO, β 0, long", reward=0.97, judge=0.52, kl=30.0, verdict="gamed"),
    row("best of 2", kind="best-of-n", reward=0.5, kl=None, kl_analytic=0.19),
    row("best of 16", kind="best-of-n", reward=0.8, kl=None, kl_analytic=1.84),
]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def boxes(ax, names):
    FigureCanvasAgg(ax.figure).draw()
    return {t.get_text(): t.get_window_extent() for t in ax.texts if t.get_text() in names}


def test_groups_gather_seeds_and_say_how_sure_they_are():
    groups = groups_of(ROWS)
    assert [(g.name, len(g.rows)) for g in groups][:2] == [("PPO, β 0.01", 2), ("RLOO, β 0.01", 1)]
    assert groups[0].mean("reward_after") == pytest.approx(0.92)
    assert groups[0].bounds("reward_after", "paired_difference") == (0.90, 0.94)
    # One seed: the interval of the paired difference, set on the reward after.
    assert groups[1].bounds("reward_after", "paired_difference") == pytest.approx((0.82, 0.87))
    assert groups[1].label == "RLOO, β 0.01 (one seed)"


def test_frontier_draws_each_configuration_at_its_mean_and_labels_it():
    ax = frontier_figure(ROWS).axes[0]
    names = ["PPO, β 0.01 (2)", "RLOO, β 0.01", "PPO, β 0, long", "best of 16"]
    assert set(names) <= set(texts(ax))
    drawn = np.concatenate([line.get_xydata() for line in ax.lines])
    for point in ((13.0, 0.92), (8.0, 0.85), (30.0, 0.97), (0.19, 0.5), (1.84, 0.8), (0, 0.4)):
        assert np.isclose(drawn, point).all(axis=1).any(), point
    assert {(12.0, 0.90), (14.0, 0.94)} <= {tuple(p) for p in drawn.round(9)}


def test_few_points_are_five_at_their_means_in_letters_for_a_projector():
    rows = [*ROWS[:3], row("PPO, β 0.1", reward=0.55, kl=1.2), row("PPO, β 0", reward=0.97, kl=40),
            row("best of 64", kind="best-of-n", reward=0.9, kl=None, kl_analytic=3.2)]  # fmt: skip
    ax = few_points_figure(rows + ROWS[3:]).axes[0]
    names = {"PPO, β 0.1", "PPO, β 0.01", "PPO, β 0", "RLOO, β 0.01", "best of 64"}
    assert set(texts(ax)) == names | {"untuned"}
    line, *marks = [[tuple(p) for p in own.get_xydata().round(9)] for own in ax.lines]
    assert line == [(0, 0.4), (1.2, 0.55), (13, 0.92), (40, 0.97)]
    assert {mark[0] for mark in marks} == {*line, (8.0, 0.85), (3.2, 0.9)}
    assert all(text.get_fontsize() >= 11 for text in ax.texts)
    found = list(boxes(ax, names).values())
    assert len(found) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("draw", [frontier_figure, judge_figure])
def test_no_label_covers_another_or_leaves_the_frame(draw):
    ax = draw(ROWS).axes[0]
    own = {t for t in texts(ax) if any(t.startswith(r["name"].split(" (")[0]) for r in ROWS)}
    found = list(boxes(ax, own).values())
    frame = ax.get_window_extent()
    assert len(found) >= 4
    for i, box in enumerate(found):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1
        for other in found[:i]:
            assert not box.overlaps(other)


def test_judge_figure_names_what_is_gamed():
    ax = judge_figure(ROWS).axes[0]
    assert "PPO, β 0, long: gamed" in texts(ax)
    assert sum("gamed" in t for t in texts(ax)) == 2  # the point and the region
    drawn = np.concatenate([line.get_xydata() for line in ax.lines])
    assert np.isclose(drawn, (0.57, 0.02)).all(axis=1).any()


def test_a_judge_that_went_along_is_named_with_the_perplexity():
    fooled = row("PPO, β 0", reward=0.97, judge=0.97, verdict="gamed",
                 perplexity_before=80.0, perplexity_after=168.0)  # fmt: skip
    ax = judge_figure([*ROWS, fooled]).axes[0]
    assert "PPO, β 0: gamed, perplexity × 2.1" in texts(ax)


def test_ablation_panels_say_when_they_have_one_seed():
    panels = {"rank": [row("rank 1"), row("rank 4", kl=7.0)], "β": ROWS[:3]}
    figure = ablation_figure(panels)
    assert figure.axes[0].get_title(loc="left") == "rank\n(one seed)"
    assert figure.axes[1].get_title(loc="left") == "β\n(1 to 2 seeds)"
    kl = figure.axes[2].lines[0].get_ydata()
    assert kl.tolist() == [5.0, 7.0]
    labels = [t.get_text() for t in figure.axes[4].get_xticklabels()]
    assert labels == ["1", "4"]


def test_course_is_the_mean_over_the_steps_that_all_runs_share(tmp_path):
    for i in range(3):
        folder = tmp_path / str(i)
        lines = [{"step": s, "exp_scores/mean": 0.1 * i + 0.01 * s, "objective/kl": float(s)}
                 for s in range(0, 12 if i else 8, 4)]  # fmt: skip
        write_jsonl(folder / "metrics.jsonl", lines)
        (folder / "judge_course.csv").write_text(f"step,reward,judge,n\n0,0.5,0.{i + 1},4\n")
    figure = course_figure([tmp_path / str(i) for i in range(3)])
    mean = figure.axes[0].lines[-1]
    assert mean.get_xdata().tolist() == [0, 4]
    assert mean.get_ydata().tolist() == pytest.approx([0.1, 0.14])
    assert figure.axes[2].lines[-1].get_ydata().tolist() == pytest.approx([0.2])


# --- from files ------------------------------------------------------------------------------


def test_a_table_is_read_back_as_numbers_and_names(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,kind,seed,reward_after,kl_analytic,verdict\n8,ppo,7,0.25,,no_change\n")
    assert read_table(path) == [
        {"name": "8", "kind": "ppo", "seed": 7.0, "reward_after": 0.25, "kl_analytic": None,
         "verdict": "no_change"}
    ]  # fmt: skip


def test_default_row_stands_in_every_panel_of_the_ablations(monkeypatch):
    done = [row(study_report.DEFAULT_ROW), row("rank 4"), row("1 layer"), row("rate 1e-2")]
    tables = {"ablations": done, "frontier": []}
    monkeypatch.setattr(study_report, "study_rows", tables.__getitem__)
    panels = study_report.ablation_panels()
    assert {title: [r["name"] for r in rows] for title, rows in panels.items()} == {
        "layers with LoRA": ["1 layer", "4 layers"],
        "rank": ["rank 4", "rank 16"],
        "learning rate": ["rate 3e-3", "rate 1e-2"],
    }


def test_panels_name_rows_of_the_committed_plan():
    plan = study_report.load_plan(study_report.study_dir("ablations").with_suffix(".yml"))
    names = {r.name for r in plan.rows}
    wanted = {name for own in study_report.PANELS.values() for name in own}
    assert wanted - set(study_report.DEFAULT_ROW.split(", ")) <= names
    assert study_report.DEFAULT_ROW in names
    frontier = study_report.load_plan(study_report.study_dir("frontier").with_suffix(".yml"))
    assert set(study_report.COEFFICIENTS) <= {r.name for r in frontier.rows}


# --- finished runs on more prompts ------------------------------------------------------------


def test_the_evaluation_over_most_prompts_is_taken(tmp_path):
    assert evaluation_path(tmp_path).name == "evaluation.json"
    for name in ("evaluation_500.json", "evaluation_1000.json", "evaluation_old.json"):
        (tmp_path / name).touch()
    assert evaluation_path(tmp_path).name == "evaluation_1000.json"


@pytest.mark.parametrize(
    "label, text, judged",
    [
        ("POSITIVE", "sample", ("0.2", "0.4")),  # texts of 2; and of 3 and 5 letters
        ("NEGATIVE", "sample", ("0.8", "0.6")),
        ("NEGATIVE", "output", ("1", "0.8")),  # outputs of 0; and of 1 and 3 letters
    ],
)
def test_judge_course_is_the_judges_mean_of_the_samples_of_each_step(
    tmp_path, monkeypatch, label, text, judged
):
    """Read as the reward reads them: the wanted label, of the whole or of the output alone."""

    class Judge:
        def score(self, texts):
            return [len(text) / 10 for text in texts]

    class Settings:
        assets = {"judge": "x"}
        reward = {"label": label, "text": text}

    monkeypatch.setattr("rlhf_helpers.rewards.judge.judge_by_name", lambda name: Judge())
    run = RunDir(tmp_path)
    write_jsonl(run.eval_samples, [
        {"step": 4, "prompt": "ab", "output": "c", "reward": 0.5},
        {"step": 0, "prompt": "ab", "output": "", "reward": 0.25},
        {"step": 4, "prompt": "ab", "output": "cde", "reward": 1.0},
    ])  # fmt: skip
    with open(write_judge_course(run, Settings()), newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "0", "reward": "0.25", "judge": judged[0], "n": "1"},
        {"step": "4", "reward": "0.75", "judge": judged[1], "n": "2"},
    ]


def test_finished_runs_are_evaluated_on_more_prompts_and_share_what_is_before(
    tmp_path, monkeypatch, capsys
):
    """Two runs of a random model: three groups of prompts, one set of samples before training."""
    config = run_config(tmp_path, train__seq_length=48).to_dict()
    assets = {"policy": config["model"]["model_path"], "reward": "r", "data": "d", "judge": "j"}
    save_config(
        Profile("tiny", TRLConfig.from_dict(config), assets,
                {"n_prompts": 2, "samples_per_post_prompt": 1}, {"words": 2},
                {"label": "POSITIVE", "text": "sample"}),
        tmp_path / "base",
    )  # fmt: skip
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        settings = load_profile(tmp_path / "base" / "config.yml", seed=seed)
        save_config(settings, folder)
        policy = policy_with_lora(tmp_path, seed=seed, train__seq_length=48)
        policy.save(folder / "policy", assets["policy"])
        (folder / "policy" / "trl_config.json").write_text(str(settings.config))
    texts = [f"{a} {b} tail" for a in ("policy", "value", "human") for b in ("data", "code", "b")]
    reviews = Dataset.from_dict({"text": texts, "label": [0] * 9, "bucket": [0] * 9})
    monkeypatch.setattr("rlhf_helpers.data.reviews.load_reviews", lambda name: reviews)
    monkeypatch.setattr("rlhf_helpers.rewards.task.task_reward", lambda settings: letter_reward)
    monkeypatch.setattr("rlhf_helpers.rewards.judge.judge_by_name", lambda name: None)
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")
    command = ["evaluate", *map(str, folders), "--n-prompts", "7", "--samples-per-opening", "2"]
    assert main(command) == 0
    first, second = (read_json(folder / "evaluation_7.json") for folder in folders)
    assert (first["run_seed"], second["run_seed"]) == (0, 1)
    assert first["n_prompts"] == 7 and first["groups"]["hostile"]["n_samples"] == 16
    assert first["groups"]["neutral"]["n_prompts"] == 8
    assert first["reward_before"] == second["reward_before"]
    assert first["reward_after"] != second["reward_after"]
    assert first["kl_k3"] > 0.01
    assert main(["evaluate", str(folders[0]), "--n-prompts", "10"]) == 2
    assert "there are 9 held-out prompts" in capsys.readouterr().err

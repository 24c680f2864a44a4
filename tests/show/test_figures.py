"""Figures: what is drawn equals what is in the files, every label is there and fits."""

import io
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from rlhf_helpers.evaluation.before_after import summarise_pair
from rlhf_helpers.runs.files import write_jsonl
from rlhf_helpers.show.figures import (
    LiveCurves,
    memory_bar,
    paired_change_plot,
    reward_curve,
    reward_histogram,
    save_figure,
    series,
    training_curves,
)
from rlhf_helpers.show.run_figures import headline_figure, seeds_figure


def metrics_lines(iterations: int = 6, seed: int = 0) -> list[dict]:
    """Lines as a run writes them: rollouts, evaluations and steps, all in one file."""
    rng = random.Random(seed)
    lines = []
    for i in range(iterations):
        lines.append({"step": 4 * i, "exp_scores/mean": 0.5 + 0.05 * i + rng.gauss(0, 0.01),
                      "policy/sqrt_kl": 0.1 * i, "objective/kl": 1.3 * i, "kl_ctl_value": 0.05})
        if i % 2 == 0:
            lines.append({"step": 4 * i, "reward/mean": 0.45 + 0.06 * i})
        for k in range(4):
            lines.append({"step": 4 * i + k + 1, "losses/policy_loss": rng.gauss(0, 0.02),
                          "losses/value_loss": rng.random(), "policy/approx_kl": rng.random(),
                          "policy/clipfrac": rng.random() / 10})
    return lines


def sample_lines(count: int = 40, seed: int = 0) -> tuple[list[dict], list[dict]]:
    rng = random.Random(seed)
    sides: tuple[list, list] = ([], [])
    for i in range(count + 8):
        group, prompt = ("heldout", f"p{i}") if i < count else ("post", "This movie was terrible")
        low, high = rng.random(), 0.5 + rng.random() / 2
        for side, reward in zip(sides, (low, high), strict=True):
            side.append({"prompt": prompt, "output": f"{rng.random()} a b c", "reward": reward,
                         "reward_continuation": reward, "seed": i, "group": group,
                         "judge": 0.3 + 0.4 * reward, "kl_k1": 1.0})
    return sides


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run", seed=1)


def write_run(path, seed: int):
    before, after = sample_lines(seed=seed)
    write_jsonl(path / "metrics.jsonl", metrics_lines(seed=seed))
    write_jsonl(path / "baseline_samples.jsonl", before)
    write_jsonl(path / "after_samples.jsonl", after)
    summary = summarise_pair(before, after, seed, n_draws=500)
    (path / "evaluation.json").write_text(json.dumps(summary))
    return path


def drawn(ax) -> dict[str, tuple[list, list]]:
    """Lines of an axis by their label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
            for line in ax.get_lines()}


def title(ax) -> str:
    return ax.get_title(loc="left")


def check_readable(figure) -> None:
    """Seven inches wide, every axis labelled, no text cut off or written over another title."""
    assert figure.get_figwidth() == 7.0
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = figure.bbox.size
    titles = []
    for ax in figure.axes:
        assert title(ax), "an axis without a title"
        # Inner axes may leave the label of a shared axis to the outer ones.
        assert ax.get_xlabel() or not any(t.get_visible() for t in ax.get_xticklabels())
        assert ax.get_ylabel() or not ax.get_yticks().size or ax.get_yticklabels()
        texts = [ax._left_title, ax.xaxis.label, ax.yaxis.label]
        texts += ax.get_legend().get_texts() if ax.get_legend() else []
        for text in (t for t in texts if t.get_text()):
            box = text.get_window_extent(renderer)
            assert box.x0 > -1 and box.x1 < width + 1, f"{text.get_text()!r} is cut off"
            assert box.y0 > -1 and box.y1 < height + 1, f"{text.get_text()!r} is cut off"
        titles.append(ax._left_title.get_window_extent(renderer))
    for i, one in enumerate(titles):
        assert not any(one.overlaps(other) for other in titles[i + 1 :])


# --- the course of a run ------------------------------------------------------------------


def test_series_picks_the_lines_that_hold_the_metric():
    metrics = [{"step": 0, "a": 1.0}, {"step": 1, "b": 2.0}, {"step": 2, "a": 3.0, "b": None}]
    assert series(metrics, "a") == ([0, 2], [1.0, 3.0])
    assert series(metrics, "b") == ([1], [2.0])
    assert series(metrics, "c") == ([], [])


def test_training_curves_draw_the_files_values():
    metrics = metrics_lines()
    figure = training_curves(metrics)
    check_readable(figure)
    reward, kl, policy_loss, value_loss, clipfrac, approx_kl = figure.axes
    rollouts, evaluated = drawn(reward).values()
    assert rollouts[0] == [0, 4, 8, 12, 16, 20]
    assert rollouts[1] == [line["exp_scores/mean"] for line in metrics if "exp_scores/mean" in line]
    assert evaluated == ([0, 8, 16], pytest.approx([0.45, 0.57, 0.69]))
    assert title(reward) == "Evaluation prompts: 0.45 to 0.69"
    assert list(kl.get_lines()[0].get_ydata()) == pytest.approx([0, 1.3, 2.6, 3.9, 5.2, 6.5])
    assert title(kl) == "KL: 6.5 nats at the end" and "per sample" in kl.get_ylabel()
    for ax, name in ((policy_loss, "losses/policy_loss"), (value_loss, "losses/value_loss"),
                     (clipfrac, "policy/clipfrac"), (approx_kl, "policy/approx_kl")):
        values = [line[name] for line in metrics if name in line]
        assert drawn(ax)["each step"] == (list(range(1, 25)), values)


def test_running_mean_is_over_whole_windows():
    metrics = [{"step": i, "losses/value_loss": float(i % 2)} for i in range(60)]
    mean = drawn(training_curves(metrics).axes[3])["mean of 2 steps"]
    assert mean == (list(range(1, 60)), [0.5] * 59)


def test_running_mean_is_over_an_iteration_whose_steps_repeat_a_pattern():
    """Losses rise and fall with each iteration's epochs; another window would keep teeth."""
    metrics = [{"step": i, "losses/value_loss": float(i % 4)} for i in range(40)]
    for line in metrics[::4]:
        line["exp_scores/mean"] = 0.5
    mean = drawn(training_curves(metrics).axes[3])["mean of 4 steps"]
    assert mean == (list(range(3, 40)), [1.5] * 37)


def test_without_per_sequence_kl_the_square_of_trlx_metric_is_drawn():
    metrics = [{"step": 0, "policy/sqrt_kl": 0.5}, {"step": 4, "policy/sqrt_kl": 3.0}]
    kl = training_curves(metrics).axes[1]
    assert list(kl.get_lines()[0].get_ydata()) == [0.25, 9.0]
    assert "per sample" not in kl.get_ylabel()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_curves_of_a_run_that_has_hardly_begun(count):
    figure = training_curves(metrics_lines()[:count])
    check_readable(figure)
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert words.count("no values yet") == (6 if count == 0 else 4 if count < 3 else 0)


def test_reward_curve_is_the_reward_panel_alone():
    figure = reward_curve(metrics_lines())
    check_readable(figure)
    assert len(figure.axes) == 1 and len(figure.axes[0].get_lines()) == 2


# --- before and after ---------------------------------------------------------------------


def test_histogram_counts_the_held_out_samples_alone():
    before, after = sample_lines(40)
    ax = reward_histogram(before, after).axes[0]
    held_out = [s["reward"] for s in before if s["group"] == "heldout"]
    heights = [bar.get_height() for bar in ax.patches if hasattr(bar, "get_height")]
    first, second = heights[:20], heights[20:40]
    assert sum(first) == sum(second) == 40
    assert first[0] == sum(reward < 0.05 for reward in held_out)
    assert first[19] == sum(reward >= 0.95 for reward in held_out)
    means = [line.get_xdata()[0] for line in ax.get_lines()]
    assert means[0] == pytest.approx(sum(held_out) / 40)
    assert f"from {means[0]:.2f} to {means[1]:.2f}" in title(ax)


def test_histogram_of_one_side_and_of_extreme_rewards():
    rows = [{"reward": reward, "group": "any"} for reward in (0.0, 1.0, 1.0)]
    figure = reward_histogram(rows)
    check_readable(figure)
    assert title(figure.axes[0]) == "Before training: mean 0.67"
    heights = [bar.get_height() for bar in figure.axes[0].patches if hasattr(bar, "get_height")]
    assert (heights[0], heights[19]) == (1, 2)


def test_histogram_says_that_every_reward_occurs_where_none_is_missing():
    rows = [{"reward": (i + 0.5) / 20, "group": "any"} for i in range(20)]
    told = "Before training: every reward occurs, mean 0.50"
    assert title(reward_histogram(rows).axes[0]) == told
    assert "every" not in title(reward_histogram(rows[1:]).axes[0])


def test_paired_change_pairs_by_prompt_and_seed():
    before, after = sample_lines(40)
    figure = paired_change_plot(before, after[::-1], {"mean": 0.2, "low": 0.1, "high": 0.3})
    check_readable(figure)
    scatter, ordered = figure.axes
    points = np.concatenate([c.get_offsets() for c in scatter.collections])
    expected = sorted((b["reward"], a["reward"]) for b, a in zip(before, after, strict=True)
                      if b["group"] == "heldout")
    assert sorted(map(tuple, points.tolist())) == expected
    higher = sum(a > b for b, a in expected)
    assert title(scatter) == f"Higher after for {higher} of 40"
    assert len(scatter.collections[0].get_offsets()) == higher
    heights = [bar.get_height() for bar in ordered.patches][:40]
    assert heights == sorted(a - b for b, a in expected)
    assert title(ordered) == "Mean +0.20 (+0.10 to +0.30)"


def test_paired_change_finds_its_own_interval():
    before, after = sample_lines(30)
    differences = [a["reward"] - b["reward"] for b, a in zip(before, after, strict=True)][:30]
    ordered = paired_change_plot(before, after).axes[1]
    assert ordered.get_lines()[0].get_ydata()[0] == pytest.approx(sum(differences) / 30)


# --- before a run -------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "words"), [(4e9, "it fits"), (2e9, "it does not fit")])
def test_memory_bar_adds_up(limit, words):
    figure = memory_bar({"weights": 2e9, "KV cache": 0.5e9, "optimizer": 3e6}, limit)
    check_readable(figure)
    ax = figure.axes[0]
    bars = ax.patches
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 2.0, 2.5])
    assert [bar.get_width() for bar in bars] == pytest.approx([2.0, 0.5, 0.003])
    assert ax.get_lines()[0].get_xdata()[0] == pytest.approx(limit / 1e9)
    assert title(ax) == f"2.50 GB needed: {words}"
    assert ax.get_xlim()[1] > max(2.503, limit / 1e9)


def test_memory_bar_sums_what_cannot_be_seen_and_ends_behind_the_parts():
    small = {f"part {i}": 1e6 for i in range(12)}
    figure = memory_bar({"weights": 2e9, "none": 0, **small}, 100e9)
    check_readable(figure)
    ax = figure.axes[0]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([2.0, 0.012])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["weights 2.00 GB", "all other parts 12 MB"]
    assert not ax.get_lines() and 2.012 < ax.get_xlim()[1] < 2.5
    assert title(ax) == "2.01 GB needed, 100.00 GB available: it fits"


# --- whole runs ---------------------------------------------------------------------------


def test_both_halves_of_the_headline_figure_show_the_same_samples(run_dir):
    """Two prompts, three texts each, at three steps; the means by hand."""
    rewards = {0: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 4: [0.5] * 6, 8: [0.9, 0.9, 0.9, 0.7, 0.8, 0.9]}
    write_jsonl(run_dir / "eval_samples.jsonl", [
        {"step": step, "prompt": "ab"[i // 3], "output": "x", "reward": own[i]}
        for step, own in rewards.items() for i in range(6)
    ])  # fmt: skip
    write_jsonl(run_dir / "metrics.jsonl",
                [{"step": s, "reward/mean": sum(own) / 6} for s, own in rewards.items()])
    figure = headline_figure(run_dir)
    check_readable(figure)
    assert figure.get_suptitle() == "The blog post's 2 prompts, 3 texts each, in both halves"
    way, texts = figure.axes
    assert title(way) == "0 of 2 prompts end above 0.9"
    assert title(texts) == "Each text: mean from 0.35 to 0.85"
    a, b, mean = (line.get_ydata() for line in way.get_lines())
    assert list(a) == pytest.approx([0.2, 0.5, 0.9]) and list(b) == pytest.approx([0.5, 0.5, 0.8])
    assert list(mean) == pytest.approx([0.35, 0.5, 0.85])


@pytest.mark.parametrize("last", [0.02, 0.1, 0.5, 0.95])
def test_the_name_of_the_lowest_prompt_lies_within_its_panel(run_dir, last):
    write_jsonl(run_dir / "eval_samples.jsonl", [
        {"step": step, "prompt": "This movie was terrible", "output": "x", "reward": reward}
        for step, reward in ((0, 0.02), (8, last))
    ])  # fmt: skip
    figure = headline_figure(run_dir)
    figure.canvas.draw()
    (name,) = figure.axes[0].texts
    panel, own = figure.axes[0].get_window_extent(), name.get_window_extent()
    assert panel.y0 < own.y0 and own.y1 < panel.y1


def test_a_run_without_texts_on_the_way_has_a_headline_figure(run_dir):
    figure = headline_figure(run_dir)
    check_readable(figure)
    _, after = sample_lines(seed=1)
    rewards = [row["reward"] for row in after if row["group"] == "post"]
    assert figure.get_suptitle() == "The blog post's 1 prompts, 8 texts each, in both halves"
    assert title(figure.axes[1]).endswith(f"to {sum(rewards) / 8:.2f}")


def test_headline_figure_says_which_notebook_is_missing(run_dir):
    (run_dir / "after_samples.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="05_before_after_evaluation"):
        headline_figure(run_dir)


def test_seeds_figure_draws_each_run(tmp_path):
    runs = [write_run(tmp_path / str(seed), seed) for seed in (1, 2, 3)]
    figure = seeds_figure(runs)
    check_readable(figure)
    panels = {ax.get_label(): ax for ax in figure.axes}
    evaluations = [json.loads((run / "evaluation.json").read_text()) for run in runs]
    for i, line in enumerate(panels["reward"].get_lines()):
        lines = metrics_lines(seed=i + 1)
        assert list(line.get_ydata()) == series(lines, "exp_scores/mean")[1]
        assert line.get_label() == f"seed {i + 1}"
    befores = panels["end"].get_lines()[0]
    assert list(befores.get_xdata()) == [e["reward_before"] for e in evaluations]
    afters = [e["reward_after"] for e in evaluations]
    assert f"{min(afters):.2f} to {max(afters):.2f}" in title(panels["end"])


# --- showing ------------------------------------------------------------------------------


def test_notebook_picture_and_saved_file(tmp_path):
    figure = reward_curve(metrics_lines())
    data, metadata = figure._repr_png_()
    assert metadata == {"width": 700}
    assert imread(io.BytesIO(data)).shape[1] == 1050
    path = save_figure(figure, tmp_path / "figures" / "reward.png")
    assert imread(path).shape[1] == 1400
    assert path.read_bytes() == save_figure(figure, tmp_path / "again.png").read_bytes()


class Screen:
    """Stands in for IPython.display.display and its handle."""

    def __init__(self):
        self.shown, self.updated = [], []

    def display(self, figure, display_id):
        self.shown.append(figure)
        return self

    def update(self, figure):
        self.updated.append(figure)


def test_live_curves_redraw_now_and_then(monkeypatch):
    screen, now = Screen(), [0.0]
    monkeypatch.setattr("IPython.display.display", screen.display)
    curves = LiveCurves(every_seconds=3, draw=len, live=True, clock=lambda: now[0])
    for step in range(100):  # one line a tenth of a second, for ten seconds
        now[0] = step / 10
        curves({"step": step})
    assert screen.shown == [31]  # at 3.0 s, with the lines of 0.0 to 3.0
    assert screen.updated == [61, 91]
    curves.redraw()
    assert screen.updated[-1] == 100


def test_live_curves_slow_down_when_drawing_is_slow(monkeypatch):
    screen, now = Screen(), [0.0]
    monkeypatch.setattr("IPython.display.display", screen.display)

    def draw(metrics):
        now[0] += 1.0  # a second to draw: the next is due twenty seconds later
        return len(metrics)

    curves = LiveCurves(every_seconds=3, draw=draw, live=True, clock=lambda: now[0])
    for _ in range(100):
        now[0] += 0.5
        curves({"step": 0})
    assert len(screen.shown) + len(screen.updated) == 3


def test_live_curves_only_gather_where_nobody_watches(monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: pytest.fail("displayed"))
    curves = LiveCurves(every_seconds=0)
    curves({"step": 1})
    curves.redraw()
    assert not curves.live and curves.metrics == [{"step": 1}]


def test_figures_and_evaluation_import_no_torch():
    code = ("import sys; import rlhf_helpers.show.run_figures, rlhf_helpers.rewards.judge; "
            "print([m for m in ('torch', 'transformers', 'sklearn', 'matplotlib.pyplot') "
            "if m in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr

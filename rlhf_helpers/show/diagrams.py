"""The diagrams that explain: boxes, arrows and shapes, as SVG files in figures/diagrams/.

    from rlhf_helpers.show.diagrams import draw_diagrams
    draw_diagrams("figures/diagrams")

Drawn on a white ground, so that they can be read on light and dark pages alike. Lengths are points
(1/72 inch): at the size that the files ask for, text of size 11 is 11 points high. Letters are kept
as outlines and look the same everywhere.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text

from rlhf_helpers.config.paths import repo_root

from .plot_style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, WIDTH

INK = "#1f2328"
SMALL, NORMAL, LARGE = 11, 12, 14  # points; nothing is smaller than the first
POINTS = 72  # an inch
# Fill and frame of what a box stands for.
FILLS = {
    BLUE: "#e3f0f9", GREEN: "#e0f3ec", ORANGE: "#fcf1dc", RED: "#fbe7dc", PURPLE: "#f8e8f1",
    GREY: "#f0f0f0",
}  # fmt: skip


class Box(NamedTuple):
    """A rectangle in points from the lower left corner of the drawing."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2

    @property
    def left(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def top(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y


# --- the pencil ---


def blank(height: float) -> tuple[Figure, Axes]:
    """An empty drawing of the house width and `height` points, on white."""
    figure = Figure(figsize=(WIDTH, height / POINTS), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH * POINTS), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def lettering(ax: Axes, x: float, y: float, words: str, size: float = SMALL, **look) -> Text:
    """Words at (x, y), centred there unless `ha` and `va` say otherwise."""
    look = {"ha": "center", "va": "center", "color": INK, "linespacing": 1.35} | look
    return ax.text(x, y, words, fontsize=size, **look)


def draw_box(ax: Axes, box: Box, title: str, words: str = "", colour: str = GREY,
             strong: bool = True) -> Box:
    """A box with a bold title and, under it, words. A weak one stands in the background."""
    ax.add_patch(FancyBboxPatch(
        box[:2], box.width, box.height, boxstyle="round,pad=0,rounding_size=6",
        facecolor=FILLS[colour] if strong else "white", edgecolor=colour if strong else "#9a9a9a",
        linewidth=2 if strong else 1,
    ))  # fmt: skip
    x, y = box.middle
    lines = words.count("\n") + 1 if words else 0
    lettering(ax, x, y + 7.5 * lines, title, NORMAL, weight="bold")
    if words:
        lettering(ax, x, y - 8.5, words)
    return box


def arrow(ax: Axes, *points: tuple[float, float], colour: str = INK, style: str = "-|>") -> None:
    """An arrow through the given points, with a head at the last one."""
    ax.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, solid_capstyle="butt")
    ax.add_patch(FancyArrowPatch(
        points[-2], points[-1], arrowstyle=style, mutation_scale=13, color=colour, linewidth=1.6,
        shrinkA=0, shrinkB=0,
    ))  # fmt: skip


def number(ax: Axes, box: Box, n: int) -> None:
    """The number of a step, on the upper left corner of its box."""
    place = box.x + 1, box.y + box.height
    ax.add_patch(Circle(place, 10, facecolor=INK, edgecolor="white", zorder=5))
    look = {"color": "white", "weight": "bold", "zorder": 6, "va": "center_baseline"}
    lettering(ax, *place, str(n), NORMAL, **look)


# --- 1: the loop ---

LOOP = ("prompt", "policy", "reward", "update", "reference")


def loop(here: Sequence[str] = LOOP) -> Figure:
    """Prompt, policy, reward function, update, reference policy; `here`: the boxes in colour."""
    figure, ax = blank(height=232)
    prompt = draw_box(ax, Box(8, 156, 112, 54), "prompt", "“This movie was”", GREY,
                      "prompt" in here)  # fmt: skip
    policy = draw_box(ax, Box(164, 156, 104, 54), "policy", "writes a text", BLUE,
                      "policy" in here)  # fmt: skip
    reward = draw_box(ax, Box(376, 156, 124, 54), "reward function", "scores it: 0.96", GREEN,
                      "reward" in here)  # fmt: skip
    update = draw_box(ax, Box(376, 64, 124, 66), "PPO", "makes good texts\nmore likely", ORANGE,
                      "update" in here)  # fmt: skip
    reference = draw_box(ax, Box(164, 12, 104, 54), "reference", "the start, frozen", GREY,
                         "reference" in here)  # fmt: skip
    arrow(ax, prompt.right, policy.left)
    arrow(ax, policy.right, reward.left)
    lettering(ax, 316, 195, "“a joy to watch”", style="italic")
    arrow(ax, reward.bottom, update.top)
    arrow(ax, update.left, (216, 97), policy.bottom)
    lettering(ax, 296, 107, "changes the policy")
    arrow(ax, reference.right, (438, 39), update.bottom, colour=GREY)
    lettering(ax, 350, 28, "KL: how far has it moved?")
    for step, box in enumerate((policy, reward, update), start=1):
        number(ax, box, step)
    return figure


def loop_writing() -> Figure:
    """The loop, with what happens in 02 in colour."""
    return loop(("prompt", "policy", "reward"))


# --- 2: one model, three roles ---


def one_model() -> Figure:
    """Frozen trunk, and its top in two ways: with LoRA the policy, without it the reference."""
    figure, ax = blank(height=300)
    trunk = draw_box(ax, Box(60, 44, 384, 46), "trunk: the lower layers", "frozen, computed once",
                     GREY)  # fmt: skip
    tuned = draw_box(ax, Box(60, 128, 176, 50), "top layers, LoRA on",
                     r"$W + (\alpha/r)\,BA$", BLUE)  # fmt: skip
    plain = draw_box(ax, Box(268, 128, 176, 50), "the same, LoRA off", "$W$", GREY)
    value = draw_box(ax, Box(24, 216, 112, 46), "value head", "", ORANGE)
    head = draw_box(ax, Box(160, 216, 96, 46), "output layer", "", GREY)
    same = draw_box(ax, Box(308, 216, 96, 46), "output layer", "", GREY)
    arrow(ax, (252, 24), trunk.bottom)
    lettering(ax, 252, 14, "tokens of prompt and output")
    arrow(ax, (tuned.middle[0], 90), tuned.bottom)
    arrow(ax, (plain.middle[0], 90), plain.bottom)
    lettering(ax, 97, 196, "$h$ numbers", ha="left")
    for start, box in ((80, value), (208, head), (plain.middle[0], same)):
        arrow(ax, (start, 178), (start, 216))
        arrow(ax, box.top, (box.middle[0], 276))
    lettering(ax, value.middle[0], 287, "value", weight="bold")
    lettering(ax, head.middle[0], 287, "policy", weight="bold")
    lettering(ax, same.middle[0], 287, "reference policy", weight="bold")
    return figure


# --- 3: W + B A ---


def low_rank(width: int = 192, rank: int = 16) -> Figure:
    """The thick matrix and the two thin ones, with shapes and sizes; those of the profile cpu."""
    figure, ax = blank(height=226)
    side, thin, bottom = 132, 13, 50
    middle = bottom + side / 2

    def matrix(x: float, y: float, w: float, h: float, colour: str, letter: str) -> None:
        ax.add_patch(Rectangle((x, y), w, h, facecolor=FILLS[colour], edgecolor=colour,
                               linewidth=2))  # fmt: skip
        lettering(ax, x + w / 2, y + h + 13, letter, LARGE, style="italic", weight="bold")

    matrix(34, bottom, side, side, GREY, "W")
    matrix(238, bottom, thin, side, BLUE, "B")
    matrix(290, middle - thin / 2, side, thin, BLUE, "A")
    lettering(ax, 34 + side / 2, middle, f"{width:,} × {width:,}")
    lettering(ax, 192, middle, "+", 22)
    lettering(ax, 213, middle, r"$\frac{\alpha}{r}$", 20)
    lettering(ax, 270, middle, "×", 18)
    lettering(ax, 244, bottom - 13, f"{width:,} × {rank}")
    lettering(ax, 356, middle - 22, f"{rank} × {width:,}")
    lettering(ax, 100, 17, f"frozen: {width * width:,} numbers", weight="bold")
    lettering(ax, 330, 17, f"trained: {2 * rank * width:,} numbers", weight="bold", color="#00558a")
    lettering(ax, 462, middle + 1, f"rank\n$r$ = {rank}")
    return figure


# --- 4: from one score to every token ---

# One answer of ten tokens, with numbers of the usual sizes; advantages and rewards are computed.
TOKENS = ("It", "was", "a", "joy", "to", "see", "from", "start", "to", "end")
SCORE, KL_COEF, LAM = 0.96, 0.05, 0.95
KLS = (0.2, -0.1, 0.4, 1.9, 0.1, 0.6, 0.3, 0.2, 0.0, 0.2)  # log pi - log pi_ref
VALUES = (0.52, 0.50, 0.53, 0.45, 0.84, 0.86, 0.97, 1.01, 0.98, 0.95)
RATIOS = (1.02, 0.99, 1.05, 1.19, 1.01, 1.08, 1.04, 1.02, 1.00, 1.03)


def one_score() -> Figure:
    """The time line of ten tokens: score, KL penalty, reward, value, advantage, ratio."""
    penalties = [-KL_COEF * kl for kl in KLS]
    scores = [0.0] * (len(TOKENS) - 1) + [SCORE]
    rewards = [score + penalty for score, penalty in zip(scores, penalties, strict=True)]
    rows = (
        ("score", scores, GREEN, "one, at the end"),
        ("− β × KL", penalties, RED, "at every token"),
        ("reward", rewards, GREEN, "their sum"),
        ("value", VALUES, ORANGE, "what is expected"),
        ("advantage", advantages(rewards, VALUES), BLUE, "better than expected?"),
        ("ratio − 1", [ratio - 1 for ratio in RATIOS], PURPLE, "new / old probability"),
    )
    figure, ax = blank(height=378)
    left, step, lane = 152, 35, 56
    for i, token in enumerate(TOKENS):
        lettering(ax, left + step * (i + 0.5), 356, token, weight="bold", va="baseline")
    for row, (name, numbers, colour, words) in enumerate(rows):
        zero = 340 - lane * (row + 1) + 14
        lettering(ax, 8, zero + 20, name, NORMAL, weight="bold", ha="left")
        lettering(ax, 8, zero + 3, words, ha="left")
        ax.plot([left, left + step * len(TOKENS)], [zero, zero], color="#9a9a9a", linewidth=0.8)
        scale = 32 / max(abs(n) for n in numbers) if max(numbers) > 0 else 14 / -min(numbers)
        for i, n in enumerate(numbers):
            ax.add_patch(Rectangle((left + step * i + 8, zero), step - 16, scale * n,
                                   facecolor=colour, linewidth=0))  # fmt: skip
    lettering(ax, left + step * 9 - 14, 340 - lane + 34, f"{SCORE}")
    return figure


def advantages(rewards: Sequence[float], values: Sequence[float]) -> list[float]:
    """The package's own generalised advantage estimates of one answer."""
    import torch  # here only: every other drawing needs none

    from rlhf_helpers.algorithms.ppo import gae

    result, _ = gae(torch.tensor([values]), torch.tensor([rewards]), gamma=1.0, lam=LAM)
    return result[0].tolist()


# --- 5: from preferences to a reward ---


def preferences() -> Figure:
    """A pair of texts, the choice of a person, Bradley and Terry's model, reward model, PPO."""
    figure, ax = blank(height=306)
    first = draw_box(ax, Box(10, 192, 132, 60), "text A", "“It was a joy.”", BLUE)
    second = draw_box(ax, Box(10, 54, 132, 60), "text B", "“I fell asleep.”", ORANGE)
    lettering(ax, 76, 153, "same prompt, two texts")
    person = draw_box(ax, Box(184, 125, 96, 56), "a person", "prefers A", GREY)
    goal = draw_box(ax, Box(322, 14, 172, 60), "trained so that",
                    "σ( $r$(A) − $r$(B) )  is large", PURPLE)  # fmt: skip
    model = draw_box(ax, Box(322, 123, 172, 60), "reward model $r$", "one number for a text",
                     GREEN)  # fmt: skip
    ppo = draw_box(ax, Box(322, 232, 172, 60), "PPO", "makes texts likelier\nthat $r$ likes",
                   ORANGE)  # fmt: skip
    arrow(ax, first.right, (184, 163))
    arrow(ax, second.right, (184, 143))
    arrow(ax, person.right, (301, 153), (301, 44), goal.left)
    arrow(ax, (352, 74), (352, 123))
    lettering(ax, 362, 98, "Bradley and Terry", ha="left")
    arrow(ax, (352, 183), (352, 232))
    lettering(ax, 362, 207, "scores new texts", ha="left")
    for step, box in enumerate((first, person, goal, model, ppo), start=1):
        number(ax, box, step)
    return figure


# --- 6: the same prompts, before and after ---


def before_after() -> Figure:
    """The same prompts and draws for both policies, and three that read what they write."""
    figure, ax = blank(height=220)
    draw_box(ax, Box(6, 78, 126, 64), "same prompts", "same random draws", GREY)
    untuned = draw_box(ax, Box(176, 144, 110, 54), "before", "untuned policy", ORANGE)
    tuned = draw_box(ax, Box(176, 22, 110, 54), "after", "tuned policy", BLUE)
    arrow(ax, (132, 126), (154, 126), (154, 171), untuned.left)
    arrow(ax, (132, 94), (154, 94), (154, 49), tuned.left)
    reward = draw_box(ax, Box(346, 152, 150, 56), "reward model", "training asked it", GREEN)
    judge = draw_box(ax, Box(346, 82, 150, 56), "judge", "training never asked it", PURPLE)
    language = draw_box(ax, Box(346, 12, 150, 56), "untuned model", "is it still language?", GREY)
    for policy in (untuned, tuned):
        ax.plot(*zip(policy.right, (316, policy.middle[1]), strict=True), color=INK, linewidth=1.6)
    ax.plot((316, 316), (40, 180), color=INK, linewidth=1.6)
    for reader in (reward, judge, language):
        arrow(ax, (316, reader.middle[1]), reader.left)
    lettering(ax, 231, 110, "both write a text")
    return figure


# --- 7: a reward that a program checks ---

ANSWERS = ("146", "145", "168−22=146", "156")  # to 83+85−22
RIGHT = (1.0, 0.0, 1.0, 0.0)


def group() -> Figure:
    """A problem, k answers, the verifier's rewards, the group's advantages, the update."""
    figure, ax = blank(height=344)
    problem = draw_box(ax, Box(8, 286, 114, 50), "problem", "83+85−22=", GREY)
    policy = draw_box(ax, Box(8, 204, 114, 54), "policy", "writes k answers", BLUE)
    update = draw_box(ax, Box(8, 10, 114, 64), "update", "makes good\nones likelier", ORANGE)
    verifier = draw_box(ax, Box(150, 146, 346, 48), "verifier: a program",
                        "is the number behind the last = right?", GREEN)  # fmt: skip
    compared = draw_box(ax, Box(150, 64, 346, 48), "group",
                        "each reward less the mean of the others", PURPLE)  # fmt: skip
    lettering(ax, 323, 264, "k answers to one problem (here k = 4)")
    for i, (answer, right, advantage) in enumerate(
        zip(ANSWERS, RIGHT, group_advantages(RIGHT), strict=True)
    ):
        box = Box(150 + 88 * i, 217, 82, 28)
        middle = box.middle[0]
        ax.add_patch(Rectangle(box[:2], box.width, box.height, linewidth=1.2, edgecolor=BLUE,
                               facecolor=FILLS[BLUE]))  # fmt: skip
        lettering(ax, *box.middle, answer)
        arrow(ax, box.bottom, (middle, verifier.top[1]))
        arrow(ax, (middle, verifier.y), (middle, compared.top[1]))
        lettering(ax, middle - 8, 129, f"reward {right:.0f}", ha="right")
        lettering(ax, middle, 50, f"{advantage:+.2f}".replace("-", "−"), NORMAL, weight="bold")
    lettering(ax, 323, 22, "advantage of each answer")
    arrow(ax, problem.bottom, policy.top)
    arrow(ax, policy.right, (150, policy.middle[1]))
    arrow(ax, (496, 36), (122, 36))
    arrow(ax, update.top, policy.bottom)
    lettering(ax, 8, 139, "changes", ha="left")
    for step, box in enumerate((policy, verifier, compared, update), start=1):
        number(ax, box, step)
    return figure


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """The package's own leave-one-out advantages of one group."""
    import torch

    from rlhf_helpers.algorithms.critic_free import leave_one_out_advantages

    return leave_one_out_advantages(torch.tensor([rewards]))[0].tolist()


# --- the house ---


def rooms(root: Path | None = None) -> list[list[str]]:
    """The rooms from top to bottom; those that may not import each other share a storey."""
    text = ((root or repo_root()) / "pyproject.toml").read_text(encoding="utf-8")
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def purpose(room: str, root: Path | None = None) -> str:
    """What a room is for: its docstring as far as the first colon, or through a question mark."""
    package = (root or repo_root()) / "rlhf_helpers"
    file = package / room / "__init__.py"
    file = file if file.exists() else package / f"{room}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.match(r"[^:?\n]*\??", text)[0].rstrip(". ")


def house() -> Figure:
    """Every room of the package and what it is for, in the order in which they may import."""
    storeys, lane, letter = rooms(), 29, 6.9
    figure, ax = blank(height=lane * len(storeys) + 12)
    for i, storey in enumerate(storeys):
        y = 8 + lane * (len(storeys) - 1 - i)
        labels = [(room, purpose(room)) for room in storey]
        room_for_words = 428 - 8 * (len(storey) - 1)
        lengths = [len(room) + len(words) for room, words in labels]
        if sum(lengths) * letter > room_for_words:  # two rooms of many words: names alone
            labels, lengths = [(room, "") for room in storey], [1] * len(storey)
        x = 68.0
        for (room, words), length in zip(labels, lengths, strict=True):
            box = Box(x, y, room_for_words * length / sum(lengths), lane - 5)
            ax.add_patch(Rectangle(box[:2], box.width, box.height, linewidth=1.2, edgecolor=BLUE,
                                   facecolor=FILLS[BLUE]))  # fmt: skip
            look = {"ha": "left", "va": "center_baseline"}
            lettering(ax, box.x + 8, box.middle[1], room, weight="bold", **look)
            beside = 94 if len(storey) == 1 else 10 + 8 * len(room)
            lettering(ax, box.x + beside + 8, box.middle[1], words, **look)
            x += box.width + 8
    arrow(ax, (40, lane * len(storeys)), (40, 12), colour=GREY)
    lettering(ax, 22, lane * len(storeys) / 2, "imports run downwards", rotation=90)
    return figure


# --- all of them ---

DIAGRAMS: dict[str, Callable[[], Figure]] = {
    "loop": loop,
    "loop_writing": loop_writing,
    "one_model": one_model,
    "low_rank": low_rank,
    "one_score": one_score,
    "preferences": preferences,
    "before_after": before_after,
    "group": group,
    "house": house,
}
# Letters as outlines; the same names inside the file at every drawing.
SVG = {"svg.fonttype": "path", "svg.hashsalt": "diagrams", "path.simplify": False,
       "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}  # fmt: skip


def draw_diagrams(folder: str | Path | None = None) -> list[Path]:
    """Draw every diagram as SVG into `folder` (figures/diagrams of the repository); their paths."""
    folder = Path(folder) if folder else repo_root() / "figures" / "diagrams"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(SVG):
        for name, draw in DIAGRAMS.items():
            paths.append(folder / f"{name}.svg")
            draw().savefig(paths[-1], metadata={"Date": None, "Creator": None, "Title": name})
    return paths

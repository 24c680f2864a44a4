"""The look of every figure: size, type, colours, and how a notebook shows it."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's colours, which stay apart for colour-blind eyes.
ORANGE, BLUE, GREEN = "#E69F00", "#0072B2", "#009E73"
RED, PURPLE, GREY = "#D55E00", "#CC79A7", "#767676"
BEFORE, AFTER = ORANGE, BLUE
PARTS = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#F0E442", "#8C6D31", "#B5CF6B", "#393B79", GREY)
SEED_STYLES = ("-", "--", ":", "-.")
WIDTH = 7.0  # inches, at 100 dots per inch: 700 pixels
FILE_DPI = 200
NOTEBOOK_DPI = 150


class ShownFigure(Figure):
    """A figure that a notebook shows as PNG, without pyplot and its global state."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture, drawn finer than it is shown, and the width to show it at."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=NOTEBOOK_DPI)
        return in_palette(buffer.getvalue()), {"width": round(100 * WIDTH)}


def in_palette(png: bytes) -> bytes:
    """The same picture with the 256 colours that suit it best: a third of the bytes."""
    smaller = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(smaller, format="png", optimize=True)
    return min(png, smaller.getvalue(), key=len)


def style() -> AbstractContextManager:
    """The look of every figure, as a context for the code that draws it."""
    return matplotlib.rc_context(
        {
            "figure.facecolor": "white", "savefig.facecolor": "white",
            "font.size": 9.5, "axes.titlesize": 10, "axes.titleweight": "bold",
            "axes.titlelocation": "left", "axes.labelsize": 9.5, "legend.fontsize": 8.5,
            "axes.spines.top": False, "axes.spines.right": False,
            "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
            "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.8,
        }
    )


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function inside `style`."""

    @wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return wrapped


def projected(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function inside `style` with letters for a projector: 11 points and more."""
    larger = {"font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "legend.fontsize": 11}

    @wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with style(), matplotlib.rc_context(larger):
            return draw(*args, **kwargs)

    return wrapped


def new_figure(height: float) -> Figure:
    """An empty figure of the house width, `height` inches high."""
    return ShownFigure(figsize=(WIDTH, height), dpi=100, layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG that is sharp at 700 pixels on any screen; no date inside it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=FILE_DPI, metadata={"Software": None})
    return path

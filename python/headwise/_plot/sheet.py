"""Figures laid out in inches, colour scales and files, which all functions of :mod:`headwise.plot` use.

Figures are created without pyplot, so no global state changes, no display is needed, and several threads may draw at
once. The layout is computed from the sizes of texts; Matplotlib's own layout would draw each figure twice more.
"""

from __future__ import annotations

import io
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import offset_copy

from headwise._base.messages import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from headwise._base.typing import Array
    from headwise._plot.text import Lettering

# Font sizes in points. FONT: notes and legends; HEADING: the title of the figure.
SMALL, FONT, LARGE, TITLE, HEADING = 6.0, 7.0, 8.0, 9.0, 10.5
MARGIN = 0.1  # inches

_DPI = 150  # of saved files
_GREY = "#d4d4d4"  # masked cells
_BAR, _SCALE = 0.17, 1.1  # width of a colour bar, and of the bar with its margin, ticks and label, in inches

_salt = threading.Lock()


class Picture(Figure):
    """A figure that notebooks display, whether or not pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def save(figure: Figure, path: Path | None) -> None:
    """Write the figure to a file. The same figure gives the same bytes."""
    if path is None:
        return
    kind = path.suffix.lower()[1:]
    with _same_names():
        figure.savefig(path, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)


@contextmanager
def _same_names() -> Iterator[None]:
    """A fixed salt for the ids in an SVG file, which are random by default."""
    with _salt:
        before = mpl.rcParams["svg.hashsalt"]
        mpl.rcParams["svg.hashsalt"] = before or "headwise"
        try:
            yield
        finally:
            mpl.rcParams["svg.hashsalt"] = before


# --- colours ---


def colours(cmap: object, default: str) -> Colormap:
    if cmap is None:
        cmap = default
    if isinstance(cmap, str):
        if cmap not in mpl.colormaps:
            raise ValueError(f"cmap: {shown(cmap)}, expected the name of a colour map of Matplotlib")
        cmap = mpl.colormaps[cmap]
    if not isinstance(cmap, Colormap):
        raise TypeError(f"cmap: {type(cmap).__name__}, expected a str or a matplotlib.colors.Colormap")
    return cmap.with_extremes(bad=_GREY)


@dataclass(frozen=True)
class Scale:
    """The colour scale of all panels of a figure."""

    norm: Normalize
    end: float
    extend: str  # the ends beyond which there are numbers, as Matplotlib's colorbar takes it
    shown: tuple[float, float]  # the range of the colour bar: only the side of 0 where there are numbers


def one_sided(values: Sequence[Array], vmax: float | None) -> Scale:
    """From 0 to ``vmax``, by default to the maximum value."""
    largest = max(float(v.max()) for v in values)
    end = vmax or largest or 1.0
    return Scale(Normalize(0.0, end), end, "max" if largest > end else "neither", (0.0, end))


def two_sided(values: Array, vmax: float | None) -> Scale:
    """From ``-vmax`` to ``vmax``, by default to the maximum absolute value."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    end = vmax or max(-low, high) or 1.0
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    shown = (0.0 if low >= 0 < high else -end, 0.0 if high <= 0 > low else end)
    return Scale(Normalize(-end, end), end, extend[low < -end, high > end], shown)


# --- places ---


@dataclass(frozen=True)
class Space:
    """The space around the panels of a figure and between them, in inches."""

    left: float
    right: float
    above: float
    below: float
    between: tuple[float, float]  # columns, rows


class Sheet:
    """A figure of panels of one size, with a colour bar on the right or, if that would be too short, below."""

    def __init__(
        self,
        panels: tuple[int, int],
        size: tuple[float, float],
        space: Space,
        write: Lettering,
        title: str | None,
        note: str = "",
    ) -> None:
        rows, columns = panels
        title, note = write(title or ""), write(note)
        across, down = space.between
        self._size, self._pitch, self._left = size, (size[0] + across, size[1] + down), space.left
        self._inner = (columns * self._pitch[0] - across, rows * self._pitch[1] - down)
        self._beside = self._inner[1] >= 1.2
        above = space.above + (0.22 * (1 + title.count("\n")) if title else 0.0)
        self._foot = space.below + (0.2 if note else 0.0)
        # The legend of masked cells is below the colour bar.
        below = max(self._foot, 0.25) if self._beside else self._foot + 0.75
        self._right = space.left + self._inner[0] + space.right
        width = self._right + (_SCALE if self._beside else 2 * MARGIN)
        written = max(write.width(title.split("\n"), HEADING), write.width([note], FONT))
        self._whole = max(width, written + 2 * MARGIN), above + self._inner[1] + below
        self._top = self._whole[1] - above
        self.figure = Picture(figsize=self._whole)
        self.figure.set_layout_engine("none")
        if title:
            x, y = (space.left + self._inner[0] / 2) / self._whole[0], 1 - MARGIN / self._whole[1]
            x = max(x, (written / 2 + MARGIN) / self._whole[0])
            self.figure.suptitle(title, x=x, y=y, fontsize=HEADING, **write.style)
        if note:
            bottom = self._top - self._inner[1] - self._foot + MARGIN
            self.figure.text(
                MARGIN / self._whole[0], bottom / self._whole[1], note, fontsize=FONT, va="bottom", **write.style
            )

    def panel(self, row: int, column: int) -> Axes:
        x, y = self._left + column * self._pitch[0], self._top - row * self._pitch[1] - self._size[1]
        return self._place(x, y, *self._size)

    def scale(self, cmap: Colormap, scale: Scale, meaning: str, grey: str = "") -> None:
        """Add the colour bar with its label ``meaning`` and, unless ``grey`` is empty, a legend of the grey cells."""
        width, height = self._inner
        bottom = self._top - height
        if self._beside:
            place = self._place(self._right + 0.15, bottom, _BAR, height, "<colorbar>")
        else:
            place = self._place(self._left + width / 4, bottom - self._foot - _BAR, width / 2, _BAR, "<colorbar>")
        bar = self.figure.colorbar(
            ScalarMappable(scale.norm, cmap),
            cax=place,
            extend=scale.extend,
            extendfrac=0.03,
            orientation="vertical" if self._beside else "horizontal",
        )
        bar.set_label(meaning, fontsize=LARGE)
        bar.ax.tick_params(labelsize=FONT)
        if self._beside:
            bar.ax.set_ylim(*scale.shown)
        else:
            bar.ax.set_xlim(*scale.shown)
        if grey:
            anchor, apart = ((0, 0), (0, -7)) if self._beside else ((1, 0.5), (12, 0))
            bar.ax.legend(
                handles=[Patch(facecolor=_GREY, edgecolor="#808080", linewidth=0.6, label=grey)],
                loc="upper left" if self._beside else "center left",
                bbox_to_anchor=anchor,
                bbox_transform=offset_copy(bar.ax.transAxes, self.figure, *apart, "points"),
                borderaxespad=0, borderpad=0, handlelength=1.2, handleheight=1.2, handletextpad=0.5, frameon=False,
                fontsize=FONT,
            )  # fmt: skip

    def _place(self, x: float, y: float, width: float, height: float, label: str = "") -> Axes:
        whole = self._whole
        return self.figure.add_axes((x / whole[0], y / whole[1], width / whole[0], height / whole[1]), label=label)

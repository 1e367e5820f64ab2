"""The figures of :mod:`headwise.plot`, from checked numbers and labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Colormap, ListedColormap, to_rgb
    from matplotlib.ticker import MaxNLocator

    from headwise._plot.sheet import (
        FONT,
        LARGE,
        MARGIN,
        SMALL,
        TITLE,
        Scale,
        Sheet,
        Space,
        colours,
        one_sided,
        save,
        two_sided,
    )
    from headwise._plot.text import Lettering, are_positions, line_height, thin, visible
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "matplotlib":
        raise
    raise ImportError(
        "headwise.plot draws with Matplotlib, which is not installed: pip install 'headwise[plot]'"
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from headwise._base.typing import Array
    from headwise._plot.arguments import Maps

__all__ = ["colours", "head_grid", "heat_maps", "one_sided", "save", "table_map", "token_lines", "two_sided"]

_LINE = "#1f5fa8"
_MAX_WIDTH = 15.0  # of all panels of a figure together, approximately, in inches


# --- heat maps ---


def heat_maps(
    maps: Maps, masked: Array, scale: Scale, cmap: Colormap, meaning: str, sign: str, title: str | None
) -> Figure:
    """A panel for each map, all with one colour scale; labels on the left and below."""
    count, query_len, key_len = maps.values.shape
    write, queries, keys = _lettering(maps, title)
    rows, columns = _arrangement(count)
    cell = _cell_size(max(query_len, key_len), columns)
    width, height = max(key_len * cell, 0.25), max(query_len * cell, 0.25)
    size = _font_size(cell)
    across = KeyLabels(keys, width / key_len, size, write)
    down = thin(queries, line_height(size) * query_len / height)
    left = [queries[i] for i in down]
    named = 0.22 if any(maps.titles) else 0.0
    space = Space(
        left=write.width(left, size) + 0.35,
        right=0.0,
        above=MARGIN + named,
        below=across.height + 0.35,
        between=(0.12, 0.12 + named),
    )
    sheet = Sheet((rows, columns), (width, height), space, write, title, maps.note)
    for i in range(count):
        row, column = divmod(i, columns)
        panel = sheet.panel(row, column)
        _paint(panel, maps.values[i], masked[i], scale, cmap)
        panel.tick_params(length=2, width=0.6, labelleft=column == 0, labelbottom=row == rows - 1)
        panel.set_yticks(down, labels=left, fontsize=size, **write.style)
        across.put(panel)
        if column == 0:
            panel.set_ylabel("query", fontsize=LARGE)
        if row == rows - 1:
            panel.set_xlabel("key", fontsize=LARGE)
        if maps.titles[i]:
            panel.set_title(maps.titles[i], fontsize=TITLE, pad=4)
    sheet.scale(cmap, scale, meaning, sign if masked.any() else "")
    return sheet.figure


def head_grid(
    layers: list[Array], scale: Scale, cmap: Colormap, masks: list[Array], sign: str, title: str | None
) -> Figure:
    """A panel for each head, layers as rows and heads as columns, without token labels."""
    rows, columns = len(layers), max(map(len, layers))
    side = min(1.2, _MAX_WIDTH / columns, 4 * _MAX_WIDTH / rows)
    size = min(LARGE, side * 72 / 4)
    space = Space(left=0.32, right=0.0, above=MARGIN + 0.2, below=0.3, between=(0.08, 0.08))
    note = "in each panel, rows are queries and columns are keys"
    sheet = Sheet((rows, columns), (side, side), space, Lettering([title or "", note]), title, note)
    for i, (maps, masked) in enumerate(zip(layers, masks, strict=True)):
        for j, values in enumerate(maps):
            panel = sheet.panel(i, j)
            _paint(panel, values, masked[j], scale, cmap)
            panel.set(xticks=[], yticks=[])
            if i == 0:
                panel.set_title(f"head {j}", fontsize=size, pad=3)
            if j == 0:
                panel.set_ylabel(f"layer {i}", fontsize=size)
    sheet.scale(cmap, scale, "attention weight", sign if any(masked.any() for masked in masks) else "")
    return sheet.figure


def table_map(
    values: Array, scale: Scale, cmap: Colormap, rows: str, columns: str, title: str | None, meaning: str = "value"
) -> Figure:
    """A map of one table with numbered rows and columns."""
    length, width = values.shape
    size = (min(max(0.1 * width, 4.0), 9.0), min(max(0.05 * length, 2.0), 7.0))
    space = Space(left=0.75, right=0.0, above=MARGIN, below=0.5, between=(0.0, 0.0))
    sheet = Sheet((1, 1), size, space, Lettering([title or ""]), title)
    panel = sheet.panel(0, 0)
    _paint(panel, values, np.zeros(values.shape, bool), scale, cmap)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panel.tick_params(length=2, width=0.6, labelsize=LARGE)
    panel.set_xlabel(columns, fontsize=TITLE)
    panel.set_ylabel(rows, fontsize=TITLE)
    sheet.scale(cmap, scale, meaning)
    return sheet.figure


def _paint(panel: Axes, values: Array, masked: Array, scale: Scale, cmap: Colormap) -> None:
    # aspect: the panel has the aspect ratio of its cells. interpolation: several cells per pixel are averaged.
    panel.imshow(
        np.ma.masked_array(values, masked), cmap=cmap, norm=scale.norm, aspect="auto", origin="upper",
        interpolation="antialiased",
    )  # fmt: skip
    panel.grid(False)


# --- lines ---


def token_lines(maps: Maps, scale: Scale, threshold: float, title: str | None) -> Figure:
    """A line from each query on the left to each key on the right, with an opacity proportional to the weight."""
    count, query_len, key_len = maps.values.shape
    write, queries, keys = _lettering(maps, title)
    rows, columns = _arrangement(count)
    tallest = max(query_len, key_len)
    height = max(min(0.2 * tallest, 12.0 / min(rows, 2)), 0.6)
    size = _font_size(height / tallest)
    # The shorter side is centred.
    sides = [
        Side(labels, np.arange(len(labels)) + (tallest - len(labels)) / 2, line_height(size) * tallest / height)
        for labels in (queries, keys)
    ]
    left, right = (max(write.width(side.labels, size), 0.35) + MARGIN for side in sides)
    named = 0.25 if any(maps.titles) else 0.15
    space = Space(
        left=left + MARGIN,
        right=right,
        above=MARGIN + named,
        below=MARGIN,
        between=(left + right + 0.1, 0.2 + named),
    )
    sheet = Sheet((rows, columns), (1.5, height), space, write, title, maps.note)
    for i in range(count):
        panel = sheet.panel(*divmod(i, columns))
        panel.add_collection(_fan(maps.values[i], sides[0].heights, sides[1].heights, scale.end, threshold))
        panel.set(xlim=(0, 1), ylim=(tallest - 0.5, -0.5), xticks=[])
        panel.grid(False)
        opposite = panel.secondary_yaxis("right")
        for axis, side in zip((panel, opposite), sides, strict=True):
            axis.set_yticks(side.heights[side.shown], labels=side.labels, fontsize=size, **write.style)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        heading: dict[str, Any] = {"fontsize": FONT, "color": "#606060", "va": "bottom", "transform": panel.transAxes}
        panel.text(-0.03, 1.0, "query", ha="right", **heading)
        panel.text(1.03, 1.0, "key", ha="left", **heading)
        if maps.titles[i]:
            panel.set_title(maps.titles[i], fontsize=TITLE)
    fading = ListedColormap([(*to_rgb(_LINE), opacity) for opacity in np.linspace(0, 1, 256)])
    sheet.scale(fading, scale, "attention weight")
    return sheet.figure


class Side:
    """The heights of all labels of one side, and the labels that are shown."""

    def __init__(self, labels: list[str], heights: Array, room: float) -> None:
        self.heights = heights
        self.shown = thin(labels, room)
        self.labels = [labels[i] for i in self.shown]


def _fan(weights: Array, starts: Array, ends: Array, opaque: float, threshold: float) -> LineCollection:
    """The lines of one map, in ascending order of weight, so that strong lines are drawn over faint ones."""
    query, key = np.nonzero(weights > max(threshold, opaque / 512))
    order = np.argsort(weights[query, key], kind="stable")
    query, key = query[order], key[order]
    segments = [((0.0, start), (1.0, end)) for start, end in zip(starts[query], ends[key], strict=True)]
    shades = [(*to_rgb(_LINE), opacity) for opacity in np.clip(weights[query, key] / opaque, 0, 1)]
    return LineCollection(segments, colors=shades, linewidths=1.8, capstyle="round")


# --- sizes and labels ---


class KeyLabels:
    """Labels below a panel: horizontal if there is room for as many of them as of vertical ones, else vertical."""

    def __init__(self, labels: list[str], cell: float, size: float, write: Lettering) -> None:
        widest = write.width(labels, size) + 0.05
        upright = thin(labels, line_height(size) / cell)
        level = thin(labels, widest / cell)
        # A few positions suffice, but as many tokens are shown as there is room for.
        self._upright = len(level) < len(upright) and not are_positions(labels)
        self._shown = upright if self._upright else level
        self._text = [labels[i] for i in self._shown]
        self._style = {**write.style, "fontsize": size, "rotation": 90 if self._upright else 0}
        self.height = widest if self._upright else line_height(size)

    def put(self, panel: Axes) -> None:
        panel.set_xticks(self._shown, labels=self._text, **self._style)


def _lettering(maps: Maps, title: str | None) -> tuple[Lettering, list[str], list[str]]:
    """The lettering of a figure, and the labels of queries and keys, ready to be drawn."""
    queries, keys = ([visible(label) for label in labels] for labels in (maps.query_labels, maps.key_labels))
    write = Lettering([*queries, *keys, title or "", maps.note])
    return write, [write(label) for label in queries], [write(label) for label in keys]


def _arrangement(count: int) -> tuple[int, int]:
    """Rows and columns of panels: at least as many columns as rows, without empty places if possible."""
    root = math.isqrt(count)
    full = [rows for rows in range(1, root + 1) if count % rows == 0 and 4 * rows * rows >= count]
    rows = full[-1] if full else root
    return rows, math.ceil(count / rows)


def _cell_size(cells: int, columns: int) -> float:
    """The width of a cell in inches, for panels of ``cells`` by ``cells``: enough for a label, up to a maximum width of
    the panel."""
    if columns == 1:
        return min(max(0.28, 2.0 / cells), 8.0 / cells)
    return min(max(0.2, 1.5 / cells), min(3.2, _MAX_WIDTH / columns) / cells)


def _font_size(room: float) -> float:
    """The font size in points of a line that fits into ``room`` inches, within the legible range."""
    return min(LARGE, max(SMALL, room / line_height(1.0)))

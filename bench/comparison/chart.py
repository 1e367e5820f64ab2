"""A chart of results: the slowdown of each peer relative to headwise, for each case."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

from comparison.report import duration, peer_labels, threads, versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from comparison.environment import Environment
    from comparison.timing import Result

_COLOURS = {
    "NumPy": "#9aa5b1",
    "PyTorch": "#e4572e",
    "ONNX Runtime": "#4c78a8",
    "OpenVINO": "#7b61c9",
    "JAX": "#2a9d8f",
    "np.copyto": "#d9b44a",
}
_INK, _PALE = "#22262b", "#6b7280"

_GAP, _HEADING = 0.9, 2.0  # in bars
_WIDTH, _HEADER, _FOOTER, _MARGIN, _LABELS, _BAR = 10.0, 1.05, 0.45, 0.2, 3.8, 0.155  # in inches


def draw(path: str, facts: Environment, results: list[Result]) -> None:
    rows = _lay_out(results)
    depth = rows[-1][0] + len(rows[-1][1].ratios)
    height = _HEADER + _FOOTER + depth * _BAR
    figure, axes = plt.subplots(figsize=(_WIDTH, height))
    figure.subplots_adjust(
        left=_LABELS / _WIDTH, right=1 - 2 * _MARGIN / _WIDTH, top=1 - _HEADER / height, bottom=_FOOTER / height
    )

    section = None
    for top, result in rows:
        if result.section != section:
            section = result.section
            _text(axes, top - 1.0, section, weight="bold", color=_INK, size=10, ha="left", inset=_MARGIN - _LABELS)
        _draw_case(axes, top, result)
    axes.set_ylim(depth, 0)
    _draw_scale(axes, results)
    _draw_header(figure, facts, results, height)
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)


def _lay_out(results: list[Result]) -> list[tuple[float, Result]]:
    """Each case with the position of its first bar, in bars from the top."""
    rows, top, section = [], 0.0, None
    for result in results:
        if result.ratios:
            top += _HEADING if result.section != section else 0.0
            section = result.section
            rows.append((top, result))
            top += len(result.ratios) + _GAP
    return rows


def _draw_case(axes: Axes, top: float, result: Result) -> None:
    ratios = result.ratios
    middle = top + len(ratios) / 2
    own = duration(result.seconds["headwise"])
    _text(axes, middle, result.case.name, color=_INK, size=8.5, ha="right", inset=-0.85)
    _text(axes, middle, own, color=_PALE, size=8, ha="right", inset=-0.15)
    for n, (label, ratio) in enumerate(ratios.items()):
        y = top + n + 0.5
        # Bars start at 1: to the right where headwise is faster, to the left where it is slower.
        axes.barh(y, math.log2(ratio), height=0.86, color=_COLOURS[label], label=label, zorder=3)
        right = ratio >= 1
        axes.annotate(
            f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}",
            (math.log2(ratio), y),
            xytext=(3 if right else -3, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=7,
            color=_INK,
        )


def _text(axes: Axes, y: float, text: str, *, inset: float, **style: object) -> None:
    """Text at the height of a bar, `inset` inches from the left edge of the bars."""
    axes.annotate(
        text, (0, y), xycoords=axes.get_yaxis_transform(), xytext=(72 * inset, 0), textcoords="offset points",
        va="center", annotation_clip=False, **style,
    )  # fmt: skip


def _draw_scale(axes: Axes, results: list[Result]) -> None:
    logs = [math.log2(ratio) for result in results for ratio in result.ratios.values()]
    low, high = min(0.0, *logs), max(1.0, *logs)
    margin = 0.08 * (high - low)
    axes.set_xlim(low - (margin if low < 0 else 0.0), high + margin)
    axes.set_xticks(range(math.ceil(low), math.floor(high) + 1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{2.0**x:g}x"))
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0, labelsize=8, labelcolor=_PALE)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8, zorder=0)
    axes.axvline(0, color=_INK, linewidth=1.2, zorder=4)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_header(figure: plt.Figure, facts: Environment, results: list[Result], height: float) -> None:
    figure.text(0.02, 1 - 0.28 / height, "Slowdown relative to headwise", size=14, weight="bold", color=_INK)
    figure.text(0.02, 1 - 0.52 / height, "Right of 1x: headwise is faster. Beside each case: the time of headwise. "
                "Logarithmic scale.", size=8.5, color=_PALE)  # fmt: skip
    machine = f"{facts.cpu}, {facts.target}, {threads(facts)}; {versions(facts)}"
    figure.text(0.02, 0.16 / height, machine, size=7, color=_PALE)
    handles = [plt.Rectangle((0, 0), 1, 1, color=_COLOURS[label]) for label in peer_labels(results)]
    figure.legend(
        handles, peer_labels(results), loc="upper left", bbox_to_anchor=(0.012, 1 - 0.56 / height), ncols=len(handles),
        frameon=False, fontsize=8.5, handlelength=0.9, handleheight=0.9, columnspacing=1.4, labelcolor=_INK,
    )  # fmt: skip

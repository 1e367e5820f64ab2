"""Figures of attention, positional encodings and biases, drawn by Matplotlib.

    pip install 'headwise[plot]'

Each function returns a :class:`matplotlib.figure.Figure`, which notebooks display, and saves it to ``path`` if given.
No global state changes: pyplot is not used, no display is needed, and several threads may draw at once. Matplotlib is
imported by the first call.
"""

from __future__ import annotations

from headwise._plot.pictures import attention, bias, block_mask, encoding, grid, lines
from headwise._plot.statistics import statistics

__all__ = [
    "attention",
    "bias",
    "block_mask",
    "encoding",
    "grid",
    "lines",
    "statistics",
]

"""Pictures of attention, positional encodings and biases, drawn by Matplotlib.

    pip install 'headwise[plot]'

Each function returns a :class:`matplotlib.figure.Figure`, which shows itself in a notebook, and saves it where ``path``
says. Nothing global is touched: no pyplot, no display, and threads may draw at once. What draws is imported by the
first picture.
"""

from __future__ import annotations

from headwise._plot.pictures import attention, bias, encoding, grid, lines

__all__ = [
    "attention",
    "bias",
    "encoding",
    "grid",
    "lines",
]

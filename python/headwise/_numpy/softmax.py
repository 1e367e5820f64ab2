"""softmax, log_softmax and logsumexp along axis 1 of (outer, n, inner)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.ieee import ieee
from headwise._numpy.blocks import BLOCK, in_float32, row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headwise._base.typing import Array


@ieee
def softmax(x: Array, out: Array) -> None:
    for o, i in lane_blocks(x):
        in_float32(_softmax, x[o, :, i], out[o, :, i], in_place=True)


@ieee
def log_softmax(x: Array, out: Array) -> None:
    for o, i in lane_blocks(x):
        in_float32(_log_softmax, x[o, :, i], out[o, :, i], in_place=True)


@ieee
def logsumexp(x: Array, out: Array) -> None:
    for o, i in lane_blocks(x):
        in_float32(_logsumexp, x[o, :, i], out[o, i])


def _softmax(x: Array, out: Array) -> None:
    np.subtract(x, x.max(axis=1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= lane_sum(out)


def _log_softmax(x: Array, out: Array) -> None:
    shifted = x - x.max(axis=1, keepdims=True)
    np.subtract(shifted, np.log(lane_sum(np.exp(shifted))), out=out)


def _logsumexp(x: Array, out: Array) -> None:
    peak = x.max(axis=1, keepdims=True)
    # An infinite maximum is itself the result; inf - inf would make it NaN.
    peak[np.isinf(peak)] = 0
    out[...] = (np.log(lane_sum(np.exp(x - peak))) + peak)[:, 0]


def lane_sum(x: Array) -> Array:
    # NumPy sums pairwise only along a contiguous axis. Along another axis the rounding error of a float32 sum would
    # grow with its length.
    total: Array = x.sum(axis=1, keepdims=True, dtype=x.dtype if x.shape[2] == 1 else np.float64)
    return total.astype(x.dtype, copy=False)


def lane_blocks(x: Array) -> Iterator[tuple[slice, slice]]:
    """Slices of axes 0 and 2, of about a block each; at least 64 columns, which long lanes read several times as fast.

    16-bit types have no such minimum, as their block is converted.
    """
    _, n, inner = x.shape
    columns = max(1 if x.dtype.itemsize == 2 else 64, BLOCK // max(1, n))
    for rows in row_blocks(x):
        for start in range(0, inner, columns):
            yield rows, slice(start, start + columns)

"""The linear map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.ieee import cast_dtype, ieee
from headwise._base.typing import FLOAT32
from headwise._numpy.blocks import BLOCK, in_float32

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array


# Floating-point operations of a block: 0.1 s on one core of 40 GFLOP/s.
BLOCK_WORK = 1 << 32


@ieee
def linear(x: Array, weight: Array, bias: Array | None, out: Array, precision: str) -> None:  # noqa: ARG001 (NumPy has one)
    """One product per block of rows and columns: for 16-bit types since the factors are converted, for others if it
    would take so long that Ctrl-C, which cannot interrupt NumPy, would seem to have no effect."""
    inner, columns = weight.shape
    is_16bit = weight.dtype.itemsize == 2
    if is_16bit:
        height, width = max(1, BLOCK // inner), max(256, BLOCK // inner)
    else:
        height = max(256, BLOCK_WORK // max(1, 2 * inner * columns))
        width = max(256, BLOCK_WORK // max(1, 2 * inner * min(len(x), height)))
    for start in range(0, columns, width):
        c = slice(start, start + width)
        w = cast_dtype(weight[:, c], FLOAT32) if is_16bit else weight[:, c]

        def multiply(x: Array, out: Array, w: Array = w, c: slice = c) -> None:
            np.matmul(x, w, out=out)
            if bias is not None:
                out += bias[c]

        for first in range(0, len(x), height):
            rows = slice(first, first + height)
            in_float32(multiply, x[rows], out[rows, c])


def pack_linear(weight: Array, bias: Array | None, precision: str) -> Callable[[Array, Array], None]:
    """:func:`linear` of this weight; NumPy has no packed form."""
    return lambda x, out: linear(x, weight, bias, out, precision)

"""The linear map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.ieee import cast_dtype, ieee
from headwise._base.typing import FLOAT32
from headwise._numpy.blocks import BLOCK, in_float32, row_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array


@ieee
def linear(x: Array, weight: Array, bias: Array | None, out: Array, precision: str) -> None:  # noqa: ARG001 (NumPy has one)
    """One product; for 16-bit types one per block of rows and columns, since both factors are converted."""
    inner, columns = weight.shape
    is_16bit = x.dtype.itemsize == 2
    width = max(256, BLOCK // inner) if is_16bit else max(1, columns)
    for start in range(0, columns, width):
        c = slice(start, start + width)
        w = cast_dtype(weight[:, c], FLOAT32) if is_16bit else weight[:, c]

        def multiply(x: Array, out: Array, w: Array = w, c: slice = c) -> None:
            np.matmul(x, w, out=out)
            if bias is not None:
                out += bias[c]

        for rows in row_blocks(x) if is_16bit else (slice(None),):
            in_float32(multiply, x[rows], out[rows, c])


def pack_linear(weight: Array, bias: Array | None, precision: str) -> Callable[[Array, Array], None]:
    """:func:`linear` of this weight; NumPy has no packed form."""
    return lambda x, out: linear(x, weight, bias, out, precision)

"""Rotary position embedding (Su et al. 2021, equation 34)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.ieee import ieee
from headwise._numpy.blocks import BLOCK, head_blocks, in_float32

if TYPE_CHECKING:
    from headwise._base.typing import Array


@ieee
def apply_rope(x: Array, cos: Array, sin: Array, out: Array, interleaved: bool) -> None:
    batch, heads, seq, dim = x.shape
    first = slice(0, None, 2) if interleaved else slice(0, dim // 2)
    second = slice(1, None, 2) if interleaved else slice(dim // 2, None)
    cos, sin = (np.broadcast_to(table, (batch, heads, seq, dim // 2)) for table in (cos, sin))
    rows = max(1, min(seq, BLOCK // dim))
    for start in range(0, seq, rows):
        for block in head_blocks(batch, heads, rows * dim):
            where = (*block, slice(start, start + rows))
            c, s = cos[where], sin[where]

            def rotate(x: Array, out: Array, c: Array = c, s: Array = s) -> None:
                a, b = x[..., first], x[..., second]
                # Both products are computed before either is written: `out` may be `x`.
                out[..., first], out[..., second] = a * c - b * s, b * c + a * s

            in_float32(rotate, x[where], out[where])

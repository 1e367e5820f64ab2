"""ALiBi on an array of scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.ieee import ieee
from headwise._numpy.blocks import BLOCK, head_blocks, in_float32

if TYPE_CHECKING:
    from headwise._base.typing import Array


@ieee
def add_alibi(scores: Array, slopes: Array, offset: int, out: Array) -> None:
    batch, heads, query_len, key_len = scores.shape
    rows = max(1, min(query_len, BLOCK // max(1, key_len)))
    for start in range(0, query_len, rows):
        distances = distance(offset + start, min(rows, query_len - start), 0, key_len, slopes.dtype)
        for b, h in head_blocks(batch, heads, rows * key_len):
            bias = slopes[h, None, None] * distances

            def subtract(scores: Array, out: Array, bias: Array = bias) -> None:
                np.subtract(scores, bias, out=out)

            where = b, h, slice(start, start + rows)
            in_float32(subtract, scores[where], out[where])


def distance(query: int, rows: int, key: int, keys: int, dtype: np.dtype[Any]) -> Array:
    """``abs(i - j)``, (rows, keys), for query positions ``i`` from ``query`` and key positions ``j`` from ``key``."""
    steps: Array = np.arange(query - key, query - key + rows)[:, None] - np.arange(keys)
    return np.abs(steps).astype(dtype)

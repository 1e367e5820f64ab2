"""Blocks that stay in cache, and the conversion of 16-bit types within one block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.ieee import assign, cast_dtype
from headwise._base.typing import FLOAT32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headwise._base.typing import Array

# Entries of a block. A temporary of a block has half a MB in float32, so a few of them fit into a second-level cache.
BLOCK = 1 << 17


def in_float32(function: Callable[[Array, Array], None], x: Array, out: Array, *, in_place: bool = False) -> None:
    """``function(x, out)``; 16-bit types are computed in float32 and rounded once.

    ``in_place``: the function allows ``out`` to be ``x``, which saves a temporary.
    """
    if x.dtype.itemsize > 2:
        function(x, out)
        return
    wide = cast_dtype(x, FLOAT32)
    result = wide if in_place else np.empty(out.shape, np.float32)
    function(wide, result)
    assign(out, result)


def heads_per_key_head(query: Array, key: Array) -> int:
    """The number of query heads that share a key head; axis 1 of both arrays is that of the heads.

    ValueError where the caller's check no longer holds, because another thread has changed a shape meanwhile.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    if kv_heads == 0 or heads < kv_heads or heads % kv_heads:
        raise ValueError(f"query: {heads} heads, expected a multiple of the {kv_heads} of key, as at the call's begin")
    count: int = heads // kv_heads
    return count


def row_blocks(x: Array) -> Iterator[slice]:
    """Slices of the first axis of ``x``, of about ``BLOCK`` entries each."""
    step = max(1, BLOCK * len(x) // max(1, x.size))
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def tiles(rows: int, n: int, size: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Slices of both axes of an array of ``(rows, n)``, of at most about ``size`` entries together."""
    width = min(max(1, n), size)
    height = max(1, size // width)
    for top in range(0, rows, height):
        for left in range(0, n, width):
            yield slice(top, top + height), slice(left, left + width)


def head_blocks(batch: int, heads: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices (batch entries, heads) of about ``BLOCK`` entries together, with ``size`` entries for each head."""
    fit = max(1, BLOCK // max(1, size))
    for b in range(0, batch, max(1, fit // heads)):
        for h in range(0, heads, fit):
            yield slice(b, min(b + max(1, fit // heads), batch)), slice(h, min(h + fit, heads))

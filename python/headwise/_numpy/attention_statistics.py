"""Statistics of attention's weights, from parts of the weights of bounded size.

A part is some batch entries, some heads and some query rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from headwise._base.attention_spec import spec_of_part
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import allocate
from headwise._base.typing import FLOAT32
from headwise._numpy.attention import attention
from headwise._numpy.statistics_totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.attention_statistics import AttentionStatistics
    from headwise._base.typing import Array

# Entries of the weights of a part: 1 MB of float32, so that the weights and a temporary fit into a second-level cache.
# The order of sums depends on both numbers, so they depend on nothing else, such as the number of threads.
_PART = 1 << 18
_ROWS = 128


def weight_parts(
    batch: int, kv_heads: int, group: int, query_len: int, key_len: int, *, all_heads: bool
) -> Iterator[tuple[slice, slice, slice]]:
    """Slices (batch entries, key heads, query rows) of about ``_PART`` weights; ``all_heads``: each with all heads.

    A part has at least one query row of one key head.
    """
    row = group * key_len
    rows = max(1, min(query_len, _ROWS))
    fit = max(1, _PART // (rows * row))  # key heads, of all batch entries together
    heads = kv_heads if all_heads else min(kv_heads, fit)
    entries = max(1, fit // kv_heads)
    rows = min(rows, max(1, _PART // (entries * heads * row)))
    for b in range(0, batch, entries):
        for g in range(0, kv_heads, heads):
            for r in range(0, query_len, rows):
                yield (
                    slice(b, min(b + entries, batch)),
                    slice(g, min(g + heads, kv_heads)),
                    slice(r, min(r + rows, query_len)),
                )


def reduce_parts(
    attention: Callable[..., Any],
    query: Array,
    key: Array,
    results: AttentionStatistics,
    block_size: tuple[int, int],
    spec: AttentionSpec,
    *,
    average: bool = False,
) -> None:
    """Fill ``results``, of which mass is 0, with those of the weights that ``attention`` of a backend computes.

    ``average``: with those of the weights averaged over the heads.
    """
    (batch, heads, query_len, _), (kv_heads, key_len) = query.shape, key.shape[1:3]
    group = heads // kv_heads
    compute = FLOAT32 if query.itemsize == 2 else query.dtype
    totals, lse = Totals(results, block_size), results.lse
    room = allocate((0,), compute)
    for b, g, r in weight_parts(batch, kv_heads, group, query_len, key_len, all_heads=average):
        h = slice(g.start * group, g.stop * group)
        shape = (b.stop - b.start, h.stop - h.start, r.stop - r.start)
        size = math.prod(shape) * key_len
        if room.size < size:
            room = allocate((size,), compute)
        weights = room[:size].reshape((*shape, key_len))
        rows, part = cast_dtype(query[b, h, r], compute), key[b, g]
        nothing = allocate((*part.shape[:3], 0), part.dtype)
        part_lse = None if lse is None else allocate(shape, compute)
        attention(rows, part, nothing, allocate((*shape, 0), compute), weights, part_lse, spec_of_part(spec, b, h, r))
        if lse is not None and part_lse is not None:
            lse[b, h, r] = part_lse
        if average:
            totals.add(b, slice(0, 1), r, weights.mean(axis=1, keepdims=True))
        else:
            totals.add(b, h, r, weights)
    totals.finish()


@ieee
def attention_statistics(
    query: Array, key: Array, results: AttentionStatistics, block_size: tuple[int, int], spec: AttentionSpec
) -> None:
    reduce_parts(attention, query, key, results, block_size, spec)

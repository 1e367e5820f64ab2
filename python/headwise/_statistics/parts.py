"""Parts of the weights of attention, of bounded size: some batch entries, some heads and some query rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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

"""Attention to the rows of a :class:`headwise.KVCache`, of which each sequence of the batch may have its own number."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from ._arrays import allocate, check_flag, check_out, check_real, conform, deliver, destination, promote
from ._attention_args import attention_masks, check_shapes, check_softcap, check_window, per_head
from ._backend import current
from ._cache_rows import equal, of
from ._precision import check_precision
from ._sdpa import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from ._arrays import Array
    from ._cache_rows import CacheRows


class CacheOptions(TypedDict, total=False):
    """The keywords of :meth:`KVCache.attend` ."""

    mask: ArrayLike | None
    bias: ArrayLike | None
    scale: float | None
    window_size: int | tuple[int, int] | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    need_weights: bool
    return_lse: bool
    precision: str | None
    out: Array | None


_KEYWORDS = frozenset(CacheOptions.__annotations__)


def attend_rows(rows: CacheRows, query: Array, counts: Sequence[int], options: CacheOptions) -> Any:
    """What :meth:`headwise.KVCache.attend` returns; ``counts[i]`` queries of each sequence are of its latest positions,
    and the others padding behind them."""
    for name in options.keys() - _KEYWORDS:
        raise TypeError(f"{name}: not a keyword here, expected one of {', '.join(sorted(_KEYWORDS))}")
    starts, seen = rows.spans(counts)
    for entry, (start, length, count) in enumerate(zip(starts, rows.lengths, counts, strict=True)):
        if count > length:
            raise ValueError(f"query: {count} rows, expected at most the length {length}{of(entry, counts)}")
        if start < 0:
            raise ValueError(
                f"query: {count} rows{of(entry, counts)}, but the ring has dropped what the first of them see; "
                "expected fewer, or extend() instead of append() and attend()"
            )
    if rows.reach >= 0:
        left, _ = check_window(options.get("window_size"), sys.maxsize)
        options["window_size"] = (rows.reach if left < 0 else min(left, rows.reach), -1)
    weights_too = options["need_weights"] = check_flag(options.get("need_weights", False), "need_weights")
    if counts[0] == query.shape[2] and equal(counts) and equal(seen) and equal(starts):
        part = slice(starts[0], starts[0] + seen[0])
        answer = scaled_dot_product_attention(
            query, rows.keys[:, :, part], rows.values[:, :, part],
            is_causal=True, causal_alignment="lower_right", **options,
        )  # fmt: skip
    else:
        answer = _attend_ragged(query, rows.keys, rows.values, starts, seen, counts, **options)
    return answer if weights_too or len(answer) > 2 else answer[0]


def _attend_ragged(
    query: Array,  # (batch, heads, new, head_dim)
    keys: Array,  # (batch, kv_heads, room, head_dim)
    values: Array,  # (batch, kv_heads, room, value_dim), both of the query's dtype
    starts: Sequence[int],  # entry i sees the rows from starts[i] on ...
    seen: Sequence[int],  # ... of which there are seen[i],
    counts: Sequence[int],  # and its first counts[i] queries stand at the last of them; the others are padding
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    need_weights: bool = False,
    return_lse: bool = False,
    precision: str | None = None,
    out: Array | None = None,
) -> tuple[Array, Array | None] | tuple[Array, Array | None, Array]:
    """What :func:`headwise.scaled_dot_product_attention` returns, causal, with ``max(seen)`` columns of weights; for
    padding 0, and -inf for its lse."""
    compute, dtype = promote(("query", query))
    longest = max(seen)
    scores = check_shapes(
        query.shape, (*keys.shape[:2], longest, keys.shape[3]), (*values.shape[:2], longest, values.shape[3])
    )
    batch, heads, new, _ = scores.four
    left, _ = check_window(window_size, new + longest)
    factor = scores.scale if scale is None else check_real(scale, "scale")
    masks = attention_masks(mask, bias, None, scores, compute)
    slopes = None if alibi_slopes is None else per_head(alibi_slopes, "alibi_slopes", heads, compute)
    sink = None if sinks is None else per_head(sinks, "sinks", heads, compute)
    cap = check_softcap(softcap)
    level = check_precision(precision)
    need_weights, return_lse = check_flag(need_weights, "need_weights"), check_flag(return_lse, "return_lse")
    if out is not None:
        given = (("mask", mask), ("bias", bias), ("alibi_slopes", alibi_slopes), ("sinks", sinks))
        others = [(name, other) for name, other in given if isinstance(other, np.ndarray)]
        check_out(
            out, scores.output, dtype, ("query", query), ("the cache's keys", keys), ("its values", values), *others
        )

    q = conform(query, dtype, last=True)
    result = destination(out, scores.output, dtype)
    weights = np.zeros(scores.four, compute) if need_weights else None
    lse = np.full((batch, heads, new), -np.inf, compute) if return_lse else None
    attention = current().attention
    for entry, (start, length, count) in enumerate(zip(starts, seen, counts, strict=True)):
        one = slice(entry, entry + 1)
        result[one, :, count:] = 0
        if count == 0:
            continue
        rows = slice(start, start + length)
        part_weights = allocate((1, heads, count, length), compute) if need_weights else None
        part_lse = allocate((1, heads, count), compute) if return_lse else None
        keep, added = ([_part(m, entry, count, length) for m in those] for those in masks)
        attention(
            q[one, :, :count], keys[one, :, rows], values[one, :, rows], result[one, :, :count], part_weights, part_lse,
            keep, added, None, slopes, sink, factor, cap, left, 0, length - count, 1.0, level,
        )  # fmt: skip
        if weights is not None and part_weights is not None:
            weights[one, :, :count, :length] = part_weights
        if lse is not None and part_lse is not None:
            lse[one, :, :count] = part_lse
    if weights is not None:
        weights = deliver(weights, None, dtype)
    output = deliver(result, out, dtype)
    return (output, weights) if lse is None else (output, weights, lse)


def _part(m: Array, entry: int, rows: int, columns: int) -> Array:
    """What a mask (batch, heads, query_len, key_len), or 1 along some of these, says of one entry."""
    if m.shape[0] > 1:
        m = m[entry : entry + 1]
    if m.shape[2] > 1:
        m = m[:, :, :rows]
    return m if m.shape[3] == 1 else m[..., :columns]

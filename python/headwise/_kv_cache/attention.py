"""Attention to the rows of a :class:`headwise.KVCache`, of which each sequence of the batch may have its own number."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import cast_layout, promote
from headwise._base.outputs import allocate, check_out, finalize, resolve_out
from headwise._base.scalars import check_flag, check_real
from headwise._kv_cache.checks import of
from headwise._kv_cache.options import CacheOptions
from headwise._kv_cache.rows import equal
from headwise._ops.attention.dense import scaled_dot_product_attention
from headwise._ops.attention.spec import attention_masks, check_shapes, check_softcap, check_window, per_head
from headwise._runtime.backend import current
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array
    from headwise._kv_cache.rows import CacheRows

    Options = tuple[Array | None, Array | None, float, float, int, int]  # slopes, sinks, scale, softcap, left, right

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
    return answer if weights_too or len(answer) == 3 else answer[0]


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
    masks = attention_masks(mask, bias, None, scores, compute, dtype)
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

    q = cast_layout(query, dtype, last=True)
    result = resolve_out(out, scores.output, dtype)
    weights = np.zeros(scores.four, dtype) if need_weights else None
    lse = np.full((batch, heads, new), -np.inf, compute) if return_lse else None
    options = (slopes, sink, factor, cap, left, 0)
    if weights is None and not any(masks):
        _packed(q, keys, values, result, lse, starts, seen, counts, options, level)
    else:
        _one_by_one(q, keys, values, result, weights, lse, starts, seen, counts, masks, options, level)
    for entry, count in enumerate(counts):
        result[entry, :, count:] = 0
    output = finalize(result, out, dtype)
    return (output, weights) if lse is None else (output, weights, lse)


def _packed(
    query: Array,
    keys: Array,
    values: Array,
    output: Array,
    lse: Array | None,
    starts: Sequence[int],
    seen: Sequence[int],
    counts: Sequence[int],
    options: Options,
    precision: str,
) -> None:
    """All at once: each sequence is a range of the rows that :func:`_in_line` makes of the batch."""
    batch, heads, new, _ = query.shape
    where = np.arange(batch, dtype=np.int64)
    query_lengths, first, length = (np.array(numbers, np.int64) for numbers in (counts, starts, seen))
    out, out_lse = _in_line(output), None if lse is None else _in_line(lse[..., np.newaxis])
    current().attention_varlen(
        _in_line(query), _in_line(keys), _in_line(values), out, None if out_lse is None else out_lse[..., 0],
        where * new, query_lengths, where * keys.shape[2] + first, length, length - query_lengths, *options, precision,
    )  # fmt: skip
    for there, back in ((output, out), (lse, out_lse)):
        if there is not None and back is not None and not np.may_share_memory(there, back):
            there[...] = back.reshape(heads, batch, new, -1).swapaxes(0, 1).reshape(there.shape)


def _in_line(a: Array) -> Array:
    """(batch, heads, rows, dim) as (heads, batch * rows, dim): a view of a cache's rows, of one row for each sequence,
    and of heads that stand side by side in memory, as layers have them; else a copy."""
    batch, heads, rows, dim = a.shape
    return a.swapaxes(0, 1).reshape(heads, batch * rows, dim)


def _one_by_one(
    query: Array,
    keys: Array,
    values: Array,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    starts: Sequence[int],
    seen: Sequence[int],
    counts: Sequence[int],
    masks: tuple[list[Array], list[Array]],
    options: Options,
    precision: str,
) -> None:
    """With weights or masks, which have no form for sequences of different lengths."""
    heads, attention = query.shape[1], current().attention
    for entry, (start, length, count) in enumerate(zip(starts, seen, counts, strict=True)):
        if count == 0:
            continue
        one, rows = slice(entry, entry + 1), slice(start, start + length)
        part_weights = None if weights is None else allocate((1, heads, count, length), weights.dtype)
        part_lse = None if lse is None else allocate((1, heads, count), lse.dtype)
        keep, added = ([_part(m, entry, count, length) for m in those] for those in masks)
        attention(
            query[one, :, :count], keys[one, :, rows], values[one, :, rows], output[one, :, :count], part_weights,
            part_lse, keep, added, None, *options, length - count, 1.0, precision,
        )  # fmt: skip
        if weights is not None and part_weights is not None:
            weights[one, :, :count, :length] = part_weights
        if lse is not None and part_lse is not None:
            lse[one, :, :count] = part_lse


def _part(m: Array, entry: int, rows: int, columns: int) -> Array:
    """What a mask (batch, heads, query_len, key_len), or 1 along some of these, says of one entry."""
    if m.shape[0] > 1:
        m = m[entry : entry + 1]
    if m.shape[2] > 1:
        m = m[:, :, :rows]
    return m if m.shape[3] == 1 else m[..., :columns]

"""Attention to the rows of a :class:`headwise.KVCache`, whose sequences may have different lengths."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import cast_layout, promote
from headwise._base.attention_spec import PackedSequences, fill_without_keys
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._base.scalars import check_flag
from headwise._base.typing import INT64
from headwise._kv_cache.by_entry import Rules, attend_by_entry, has_gap
from headwise._kv_cache.checks import of
from headwise._kv_cache.options import CacheOptions
from headwise._kv_cache.rows import Spans
from headwise._ops.attention.keywords import refuse
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.relative_values import check_relative_values
from headwise._ops.attention.shapes import check_shapes
from headwise._ops.attention.spec import array_options, attention_spec, check_window
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array
    from headwise._kv_cache.rows import CacheRows

_KEYWORDS = frozenset(CacheOptions.__annotations__)
_DEFAULTS = SpecOptions(is_causal=True, causal_alignment="lower_right")


def attend_rows(rows: CacheRows, lengths: list[int], query: Array, counts: Sequence[int], options: CacheOptions) -> Any:
    """The results of :meth:`headwise.KVCache.attend` for sequences of these ``lengths``.

    ``query`` is (batch, heads, new, head_dim), in a dtype that the cache takes. The first ``counts[i]`` queries of each
    sequence have its latest positions; the queries behind them are padding, which gets output 0 and an lse of -inf.
    Weights have as many columns as the sequence that sees most.
    """
    unknown = options.keys() - _KEYWORDS
    if unknown:
        refuse(sorted(unknown), _KEYWORDS | {"lengths", "positions"})
    spans = _check_spans(rows, lengths, counts, options)
    keys, values, longest = rows.keys, rows.values, max(spans.seen)
    compute, dtype = promote(("query", query))
    shape = check_shapes(
        query.shape, (*keys.shape[:2], longest, keys.shape[3]), (*values.shape[:2], longest, values.shape[3])
    )
    spec_options = _spec_options(options)
    stored = dtype
    if spec_options.relative_values is not None:  # added to the output before it is rounded
        options["relative_values"] = check_relative_values(spec_options.relative_values, shape, compute)
        stored = compute
    spec = attention_spec(shape, (compute, stored), spec_options)
    need_weights = check_flag(options.get("need_weights", False), "need_weights")
    return_lse = check_flag(options.get("return_lse", False), "return_lse")
    out = options.get("out")
    if out is not None:
        inputs = ("query", query), ("the cache's keys", keys), ("its values", values)
        check_out(out, shape.output, dtype, *inputs, *array_options(spec_options))

    result = resolve_out(out, shape.output, stored)
    weights = np.zeros(shape.scores, stored) if need_weights else None
    lse = np.full(shape.scores[:3], -np.inf, compute) if return_lse else None
    _attend(cast_layout(query, stored, last=True), rows, result, weights, lse, spans, spec, options)
    output = finalize(result, out, dtype)
    if weights is not None and stored is not dtype:
        weights = finalize(weights, None, dtype)
    if lse is not None:
        return output, weights, lse
    return (output, weights) if need_weights else output


def _check_spans(rows: CacheRows, lengths: list[int], counts: Sequence[int], options: CacheOptions) -> Spans:
    """The rows that queries see, if the cache has them. A ring limits the window in ``options``."""
    is_causal = check_flag(options.get("is_causal", True), "is_causal")
    starts, seen = rows.spans(lengths, counts)
    for entry, (start, length, count) in enumerate(zip(starts, lengths, counts, strict=True)):
        if is_causal and count > length:
            raise ValueError(f"query: {count} rows, expected at most the length {length}{of(entry, counts)}")
        if start < 0:
            raise ValueError(
                f"query: {count} rows{of(entry, counts)}, but the ring has dropped keys that the first of them see; "
                "expected fewer rows, or extend() instead of append() and attend()"
            )
    if rows.reach >= 0:
        left, right = check_window(options.get("window_size"), sys.maxsize)
        if not rows.first:
            left = rows.reach if left < 0 else min(left, rows.reach)
        options["window_size"] = (left, -1 if is_causal else right)
    return Spans(starts, seen, counts, lengths)


def _attend(
    query: Array,
    rows: CacheRows,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    spans: Spans,
    spec: AttentionSpec,
    options: CacheOptions,
) -> None:
    table: Any = options.get("relative_values")
    gap = has_gap(rows, max(spans.lengths))
    scattered = rows.kept is not None and _depends_on_positions(rows, spans, spec, options)
    if table is None and not gap and not scattered and spans.counts[0] == query.shape[2] and spans.equal():
        _together(query, rows, output, weights, lse, spans, spec)
        return
    if spec.blocks is not None:  # each sequence has other columns
        batch, heads, new, _ = query.shape
        kept = spec.blocks.keep(slice(0, batch), slice(0, heads), slice(0, new), slice(0, max(spans.seen)))
        spec = spec._replace(keep=spec.keep if kept is None else (*spec.keep, kept), blocks=None)
    if scattered:
        spec = spec._replace(**_window(options)._asdict())
    if gap:
        # attention_spec takes a window of more positions than there are columns for an open one.
        spec = spec._replace(left=check_window(options.get("window_size"), sys.maxsize)[0])
    relative = spec.relative_bias
    by_sequence = relative is not None and (relative.shape[0] > 1 or relative.shape[2] > 1)
    plain = weights is None and table is None and not spec.keep and not spec.bias and not by_sequence
    if plain and not gap and not scattered:
        _packed(query, rows, output, lse, spans, spec)
    else:
        attend_by_entry(query, rows, output, weights, lse, spans, spec, Rules(scattered, table))
    for entry, count in enumerate(spans.counts):
        output[entry, :, count:] = 0


class _Window(NamedTuple):
    left: int
    right: int


def _window(options: CacheOptions) -> _Window:
    """The window in positions. attention_spec takes one of more positions than there are columns for an open one."""
    left, right = check_window(options.get("window_size"), sys.maxsize)
    return _Window(left, 0 if options.get("is_causal", True) else right)


def _depends_on_positions(rows: CacheRows, spans: Spans, spec: AttentionSpec, options: CacheOptions) -> bool:
    """Whether columns, of which some have been evicted, are not enough to compute masks and biases.

    They are for causal queries in whose rows, the latest ones, none is missing.
    """
    left, right = _window(options)
    if left >= 0 or right > 0 or spec.alibi_slopes is not None or spec.relative_bias is not None:
        return True
    entries = enumerate(zip(spans.seen, spans.counts, spans.lengths, strict=True))
    return right == 0 and any(
        count and rows.rows_until(entry, length - count) != seen - count for entry, (seen, count, length) in entries
    )


def _together(
    query: Array,
    rows: CacheRows,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    spans: Spans,
    spec: AttentionSpec,
) -> None:
    """One call for sequences that have the same rows and queries, without padding."""
    seen = slice(spans.starts[0], spans.starts[0] + spans.seen[0])
    if seen.start == seen.stop:
        fill_without_keys(output, lse, spec.sinks)
    elif query.size:
        spec = rows.with_scaling(spec, lambda part: part[:, :, seen])
        current().attention(query, rows.keys[:, :, seen], rows.values[:, :, seen], output, weights, lse, spec)


def _spec_options(options: CacheOptions) -> SpecOptions:
    """The options of :func:`headwise._ops.attention.spec.attention_spec`, causal by default."""
    get: Any = options.get
    return tuple.__new__(SpecOptions, map(get, SpecOptions._fields, _DEFAULTS))  # 0.5 µs less than by keyword


def _packed(query: Array, rows: CacheRows, output: Array, lse: Array | None, spans: Spans, spec: AttentionSpec) -> None:
    """All sequences in one call, as packed sequences of the rows of :func:`_in_line`."""
    batch, heads, new, _ = query.shape
    where = np.arange(batch, dtype=INT64)
    starts, seen, counts = np.array(spans.starts, INT64), np.array(spans.seen, INT64), np.array(spans.counts, INT64)
    sequences = PackedSequences(where * new, counts, where * rows.keys.shape[2] + starts, seen, seen - counts)
    spec = rows.with_scaling(spec, _in_line)
    out, out_lse = _in_line(output), None if lse is None else _in_line(lse[..., np.newaxis])
    current().attention_varlen(
        _in_line(query), _in_line(rows.keys), _in_line(rows.values), out, None if out_lse is None else out_lse[..., 0],
        sequences, spec,
    )  # fmt: skip
    for there, back in ((output, out), (lse, out_lse)):
        if there is not None and back is not None and not np.may_share_memory(there, back):
            there[...] = back.reshape(heads, batch, *there.shape[2:]).swapaxes(0, 1)


def _in_line(a: Array) -> Array:
    """``a``, (batch, heads, rows, dim), as (heads, batch * rows, dim).

    A view if ``a`` is the rows of a cache, has one row for each sequence, or has adjacent heads in memory, as in
    layers; else a copy.
    """
    batch, heads, rows, dim = a.shape
    return a.swapaxes(0, 1).reshape(heads, batch * rows, dim)

"""Attention in blocks of query rows, without an array of all scores (Vaswani et al. 2017, equation 1)."""

from __future__ import annotations

from functools import partial, reduce
from itertools import starmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import compact
from headwise._base.attention_spec import fill_without_keys, spec_of_entry
from headwise._base.float16 import BUFFER, borrow_buffer, give_back, is_cast_of_float16, widen_into
from headwise._base.ieee import assign, cast_dtype, ieee
from headwise._base.int8 import decode_int8
from headwise._base.typing import FLOAT16, FLOAT32
from headwise._numpy.blocks import BLOCK, head_blocks, heads_per_key_head
from headwise._numpy.score_modifiers import ScoreBlock, modify_scores, relative_part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headwise._base.attention_spec import AttentionSpec, Int8Scaling, PackedSequences
    from headwise._base.typing import Array


class Rows(NamedTuple):
    """Rows of the keys or values, and the factors and bits that they have in int8."""

    array: Array
    scaling: Int8Scaling | None
    where: tuple[slice, slice, slice]

    def cast(self, dtype: np.dtype[Any], buffer: Array | None = None) -> Array:
        """These rows in ``dtype``, a view or in ``buffer`` where that is possible."""
        rows = self.array[self.where]
        if self.scaling is None:
            if buffer is None or rows.size > BUFFER or not is_cast_of_float16(rows, dtype):
                return cast_dtype(rows, dtype)
            wide = buffer[: rows.size].reshape(rows.shape)
            widen_into(wide, rows)
            return wide
        return decode_int8(rows, self.scaling.factors[self.where], self.scaling.bits[self.where])


# The smallest exp(score - max) of the native core, by item size; see csrc/attention/exp-inl.h.
_MIN_WEIGHT = {4: 2.0**-86.5, 8: 2.0**-622.5}


@ieee
def attention(
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    spec: AttentionSpec,
) -> None:
    """Attention in blocks, of the whole batch or, with ``key_lengths``, of one batch entry after another."""
    query, key, value = query.view(), key.view(), value.view()  # whose shapes no other thread can change
    buffer = borrow_buffer() if key.dtype == FLOAT16 else None
    if spec.key_lengths is None:
        _attend(query, key, value, output, weights, lse, spec, buffer)
    else:
        _attend_by_entry(query, key, value, output, weights, lse, spec, buffer)
    if buffer is not None:
        give_back(buffer)


def _attend_by_entry(
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    spec: AttentionSpec,
    buffer: Array | None,
) -> None:
    rows = query.shape[2]
    for b, keys in enumerate(np.asarray(spec.key_lengths).tolist()):
        part, part_spec = slice(b, b + 1), spec_of_entry(spec, b, rows)
        if weights is not None:
            weights[part, ..., keys:] = 0
        if keys == 0:
            fill_without_keys(output[part], None if lse is None else lse[part], spec.sinks)
            continue
        _attend(
            query[part], key[part, :, :keys], value[part, :, :keys], output[part],
            None if weights is None else weights[part, ..., :keys], None if lse is None else lse[part], part_spec,
            buffer,
        )  # fmt: skip


def _attend(
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    spec: AttentionSpec,
    buffer: Array | None,
) -> None:
    """Each block has some batch entries and heads, some query rows, and all keys that these rows see.

    Query heads that share a key head are stacked, (group, rows) -> group * rows, so each block is one matrix product
    per key head.
    """
    batch, heads, query_len, head_dim = query.shape
    key_len, value_dim = value.shape[2:]
    group = heads_per_key_head(query, key)
    is_16bit = query.dtype.itemsize == 2
    dtype = FLOAT32 if is_16bit else query.dtype
    width = max(head_dim, value_dim) if key.dtype != dtype else 0  # entries per key that are converted
    shape = (batch, heads, query_len, key_len)
    keep, bias = ([np.broadcast_to(mask, shape) for mask in masks] for masks in (spec.keep, spec.bias))

    for b, g, r in _parts(query, key, width, spec):
        h = slice(g.start * group, g.stop * group)
        first, rows = spec.offset + r.start, r.stop - r.start
        runs = visible_runs(b, h, r, key_len, spec)
        block = (b.stop - b.start, h.stop - h.start, rows, sum(k.stop - k.start for k in runs))
        stacked = (block[0], g.stop - g.start, group * rows)
        pieces = list(key_pieces(runs, stacked[0] * stacked[1] * width))

        scaled = np.empty((*block[:3], head_dim), dtype)
        np.multiply(cast_dtype(query[b, h, r], dtype), spec.scale, out=scaled)
        scores = np.empty(block, dtype)
        grouped = scores.reshape((*stacked, block[3]))
        for columns, keys in pieces:
            transposed = Rows(key, spec.key_scaling, (b, g, keys)).cast(dtype, buffer).swapaxes(2, 3)
            np.matmul(scaled.reshape((*stacked, head_dim)), transposed, out=grouped[..., columns])
        for columns, k in columns_of(runs):
            block_keep = [compact(mask[b, h, r, k]) for mask in keep] + kept_by_blocks(spec, b, h, r, k)
            block_bias = [cast_dtype(compact(mask[b, h, r, k]), dtype) for mask in bias]
            if spec.relative_bias is not None:
                block_bias.append(relative_part(spec, (b, h, r, k)))
            modify_scores(ScoreBlock(scores[..., columns], block_keep, block_bias, h, first, k.start, b, r.start), spec)

        total, peak = _exponentials(scores, None if spec.sinks is None else spec.sinks[h, None, None])
        if lse is not None:
            lse[b, h, r] = (np.log(total) + peak)[..., 0]
        total[total == 0] = 1  # a row without keys has weights and output 0
        if weights is not None:
            _store_weights(weights[b, h, r], runs, scores, total)
        if spec.dropout_keep is not None:
            for columns, k in columns_of(runs):
                part = scores[..., columns]
                part *= np.broadcast_to(spec.dropout_keep, shape)[b, h, r, k]
            total /= spec.dropout_scale
        values = [(c, Rows(value, spec.value_scaling, (b, g, keys))) for c, keys in pieces]
        total = total.reshape((*stacked, 1))
        average = _weighted_sum(grouped, values, buffer)
        average /= total
        if not np.isfinite(average).all():
            again = _divide_first(grouped, total, values, keep_all=spec.dropout_keep is None)
            np.copyto(average, again, where=~np.isfinite(average))
        assign(output[b, h, r], average.reshape((*block[:3], value_dim)))


def _store_weights(weights: Array, runs: list[slice], scores: Array, total: Array) -> None:
    """Writes ``scores / total``, whose columns are those of ``runs``, to the weights of all keys."""
    # 0 * total: NaN in rows that are NaN, for keys outside the runs as for those within.
    ends = [0, *(end for k in runs for end in (k.start, k.stop)), weights.shape[3]]
    for start, stop in zip(ends[::2], ends[1::2], strict=True):
        weights[..., start:stop] = 0 * total
    for columns, k in columns_of(runs):
        if weights.itemsize == 2:
            assign(weights[..., k], scores[..., columns] / total)
        else:
            np.divide(scores[..., columns], total, out=weights[..., k])


def attention_varlen(
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array | None,
    sequences: PackedSequences,
    spec: AttentionSpec,
) -> None:
    """One call of :func:`attention` for as many sequences of equal lengths as fit into a block."""
    if len(query) == 0:
        return
    sizes = [len(a) * a.shape[2] for a in (query, key, value, output)]
    for rows, keys, offset in _equal_sequences(sequences, sizes[0] + sizes[3], sizes[1] + sizes[2]):
        result, part_lse = _sequences_of(output, rows), None
        if lse is not None:
            part_lse = _sequences_of(lse[..., None], rows)[..., 0]
        k = _sequences_of(key, keys)
        if k.shape[2] == 0:
            fill_without_keys(result, part_lse, spec.sinks)
        else:
            q, v = _sequences_of(query, rows), _sequences_of(value, keys)
            part_spec = spec._replace(offset=offset)
            if spec.relative_bias is not None and spec.relative_bias.shape[2] > 1:
                part_spec = part_spec._replace(relative_bias=_sequences_of(spec.relative_bias[0], rows))
            if spec.key_scaling is not None and spec.value_scaling is not None:
                of = partial(_sequences_of, rows=keys)
                scaling = (spec.key_scaling.rows(of), spec.value_scaling.rows(of))
                part_spec = part_spec._replace(key_scaling=scaling[0], value_scaling=scaling[1])
            attention(q, k, v, result, None, part_lse, part_spec)
        if not isinstance(rows, slice):
            output.swapaxes(0, 1)[rows] = result.swapaxes(1, 2)
            if lse is not None and part_lse is not None:
                lse.T[rows] = part_lse.swapaxes(1, 2)


def _equal_sequences(
    sequences: PackedSequences, query_size: int, key_size: int
) -> Iterator[tuple[Array | slice, Array | slice, int]]:
    """(rows of queries, rows of keys, offset) of sequences that have the same lengths and offset.

    Rows are a slice for one sequence, else indices (sequences, length), of about ``BLOCK`` entries: ``query_size`` for
    each row of queries and ``key_size`` for each of keys.
    """
    some = np.flatnonzero(sequences.query_lengths)
    if some.size == 0:
        return
    kinds = np.stack([sequences.query_lengths, sequences.key_lengths, sequences.offsets])[:, some]
    order = np.lexsort(kinds)
    changes = np.flatnonzero((np.diff(kinds[:, order]) != 0).any(axis=0)) + 1
    for same in np.split(order, changes):
        length, key_length, offset = kinds[:, same[0]].tolist()
        step = max(1, BLOCK // max(1, length * query_size + key_length * key_size))
        for start in range(0, len(same), step):
            which = some[same[start : start + step]]
            rows = _rows(sequences.query_starts[which], length)
            yield rows, _rows(sequences.key_starts[which], key_length), offset


def _rows(starts: Array, length: int) -> Array | slice:
    if len(starts) == 1:
        return slice(int(starts[0]), int(starts[0]) + length)
    rows: Array = starts[:, None] + np.arange(length)
    return rows


def _sequences_of(a: Array, rows: Array | slice) -> Array:
    """Rows of ``a``, (heads, total, width), as (sequences, heads, length, width): a view for one sequence."""
    return a[None, :, rows] if isinstance(rows, slice) else a.swapaxes(0, 1)[rows].swapaxes(1, 2)


def attention_blocks(
    batch: int, kv_heads: int, group: int, query_len: int, row_size: int, head_size: int
) -> Iterator[tuple[slice, slice, slice]]:
    """Slices (batch entries, key heads, query rows) of about ``BLOCK`` entries.

    ``row_size`` is the number of entries per query row, ``head_size`` that per key head. A block takes more than one
    head only if it has all query rows: few rows see few keys under a causal mask or a window, and skip the others.
    """
    rows = min(query_len, max(1, BLOCK // (group * row_size)))
    for b, g in head_blocks(batch, kv_heads, max(group * rows * row_size, head_size)):
        for r in range(0, query_len, rows):
            yield b, g, slice(r, min(r + rows, query_len))


def _parts(query: Array, key: Array, width: int, spec: AttentionSpec) -> Iterator[tuple[slice, slice, slice]]:
    """The blocks of :func:`attention_blocks`; with ``spec.blocks``, rows that lie in one block of queries each, and as
    many of them as their kept keys allow."""
    batch, heads, query_len, _ = query.shape
    kv_heads, key_len = key.shape[1:3]
    group = heads // kv_heads
    if spec.blocks is None:
        row_size, head_size = max(1, key_len, width), key_len * width
        yield from attention_blocks(batch, kv_heads, group, query_len, row_size, head_size)
        return
    for b, g in head_blocks(batch, kv_heads, group * query_len * max(key_len, width)):
        h, start = slice(g.start * group, g.stop * group), 0
        while start < query_len:
            stop = spec.blocks.query_rows(start, query_len, query_len)
            runs = visible_runs(b, h, slice(start, stop), key_len, spec)
            keys = max(1, width, sum(k.stop - k.start for k in runs))
            stop = min(stop, start + max(1, BLOCK // ((b.stop - b.start) * (h.stop - h.start) * keys)))
            yield b, g, slice(start, stop)
            start = stop


def visible_runs(b: slice, h: slice, r: slice, key_len: int, spec: AttentionSpec) -> list[slice]:
    """The ranges of keys that some of these batch entries, heads and rows may keep, by windows and blocks."""
    k = visible_keys(spec.offset + r.start, r.stop - r.start, key_len, spec)
    return [k] if spec.blocks is None else spec.blocks.runs(b, h, r, k)


def kept_by_blocks(spec: AttentionSpec, b: slice, h: slice, r: slice, k: slice) -> list[Array]:
    """The keep-mask that ``spec.blocks`` has for these pairs; none if it keeps all of them."""
    kept = None if spec.blocks is None else spec.blocks.keep(b, h, r, k)
    return [] if kept is None else [kept]


def columns_of(runs: list[slice]) -> Iterator[tuple[slice, slice]]:
    """Pairs (columns of the block, keys) for ranges of keys whose columns are side by side."""
    start = 0
    for k in runs:
        stop = start + k.stop - k.start
        yield slice(start, stop), k
        start = stop


def visible_keys(first: int, rows: int, key_len: int, spec: AttentionSpec) -> slice:
    """The keys inside the window of any of the ``rows`` queries from position ``first``."""
    start = max(0, first - spec.left) if spec.left >= 0 else 0
    stop = min(key_len, first + rows + spec.right) if spec.right >= 0 else key_len
    return slice(start, max(start, stop))


def key_pieces(runs: list[slice], size: int) -> Iterator[tuple[slice, slice]]:
    """Pairs (columns of the block, keys) of about ``BLOCK`` entries, with ``size`` entries for each key.

    A ``size`` of 0 gives one pair for each range. Without keys there is one empty pair.
    """
    for columns, keys in columns_of(runs or [slice(0, 0)]):
        step = max(1, BLOCK // size if size else keys.stop - keys.start)
        for start in range(keys.start, max(keys.start + 1, keys.stop), step):
            stop = min(start + step, keys.stop)
            yield slice(columns.start + start - keys.start, columns.start + stop - keys.start), slice(start, stop)


def _exponentials(scores: Array, sinks: Array | None) -> tuple[Array, Array]:
    """Replaces ``scores`` by ``exp(scores - peak)``; returns the softmax denominator over ``exp(peak)``, and ``peak``.

    Both have shape (batch, heads, rows, 1).
    """
    peak = scores.max(axis=3, keepdims=True, initial=-np.inf)
    if sinks is not None:
        np.maximum(peak, sinks, out=peak)
    peak[np.isneginf(peak)] = 0  # a row without keys: exp(-inf - 0) makes its weights 0
    scores -= peak
    np.exp(scores, out=scores)
    total: Array = scores.sum(axis=3, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks - peak)
    return total, peak


def _weighted_sum(weights: Array, values: list[tuple[slice, Rows]], buffer: Array | None = None) -> Array:
    """``weights @ values``, where the values are given in pieces, each with its columns of the weights."""
    pieces = ((weights[..., columns], rows.cast(weights.dtype, buffer)) for columns, rows in values)
    return reduce(np.add, starmap(masked_product, pieces))


def _divide_first(weights: Array, total: Array, values: list[tuple[slice, Rows]], *, keep_all: bool) -> Array:
    """``weights / total @ values``, whose partial sums do not exceed the largest value. Weights below ``_MIN_WEIGHT``
    become 0 in place, so that NaN and infinities there are ignored as in the native core.

    Half of each mean is computed, as rounding may carry the mean of the largest numbers beyond them. With dropout
    (``keep_all`` is False) a mean may be larger than every number, and has no such limit.
    """
    weights[weights < _MIN_WEIGHT[weights.itemsize]] = 0
    half = _weighted_sum(weights / (2 * total), values)
    if keep_all:
        limit = np.finfo(half.dtype).max / 2
        half = np.where(np.isinf(half), half, half.clip(-limit, limit))
    half *= 2
    return half


def masked_product(weights: Array, value: Array) -> Array:
    """``weights @ value``, where a weight of 0 contributes 0 even if the value is infinite or NaN.

    By IEEE rules 0 * inf and 0 * NaN are NaN, so such a value shows in every row of the product. Only then, the finite
    values are summed alone, and each non-finite value is added to the rows whose weight for it is not 0.
    """
    result: Array = np.matmul(weights, value)
    if np.isfinite(result).all():
        return result
    finite = np.isfinite(value)
    if finite.all():
        return result
    result = np.matmul(weights, np.where(finite, value, 0))
    nonzero = (weights != 0).astype(weights.dtype)
    for special in (np.inf, -np.inf, np.nan):
        where = np.isnan(value) if np.isnan(special) else value == special
        if where.any():
            result += np.where(np.matmul(nonzero, where.astype(weights.dtype)) != 0, special, 0).astype(weights.dtype)
    return result

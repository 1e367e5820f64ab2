"""Attention to cached rows by calls for one sequence or equal sequences, also for what packed sequences do not support:
weights, masks, and rings that keep their first rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.attention_spec import fill_without_keys
from headwise._base.ieee import ieee
from headwise._base.outputs import allocate
from headwise._kv_cache.rows import equal
from headwise._numpy.relative_bias import add_by_distance
from headwise._ops.attention.relative_values import add_by_mass
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array
    from headwise._kv_cache.rows import CacheRows, Spans
    from headwise._ops.attention.relative_values import Results

# Entries of the mask of a block of queries.
_MASK_BLOCK = 1 << 20


def has_gap(rows: CacheRows, length: int) -> bool:
    """Whether the last query of a sequence of this ``length`` sees the first rows and the latest rows, but not all rows
    between them."""
    return rows.first > 0 and length > rows.reach + 1


class Rules(NamedTuple):
    """What the spec of a call does not say.

    ``scattered``: masks and biases follow from the positions of rows, of which some have been evicted. ``table``:
    relative values, (heads or 1, 2 M + 1, value_dim).
    """

    scattered: bool
    table: Array | None


def attend_by_entry(
    query: Array,
    rows: CacheRows,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    spans: Spans,
    spec: AttentionSpec,
    rules: Rules,
) -> None:
    """One call for all sequences if they are equal, else one for each. Padding is not written."""
    batch, (scattered, table) = len(query), rules
    by_position = scattered or (table is not None and rows.kept is not None)
    together = spans.equal() and not by_position and (not rows.first or equal(spans.lengths))
    groups = [slice(0, batch)] if together else [slice(entry, entry + 1) for entry in range(batch)]
    for entries in groups:
        count, seen, length = (numbers[entries.start] for numbers in (spans.counts, spans.seen, spans.lengths))
        if count == 0:
            continue
        gap = has_gap(rows, length)
        plain = weights is None and not spec.keep and not spec.bias and spec.relative_bias is None
        if gap and plain:
            columns: slice | Array = slice(0, length - rows.offsets[entries.start])  # a view; the mask drops the gap
        else:
            columns = rows.visible(entries.start, count, spans.lengths)
        keys, values = rows.keys[entries, :, columns], rows.values[entries, :, columns]
        key_len = keys.shape[2]
        spec = rows.with_scaling(spec, partial(_part, entries=entries, columns=columns))
        width = _mask_width(spec, query.shape[1], key_len) if scattered else key_len if gap else 0
        width = width if table is None else key_len * query.shape[1] * len(keys)  # of the weights
        for block in _query_blocks(count, width):
            shape = (len(keys), query.shape[1], block.stop - block.start)
            no_weights = weights is None and table is None
            part_weights = None if no_weights else allocate((*shape, key_len), output.dtype)
            part_lse = None if lse is None else allocate(shape, lse.dtype)
            part_spec = spec._replace(
                offset=key_len - count + block.start,
                keep=tuple(_mask_part(m, entries, block, key_len) for m in spec.keep),
                bias=tuple(_mask_part(m, entries, block, key_len) for m in spec.bias),
                relative_bias=None if spec.relative_bias is None else _rows_part(spec.relative_bias, entries, block),
            )
            first_query = length - count + block.start
            positions = rows.positions(entries.start, columns)
            if gap or scattered:
                add = _with_gap if gap else _by_positions
                part_spec = add(part_spec, positions, first_query, shape[2], rows)
            part_output = output[entries, :, block]
            _compute(query[entries, :, block], keys, values, (part_output, part_weights, part_lse), part_spec)
            if table is not None and part_weights is not None:
                mass = _mass(part_weights, positions - first_query, table.shape[1])
                add_by_mass(part_output, mass, table, spec.precision)
            if weights is not None and part_weights is not None:
                weights[entries, :, block, :seen] = part_weights
            if lse is not None and part_lse is not None:
                lse[entries, :, block] = part_lse


def _compute(query: Array, keys: Array, values: Array, results: Results, spec: AttentionSpec) -> None:
    if keys.shape[2] == 0:
        fill_without_keys(results[0], results[2], spec.sinks)
    else:
        current().attention(query, keys, values, *results, spec)


def _part(stored: Array, entries: slice, columns: slice | Array) -> Array:
    return stored[entries, :, columns]


def _query_blocks(count: int, mask_width: int) -> Iterator[slice]:
    """Slices of ``count`` queries, whose masks have about ``_MASK_BLOCK`` entries."""
    step = max(1, _MASK_BLOCK // mask_width if mask_width else count)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


@ieee
def _mass(weights: Array, distances: Array, width: int) -> Array:
    """The sums of weights (batch, heads, queries, keys) by ``width`` distances, from those of the keys from query 0."""
    mass = np.zeros((*weights.shape[:3], width), weights.dtype)
    for run in np.split(np.arange(len(distances)), np.flatnonzero(np.diff(distances) != 1) + 1):
        if run.size:
            add_by_distance(mass, int(distances[run[0]]), weights[..., run[0] : run[-1] + 1])
    return mass


def _mask_width(spec: AttentionSpec, heads: int, key_len: int) -> int:
    """Entries of the masks and biases of :func:`_by_positions` for each query."""
    of_heads = spec.alibi_slopes is not None or spec.relative_bias is not None
    return key_len * heads if of_heads else key_len


def _mask_part(m: Array, entries: slice, queries: slice, key_len: int) -> Array:
    """The part of a mask (batch, heads, query_len, key_len), each or 1, for a call."""
    m = _rows_part(m, entries, queries)
    return m if m.shape[3] == 1 else m[..., :key_len]


def _rows_part(m: Array, entries: slice, queries: slice) -> Array:
    if m.shape[0] > 1:
        m = m[entries]
    return m if m.shape[2] == 1 else m[:, :, queries]


@ieee
def _by_positions(spec: AttentionSpec, positions: Array, first_query: int, count: int, _: CacheRows) -> AttentionSpec:
    """``spec`` for queries from position ``first_query`` on and keys at ``positions``, in masks and biases."""
    distance = positions - np.arange(first_query, first_query + count)[:, np.newaxis]
    keep, bias = np.ones(distance.shape, bool), spec.bias
    if spec.left >= 0:
        keep &= distance >= -spec.left
    if spec.right >= 0:
        keep &= distance <= spec.right
    if spec.alibi_slopes is not None:
        steps = np.abs(distance).astype(spec.alibi_slopes.dtype)
        bias = (*bias, -spec.alibi_slopes[np.newaxis, :, np.newaxis, np.newaxis] * steps)
    if spec.relative_bias is not None:
        bias = (*bias, _of_distances(spec.relative_bias, distance))
    return spec._replace(
        left=-1, right=-1, keep=(*spec.keep, keep[np.newaxis, np.newaxis]), bias=bias, alibi_slopes=None,
        relative_bias=None,
    )  # fmt: skip


def _of_distances(table: Array, distance: Array) -> Array:
    """The entries of a relative bias, (batch, heads, queries, keys), for ``distance`` (queries, keys)."""
    middle = table.shape[3] // 2
    entries = distance.clip(-middle, middle) + middle
    return np.take_along_axis(table, entries[np.newaxis, np.newaxis], axis=3)


def _with_gap(spec: AttentionSpec, positions: Array, first_query: int, count: int, rows: CacheRows) -> AttentionSpec:
    """``spec`` for keys at ``positions``, of which queries from position ``first_query`` on see the first rows and the
    latest ones. The backend counts columns where windows and ALiBi count positions."""
    query = np.arange(first_query, first_query + count)[:, np.newaxis]
    keep = (positions < rows.first) | (positions >= query - (rows.reach - rows.first))
    if spec.left >= 0:
        keep &= positions >= query - spec.left
    bias = spec.bias
    missing = int(positions[-1]) + 1 - len(positions)  # positions between the first rows and the others
    if spec.alibi_slopes is not None and missing:
        further = np.where(positions < rows.first, missing, 0).astype(spec.alibi_slopes.dtype)
        bias = (*bias, -spec.alibi_slopes[np.newaxis, :, np.newaxis, np.newaxis] * further)
    if spec.relative_bias is not None:
        bias = (*bias, _of_distances(spec.relative_bias, positions - query))
    return spec._replace(left=-1, keep=(*spec.keep, keep[np.newaxis, np.newaxis]), bias=bias, relative_bias=None)

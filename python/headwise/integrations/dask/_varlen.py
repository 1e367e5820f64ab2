"""``varlen_attention`` of Dask arrays: rows of packed sequences in chunks that need not start where a sequence does."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import promote
from headwise._base.attention_spec import EVERY, PackedSequences, spec_of_part
from headwise._base.scalars import check_flag, check_int
from headwise._ops.attention.keywords import hide_unknown
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.relative_bias import check_relative_bias
from headwise._ops.attention.shapes import check_packed_shapes
from headwise._ops.attention.spec import attention_spec, is_lower_right
from headwise._ops.attention.varlen import packed_sequences
from headwise.integrations import _parts
from headwise.integrations.dask._chunks import as_dask, fitted, slices, without_entries
from headwise.integrations.dask._graph import collected, merged, result
from headwise.integrations.dask._keywords import refuse_in_chunks
from headwise.integrations.dask._library import base

if TYPE_CHECKING:
    from headwise._base.attention_spec import AttentionSpec
    from headwise.integrations.dask._graph import Graph


@hide_unknown
def varlen_attention(  # noqa: PLR0913 (the arguments of headwise.varlen_attention)
    query: Any,
    key: Any,
    value: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    relative_bias: Any = None,
    return_lse: bool = False,
    precision: str | None = None,
    split_every: int = 8,
    **unknown: Any,
) -> Any:
    """:func:`headwise.varlen_attention` of Dask arrays, computed when the result is.

    Parameters
    ----------
    query : dask.array.Array, (total_query_len, heads, head_dim)
        The queries of all sequences, in chunks of rows that may start and end within sequences.
    key : dask.array.Array, (total_key_len, kv_heads, head_dim)
        In chunks likewise.
    value : dask.array.Array, (total_key_len, kv_heads, value_dim)
        Rechunked to the chunks of `key`.
    cu_seqlens_q, cu_seqlens_k : array_like of integers, (sequences + 1,)
        Cumulative lengths, as in :func:`headwise.varlen_attention`; no Dask arrays, because pairs of chunks that share
        no sequence are no tasks.
    is_causal, causal_alignment, scale, window_size, softcap, precision
        As in :func:`headwise.varlen_attention`.
    alibi_slopes, sinks : array_like, (heads,), optional
        As there; no Dask arrays.
    relative_bias : array_like, (heads or 1, total_query_len or 1, 2 M + 1), optional
        As there.
    return_lse : bool
        Whether to return the logarithm of the softmax denominator as well.
    split_every : int
        How many parts one task merges, at least 2.

    Returns
    -------
    output : dask.array.Array, (total_query_len, heads, value_dim)
        In the chunks of `query`.
    lse : dask.array.Array, (heads, total_query_len)
        Only with `return_lse`: a pair is returned then.

    Raises
    ------
    ValueError, TypeError
        As in :func:`headwise.varlen_attention`, and where an argument that decides the tasks is a Dask array.

    See Also
    --------
    flash_attention : Sequences of one length, and the rounding of results.

    References
    ----------
    .. [1] M. N. Rabe, C. Staats, "Self-attention Does Not Need O(n^2) Memory", 2021, section 2.
    """
    if unknown:
        refuse_in_chunks(unknown, varlen_attention)
    lazy = {name: as_dask(a, name) for name, a in (("query", query), ("key", key), ("value", value))}
    q, k, v = lazy.values()
    shape = check_packed_shapes(q.shape, k.shape, v.shape)
    compute, dtype = promote(*((name, np.empty(0, a.dtype)) for name, a in lazy.items()))
    sequences = packed_sequences(cu_seqlens_q, cu_seqlens_k, shape, lower_right=is_lower_right(causal_alignment))
    options = SpecOptions(
        is_causal=is_causal, scale=scale, window_size=window_size, softcap=softcap, alibi_slopes=alibi_slopes,
        sinks=sinks, precision=precision,
    )  # fmt: skip
    spec = attention_spec(shape, (compute, compute), options)
    every, return_lse = check_int(split_every, "split_every", 2), check_flag(return_lse, "return_lse")
    q, k = q.rechunk({2: -1}), k.rechunk({2: -1})
    if k.shape[1]:
        q = q.rechunk({1: tuple(size * (q.shape[1] // k.shape[1]) for size in k.chunks[1])})
    v = v.rechunk((k.chunks[0], k.chunks[1], -1))
    relative = None
    if relative_bias is not None:
        relative = as_dask(relative_bias, "relative_bias")
        check_relative_bias(without_entries(relative), shape, compute)
        relative = fitted(relative, (q.chunks[1], q.chunks[0], relative.shape[-1:]))

    sources = [a for a in (q, k, v, relative) if a is not None]
    name = f"varlen-{base.tokenize(*sources, tuple(sequences), tuple(spec), every)}"
    graph: Graph = {}
    sinks, spec = spec.sinks, spec._replace(sinks=None)
    for head, (i, rows) in itertools.product(range(len(q.chunks[1])), enumerate(slices(q.chunks[0]))):
        h = slices(q.chunks[1])[head]
        part_spec = spec_of_part(spec, EVERY, h, EVERY)
        parts = []
        for j, keys in enumerate(slices(k.chunks[0])):
            some = _part_of(sequences, rows, keys, spec)
            if some is None:
                continue
            at = None
            if relative is not None:
                at = (
                    relative.name,
                    *(0 if n == 1 else m for n, m in zip(relative.numblocks, (head, i, 0), strict=True)),
                )
            where = (j, head, 0)
            parts.append((f"part-{name}", head, i, j))
            graph[parts[-1]] = (
                _parts.attend_packed, (q.name, i, head, 0), (k.name, *where), (v.name, *where), at,
                _parts.PackedPair(part_spec, some),
            )  # fmt: skip
        size = (h.stop - h.start, rows.stop - rows.start, v.shape[2])
        merged(graph, name, (head, i), parts, every, None if sinks is None else sinks[h], (size, dtype))

    layer = name, collected(name, graph, sources)
    output = result(
        layer, f"output-{name}", (*q.chunks[:2], v.chunks[2]), dtype, lambda at: (name, at[1], at[0]), _rows_first
    )
    if not return_lse:
        return output
    lse = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    return output, result(layer, f"lse-{name}", (q.chunks[1], q.chunks[0]), lse, lambda at: (name, *at), 1)


def _rows_first(part: _parts.Part) -> Any:
    """The output (heads, rows, dim) of a part as (rows, heads, dim)."""
    return part[0].swapaxes(0, 1)


def _part_of(sequences: PackedSequences, rows: slice, keys: slice, spec: AttentionSpec) -> PackedSequences | None:
    """The parts of the sequences that have some of the ``rows``, with those of their keys that are among ``keys``.

    None if no row sees any of the keys.
    """

    def within(starts: Any, lengths: Any, part: slice) -> tuple[Any, Any]:
        first = np.clip(starts, part.start, part.stop)
        return first, np.clip(starts + lengths, part.start, part.stop) - first

    query_starts, query_lengths = within(sequences.query_starts, sequences.query_lengths, rows)
    key_starts, key_lengths = within(sequences.key_starts, sequences.key_lengths, keys)
    offsets = sequences.offsets + (query_starts - sequences.query_starts) - (key_starts - sequences.key_starts)
    sees = (query_lengths > 0) & (key_lengths > 0)
    if spec.right >= 0:
        sees &= offsets + query_lengths - 1 + spec.right >= 0
    if spec.left >= 0:
        sees &= offsets - spec.left < key_lengths
    if not sees.any():
        return None
    has_rows = query_lengths > 0
    return PackedSequences(
        (query_starts - rows.start)[has_rows], query_lengths[has_rows], (key_starts - keys.start)[has_rows],
        np.where(sees, key_lengths, 0)[has_rows], offsets[has_rows],
    )  # fmt: skip

"""``attention_statistics`` of Dask arrays, in two passes over the pairs of chunks.

The first pass finds the log-sum-exp of every query, and the second the statistics of each pair of chunks, whose weights
need it. Memory is that of chunks and of results.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.attention_statistics import AttentionStatistics, TopKeys
from headwise._base.scalars import check_flag, check_int
from headwise._base.typing import INT64
from headwise._ops.attention.keywords import hide_unknown
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.shapes import check_shapes
from headwise._statistics import merge
from headwise._statistics.arguments import check_k, check_names, statistics_grid
from headwise.integrations.dask._attention import add_attention
from headwise.integrations.dask._chunks import as_dask, in_chunks
from headwise.integrations.dask._graph import collected, result, tree
from headwise.integrations.dask._keywords import refuse_in_chunks
from headwise.integrations.dask._library import base

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headwise.integrations import _parts
    from headwise.integrations.dask._chunks import Chunks
    from headwise.integrations.dask._graph import Graph


@hide_unknown
def attention_statistics(  # noqa: PLR0913 (the arguments of headwise.attention_statistics)
    query: Any,
    key: Any,
    *,
    which: str | Sequence[str] = ("key_mass", "entropy", "max_weight", "top_k", "block_mass"),
    k: int | None = None,
    block_size: int | tuple[int, int] | None = None,
    average_heads: bool = False,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    key_padding_mask: Any = None,
    key_lengths: Any = None,
    score_mod: Callable[..., Any] | None = None,
    relative_bias: Any = None,
    precision: str | None = None,
    split_every: int = 8,
    **unknown: Any,
) -> AttentionStatistics:
    """:func:`headwise.attention_statistics` of Dask arrays, computed when the results are.

    Parameters
    ----------
    query, key : dask.array.Array, (..., seq, dim)
        In chunks along any axis, as :func:`flash_attention` has them.
    which, k, block_size, average_heads
        As in :func:`headwise.attention_statistics`. With "block_mass", queries and keys are rechunked to multiples of
        the blocks; with `average_heads`, all heads are in one chunk.
    mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask, \
key_lengths, score_mod, relative_bias, precision
        As in :func:`flash_attention`.
    split_every : int
        How many parts one task merges, at least 2.

    Returns
    -------
    AttentionStatistics
        The named tuple of :func:`headwise.attention_statistics`, with Dask arrays. Compute the fields together, by
        ``dask.compute(*fields)``: they share their tasks.

    Raises
    ------
    ValueError, TypeError
        As in :func:`headwise.attention_statistics` and :func:`flash_attention`.

    Notes
    -----
    Each pair of chunks computes its scores twice, first for the log-sum-exp. Results differ from those of one call by
    rounding, which also decides the order of keys of equal weights in different chunks. A query whose weights are NaN
    makes the mass of the keys of all chunks NaN that it is computed with.

    References
    ----------
    .. [1] M. N. Rabe, C. Staats, "Self-attention Does Not Need O(n^2) Memory", 2021, section 2.
    """
    if unknown:
        refuse_in_chunks(unknown, attention_statistics)
    options = SpecOptions(
        mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask,
        precision, key_lengths, score_mod, relative_bias,
    )  # fmt: skip
    names, every = check_names(which), check_int(split_every, "split_every", 2)
    average = check_flag(average_heads, "average_heads")
    q, keys = as_dask(query, "query"), as_dask(key, "key")
    shape = check_shapes(q.shape, keys.shape, (*keys.shape[:-1], 0))
    grid = statistics_grid(shape, block_size, average=average)
    sizes = grid.query_size, grid.key_size
    request = merge.Request(names, check_k(k, shape.key_len), sizes, average)
    multiples = sizes if "block_mass" in names else (1, 1)
    chunks = in_chunks({"query": q, "key": keys}, options, multiples=multiples, all_heads=average)

    token = base.tokenize(chunks.token, every, names, request.k, sizes, average)
    graph: Graph = {}
    rows = f"lse-of-{token}"
    add_attention(graph, rows, chunks, every)
    if set(names) != {"lse"}:
        _add_statistics(graph, token, chunks, request, every)
    return _results(token, collected(f"statistics-{token}", graph, chunks.sources), chunks, request)


def _add_statistics(graph: Graph, token: str, chunks: Chunks, request: merge.Request, every: int) -> None:
    """Add the tasks ``rows-``, ``mass-`` and ``blocks-`` for chunks of queries, of keys and of both."""
    query, key, names = chunks.query, chunks.key, request.names
    of_rows = partial(merge.merge_rows, k=request.k)
    for lead, b, h in chunks.leads():
        sizes = [query.chunks[axis][n] for axis, n in enumerate(lead)]
        if request.average_heads and chunks.shape.has_heads:
            sizes.pop()
        by_key: list[list[Any]] = [[] for _ in chunks.keys]
        for i, r in enumerate(chunks.rows):
            parts, masked = [], []
            for j, some in enumerate(chunks.keys):
                pair = chunks.pair(b, h, i, j)
                if pair is None:
                    masked.append(some)
                else:
                    parts.append((f"part-{token}", *lead, i, j))
                    by_key[j].append(parts[-1])
                    graph[parts[-1]] = (
                        part_statistics, (query.name, *lead, i, 0), (key.name, *lead, j, 0),
                        (f"lse-of-{token}", *lead, i), chunks.mask_chunks(lead, i, j), pair, request, some.start,
                    )  # fmt: skip
                if "block_mass" in names:
                    blocks = [
                        -(-(s.stop - s.start) // size) for s, size in zip((r, some), request.block_size, strict=True)
                    ]
                    graph[(f"blocks-{token}", *lead, i, j)] = (
                        (merge.zero_mass, (*sizes, *blocks)) if pair is None else (_mass_of_blocks, parts[-1])
                    )
            merged = tree(graph, f"merge-{token}", (*lead, i), of_rows, parts, every) if parts else None
            graph[(f"rows-{token}", *lead, i)] = (
                merge.with_masked_keys, merged, (*sizes, r.stop - r.start), request,
                merge.first_keys(masked, request.k), chunks.compute,
            )  # fmt: skip
        if "key_mass" in names:
            for j, some in enumerate(chunks.keys):
                empty = (merge.zero_mass, (*sizes, some.stop - some.start))
                where = (*lead, j)
                total = tree(graph, f"sum-{token}", where, _sum_of_mass, by_key[j], every) if by_key[j] else empty
                graph[(f"mass-{token}", *where)] = total


def part_statistics(
    query: Any, key: Any, rows: _parts.Part, masks: Sequence[Any], pair: _parts.Pair, request: merge.Request, first: int
) -> dict[str, Any]:
    """The task of a pair of chunks; ``rows`` has the log-sum-exp of its queries and all keys."""
    return merge.part_statistics(query, key, rows[1], pair.named(masks), pair.spec, request, first)


def _sum_of_mass(parts: Sequence[Any]) -> Any:
    """The mass of keys in the statistics of pairs of chunks, or in sums of such."""
    return merge.sum_of([part["key_mass"] if isinstance(part, dict) else part for part in parts])


def _mass_of_blocks(part: dict[str, Any]) -> Any:
    return part["block_mass"]


def _results(token: str, graph: Any, chunks: Chunks, request: merge.Request) -> AttentionStatistics:
    """The Dask arrays of the statistics."""
    layer, names, dtype = (f"statistics-{token}", graph), request.names, chunks.compute
    rows, keys = chunks.query.chunks[:-1], chunks.key.chunks[-2]
    lead = rows[:-2] if request.average_heads and chunks.shape.has_heads else rows[:-1]
    last = (0,) * (len(rows) - 1 - len(lead))  # the chunk of all heads, which results do not have
    axes = len(lead)

    def of(name: str, kind: str, where: Any, pick: Any, dtype: np.dtype[Any] = dtype) -> Any:
        """The array ``name`` of the results of tasks of a ``kind``, whose indices follow those of ``lead``."""
        count = axes + (2 if kind == "blocks" else 1)
        return result(
            layer, f"{name}-{token}", (*lead, *where), dtype,
            lambda at: (f"{kind}-{token}", *at[:axes], *last, *at[axes:count]), pick,
        )  # fmt: skip

    def of_rows(name: str, *where: Any, dtype: np.dtype[Any] = dtype) -> Any:
        return of(name, "rows", (rows[-1], *where), name, dtype)

    query_blocks, key_blocks = (
        tuple(-(-n // size) for n in sizes) for sizes, size in zip((rows[-1], keys), request.block_size, strict=True)
    )
    round_mass = partial(np.asarray, dtype=dtype)
    lse = None
    if "lse" in names:
        lse = result(layer, f"lse-{token}", rows, dtype, lambda at: (f"lse-of-{token}", *at), 1)
    return AttentionStatistics(
        key_mass=of("key_mass", "mass", (keys,), round_mass) if "key_mass" in names else None,
        entropy=of_rows("entropy") if "entropy" in names else None,
        max_weight=of_rows("max_weight") if "max_weight" in names else None,
        top_k=TopKeys(of_rows("top_weights", (request.k,)), of_rows("top_indices", (request.k,), dtype=INT64))
        if "top_k" in names
        else None,
        block_mass=of("block_mass", "blocks", (query_blocks, key_blocks), round_mass)
        if "block_mass" in names
        else None,
        lse=lse,
    )

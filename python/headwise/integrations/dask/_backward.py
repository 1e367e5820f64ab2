"""``flash_attention_backward`` of Dask arrays: a pair of chunks adds to the gradients of its queries and keys."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.ieee import cast_dtype
from headwise._base.scalars import check_int
from headwise._ops.attention.keywords import hide_unknown
from headwise._ops.attention.options import SpecOptions
from headwise._ops.gradients.attention import ROWS
from headwise._ops.gradients.results import check_wrt, gradient_dtype, gradients_of
from headwise.integrations import _parts
from headwise.integrations.dask._chunks import as_dask, in_chunks
from headwise.integrations.dask._graph import collected, result, tree
from headwise.integrations.dask._keywords import refuse_in_chunks
from headwise.integrations.dask._library import arrays, base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwise.integrations.dask._chunks import Chunks
    from headwise.integrations.dask._graph import Graph
    from headwise.integrations.dask._packed import PackedChunks


@hide_unknown
def flash_attention_backward(  # noqa: PLR0913 (the arguments of headwise.flash_attention_backward)
    d_output: Any,
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    lse: Any,
    *,
    wrt: tuple[str, ...] = ROWS,
    d_lse: Any = None,
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
    relative_bias: Any = None,
    precision: str | None = None,
    split_every: int = 8,
    **unknown: Any,
) -> Any:
    """:func:`headwise.flash_attention_backward` of Dask arrays, by query, key and value.

    Parameters
    ----------
    d_output : dask.array.Array, (..., query_len, value_dim), or None
        The gradient of a loss by `output`; 0 if None.
    query, key, value : dask.array.Array, (..., seq, dim)
        The arguments of the forward pass.
    output, lse : dask.array.Array
        The results of :func:`flash_attention` with ``return_lse=True``.
    wrt : tuple of str
        The arguments whose gradients are returned: some of "query", "key", "value".
    d_lse : dask.array.Array, (..., query_len), optional
        The gradient of the loss by `lse`; 0 if None.
    mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask, \
key_lengths, relative_bias, precision
        The keywords of the forward pass; see :func:`flash_attention`.
    split_every : int
        How many parts one task sums, at least 2.

    Returns
    -------
    named tuple of dask.array.Array
        ``d_query``, ``d_key`` and ``d_value``, as far as `wrt` names them. Compute them together, by
        ``dask.compute(*gradients)``: they share their tasks.

    Raises
    ------
    ValueError, TypeError
        As in :func:`headwise.flash_attention_backward`. Gradients by biases, slopes, sinks and relative biases are not
        computed over chunks.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022,
       appendix B.2.
    """
    if unknown:
        refuse_in_chunks(unknown, flash_attention_backward)
    options = SpecOptions(
        mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask,
        precision, key_lengths, relative_bias=relative_bias,
    )  # fmt: skip
    names = check_wrt(wrt, ROWS, dict.fromkeys(ROWS, True))
    every = check_int(split_every, "split_every", 2)
    chunks = in_chunks({"query": query, "key": key, "value": value}, options)
    whole, rows = chunks.shape.output, chunks.query.chunks[:-1]
    if d_output is None:
        d_output = arrays.zeros(whole, dtype=chunks.dtype)
    results = [
        of_queries(d_output, "d_output", whole, (*rows, -1)),
        of_queries(output, "output", whole, (*rows, -1)),
        of_queries(lse, "lse", whole[:-1], rows),
        None if d_lse is None else of_queries(d_lse, "d_lse", whole[:-1], rows),
    ]
    given = [a for a in results if a is not None]
    token = base.tokenize(chunks.token, given, d_lse is None, every)
    graph: Graph = {}
    _add_gradients(graph, token, chunks, results, every)
    return gradient_arrays(token, graph, [*chunks.sources, *given], chunks, names)


def gradient_arrays(
    token: str, graph: Graph, sources: list[Any], chunks: Chunks | PackedChunks, names: tuple[str, ...]
) -> Any:
    """The gradients ``names`` of the tasks that :func:`add_sum` has added."""
    layer = f"gradients-{token}", collected(f"gradients-{token}", graph, sources)
    found: dict[str, Any] = {}
    for name, argument in zip(ROWS, (chunks.query, chunks.key, chunks.value), strict=True):
        dtype = gradient_dtype(np.empty(0, argument.dtype), chunks.dtype)
        source, cast = partial(_source, f"sum-of-{name}-{token}"), partial(cast_dtype, dtype=dtype)
        found[name] = result(layer, f"d_{name}-{token}", argument.chunks, dtype, source, cast)
    return gradients_of(names, found)


def _source(name: str, at: tuple[int, ...]) -> tuple[Any, ...]:
    """The task ``name`` of the chunk ``at``, whose last axis is one chunk."""
    return name, *at[:-1]


def of_queries(a: Any, name: str, shape: tuple[int, ...], chunks: Any) -> Any:
    """``a``, an array of ``shape`` that has rows of the queries, in ``chunks``."""
    lazy = as_dask(a, name)
    if lazy.shape != shape:
        raise ValueError(f"{name}: shape {lazy.shape}, expected {shape} for this query and value")
    return lazy.rechunk(chunks)


def _add_gradients(graph: Graph, token: str, chunks: Chunks, results: Sequence[Any], every: int) -> None:
    """Add the sums of gradients for each chunk of query, key and value."""
    query, key, value = chunks.query, chunks.key, chunks.value
    for lead, b, h in chunks.leads():
        by_key: list[list[Any]] = [[] for _ in chunks.keys]
        by_query: list[list[Any]] = [[] for _ in chunks.rows]
        for i in range(len(chunks.rows)):
            of_queries = [None if a is None else (a.name, *lead, i, *(0,) * (a.ndim - len(lead) - 1)) for a in results]
            for j in range(len(chunks.keys)):
                pair = chunks.pair(b, h, i, j)
                if pair is None:
                    continue
                part = (f"part-{token}", *lead, i, j)
                graph[part] = (
                    _parts.backward, of_queries, (query.name, *lead, i, 0), (key.name, *lead, j, 0),
                    (value.name, *lead, j, 0), chunks.mask_chunks(lead, i, j), pair,
                )  # fmt: skip
                by_query[i].append(part)
                by_key[j].append(part)
        for i, parts in enumerate(by_query):
            add_sum(graph, token, chunks, 0, (*lead, i), parts, every)
        for j, parts in enumerate(by_key):
            add_sum(graph, token, chunks, 1, (*lead, j), parts, every)
            add_sum(graph, token, chunks, 2, (*lead, j), parts, every)


def add_sum(
    graph: Graph,
    token: str,
    chunks: Chunks | PackedChunks,
    which: int,
    where: tuple[int, ...],
    parts: list[Any],
    every: int,
) -> None:
    """Add the sum of the gradients ``which`` of query, key and value, those of the chunk ``where`` of this argument."""
    argument = (chunks.query, chunks.key, chunks.value)[which]
    name = f"sum-of-{ROWS[which]}-{token}"
    shape = (*(argument.chunks[axis][n] for axis, n in enumerate(where)), argument.shape[-1])
    add = partial(_sum, which=which, dtype=chunks.compute)
    graph[(name, *where)] = tree(graph, f"tree-{name}", where, add, parts, every) if parts else (np.zeros, shape)


def _sum(parts: Sequence[Any], which: int, dtype: np.dtype[Any]) -> Any:
    """The sum of the gradients ``which`` of pairs of chunks, or of such sums."""
    gradients = [part[which] if isinstance(part, tuple) else part for part in parts]
    total = cast_dtype(gradients[0], dtype).copy()
    for d in gradients[1:]:
        total += cast_dtype(d, dtype)
    return total

"""``varlen_attention`` of Dask arrays, and its gradients: chunks of rows need not start where a sequence does."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.scalars import check_flag, check_int
from headwise._ops.attention.keywords import hide_unknown
from headwise._ops.attention.options import SpecOptions
from headwise._ops.gradients.attention import ROWS
from headwise._ops.gradients.results import check_wrt
from headwise.integrations import _parts
from headwise.integrations.dask._backward import add_sum, gradient_arrays, of_queries
from headwise.integrations.dask._graph import collected, merged, result
from headwise.integrations.dask._keywords import refuse_in_chunks
from headwise.integrations.dask._library import arrays, base
from headwise.integrations.dask._packed import packed_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwise.integrations.dask._graph import Graph
    from headwise.integrations.dask._packed import PackedChunks


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
    options = SpecOptions(
        is_causal=is_causal, scale=scale, window_size=window_size, softcap=softcap, alibi_slopes=alibi_slopes,
        sinks=sinks, precision=precision, relative_bias=relative_bias,
    )  # fmt: skip
    every, return_lse = check_int(split_every, "split_every", 2), check_flag(return_lse, "return_lse")
    given = {"query": query, "key": key, "value": value}
    chunks = packed_chunks(given, (cu_seqlens_q, cu_seqlens_k), causal_alignment, options)
    name = f"varlen-{base.tokenize(chunks.token, every)}"
    graph: Graph = {}
    for (head, h), (i, rows) in itertools.product(enumerate(chunks.heads()), enumerate(chunks.rows())):
        parts = []
        for j, arguments in chunks.pairs(head, i):
            parts.append((f"part-{name}", head, i, j))
            graph[parts[-1]] = (_parts.attend_packed, *arguments)
        size = (h.stop - h.start, rows.stop - rows.start, chunks.value.shape[2])
        logits = None if chunks.sinks is None else chunks.sinks[h]
        merged(graph, name, (head, i), parts, every, logits, (size, chunks.dtype))

    layer, of_rows = (name, collected(name, graph, chunks.sources)), chunks.query.chunks[:2]
    output = result(
        layer, f"output-{name}", (*of_rows, chunks.value.chunks[2]), chunks.dtype, lambda at: (name, at[1], at[0]),
        _rows_first,
    )  # fmt: skip
    if not return_lse:
        return output
    lse = np.dtype(np.float64 if chunks.dtype == np.float64 else np.float32)
    return output, result(layer, f"lse-{name}", of_rows[::-1], lse, lambda at: (name, *at), 1)


def _rows_first(part: _parts.Part) -> Any:
    """The output (heads, rows, dim) of a part as (rows, heads, dim)."""
    return part[0].swapaxes(0, 1)


@hide_unknown
def varlen_attention_backward(  # noqa: PLR0913 (the arguments of headwise.varlen_attention_backward)
    d_output: Any,
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    lse: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    wrt: tuple[str, ...] = ROWS,
    d_lse: Any = None,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    relative_bias: Any = None,
    precision: str | None = None,
    split_every: int = 8,
    **unknown: Any,
) -> Any:
    """:func:`headwise.varlen_attention_backward` of Dask arrays, by query, key and value.

    Parameters
    ----------
    d_output : dask.array.Array, (total_query_len, heads, value_dim), or None
        The gradient of a loss by `output`; 0 if None.
    query, key, value : dask.array.Array, (rows, heads, dim)
        The arguments of the forward pass.
    output, lse : dask.array.Array
        The results of :func:`varlen_attention` with ``return_lse=True``.
    cu_seqlens_q, cu_seqlens_k : array_like of integers, (sequences + 1,)
        Cumulative lengths, as in the forward pass.
    wrt : tuple of str
        The arguments whose gradients are returned: some of "query", "key", "value".
    d_lse : dask.array.Array, (heads, total_query_len), optional
        The gradient of the loss by `lse`; 0 if None.
    is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, relative_bias, precision
        The keywords of the forward pass.
    split_every : int
        How many parts one task sums, at least 2.

    Returns
    -------
    named tuple of dask.array.Array
        ``d_query``, ``d_key`` and ``d_value``, as far as `wrt` names them; they share their tasks.

    Raises
    ------
    ValueError, TypeError
        As in :func:`varlen_attention` and :func:`flash_attention_backward`.
    """
    if unknown:
        refuse_in_chunks(unknown, varlen_attention_backward)
    options = SpecOptions(
        is_causal=is_causal, scale=scale, window_size=window_size, softcap=softcap, alibi_slopes=alibi_slopes,
        sinks=sinks, precision=precision, relative_bias=relative_bias,
    )  # fmt: skip
    names = check_wrt(wrt, ROWS, dict.fromkeys(ROWS, True))
    every = check_int(split_every, "split_every", 2)
    given = {"query": query, "key": key, "value": value}
    chunks = packed_chunks(given, (cu_seqlens_q, cu_seqlens_k), causal_alignment, options)
    whole, rows = chunks.shape.output, chunks.query.chunks[:2]
    if d_output is None:
        d_output = arrays.zeros(whole, dtype=chunks.dtype)
    results = [
        of_queries(d_output, "d_output", whole, (*rows, -1)),
        of_queries(output, "output", whole, (*rows, -1)),
        of_queries(lse, "lse", whole[1::-1], rows[::-1]),
        None if d_lse is None else of_queries(d_lse, "d_lse", whole[1::-1], rows[::-1]),
    ]
    read = [a for a in results if a is not None]
    token = base.tokenize(chunks.token, read, d_lse is None, every)
    graph: Graph = {}
    for head in range(len(chunks.heads())):
        _add_gradients(graph, token, chunks, results, head, every)
    return gradient_arrays(token, graph, [*chunks.sources, *read], chunks, names)


def _add_gradients(
    graph: Graph, token: str, chunks: PackedChunks, results: Sequence[Any], head: int, every: int
) -> None:
    """Add the sums of gradients for each chunk of query, key and value that has this chunk of heads."""
    by_query: list[list[Any]] = [[] for _ in chunks.rows()]
    by_key: list[list[Any]] = [[] for _ in chunks.key.chunks[0]]
    for i in range(len(chunks.rows())):
        of_rows = [None if a is None else (a.name, i, head, 0) if a.ndim == 3 else (a.name, head, i) for a in results]
        for j, arguments in chunks.pairs(head, i):
            part = (f"part-{token}", head, i, j)
            graph[part] = (_parts.backward_packed, of_rows, *arguments)
            by_query[i].append(part)
            by_key[j].append(part)
    for i, parts in enumerate(by_query):
        add_sum(graph, token, chunks, 0, (i, head), parts, every)
    for j, parts in enumerate(by_key):
        add_sum(graph, token, chunks, 1, (j, head), parts, every)
        add_sum(graph, token, chunks, 2, (j, head), parts, every)

"""``flash_attention`` of Dask arrays: one task for each pair of a chunk of queries and a chunk of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.scalars import check_flag, check_int
from headwise._ops.attention.keywords import hide_unknown
from headwise._ops.attention.options import SpecOptions
from headwise.integrations import _parts
from headwise.integrations.dask._chunks import Chunks, in_chunks
from headwise.integrations.dask._graph import collected, merged, result
from headwise.integrations.dask._keywords import refuse_in_chunks
from headwise.integrations.dask._library import base

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise.integrations.dask._graph import Graph


@hide_unknown
def flash_attention(  # noqa: PLR0913 (the arguments of headwise.flash_attention)
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
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
    relative_values: Any = None,
    precision: str | None = None,
    return_lse: bool = False,
    split_every: int = 8,
    **unknown: Any,
) -> Any:
    """:func:`headwise.flash_attention` of Dask arrays, computed when the result is.

    Parameters
    ----------
    query, key, value : dask.array.Array, (..., seq, dim)
        As :func:`headwise.flash_attention` has them, in chunks along any axis. The last axis, and heads that do not
        divide evenly among the chunks of key heads, are rechunked. Arrays that are not Dask's are one chunk.
    mask : array_like of bool or integers, or BlockMask, optional
        True or 1 keeps a key, in the shapes of :func:`headwise.flash_attention`. Beside a :class:`headwise.BlockMask`,
        keys are rechunked to multiples of its blocks, and pairs of chunks whose blocks are all dropped are no tasks.
    bias : array_like, optional
        Added to the scores; broadcast to (..., query_len, key_len).
    is_causal, causal_alignment, scale, window_size, softcap, precision
        As in :func:`headwise.flash_attention`.
    alibi_slopes, sinks : array_like, (heads,), optional
        As in :func:`headwise.flash_attention`; no Dask arrays.
    key_padding_mask : array_like of bool or integers, (batch, key_len), optional
        The keys of each sequence that are kept.
    key_lengths : array_like of integers, (batch,), optional
        The number of keys of each sequence of a right-padded batch; no Dask array, because chunks of keys that no
        sequence of a chunk has are no tasks.
    score_mod : callable, optional
        ``score_mod(score, batch, head, q, k)``, whose indices are those of the whole call. Schedulers of several
        processes pickle it.
    relative_bias : array_like, (heads or 1, query_len or 1, 2 M + 1), optional
        As in :func:`headwise.flash_attention`.
    relative_values : array_like, (2 M + 1, value_dim) or (heads or 1, 2 M + 1, value_dim), optional
        As in :func:`headwise.flash_attention`; no Dask array.
    return_lse : bool
        Whether to return the logarithm of the softmax denominator as well.
    split_every : int
        How many parts one task merges, at least 2.

    Returns
    -------
    output : dask.array.Array, (..., query_len, value_dim)
        In the chunks of `query`.
    lse : dask.array.Array, (..., query_len)
        Only with `return_lse`: a pair is returned then.

    Raises
    ------
    ValueError, TypeError
        As in :func:`headwise.flash_attention`, for shapes, windows and flags at once, for values when a chunk is
        computed. A floating `mask` is a TypeError, because whether it keeps or adds would depend on the chunk; so are
        dropout, whose random numbers would depend on the chunks, and `out`.

    Notes
    -----
    Results differ from those of one call by rounding, which depends on the chunks: each part of 16-bit arrays is
    rounded to 16 bits. A task has the memory of one chunk of each array and of its output.

    See Also
    --------
    flash_attention_backward : Its gradients.

    References
    ----------
    .. [1] M. N. Rabe, C. Staats, "Self-attention Does Not Need O(n^2) Memory", 2021, section 2.
    """
    if unknown:
        refuse_in_chunks(unknown, flash_attention)
    options = SpecOptions(
        mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask,
        precision, key_lengths, score_mod, relative_bias, relative_values,
    )  # fmt: skip
    every, return_lse = check_int(split_every, "split_every", 2), check_flag(return_lse, "return_lse")
    chunks = in_chunks({"query": query, "key": key, "value": value}, options)
    name = f"attention-{base.tokenize(chunks.token, every)}"
    graph: Graph = {}
    add_attention(graph, name, chunks, every)
    layer = name, collected(name, graph, chunks.sources)
    rows = chunks.query.chunks[:-1]
    axes = len(rows)
    output = result(
        layer, f"output-{name}", (*rows, chunks.value.chunks[-1]), chunks.dtype, lambda at: (name, *at[:axes]), 0
    )
    if not return_lse:
        return output
    lse = np.dtype(np.float64 if chunks.dtype == np.float64 else np.float32)
    return output, result(layer, f"lse-{name}", rows, lse, lambda at: (name, *at), 1)


def add_attention(graph: Graph, name: str, chunks: Chunks, every: int) -> None:
    """Add the tasks, of which ``(name, *chunk of queries)`` returns the output and the log-sum-exp of that chunk."""
    query, key, value = chunks.query, chunks.key, chunks.value
    for lead, b, h in chunks.leads():
        sinks = None if chunks.sinks is None else chunks.sinks[h]
        for i in range(len(chunks.rows)):
            parts = []
            for j in range(len(chunks.keys)):
                pair = chunks.pair(b, h, i, j)
                if pair is None:
                    continue
                part, at = (f"part-{name}", *lead, i, j), (*lead, j, 0)
                values = None if value is None else (value.name, *at)
                masks = chunks.mask_chunks(lead, i, j)
                graph[part] = (_parts.attend, (query.name, *lead, i, 0), (key.name, *at), values, masks, pair)
                parts.append(part)
            size = (
                *(query.chunks[axis][n] for axis, n in enumerate((*lead, i))),
                0 if value is None else value.shape[-1],
            )
            merged(graph, name, (*lead, i), parts, every, sinks, (size, chunks.dtype))

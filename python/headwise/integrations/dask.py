"""Attention over Dask arrays, in tasks of one chunk of queries and one chunk of keys each.

A task returns its output and its log-sum-exp, and a tree of tasks merges those of the same queries
(:func:`headwise.merge_attention`). So neither the keys nor the values of a sequence have to fit into the memory of one
machine. Pairs of chunks that a causal mask or a window excludes are no tasks.

>>> import dask.array as da  # doctest: +SKIP
>>> from headwise.integrations.dask import flash_attention  # doctest: +SKIP
>>> q, k, v = (da.random.normal(size=(8, 1_000_000, 64), chunks=(1, 8192, 64)) for _ in range(3))  # doctest: +SKIP
>>> flash_attention(q, k, v, is_causal=True, window_size=(4096, 0)).to_zarr("output.zarr")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import itertools
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import promote
from headwise._base.scalars import check_flag, check_int
from headwise._ops.attention.shapes import check_shapes
from headwise._ops.attention.spec import check_window, is_lower_right
from headwise.integrations import _parts
from headwise.integrations._libraries import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = np.ndarray[Any, Any]
    Graph = dict[Any, Any]
    Chunks = tuple[tuple[int, ...], ...]

require("dask")
_arrays: Any = importlib.import_module("dask.array")
_base: Any = importlib.import_module("dask.base")
_graphs: Any = importlib.import_module("dask.highlevelgraph")

__all__ = ["flash_attention"]


class _Masks(NamedTuple):
    """Dask arrays that broadcast to the scores, in chunks that fit those of the scores; None where not given."""

    mask: Any
    bias: Any
    key_padding_mask: Any


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
    precision: str | None = None,
    return_lse: bool = False,
    split_every: int = 8,
) -> Any:
    """:func:`headwise.flash_attention` of Dask arrays, computed when the result is.

    Parameters
    ----------
    query, key, value : dask.array.Array, (..., seq, dim)
        As :func:`headwise.flash_attention` has them, in chunks along any axis. The last axis, and heads that do not
        divide evenly among the chunks of key heads, are rechunked. Arrays that are not Dask's are one chunk.
    mask : array_like of bool or integers, optional
        True or 1 keeps a key, as in :func:`headwise.flash_attention`; broadcast to (..., query_len, key_len).
    bias : array_like, optional
        Added to the scores; broadcast to (..., query_len, key_len).
    is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, precision
        As in :func:`headwise.flash_attention`. `alibi_slopes` and `sinks` are NumPy arrays.
    key_padding_mask : array_like of bool or integers, (batch, key_len), optional
        The keys of each sequence that are kept.
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
        computed. A floating `mask` is a TypeError: whether it keeps or adds would depend on the chunk.

    Notes
    -----
    Results differ from those of one call by rounding, which depends on the chunks: each part of 16-bit arrays is
    rounded to 16 bits. A task has the memory of one chunk of each array and of its output.

    References
    ----------
    .. [1] M. N. Rabe, C. Staats, "Self-attention Does Not Need O(n^2) Memory", 2021, section 2.
    """
    q, k, v = (_as_dask(a, name) for a, name in ((query, "query"), (key, "key"), (value, "value")))
    shape = check_shapes(q.shape, k.shape, v.shape)
    _, dtype = promote(*((name, np.empty(0, a.dtype)) for a, name in ((q, "query"), (k, "key"), (v, "value"))))
    every = check_int(split_every, "split_every", 2)
    lower_right = is_lower_right(causal_alignment)
    query_len, key_len = shape.scores[2:]
    left, right = check_window(window_size, query_len + key_len)
    if check_flag(is_causal, "is_causal"):
        right = 0
    band = _parts.Band(key_len - query_len if lower_right else 0, left, right)
    per_head = {"alibi_slopes": alibi_slopes, "sinks": sinks}
    for name, given in per_head.items():
        if given is not None and np.shape(given) != (shape.scores[1],):
            raise ValueError(f"{name}: shape {np.shape(given)}, expected one entry for each query head, "
                             f"({shape.scores[1]},)")  # fmt: skip

    q, k, v = _aligned(q, k, v)
    chunks = (*q.chunks[:-1], k.chunks[-2])
    masks = _Masks(
        _fitted(mask, "mask", chunks, keeps=True),
        _fitted(bias, "bias", chunks, keeps=False),
        _padding(key_padding_mask, chunks, shape.batch),
    )
    options = {"scale": scale, "softcap": softcap, "precision": precision}
    name = f"attention-{_base.tokenize(q, k, v, *masks, band, options, per_head, every)}"
    graph = _graph(name, (q, k, v), masks, band, options, per_head, every, dtype)
    sources = [a for a in (q, k, v, *masks) if a is not None]
    graph = _graphs.HighLevelGraph.from_collections(name, graph, dependencies=sources)
    results = (
        _result(name, graph, 0, (*q.chunks[:-1], v.chunks[-1]), dtype),
        _result(name, graph, 1, q.chunks[:-1], np.dtype(np.float64 if dtype == np.float64 else np.float32)),
    )
    return results if check_flag(return_lse, "return_lse") else results[0]


def _as_dask(a: Any, name: str) -> Any:
    if isinstance(a, _arrays.Array):
        if any(np.isnan(size) for size in a.shape):
            raise ValueError(f"{name}: shape {a.shape}, expected known sizes; compute_chunk_sizes() finds them")
        return a
    return _arrays.from_array(np.asarray(a), chunks=-1)


def _aligned(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """The arrays with the last axis in one chunk, equal chunks of batches and of keys, and the chunks of query heads
    those of the key heads that they share."""
    q, k, v = (a.rechunk({a.ndim - 1: -1}) for a in (q, k, v))
    v = v.rechunk({axis: k.chunks[axis] for axis in range(k.ndim - 1)})
    if q.ndim > 3 and k.shape[-3] and q.shape[-3] != k.shape[-3]:
        group = q.shape[-3] // k.shape[-3]
        q = q.rechunk({q.ndim - 3: tuple(size * group for size in k.chunks[-3])})
        batch = q.ndim - 3
    else:
        batch = q.ndim - 2
    k, v = (a.rechunk({axis: q.chunks[axis] for axis in range(batch)}) for a in (k, v))
    return q, k, v


def _fitted(a: Any, name: str, chunks: Chunks, keeps: bool) -> Any:
    """``a`` in chunks that fit those of the scores, with an axis for each of theirs."""
    if a is None:
        return None
    a = a if isinstance(a, _arrays.Array) else _arrays.from_array(np.asarray(a), chunks=-1)
    if keeps and a.dtype.kind not in "biu":
        raise TypeError(f"{name}: dtype {a.dtype}, expected bool or integers; bias= adds numbers to the scores")
    sizes = tuple(map(sum, chunks))
    if a.ndim > len(sizes) or any(n not in {1, size} for n, size in zip(a.shape[::-1], sizes[::-1], strict=False)):
        raise ValueError(f"{name}: shape {a.shape}, expected one that broadcasts to the scores, {sizes}")
    a = a.reshape((*[1] * (len(sizes) - a.ndim), *a.shape))
    return a.rechunk(tuple(1 if n == 1 else of_axis for n, of_axis in zip(a.shape, chunks, strict=True)))


def _padding(a: Any, chunks: Chunks, batch: tuple[int, ...]) -> Any:
    """``key_padding_mask`` in the chunks of the batch and of the keys."""
    if a is None:
        return None
    shape = (*(batch or (1,)), sum(chunks[-1]))
    if np.shape(a) != shape:
        raise ValueError(f"key_padding_mask: shape {np.shape(a)}, expected (batch, key_len), {shape}")
    if not isinstance(a, _arrays.Array):
        a = _arrays.from_array(np.asarray(a), chunks=-1)
    if a.dtype.kind not in "biu":
        raise TypeError(f"key_padding_mask: dtype {a.dtype}, expected bool or integers")
    return a.rechunk((*(chunks[: len(batch)] or ((1,),)), chunks[-1]))


def _ranges(sizes: tuple[int, ...]) -> list[range]:
    """The positions of the entries of each chunk of an axis."""
    ends = list(itertools.accumulate(sizes))
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _graph(
    name: str,
    arrays: tuple[Any, Any, Any],
    masks: _Masks,
    band: _parts.Band,
    options: dict[str, Any],
    per_head: dict[str, Any],
    every: int,
    dtype: np.dtype[Any],
) -> Graph:
    """The tasks, of which ``(name, *chunk of queries)`` returns the output and the log-sum-exp of that chunk."""
    q, k, v = arrays
    rank, graph = q.ndim, {}
    queries, keys = _ranges(q.chunks[-2]), _ranges(k.chunks[-2])
    heads = _ranges(q.chunks[-3]) if rank > 3 else [range(1)]
    for lead in itertools.product(*(range(n) for n in q.numblocks[:-2])):
        head = heads[lead[-1]] if rank > 3 else heads[0]
        own = {key: None if a is None else np.asarray(a)[head.start : head.stop] for key, a in per_head.items()}
        for i, rows in enumerate(queries):
            parts = []
            for j, columns in enumerate(keys):
                if not band.sees(rows, columns):
                    continue
                part = (f"part-{name}", *lead, i, j)
                graph[part] = (
                    _parts.attend, (q.name, *lead, i, 0), (k.name, *lead, j, 0), (v.name, *lead, j, 0),
                    *_chunks_of(masks, lead, i, j), band.within(rows, columns),
                    {**options, "alibi_slopes": own["alibi_slopes"]},
                )  # fmt: skip
                parts.append(part)
            where = (name, *lead, i)
            if not parts:
                sizes = (*(q.chunks[axis][n] for axis, n in enumerate((*lead, i))), v.shape[-1])
                last: Any = (_parts.without_keys, sizes, dtype)
            else:
                last = _tree(graph, f"merge-{name}", (*lead, i), parts, every)
            graph[where] = last if own["sinks"] is None else (_parts.add_sinks, last, own["sinks"])
    return graph


def _chunks_of(masks: _Masks, lead: tuple[int, ...], i: int, j: int) -> Iterator[Any]:
    """The keys of the chunks of ``masks`` that belong to a pair of chunks; the first one of an axis of size 1."""
    for a, where in zip(masks, ((*lead, i, j), (*lead, i, j), None), strict=True):
        if a is None:
            yield None
        elif where is None:  # key_padding_mask, which has the axes of the batch and that of the keys
            yield (a.name, *(lead[: a.ndim - 1] or (0,)), j)
        else:
            yield (a.name, *(0 if a.numblocks[axis] == 1 else n for axis, n in enumerate(where)))


def _tree(graph: Graph, name: str, where: tuple[int, ...], parts: list[Any], every: int) -> Any:
    """The last task of a tree that merges ``parts``, ``every`` of them at a time."""
    for level in itertools.count():
        if len(parts) <= every:
            break
        merged = []
        for n, group in enumerate(_parts.groups(len(parts), every)):
            graph[(name, *where, level, n)] = (_parts.merge, [parts[m] for m in group])
            merged.append((name, *where, level, n))
        parts = merged
    return (_parts.merge, parts)


def _result(name: str, graph: Any, which: int, chunks: Chunks, dtype: np.dtype[Any]) -> Any:
    """The output or the log-sum-exp as a Dask array."""
    own = f"{('output', 'lse')[which]}-{name}"
    blocks = itertools.product(*(range(len(sizes)) for sizes in chunks))
    rank = len(chunks) - (which == 0)
    layer = {(own, *block): (operator.getitem, (name, *block[:rank]), which) for block in blocks}
    layers = {**graph.layers, own: layer}
    dependencies = {**graph.dependencies, own: {name}}
    whole = _graphs.HighLevelGraph(layers, dependencies)
    return _arrays.Array(whole, own, chunks=chunks, dtype=dtype)

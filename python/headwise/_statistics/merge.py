"""Statistics of attention of some queries to some keys, and those of a whole sequence made of them.

The weights of a part are those of its own softmax times ``exp(lse of the part - lse of the whole sequence)``. So sums
of weights, and entropy, are the sums of the parts, and the largest weights are the largest ones of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from headwise._base.arrays import as_array, cast_layout, promote
from headwise._base.attention_spec import spec_of_part
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import allocate
from headwise._base.typing import FLOAT64, INT64
from headwise._numpy.attention_statistics import weight_parts
from headwise._numpy.statistics_totals import entropies, top_keys
from headwise._ops.attention.call import with_heads
from headwise._ops.attention.dropout import backend_of
from headwise._ops.attention.merge import part_weights
from headwise._ops.attention.parts import with_masks
from headwise._ops.attention.shapes import check_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array, Named, Shape
    from headwise._ops.attention.shapes import AttentionShape

    Found: TypeAlias = dict[str, Array]  # by name; "top_k" is "top_weights" and "top_indices"

_TOP = ("top_weights", "top_indices")


@dataclass(frozen=True)
class Request:
    """The statistics to compute."""

    names: tuple[str, ...]
    k: int  # the number of top keys
    block_size: tuple[int, int]
    average_heads: bool


@ieee
def part_statistics(
    query: ArrayLike,
    key: ArrayLike,
    lse: Array,
    masks: Sequence[Named],
    spec: AttentionSpec,
    request: Request,
    first_key: int,
) -> Found:
    """The statistics of some queries and some keys, the first of which is ``first_key`` of the sequence.

    ``lse`` is that of the queries and all keys. The first query and the first key of the part start a block.
    """
    q, keys = as_array(query, "query"), as_array(key, "key")
    compute, dtype = promote(("query", q), ("key", keys))
    stored = dtype if dtype.itemsize == 2 else compute
    shape = check_shapes(q.shape, keys.shape, (*keys.shape[:-1], 0))
    spec = with_masks(spec, masks, shape, (compute, compute))
    q, keys = (with_heads(cast_layout(a, stored, last=True)) for a in (q, keys))
    (batch, heads, query_len, key_len), kv_heads = shape.scores, keys.shape[1]
    whole, average = lse.reshape(shape.scores[:3]), request.average_heads
    found = _zeros(request, (batch, 1 if average else heads), query_len, key_len, compute)
    if not kv_heads:  # an empty chunk of heads
        return _in_shape(found, shape, average=average)
    group = heads // kv_heads
    for b, g, r in weight_parts(batch, kv_heads, group, query_len, key_len, all_heads=average):
        h = slice(g.start * group, g.stop * group)
        rows, some = cast_dtype(q[b, h, r], compute), keys[b, g]
        nothing, output = (allocate((*a.shape[:3], 0), a.dtype) for a in (some, rows))
        weights, part_lse = allocate((*rows.shape[:3], key_len), compute), allocate(rows.shape[:3], compute)
        backend_of(spec).attention(rows, some, nothing, output, weights, part_lse, spec_of_part(spec, b, h, r))
        weights *= part_weights(part_lse, whole[b, h, r])[..., np.newaxis]
        if average:
            h, weights = slice(0, 1), weights.mean(axis=1, keepdims=True)
        _add(found, (b, h, r), weights, request.block_size, first_key)
    return _in_shape(found, shape, average=average)


def _in_shape(found: Found, shape: AttentionShape, *, average: bool) -> Found:
    """Statistics (batch, heads, ...) with the axes of the arguments; averaged ones without an axis of heads."""
    lead = shape.output[:-3] if average and shape.has_heads else shape.output[:-2]
    return {name: a.reshape((*lead, *a.shape[2:])) for name, a in found.items()}


def _zeros(request: Request, lead: tuple[int, int], query_len: int, key_len: int, compute: np.dtype[Any]) -> Found:
    k, blocks = (
        min(request.k, key_len),
        (-(-n // size) for n, size in zip((query_len, key_len), request.block_size, strict=True)),
    )
    wanted: dict[str, dict[str, tuple[Shape, np.dtype[Any]]]] = {
        "key_mass": {"key_mass": ((key_len,), FLOAT64)},
        "entropy": {"entropy": ((query_len,), compute)},
        "max_weight": {"max_weight": ((query_len,), compute)},
        "top_k": {"top_weights": ((query_len, k), compute), "top_indices": ((query_len, k), INT64)},
        "block_mass": {"block_mass": (tuple(blocks), FLOAT64)},
    }
    named = {name: of for which in request.names if which in wanted for name, of in wanted[which].items()}
    return {name: np.zeros((*lead, *shape), dtype) for name, (shape, dtype) in named.items()}


def _add(found: Found, where: tuple[slice, ...], weights: Array, block_size: tuple[int, int], first_key: int) -> None:
    """Take the ``weights`` of some batch entries, heads and rows into account."""
    b, h, r = where
    if "key_mass" in found:
        found["key_mass"][b, h] += weights.sum(axis=2)
    if "max_weight" in found:
        weights.max(axis=3, out=found["max_weight"][where])
    if "entropy" in found:
        found["entropy"][where] = entropies(weights)
    if "top_weights" in found:
        found["top_weights"][where], found["top_indices"][where] = top_keys(weights, found["top_weights"].shape[3])
        found["top_indices"][where] += first_key
    if "block_mass" in found:
        rows, keys = block_size
        by_keys = np.add.reduceat(weights, np.arange(0, weights.shape[3], keys), axis=3)
        first, last = r.start // rows, (r.stop - 1) // rows
        starts = np.maximum(np.arange(first, last + 1) * rows - r.start, 0)
        found["block_mass"][b, h, first : last + 1] += np.add.reduceat(by_keys, starts, axis=2)


@ieee
def merge_rows(parts: Sequence[Found], k: int) -> Found:
    """The statistics with an entry for each query, of the same queries and the keys of all ``parts``."""
    merged: Found = {}
    if "entropy" in parts[0]:
        merged["entropy"] = sum_of([part["entropy"] for part in parts])
    if "max_weight" in parts[0]:
        merged["max_weight"] = np.maximum.reduce([part["max_weight"] for part in parts])
    if "top_weights" in parts[0]:
        weights, keys = (np.concatenate([part[name] for part in parts], axis=-1) for name in _TOP)
        # Of equal weights the first keys; NaN before all others, as in one call.
        order = np.lexsort((keys, -np.where(np.isnan(weights), np.inf, weights)), axis=-1)[..., :k]
        merged["top_weights"], merged["top_indices"] = (np.take_along_axis(a, order, axis=-1) for a in (weights, keys))
    return merged


def with_masked_keys(found: Found | None, rows: Shape, request: Request, masked: Array, dtype: np.dtype[Any]) -> Found:
    """``found`` of queries ``rows``, with some keys of weight 0, which no part has: ``masked``, in increasing order.

    ``found`` is None if there is no part. ``dtype`` is that of the computation.
    """
    shape = (*rows, len(masked))
    of_masked = {
        "entropy": np.zeros(rows, dtype),
        "max_weight": np.zeros(rows, dtype),
        "top_weights": np.zeros(shape, dtype),
        "top_indices": np.broadcast_to(masked, shape),
    }
    if found is not None:
        return merge_rows([found, {name: a for name, a in of_masked.items() if name in found}], request.k)
    names = {name for name in of_masked if name in request.names or ("top_k" in request.names and name in _TOP)}
    return {name: of_masked[name] for name in names}


def sum_of(arrays: Sequence[Array]) -> Array:
    """The sum of arrays of one shape, in their order."""
    total = arrays[0].copy()
    for a in arrays[1:]:
        total += a
    return total


def zero_mass(shape: Shape) -> Array:
    """The mass of keys or blocks without any part."""
    return np.zeros(shape, FLOAT64)


def first_keys(masked: Sequence[slice], k: int) -> Array:
    """The first ``k`` keys of ranges in increasing order."""
    found: list[Array] = []
    for keys in masked:
        missing = k - sum(map(len, found))
        if missing <= 0:
            break
        found.append(np.arange(keys.start, min(keys.stop, keys.start + missing), dtype=INT64))
    return np.concatenate(found) if found else np.empty(0, INT64)

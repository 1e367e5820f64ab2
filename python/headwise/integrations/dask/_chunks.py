"""Arrays in chunks that fit each other, and what each pair of a chunk of queries and a chunk of keys computes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.attention_spec import spec_of_part
from headwise._base.blocks import KeepBlocks
from headwise._ops.attention.masks import CausalMask, PaddingMask
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.parts import keeps_none
from headwise._ops.attention.relative_bias import check_relative_bias
from headwise._ops.attention.relative_values import check_relative_values
from headwise._ops.attention.score_masks import aligned_masks
from headwise._ops.attention.shapes import check_shapes
from headwise._ops.attention.spec import attention_spec
from headwise.integrations import _parts
from headwise.integrations.dask._keywords import refuse_collections
from headwise.integrations.dask._library import arrays

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headwise._base.attention_spec import AttentionSpec
    from headwise._ops.attention.shapes import AttentionShape

    Array = np.ndarray[Any, Any]
    Where = tuple[int, ...]  # the indices of a chunk

#: Options that are not in chunks: all tasks have them, or they decide the tasks.
WHOLE = ("alibi_slopes", "sinks", "key_lengths", "relative_values")


@dataclass(frozen=True)
class Chunks:
    """The scores of a call in chunks."""

    query: Any  # Dask arrays, with the last axis in one chunk, and chunks of the other axes that fit each other
    key: Any
    value: Any  # or None
    shape: AttentionShape
    dtype: np.dtype[Any]  # of the output
    compute: np.dtype[Any]  # of the computation
    spec: AttentionSpec  # of the whole call, without sinks and the arrays of `masks`
    sinks: Array | None
    relative_values: Array | None
    masks: dict[str, Any]  # Dask arrays with the axes of the scores, in their chunks where the size is not 1

    @cached_property
    def rows(self) -> list[slice]:
        """The positions of each chunk of queries."""
        return slices(self.query.chunks[-2])

    @cached_property
    def keys(self) -> list[slice]:
        """The positions of each chunk of keys."""
        return slices(self.key.chunks[-2])

    def leads(self) -> Iterator[tuple[Where, slice, slice]]:
        """The chunks of the axes before those of queries, with their batch entries and heads.

        The batch entries are not those of the chunk if nothing depends on them and the arrays have several axes of the
        batch.
        """
        axes = len(self.shape.batch)
        batch = slices(self.query.chunks[0]) if axes else [slice(0, 1)]
        others = math.prod(self.shape.batch[1:])
        heads = slices(self.query.chunks[-3]) if self.shape.has_heads else [slice(0, 1)]
        for lead in itertools.product(*(range(n) for n in self.query.numblocks[:-2])):
            entries = batch[lead[0] if axes else 0]
            b = slice(entries.start * others, entries.stop * others)
            yield lead, b, heads[lead[-1] if self.shape.has_heads else 0]

    def pair(self, b: slice, h: slice, i: int, j: int) -> _parts.Pair | None:
        """What the chunk ``i`` of queries and the chunk ``j`` of keys compute; None if all of their scores are masked.

        Masks that are arrays are not looked at.
        """
        spec, rows, keys = self.spec, self.rows[i], self.keys[j]
        size = rows.stop - rows.start, keys.stop - keys.start
        if spec.key_lengths is None:  # the window alone decides most pairs
            band = spec._replace(offset=spec.offset + rows.start - keys.start, blocks=None)
            if keeps_none(band, *size):
                return None
        part = spec_of_part(spec, b, h, rows, keys)
        if part.blocks is not None:
            part = part._replace(blocks=part.blocks.alone(size[0]))
        if keeps_none(part, *size):
            return None
        table = self.relative_values
        if table is not None and len(table) > 1:
            table = table[h]
        return _parts.Pair(part, tuple(self.masks), table)

    def mask_chunks(self, lead: Where, i: int, j: int) -> list[Any]:
        """The chunks of masks that belong to a pair of chunks."""
        found = []
        for name, a in self.masks.items():
            where: Where = (*lead, i, j)
            if name == "relative_bias":
                where = (*lead, i, 0) if self.shape.has_heads else (*lead, 0, i, 0)
            found.append((a.name, *(0 if n == 1 else m for n, m in zip(a.numblocks, where, strict=True))))
        return found

    @property
    def token(self) -> tuple[Any, ...]:
        """All that decides the results, as Dask names tasks by it."""
        return (*self.sources, tuple(self.masks), tuple(self.spec), self.sinks, self.relative_values)

    @property
    def sources(self) -> list[Any]:
        """The Dask arrays that tasks read."""
        return [a for a in (self.query, self.key, self.value, *self.masks.values()) if a is not None]


def slices(sizes: tuple[int, ...]) -> list[slice]:
    """The positions of the entries of each chunk of an axis."""
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def as_dask(a: Any, name: str) -> Any:
    """``a`` as a Dask array of known sizes; arrays that are not Dask's are one chunk."""
    if isinstance(a, arrays.Array):
        if any(np.isnan(size) for size in a.shape):
            raise ValueError(f"{name}: shape {a.shape}, expected known sizes; compute_chunk_sizes() finds them")
        return a
    return arrays.from_array(as_array(a, name), chunks=-1)


def in_chunks(
    given: Mapping[str, Any],
    options: SpecOptions,
    *,
    multiples: tuple[int, int] = (1, 1),
    all_heads: bool = False,
) -> Chunks:
    """The checked arguments of a call: ``given`` are query, key and, where it has one, value.

    The chunks of queries and keys start at ``multiples``. With ``all_heads``, all heads are in one chunk.
    """
    refuse_collections({name: getattr(options, name) for name in WHOLE})
    lazy: dict[str, Any] = {name: as_dask(a, name) for name, a in given.items()}
    q, k, v = lazy["query"], lazy["key"], lazy.get("value")
    shape = check_shapes(q.shape, k.shape, (*k.shape[:-1], 0) if v is None else v.shape)
    compute, dtype = promote(*((name, np.empty(0, a.dtype)) for name, a in lazy.items()))
    blocks = options.mask if isinstance(options.mask, KeepBlocks) else None
    spec = attention_spec(
        shape, (compute, compute), options._replace(mask=blocks, bias=None, key_padding_mask=None, relative_bias=None)
    )
    by_entry = spec.key_lengths is not None or spec.score_mod is not None or blocks is not None
    if by_entry and len(shape.batch) > 1:
        q = q.rechunk(dict.fromkeys(range(1, len(shape.batch)), -1))
    if all_heads and shape.has_heads:
        q, k = (a.rechunk({a.ndim - 3: -1}) for a in (q, k))
    table = None
    if options.relative_values is not None:
        table = check_relative_values(options.relative_values, shape, compute)
    query_size, key_size = multiples
    if blocks is not None:
        key_size = math.lcm(key_size, blocks.block_size[1])
    q, k = _at_multiples(q, query_size), _at_multiples(k, key_size)
    q, k, v = _aligned(q, k, v, has_heads=shape.has_heads)
    masks = _masks(
        options._replace(mask=None) if blocks is not None else options, shape, compute, (*q.chunks[:-1], k.chunks[-2])
    )
    return Chunks(q, k, v, shape, dtype, compute, spec._replace(sinks=None), spec.sinks, table, masks)


def _at_multiples(a: Any, size: int) -> Any:
    """``a`` with chunks of the last axis but one that start at multiples of ``size``."""
    total = a.shape[-2]
    ends = sorted({min(total, -(-end // size) * size) for end in itertools.accumulate(a.chunks[-2])})
    return a.rechunk({a.ndim - 2: tuple(np.diff(ends, prepend=0).tolist())}) if size > 1 and total else a


def _aligned(q: Any, k: Any, v: Any, *, has_heads: bool) -> tuple[Any, Any, Any]:
    """The arrays with the last axis in one chunk, equal chunks of batches and of keys, and the chunks of query heads
    those of the key heads that they share."""
    q, k = (a.rechunk({a.ndim - 1: -1}) for a in (q, k))
    if has_heads and k.shape[-3] and q.shape[-3] != k.shape[-3]:
        group = q.shape[-3] // k.shape[-3]
        q = q.rechunk({q.ndim - 3: tuple(size * group for size in k.chunks[-3])})
        same = q.ndim - 3
    else:
        same = q.ndim - 2
    k = k.rechunk({axis: q.chunks[axis] for axis in range(same)})
    if v is not None:
        v = v.rechunk({v.ndim - 1: -1, **{axis: k.chunks[axis] for axis in range(k.ndim - 1)}})
    return q, k, v


def _masks(options: SpecOptions, shape: AttentionShape, compute: np.dtype[Any], chunks: Any) -> dict[str, Any]:
    """The masks, biases and relative biases that are given, in ``chunks``, those of the scores."""
    given = {name: getattr(options, name) for name in ("mask", "key_padding_mask", "bias", "relative_bias")}
    lazy = {name: as_dask(a, name) for name, a in given.items() if a is not None}
    for name in ("mask", "key_padding_mask"):
        if name in lazy and lazy[name].dtype.kind not in "biu":
            raise TypeError(
                f"{name}: dtype {lazy[name].dtype}, expected bool or integers; bias= adds numbers to the scores"
            )
    empty: Any = {name: without_entries(a, given[name]) for name, a in lazy.items() if name != "relative_bias"}
    axes = {name: a.shape for name, a in aligned_masks(SpecOptions(**empty), shape)}
    found = {name: fitted(lazy[name].reshape(of_scores), chunks) for name, of_scores in axes.items()}
    if "relative_bias" in lazy:
        a = lazy["relative_bias"]
        check_relative_bias(without_entries(a), shape, compute)
        lead = chunks[:-1] if shape.has_heads else (*chunks[:-2], (1,), chunks[-2])
        found["relative_bias"] = fitted(a, (*lead, a.shape[-1:]))
    return found


def without_entries(a: Any, given: Any = None) -> Array:
    """An array without memory, in the shape and dtype of ``a``, and in the class of a mask ``given``."""
    array = np.broadcast_to(np.zeros((), a.dtype), a.shape)
    return array.view(type(given)) if isinstance(given, (CausalMask, PaddingMask)) else array


def fitted(a: Any, chunks: Any) -> Any:
    """``a`` with axes of size 1 before its own, and in ``chunks`` where the size is not 1."""
    a = a.reshape((*[1] * (len(chunks) - a.ndim), *a.shape))
    return a.rechunk(tuple((1,) if n == 1 else of_axis for n, of_axis in zip(a.shape, chunks, strict=True)))

"""Packed sequences in chunks of rows, and what each pair of a chunk of queries and a chunk of keys has of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import promote
from headwise._base.attention_spec import EVERY, PackedSequences, spec_of_part
from headwise._ops.attention.relative_bias import check_relative_bias
from headwise._ops.attention.shapes import check_packed_shapes
from headwise._ops.attention.spec import attention_spec, is_lower_right
from headwise._ops.attention.varlen import packed_sequences
from headwise.integrations import _parts
from headwise.integrations.dask._chunks import WHOLE, as_dask, fitted, slices, without_entries
from headwise.integrations.dask._keywords import refuse_collections

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headwise._base.attention_spec import AttentionSpec
    from headwise._ops.attention.options import SpecOptions
    from headwise._ops.attention.shapes import AttentionShape


@dataclass(frozen=True)
class PackedChunks:
    """The arguments of a call in chunks that fit each other."""

    query: Any  # Dask arrays (rows, heads, dim), with the last axis in one chunk
    key: Any
    value: Any
    relative_bias: Any  # or None
    shape: AttentionShape
    dtype: np.dtype[Any]  # of the output
    compute: np.dtype[Any]  # of the computation
    spec: AttentionSpec  # of the whole call, without sinks and relative bias
    sinks: np.ndarray[Any, Any] | None
    sequences: PackedSequences

    @property
    def sources(self) -> list[Any]:
        """The Dask arrays that tasks read."""
        return [a for a in (self.query, self.key, self.value, self.relative_bias) if a is not None]

    @property
    def token(self) -> tuple[Any, ...]:
        """All that decides the results, as Dask names tasks by it."""
        return (*self.sources, tuple(self.sequences), tuple(self.spec), self.sinks)

    def heads(self) -> list[slice]:
        """The query heads of each chunk."""
        return slices(self.query.chunks[1])

    def rows(self) -> list[slice]:
        """The rows of each chunk of queries."""
        return slices(self.query.chunks[0])

    def pairs(self, head: int, i: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """The chunks of keys that a chunk of queries sees, each with the arguments of its task."""
        spec, relative, rows = spec_of_part(self.spec, EVERY, self.heads()[head], EVERY), None, self.rows()[i]
        bias = self.relative_bias
        if bias is not None:
            relative = (bias.name, *(0 if n == 1 else m for n, m in zip(bias.numblocks, (head, i, 0), strict=True)))
        for j, keys in enumerate(slices(self.key.chunks[0])):
            some = _part_of(self.sequences, rows, keys, spec)
            if some is not None:
                names = (self.query.name, i), (self.key.name, j), (self.value.name, j)
                yield j, (*((name, n, head, 0) for name, n in names), relative, _parts.PackedPair(spec, some))


def packed_chunks(
    given: Mapping[str, Any], cumulative: tuple[Any, Any], alignment: str, options: SpecOptions
) -> PackedChunks:
    """The checked arguments of a call: query, key and value, the ``cumulative`` lengths, and the others."""
    refuse_collections(dict(zip(("cu_seqlens_q", "cu_seqlens_k"), cumulative, strict=True)))
    refuse_collections({name: getattr(options, name) for name in WHOLE})
    lazy: dict[str, Any] = {name: as_dask(a, name) for name, a in given.items()}
    q, k, v = lazy.values()
    shape = check_packed_shapes(q.shape, k.shape, v.shape)
    compute, dtype = promote(*((name, np.empty(0, a.dtype)) for name, a in lazy.items()))
    sequences = packed_sequences(*cumulative, shape, lower_right=is_lower_right(alignment))
    spec = attention_spec(shape, (compute, compute), options._replace(relative_bias=None))
    q, k = q.rechunk({2: -1}), k.rechunk({2: -1})
    if k.shape[1]:
        q = q.rechunk({1: tuple(size * (q.shape[1] // k.shape[1]) for size in k.chunks[1])})
    v = v.rechunk((k.chunks[0], k.chunks[1], -1))
    relative = None
    if options.relative_bias is not None:
        relative = as_dask(options.relative_bias, "relative_bias")
        check_relative_bias(without_entries(relative), shape, compute)
        relative = fitted(relative, (q.chunks[1], q.chunks[0], relative.shape[-1:]))
    return PackedChunks(q, k, v, relative, shape, dtype, compute, spec._replace(sinks=None), spec.sinks, sequences)


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

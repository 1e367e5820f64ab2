"""Attention over arrays in chunks: the tasks of pairs of chunks, and those that merge their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import headwise as hw
from headwise._base.arrays import promote
from headwise._base.attention_spec import fill_without_keys
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.parts import attend_packed_part, attend_part, with_masks
from headwise._ops.attention.shapes import check_shapes
from headwise._ops.gradients.attention import ROWS, Results, differentiate
from headwise._ops.gradients.parts import packed_part_gradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwise._base.attention_spec import AttentionSpec, PackedSequences

    Array = np.ndarray[Any, Any]
    Part = tuple[Array, Array]  # output and log-sum-exp of some queries, of some of their keys


@dataclass(frozen=True)
class Pair:
    """The attention of a chunk of queries to a chunk of keys, but its arrays."""

    spec: AttentionSpec  # without masks and biases
    names: tuple[str, ...] = ()  # of the masks and biases that the task has, each in the axes of the scores
    relative_values: Array | None = None  # (heads or 1, 2 M + 1, value_dim), in the dtype of the computation

    def named(self, masks: Sequence[Array]) -> list[tuple[str, Array]]:
        """The ``masks`` with their names."""
        return list(zip(self.names, masks, strict=True))


@dataclass(frozen=True)
class PackedPair:
    """A chunk of rows of packed queries, and one of keys."""

    spec: AttentionSpec
    sequences: PackedSequences  # the parts of sequences that lie in the chunks


def attend(query: Array, key: Array, value: Array | None, masks: Sequence[Array], pair: Pair) -> Part:
    """The output and log-sum-exp of a pair of chunks. Without ``value``, the output has a width of 0."""
    if value is None:
        value = np.empty((*key.shape[:-1], 0), key.dtype)
    return attend_part(query, key, value, pair.named(masks), pair.spec, pair.relative_values)


def backward(
    results: tuple[Array, Array, Array, Array | None],
    query: Array,
    key: Array,
    value: Array,
    masks: Sequence[Array],
    pair: Pair,
) -> tuple[Array, Array, Array]:
    """What a pair of chunks adds to the gradients of its queries, keys and values.

    ``results`` are the gradient of the output, the output, its log-sum-exp and the gradient of that or None, of the
    queries and all keys.
    """
    d_output, output, lse, d_lse = results
    arrays = (query, key, value)
    compute, dtype = promote(*zip(ROWS, arrays, strict=True))
    dtypes = compute, dtype if dtype.itemsize == 2 else compute
    spec = with_masks(pair.spec, pair.named(masks), check_shapes(*(a.shape for a in arrays)), dtypes)
    found = differentiate(arrays, SpecOptions(), None, Results(output, lse, None, d_output, d_lse, None), ROWS, spec)
    return found["query"], found["key"], found["value"]


def attend_packed(query: Array, key: Array, value: Array, relative_bias: Array | None, pair: PackedPair) -> Part:
    """As :func:`attend` for packed sequences: an output of (heads, rows, dim), and a log-sum-exp of (heads, rows)."""
    output, lse = attend_packed_part(query, key, value, relative_bias, pair.sequences, pair.spec)
    return output.swapaxes(0, 1), lse


def backward_packed(
    results: Sequence[Array | None],
    query: Array,
    key: Array,
    value: Array,
    relative_bias: Array | None,
    pair: PackedPair,
) -> tuple[Array, Array, Array]:
    """As :func:`backward` for packed sequences."""
    d_output, output, lse, d_lse = results
    return packed_part_gradients(
        (d_output, output, lse, d_lse), (query, key, value), relative_bias, pair.sequences, pair.spec
    )


def merge(parts: Sequence[Part]) -> Part:
    """The attention of some queries to the keys of all ``parts``."""
    return parts[0] if len(parts) == 1 else hw.merge_attention(*zip(*parts, strict=True))


def without_keys(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Part:
    """Queries that see no key; ``shape`` is that of their output."""
    output = np.empty(shape, dtype)
    lse = np.empty(shape[:-1], np.float64 if dtype == np.float64 else np.float32)
    fill_without_keys(output, lse, None)
    return output, lse


def add_sinks(part: Part, sinks: Array) -> Part:
    """``sinks``, one for each query head, in the softmax denominator of the whole sequence."""
    output, lse = part
    sink = np.broadcast_to(np.asarray(sinks, lse.dtype)[:, None] if lse.ndim > 1 else sinks, lse.shape)
    return hw.merge_attention((output, np.zeros_like(output)), (lse, sink))


def groups(count: int, size: int) -> list[range]:
    """``range(count)`` in pieces of up to ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]

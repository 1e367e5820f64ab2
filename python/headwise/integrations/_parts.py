"""Attention over arrays in chunks: which chunks of keys a chunk of queries sees, and the task of each pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import headwise as hw
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.parts import Place, attend_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray[Any, Any]
    Part = tuple[Array, Array]  # output and log-sum-exp of some queries, of some of their keys


class Band(NamedTuple):
    """Query ``i`` of the whole sequence sees the keys ``i + offset - left`` to ``i + offset + right``; -1 is open."""

    offset: int
    left: int
    right: int

    def sees(self, queries: range, keys: range) -> bool:
        """Whether any of the ``queries`` sees any of the ``keys``."""
        if not queries or not keys:
            return False
        above = self.right >= 0 and queries[-1] + self.offset + self.right < keys[0]
        below = self.left >= 0 and queries[0] + self.offset - self.left > keys[-1]
        return not above and not below

    def within(self, queries: range, keys: range) -> Place:
        """The band as the chunk of ``queries`` and that of ``keys`` count them."""
        return Place(self.offset + queries.start - keys.start, self.left, self.right)


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    key_padding_mask: Array | None,
    place: Place,
    options: dict[str, Any],
) -> Part:
    """A chunk of queries and a chunk of keys. ``options`` are those that are the same for all keys, without sinks."""
    given = SpecOptions(mask=mask, bias=bias, key_padding_mask=key_padding_mask, **options)
    return attend_part(query, key, value, place, given)


def merge(parts: Sequence[Part]) -> Part:
    """The attention of some queries to the keys of all ``parts``."""
    return parts[0] if len(parts) == 1 else hw.merge_attention(*zip(*parts, strict=True))


def without_keys(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Part:
    """Queries that see no key; ``shape`` is that of their output."""
    return np.zeros(shape, dtype), np.full(shape[:-1], -np.inf, np.float64 if dtype == np.float64 else np.float32)


def add_sinks(part: Part, sinks: Array) -> Part:
    """``sinks``, one for each query head, in the softmax denominator of the whole sequence."""
    output, lse = part
    sink = np.broadcast_to(np.asarray(sinks, lse.dtype)[:, None] if lse.ndim > 1 else sinks, lse.shape)
    return hw.merge_attention((output, np.zeros_like(output)), (lse, sink))


def groups(count: int, size: int) -> list[range]:
    """``range(count)`` in pieces of up to ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]

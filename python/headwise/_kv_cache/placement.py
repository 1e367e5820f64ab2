"""Explicit positions of new rows and of queries of a :class:`headwise.KVCache`, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.scalars import check_flag
from headwise._base.typing import INT64
from headwise._kv_cache.checks import check_counts, of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array
    from headwise._kv_cache.rows import CacheRows


class Placement(NamedTuple):
    """Where the new rows of each sequence are stored.

    Row ``order[i, j]`` is the ``j``-th row of sequence ``i``: the first ``counts[i]`` of these follow the stored rows,
    and the next ones replace the rows at the positions ``replaced[i]``, which increase.
    """

    order: Array
    counts: list[int]
    replaced: list[Array]


def check_placement(
    positions: ArrayLike, new: int, lengths: ArrayLike | None, rows: CacheRows, capacity: int
) -> Placement:
    """The placement of the first ``lengths[i]`` of ``new`` rows at ``positions``, (new,) or (batch, new)."""
    counts = check_counts(lengths, new, len(rows.lengths))
    given = _check_integers(positions, new, len(counts))
    order, longer, replaced = np.empty(given.shape, np.intp), [], []
    for i, (count, length) in enumerate(zip(counts, rows.lengths, strict=True)):
        where = given[i, :count]
        evicted = rows.offsets[i] if rows.reach < 0 else 0
        limit = "sum of the capacity and the evicted rows," if evicted else "capacity"
        _check_range(where, capacity + evicted if rows.reach < 0 else -1, of(i, counts), limit)
        by_position = np.argsort(where, kind="stable")
        where = where[by_position].astype(INT64)
        old = int(np.searchsorted(where, length))
        _check_distinct(where, length, old, of(i, counts))
        missing = where[:old][rows.is_missing(i, where[:old])]
        if missing.size:
            reason = "the ring has dropped" if rows.kept is None else "evict() has removed"
            raise ValueError(f"positions: {missing[0]}{of(i, counts)}, but {reason} this position")
        order[i] = [*by_position[old:], *by_position[:old], *range(count, new)]
        longer.append(count - old)
        replaced.append(where[:old])
    return Placement(order, longer, replaced)


def check_query_positions(
    positions: ArrayLike, new: int, counts: Sequence[int], lengths: Sequence[int], is_causal: object
) -> list[int]:
    """The length up to the last of each sequence's queries, whose positions are consecutive and stored."""
    if not check_flag(is_causal, "is_causal"):
        raise ValueError("positions: given with is_causal=False, which lets queries see all keys; expected None")
    given = _check_integers(positions, new, len(counts))
    ends = []
    for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        where = given[i, :count]
        _check_range(where, length, of(i, counts), "length")
        if np.any(where[1:] != where[:-1] + where.dtype.type(1)):
            raise ValueError(
                f"positions: not consecutive{of(i, counts)}; expected p, p + 1, ..., or a call for each run"
            )
        ends.append(int(where[-1]) + 1 if count else length)
    return ends


def _check_integers(positions: ArrayLike, new: int, batch_size: int) -> Array:
    a = as_array(positions, "positions")
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"positions: dtype {a.dtype}, expected integers")
    if a.shape not in ((new,), (batch_size, new)):
        raise ValueError(f"positions: shape {a.shape}, expected one for each row, ({new},) or ({batch_size}, {new})")
    return np.broadcast_to(a, (batch_size, new))


def _check_range(positions: Array, stop: int, of_sequence: str, name: str = "capacity") -> None:
    """ValueError unless positions are at least 0 and less than ``stop``, if that is not negative."""
    if positions.size and positions.min() < 0:
        raise ValueError(f"positions: {positions.min()}{of_sequence}, expected 0 or more")
    if positions.size and int(positions.max()) >= (stop if stop >= 0 else 1 << 62):
        limit = f"the {name} {stop}" if stop >= 0 else "2**62"
        raise ValueError(f"positions: {positions.max()}{of_sequence}, expected less than {limit}")


def _check_distinct(positions: Array, length: int, old: int, of_sequence: str) -> None:
    """ValueError unless increasing positions differ, and those from ``length`` on follow it without a gap."""
    twice = positions[1:][positions[1:] == positions[:-1]]
    if twice.size:
        raise ValueError(f"positions: {twice[0]} more than once{of_sequence}, expected different positions")
    behind = positions[old:]
    if behind.size and behind[-1] != length + behind.size - 1:
        first = behind[np.argmax(behind != length + np.arange(behind.size))]
        raise ValueError(
            f"positions: {first}{of_sequence}, but nothing is stored at position {first - 1}; expected the new rows to "
            f"follow the length {length} without a gap"
        )

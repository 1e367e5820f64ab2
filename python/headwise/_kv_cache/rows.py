"""Where :class:`headwise.KVCache` keeps its rows: what is written where, and what is moved or dropped for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.outputs import allocate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwise._base.typing import Array


class CacheRows:
    """Keys and values (batch, kv_heads, room, dim), filled from the front, each sequence for itself.

    In memory they are (kv_heads, batch, room, dim), so that a head's rows of all sequences are one matrix too. Row
    ``r`` of sequence ``i`` is of position ``shifts[i] + r``. Shifts are 0 without a ring. In a ring, rows move to the
    front when the end is reached: once in ``spare`` positions or more, so that a position costs about 9 rows moved, or
    fewer. No more is dropped than leaves what the next query sees, even after the latest ``spare`` have been taken
    back.
    """

    def __init__(
        self, batch: int, kv_heads: int, capacity: int, head_dim: int, value_dim: int, dtype: np.dtype[Any], ring: bool
    ) -> None:
        self.reach = capacity - 1 if ring else -1  # how many positions before its own a query sees; -1: all
        self.spare = max(16, capacity // 8) if ring else 0
        self.room = capacity + 2 * self.spare
        rows = (kv_heads, batch, self.room)
        self.keys = allocate((*rows, head_dim), dtype).swapaxes(0, 1)
        self.values = allocate((*rows, value_dim), dtype).swapaxes(0, 1)
        # Positions so far, and of each row 0. These lists are replaced, never changed.
        self.lengths = [0] * batch
        self.shifts = self.lengths

    def end(self, entry: int) -> int:
        """How many rows there are."""
        return self.lengths[entry] - self.shifts[entry]

    def can_take_back(self, counts: Sequence[int]) -> bool:
        """Whether so many rows can be put, and cut again, with nothing lost that queries or callers may see."""
        return self.reach < 0 or all(
            count <= self.spare or self.end(entry) + count <= self.room for entry, count in enumerate(counts)
        )

    def put(self, key: Array, value: Array, counts: Sequence[int]) -> None:
        """Write the first ``counts[i]`` rows of each sequence behind what is there; in a ring, of too many the last."""
        lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        if self.reach >= 0:
            # What NumPy would copy while it writes is copied before rows move: there may be no memory for it.
            overlap = np.may_share_memory(key, self.keys) or np.may_share_memory(value, self.values)
            if overlap or not (key.dtype.isnative and value.dtype.isnative):
                key, value = key.astype(self.keys.dtype), value.astype(self.values.dtype)
            self._make_room(counts)
        ends = [length - shift for length, shift in zip(lengths, self.shifts, strict=True)]
        if equal(counts) and equal(ends):
            self._write(slice(None), ends[0], counts[0], key, value)
        else:
            for entry, (end, count) in enumerate(zip(ends, counts, strict=True)):
                self._write(slice(entry, entry + 1), end, count, key, value)
        self.lengths = lengths

    def spans(self, counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Where the rows begin that the latest ``counts[i]`` positions of a sequence see, negative where they have been
        dropped, and how many they are."""
        if self.reach < 0:
            return [0] * len(counts), self.lengths
        seen = [min(length, self.reach + count) for length, count in zip(self.lengths, counts, strict=True)]
        return [self.end(entry) - rows for entry, rows in enumerate(seen)], seen

    def shortest(self, entry: int) -> int:
        """The length, beside 0, down to which positions can be taken back."""
        return self.shifts[entry] + self.reach if self.shifts[entry] else 0

    def cut(self, lengths: list[int]) -> None:
        """Drop the latest positions, down to these lengths."""
        self.lengths = lengths
        if any(self.shifts):
            self.shifts = [shift if length else 0 for length, shift in zip(lengths, self.shifts, strict=True)]

    def reorder(self, sources: Sequence[int]) -> None:
        """Sequence ``i`` becomes what ``sources[i]`` was."""
        to = [entry for entry, source in enumerate(sources) if entry != source]
        if not to:
            return
        take = [sources[entry] for entry in to]
        stop = max(self.end(source) for source in take)
        # All the memory that it needs, before the first row is written.
        width = max(self.keys.shape[3], self.values.shape[3])
        taken = allocate((len(to), stop, width), self.keys.dtype)
        for rows in (self.keys, self.values):
            copies = taken[..., : rows.shape[3]]
            for head in rows.swapaxes(0, 1):
                for copy, source in zip(copies, take, strict=True):
                    copy[...] = head[source, :stop]
                for copy, entry in zip(copies, to, strict=True):
                    head[entry, :stop] = copy
        self.shifts = [self.shifts[source] for source in sources]
        self.lengths = [self.lengths[source] for source in sources]

    def behind(self, other: CacheRows) -> None:
        """Hold what the next queries see of ``other``, and let them see no more."""
        starts, seen = other.spans([0] * len(other.lengths))
        parts = [slice(start, start + count) for start, count in zip(starts, seen, strict=True)]
        self.hold(seen, *([a[i, :, part] for i, part in enumerate(parts)] for a in (other.keys, other.values)))
        self.reach = other.reach

    def hold(self, lengths: list[int], keys: Sequence[Array], values: Sequence[Array]) -> None:
        """Hold these rows (kv_heads, rows, dim), the latest of so many positions."""
        for entry, (key, value) in enumerate(zip(keys, values, strict=True)):
            self.keys[entry, :, : key.shape[1]], self.values[entry, :, : value.shape[1]] = key, value
        self.lengths = lengths
        self.shifts = [length - key.shape[1] for length, key in zip(lengths, keys, strict=True)]

    def _write(self, entries: slice, end: int, count: int, key: Array, value: Array) -> None:
        rows = min(count, end)
        self.keys[entries, :, end - rows : end] = key[entries, :, count - rows : count]
        self.values[entries, :, end - rows : end] = value[entries, :, count - rows : count]

    def _make_room(self, counts: Sequence[int]) -> None:
        ends = [length - shift for length, shift in zip(self.lengths, self.shifts, strict=True)]
        if equal(self.lengths) and equal(counts):  # one view for all: sequences that had not kept step fall in
            ends = [min(ends)] * len(ends)
        shifts = []
        for entry, (rows, count) in enumerate(zip(ends, counts, strict=True)):
            if count > self.room:  # the last of the new rows will fill it
                shifts.append(self.lengths[entry] + count - self.room)
            else:
                kept = rows if rows + count <= self.room else self.room - max(count, self.spare)
                self._move(entry, kept)
                shifts.append(self.lengths[entry] - kept)
        self.shifts = shifts

    def _move(self, entry: int, count: int) -> None:
        """The latest ``count`` rows to the front."""
        end = self.end(entry)
        if count == end:
            return
        for rows in (self.keys, self.values):
            for head in rows[entry]:
                flat = head.reshape(-1).view(np.uint8)  # one axis: NumPy moves what overlaps without a copy
                width = flat.size // self.room
                flat[: count * width] = flat[(end - count) * width : end * width]


def equal(numbers: Sequence[int]) -> bool:
    """Whether they are all the same."""
    return numbers.count(numbers[0]) == len(numbers)


def of(entry: int, batch: Sequence[object]) -> str:
    """Which sequence an error is about, if there are several."""
    return f" of sequence {entry}" if len(batch) > 1 else ""

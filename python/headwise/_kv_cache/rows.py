"""Storage of a :class:`headwise.KVCache`: where rows are written, and when a ring moves or drops them."""

from __future__ import annotations

from collections import deque
from itertools import starmap
from operator import setitem
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.attention_spec import Int8Scaling
from headwise._base.int8 import decode_int8
from headwise._base.outputs import allocate
from headwise._kv_cache.storage import value_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array
    from headwise._kv_cache.checks import CacheShape
    from headwise._kv_cache.placement import Placement

    Step: TypeAlias = tuple[Any, Any, Any]  # target, index, value: target[index] = value


class CacheRows:
    """Keys and values (batch, kv_heads, slots, dim); each sequence fills its slots from the first on.

    The memory order is (kv_heads, batch, slots, dim), so that the rows of one head over all sequences also are one
    matrix. Slot ``r`` of sequence ``i`` holds position ``offsets[i] + r``, or position ``r`` if ``r < first``. Without
    a ring, offsets and ``first`` are 0 and there are ``capacity`` slots.

    A ring has ``2 * spare`` more slots. When a sequence reaches the last slot, its latest rows move to the slots from
    ``first`` on, at most once per ``spare`` positions, so a position costs on average at most about 9 row copies. The
    rows kept are all that the next query sees, also after up to ``spare`` of the latest positions have been removed.

    After :meth:`evict`, the first rows of sequence ``i`` have the positions ``kept[i]``, which increase, and row ``r``
    behind them has position ``offsets[i] + r``. ``kept`` is None before, and in a ring.

    A KeyboardInterrupt may come between any two bytecodes. So rows are first written where no query sees them, and
    ``lengths`` and ``offsets`` are then replaced in one step; rows that are seen are changed together with these lists
    (:func:`_at_once`).
    """

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        capacity, ring = shape.capacity, shape.ring
        self.reach = capacity - 1 if ring else -1  # how many positions before its own a query sees; -1: all
        self.first = shape.keep_first  # the number of these that are the first positions of the sequence
        self.spare = max(16, capacity // 8) if ring else 0
        self.slots = capacity + 2 * self.spare
        rows = (shape.num_kv_heads, shape.batch_size, self.slots)
        # All that is stored, by :func:`headwise._kv_cache.storage.parts`: keys, values, factors and bits of int8 rows.
        named = {part.name: allocate((*rows, part.width), part.dtype).swapaxes(0, 1) for part in shape.parts()}
        self.arrays = list(named.values())
        self.keys = named["keys"]
        self.values, value_bits = value_parts(named, shape.value_from_key)
        self.scaling: tuple[Int8Scaling, ...] = ()  # of int8, for keys and for values
        if value_bits is not None:
            keys = Int8Scaling(named["factors of keys"][..., 0], named["bits of keys"])
            factors = named.get("factors of values")
            self.scaling = keys, Int8Scaling(keys.factors if factors is None else factors[..., 0], value_bits)
        # The number of positions of each sequence, and the position in its slot 0. Both lists are replaced, never
        # changed in place.
        self.lengths = [0] * shape.batch_size
        self.offsets = self.lengths
        self.kept: list[Array] | None = None

    def end(self, entry: int) -> int:
        """The number of rows stored of a sequence."""
        return self.lengths[entry] - self.offsets[entry]

    def append(self, new: Sequence[Array], counts: Sequence[int]) -> None:
        """Store the first ``counts[i]`` new rows of each sequence behind its stored rows. If a ring has fewer slots
        than new rows, the latest of them are kept. ``new`` has the new rows of each of :attr:`arrays`."""
        if self.can_undo(counts):
            self.lengths = self.write(new, counts)
            return
        new = [self._unbuffered(rows) for rows in new]
        lengths = self._longer(counts)
        moves, offsets = self._room(counts)
        writes = self._writes(new, counts, lengths, offsets)
        _at_once([*moves, *writes, (vars(self), "lengths", lengths), (vars(self), "offsets", offsets)])

    def place(self, new: Sequence[Array], placement: Placement) -> None:
        """Store new rows at explicit positions: behind the stored rows, or in place of some of them."""
        order = placement.order[:, np.newaxis, :, np.newaxis]
        new = [self._unbuffered(np.take_along_axis(rows, order, axis=2)) for rows in new]
        lengths = self._longer(placement.counts)
        moves, offsets = self._room(placement.counts)
        steps = [*moves, *self._writes(new, placement.counts, lengths, offsets)]
        for entry, (count, positions) in enumerate(zip(placement.counts, placement.replaced, strict=True)):
            steps += self._replacements(entry, [rows[entry, :, count:] for rows in new], positions, offsets[entry])
        _at_once([*steps, (vars(self), "lengths", lengths), (vars(self), "offsets", offsets)])

    def write(self, new: Sequence[Array], counts: Sequence[int]) -> list[int]:
        """Write the first ``counts[i]`` new rows of each sequence behind its stored rows, for :meth:`can_undo`.

        Returns the new lengths. The rows are stored once ``lengths`` is set to them.
        """
        lengths = self._longer(counts)
        if self.reach >= 0:
            moves, offsets = self._room(counts)
            if moves:
                new = [self._unbuffered(rows) for rows in new]
                _at_once([*moves, (vars(self), "offsets", offsets)])
        for array, where, rows in self._writes(new, counts, lengths, self.offsets):
            array[where] = rows
        return lengths

    def shown(self, index: Any, rows: slice | Array) -> tuple[Array, Array]:
        """The keys and values of a sequence or a slice of them, as users read them: int8 as float32."""
        arrays = self.keys[index][..., rows, :], self.values[index][..., rows, :]
        if not self.scaling:
            return arrays
        k, v = (
            decode_int8(a, scaling.factors[index][..., rows], scaling.bits[index][..., rows, :])
            for a, scaling in zip(arrays, self.scaling, strict=True)
        )
        return k, v

    def with_scaling(self, spec: AttentionSpec, of: Callable[[Array], Array]) -> AttentionSpec:
        """``spec`` with the factors and bits of int8 keys and values, of which ``of`` takes the rows of a call."""
        if not self.scaling:
            return spec
        keys, values = (scaling.rows(of) for scaling in self.scaling)
        return spec._replace(key_scaling=keys, value_scaling=values)

    def can_undo(self, counts: Sequence[int]) -> bool:
        """Whether ``counts[i]`` rows can be appended and removed again without dropping a row that a query sees."""
        return self.reach < 0 or all(
            count <= self.spare or self.end(entry) + count <= self.slots for entry, count in enumerate(counts)
        )

    def copy_with_room(self, new: int) -> CacheRows:
        """A copy of the rows that the next queries see, with slots for ``new`` more rows of each sequence."""
        copy = CacheRows(self._shape._replace(capacity=self.reach + new, ring=False))
        visible = [self.visible(entry, 0) for entry in range(len(self.lengths))]
        copy.restore(self.lengths, [[a[i][:, rows] for i, rows in enumerate(visible)] for a in self.arrays])
        copy.reach = self.reach
        return copy

    def visible(self, entry: int, new: int, lengths: list[int] | None = None) -> slice | Array:
        """The slots of the rows that the queries of the latest ``new`` positions of a sequence see."""
        length = (lengths or self.lengths)[entry]
        end = self.rows_until(entry, length)
        rows = end if self.reach < 0 else min(length, self.reach + new)
        if not self.first or rows >= end:
            return slice(max(0, end - rows), end)
        return np.concatenate([np.arange(self.first), np.arange(end - rows + self.first, end)])

    def spans(self, lengths: list[int], counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """The first slot and the number of the rows that the queries of the latest ``counts[i]`` positions see, in
        sequences of ``lengths``. The slot is negative if some of these rows have been dropped."""
        if self.reach < 0:
            return [0] * len(counts), lengths if self.kept is None else self._rows_until(lengths)
        seen = [min(length, self.reach + count) for length, count in zip(lengths, counts, strict=True)]
        return [length - offset - rows for length, offset, rows in zip(lengths, self.offsets, seen, strict=True)], seen

    def rows_until(self, entry: int, length: int) -> int:
        """The number of rows stored at the first ``length`` positions of a sequence."""
        rows = length - self.offsets[entry]
        if self.kept is None or rows >= len(self.kept[entry]):
            return rows
        return int(np.searchsorted(self.kept[entry], length))

    def _rows_until(self, lengths: list[int]) -> list[int]:
        return [self.rows_until(entry, length) for entry, length in enumerate(lengths)]

    def positions(self, entry: int, rows: slice | Array) -> Array:
        """The positions of stored rows of a sequence."""
        slots = rows if isinstance(rows, np.ndarray) else np.arange(rows.start, rows.stop)
        positions: Array = np.where(slots < self.first, slots, slots + self.offsets[entry])
        if self.kept is not None:
            first = slots < len(self.kept[entry])
            positions[first] = self.kept[entry][slots[first]]
        return positions

    def slots_of(self, entry: int, positions: Array, offset: int) -> Array:
        """The slots of stored positions of a sequence with this ``offset``."""
        slots: Array = np.where(positions < self.first, positions, positions - offset)
        if self.kept is not None:
            first = slots < len(self.kept[entry])
            slots[first] = np.searchsorted(self.kept[entry], positions[first])
        return slots

    def is_missing(self, entry: int, positions: Array) -> Array:
        """Which of these positions, all below the length of a sequence, a ring has dropped or :meth:`evict` removed."""
        if self.kept is None:
            return (positions >= self.first) & (positions < self.offsets[entry] + self.first)
        kept = self.kept[entry]
        return (positions < self.offsets[entry] + len(kept)) & ~np.isin(positions, kept)

    def evict(self, chosen: Sequence[Array]) -> None:
        """Keep only the rows in the slots ``chosen[i]`` of each sequence, which increase; not in a ring."""
        steps: list[Step] = []
        for entry, slots in enumerate(chosen):
            moved = np.flatnonzero(slots != np.arange(len(slots)))
            if moved.size:  # all memory before the first row is written
                to = (entry, slice(None), slice(moved[0], len(slots)))
                steps += [(array, to, array[entry][:, slots[moved[0] :]]) for array in self.arrays]
        offsets = [length - len(slots) for length, slots in zip(self.lengths, chosen, strict=True)]
        kept = [self.positions(entry, slots) for entry, slots in enumerate(chosen)]
        _at_once([*steps, (vars(self), "offsets", offsets), (vars(self), "kept", kept)])

    def min_length(self, entry: int) -> int:
        """The minimum length, apart from 0, to which a sequence can be truncated."""
        return self.offsets[entry] + self.reach if self.reach >= 0 and self.offsets[entry] else 0

    def truncate(self, lengths: list[int]) -> None:
        """Remove the latest positions of each sequence, down to these lengths."""
        if self.kept is not None:
            stored = self._rows_until(lengths)
            offsets = [length - rows for length, rows in zip(lengths, stored, strict=True)]
            kept = [positions[:rows] for positions, rows in zip(self.kept, stored, strict=True)]
            vars(self).update(lengths=lengths, offsets=offsets, kept=kept)
            return
        if not any(self.offsets):
            self.lengths = lengths
            return
        offsets = [offset if length else 0 for length, offset in zip(lengths, self.offsets, strict=True)]
        vars(self).update(lengths=lengths, offsets=offsets)

    def reorder(self, sources: Sequence[int]) -> None:
        """Replace each sequence ``i`` by a copy of sequence ``sources[i]``."""
        to = [entry for entry, source in enumerate(sources) if entry != source]
        if not to:
            return
        take = [sources[entry] for entry in to]
        stop = max(self.end(source) for source in take)
        steps: list[Step] = []
        for rows in self.arrays:
            taken = allocate((len(to), stop, rows.shape[3]), rows.dtype)  # all memory before the first row is written
            for head in rows.swapaxes(0, 1):
                steps += [(copy, ..., head[source, :stop]) for copy, source in zip(taken, take, strict=True)]
                steps += [(head, (entry, slice(stop)), copy) for copy, entry in zip(taken, to, strict=True)]
        names = ["lengths", "offsets", *([] if self.kept is None else ["kept"])]
        steps += [(vars(self), name, [getattr(self, name)[i] for i in sources]) for name in names]
        _at_once(steps)

    def restore(self, lengths: list[int], stored: Sequence[Sequence[Array]], kept: list[Array] | None = None) -> None:
        """Hold these rows, (kv_heads, rows, dim) of each sequence for each of :attr:`arrays`: the latest of its
        ``lengths[i]`` positions, and the first ones, or those of ``kept``."""
        for array, sequences in zip(self.arrays, stored, strict=True):
            for entry, rows in enumerate(sequences):
                array[entry, :, : rows.shape[1]] = rows
        self.lengths = lengths
        self.offsets = [length - rows.shape[1] for length, rows in zip(lengths, stored[0], strict=True)]
        self.kept = kept

    def _longer(self, counts: Sequence[int]) -> list[int]:
        return [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def _unbuffered(self, rows: Array) -> Array:
        """New rows that NumPy copies without a buffer, for which there may be no memory once rows have moved."""
        if rows.dtype.isnative and not any(np.may_share_memory(rows, stored) for stored in self.arrays):
            return rows
        return rows.astype(rows.dtype.newbyteorder("="))

    def _writes(
        self, new: Sequence[Array], counts: Sequence[int], lengths: list[int], offsets: list[int]
    ) -> Sequence[Step]:
        """The assignments of the new rows, after which sequences have these ``lengths`` and ``offsets``."""
        ends = [length - offset for length, offset in zip(lengths, offsets, strict=True)]
        if equal(counts) and equal(ends) and (not self.first or equal(lengths)):
            return self._write(slice(None), lengths[0], ends[0], counts[0], new)
        steps: list[Step] = []
        for entry, (length, end, count) in enumerate(zip(lengths, ends, counts, strict=True)):
            steps += self._write(slice(entry, entry + 1), length, end, count, new)
        return steps

    def _write(self, entries: slice, length: int, end: int, count: int, new: Sequence[Array]) -> list[Step]:
        """The last ``count`` of ``length`` positions: those among the first in their own slots, the others up to slot
        ``end``."""
        first = min(count, max(0, self.first - (length - count))) if self.first else 0
        rows = min(count - first, max(0, end - self.first))
        steps = []
        if first:
            where, part = (entries, slice(None), slice(length - count, length - count + first)), slice(0, first)
            steps += [(array, where, given[entries, :, part]) for array, given in zip(self.arrays, new, strict=True)]
        if rows:
            where, part = (entries, slice(None), slice(end - rows, end)), slice(count - rows, count)
            steps += [(array, where, given[entries, :, part]) for array, given in zip(self.arrays, new, strict=True)]
        return steps

    def _replacements(self, entry: int, new: Sequence[Array], positions: Array, offset: int) -> Iterator[Step]:
        """The assignments of new rows, (kv_heads, rows, dim), to increasing positions of a sequence, unless the new
        ``offset`` drops them. Consecutive positions are one assignment."""
        slots = self.slots_of(entry, positions, offset)
        stored = np.flatnonzero((positions < self.first) | (slots >= self.first))
        for run in np.split(stored, np.flatnonzero(np.diff(slots[stored]) != 1) + 1):
            if run.size:
                where, part = slice(slots[run[0]], slots[run[-1]] + 1), slice(run[0], run[-1] + 1)
                for array, rows in zip(self.arrays, new, strict=True):
                    yield array, (entry, slice(None), where), rows[:, part]

    def _room(self, counts: Sequence[int]) -> tuple[list[Step], list[int]]:
        """The moves of rows of a ring to the first slots where ``counts[i]`` more would not fit, and the offsets after
        them."""
        if self.reach < 0:
            return [], self.offsets
        ends = [length - offset for length, offset in zip(self.lengths, self.offsets, strict=True)]
        if equal(self.lengths) and equal(counts):
            # Keep equally many rows of each sequence: equal offsets make the stored rows one view.
            ends = [min(ends)] * len(ends)
            if equal(self.offsets) and ends[0] + counts[0] <= self.slots:
                return [], self.offsets
        moves: list[Step] = []
        offsets = []
        for entry, (rows, count) in enumerate(zip(ends, counts, strict=True)):
            if count > self.slots:  # the latest new rows fill all slots
                offsets.append(self.lengths[entry] + count - self.slots)
            else:
                kept = rows if rows + count <= self.slots else self.slots - max(count, self.spare)
                moves += self._moves(entry, kept)
                offsets.append(self.lengths[entry] - kept)
        return moves, offsets

    def _moves(self, entry: int, count: int) -> Iterable[Step]:
        """The moves that leave ``count`` rows of a sequence in the first slots: the first rows and the latest."""
        end, first = self.end(entry), self.first
        if count == end or count <= first:
            return
        for rows in self.arrays:
            for head in rows[entry]:
                flat = head.reshape(-1).view(np.uint8)  # NumPy copies between overlapping 1-D views without a buffer
                width = flat.size // self.slots
                yield flat, slice(first * width, count * width), flat[(end - count + first) * width : end * width]


class Spans(NamedTuple):
    """The rows of the cache that the queries of each sequence see.

    Sequence ``i`` has ``lengths[i]`` positions. Its queries see ``seen[i]`` rows, which end with its latest position
    and begin in slot ``starts[i]``, apart from the first rows that a ring keeps. Its first ``counts[i]`` queries have
    the latest positions; its other queries are padding.
    """

    starts: Sequence[int]
    seen: Sequence[int]
    counts: Sequence[int]
    lengths: list[int]

    def equal(self) -> bool:
        """Whether all sequences have the same rows and queries."""
        return equal(self.counts) and equal(self.seen) and equal(self.starts)


def _at_once(steps: Iterable[Step]) -> None:
    """``target[index] = value`` for all steps, or for none of them if a signal handler raises.

    Python runs signal handlers between bytecodes, and this is a single one: assignments to arrays and dicts in C.
    """
    deque(starmap(setitem, steps), maxlen=0)


def equal(numbers: Sequence[int]) -> bool:
    """Whether all numbers are the same."""
    return numbers.count(numbers[0]) == len(numbers)

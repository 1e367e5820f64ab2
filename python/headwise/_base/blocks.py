"""A keep-mask in blocks, as backends read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from headwise._base.typing import Array

#: Entries of :attr:`Blocks.entries`. From ``FIRST_BITS`` on, ``entry - FIRST_BITS`` is an index of :attr:`Blocks.bits`.
NONE, ALL, FIRST_BITS = 0, 1, 2


class KeepBlocks:
    """The base class of :class:`headwise.BlockMask`, by which attention recognises one."""

    __slots__ = ()

    def for_scores(self, scores: tuple[int, ...]) -> Blocks:
        """The blocks, checked to fit scores (batch, heads, query_len, key_len)."""
        raise NotImplementedError

    @property
    def block_size(self) -> tuple[int, int]:
        """The queries and the keys of a block."""
        raise NotImplementedError

    def block_shares(self) -> Array:
        """The share of the pairs that each block keeps, ([batch, heads,] query_blocks, key_blocks)."""
        raise NotImplementedError


class Blocks(NamedTuple):
    """Whether each block of ``query_size`` queries and ``key_size`` keys is dropped, kept, or kept in part.

    Block ``[m, n]`` has the queries from ``m * query_size`` and the keys from ``n * key_size`` on; the last blocks may
    be cut by the lengths. The order of the fields is part of the interface: ``csrc/python/attention_spec.h`` reads them
    by position.
    """

    # int32 (batch or 1, heads or 1, query_blocks, key_blocks), C-contiguous: NONE, ALL, or of the bits
    entries: Array
    bits: Array  # uint64 (n, query_size, words), C-contiguous: bit j % 64 of word j // 64 keeps key j
    query_size: int
    key_size: int
    first_query: int = 0  # the query of the mask that query 0 of a call is

    def of_entry(self, entry: int) -> Blocks:
        """The blocks of one batch entry."""
        return self if self.entries.shape[0] == 1 else self._replace(entries=self.entries[entry : entry + 1])

    def of_part(self, b: slice, h: slice, row: int, keys: slice) -> Blocks:
        """The blocks of some batch entries, heads and keys, and of the queries from ``row`` on.

        ``keys`` start where a block does.
        """
        stop = None if keys.stop is None else -(-keys.stop // self.key_size)
        some = self._lead(b, h)[..., keys.start // self.key_size : stop]
        return self._replace(entries=np.ascontiguousarray(some), first_query=self.first_query + row)

    def alone(self, query_len: int) -> Blocks:
        """The same blocks for ``query_len`` queries, without the entries and bits of other queries."""
        first = self.first_query // self.query_size
        stop = max(first + 1, -(-(self.first_query + query_len) // self.query_size))
        entries = self.entries[:, :, first:stop].copy()
        some = entries >= FIRST_BITS
        used, index = np.unique(entries[some], return_inverse=True)
        entries[some] = index.reshape(-1) + FIRST_BITS
        bits = self.bits[used - FIRST_BITS]
        return self._replace(entries=entries, bits=bits, first_query=self.first_query - first * self.query_size)

    @property
    def keep_none(self) -> bool:
        """Whether every block is dropped."""
        return not (self.entries != NONE).any()

    def query_rows(self, start: int, stop: int, most: int) -> int:
        """The end of the rows from ``start`` that lie in one block, at most ``most`` of them and before ``stop``."""
        at = self.first_query + start
        return min(stop, start + most, (at // self.query_size + 1) * self.query_size - self.first_query)

    def runs(self, b: slice, h: slice, rows: slice, keys: slice) -> list[slice]:
        """The ranges of ``keys`` in whose blocks some of the batch entries, heads and rows keep a key."""
        first, last = keys.start // self.key_size, -(-keys.stop // self.key_size)
        some = (self._part(b, h, rows)[..., first:last] != NONE).any(axis=(0, 1, 2))
        edges = np.flatnonzero(np.diff(some, prepend=False, append=False)).reshape(-1, 2) + first
        return [
            slice(max(keys.start, start * self.key_size), min(keys.stop, stop * self.key_size))
            for start, stop in edges.tolist()
        ]

    def keep(self, b: slice, h: slice, rows: slice, keys: slice) -> Array | None:
        """The keep-mask of these pairs, bool, (batch or 1, heads or 1, rows, keys); None if all of them are kept."""
        first, last = keys.start // self.key_size, -(-keys.stop // self.key_size)
        index = self._part(b, h, rows)[..., first:last]
        if (index == ALL).all():
            return None
        start, count = self.first_query + rows.start, rows.stop - rows.start
        skipped = start % self.query_size
        inside = slice(skipped, skipped + count) if index.shape[2] == 1 else slice(0, self.query_size)
        kept = np.zeros((*index.shape, inside.stop - inside.start, self.key_size), bool)
        kept[index == ALL] = True
        some = index >= FIRST_BITS
        bits = self.bits[index[some] - FIRST_BITS, inside].view(np.uint8)
        kept[some] = np.unpackbits(bits, axis=-1, count=self.key_size, bitorder="little").view(bool)
        kept = kept.swapaxes(3, 4)
        kept = kept.reshape((*kept.shape[:2], kept.shape[2] * kept.shape[3], -1))
        left = keys.start - first * self.key_size
        top = 0 if index.shape[2] == 1 else skipped
        return kept[:, :, top : top + count, left : left + keys.stop - keys.start]

    def _part(self, b: slice, h: slice, rows: slice) -> Array:
        """The entries of the blocks of query rows that hold ``rows``."""
        first = (self.first_query + rows.start) // self.query_size
        return self._lead(b, h)[:, :, first : -(-(self.first_query + rows.stop) // self.query_size)]

    def _lead(self, b: slice, h: slice) -> Array:
        batch, heads = (slice(None) if size == 1 else s for size, s in zip(self.entries.shape[:2], (b, h), strict=True))
        return self.entries[batch, heads]

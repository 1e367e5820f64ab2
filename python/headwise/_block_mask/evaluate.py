"""Blocks from a mask function, from a dense mask, and from the blocks of other masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.blocks import ALL, FIRST_BITS, NONE, Blocks
from headwise._block_mask.intervals import Interval, Ternary, UndecidedError
from headwise._block_mask.refine import can_refine, refined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headwise._base.typing import Array
    from headwise._block_mask.grid import Grid

    MaskMod = Callable[[Any, Any, Any, Any], Any]

# Pairs of one call of a mask function: its temporaries stay in a second-level cache.
_PAIRS = 1 << 17

_INT32 = 2.0**31


class BitTable:
    """The bits of blocks that are kept in part, each pattern once."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.patterns: dict[bytes, int] = {}
        self._whole: dict[tuple[bool, bool], bytes] = {}
        self._none = bytes(grid.query_size * grid.row_bytes)

    def whole(self, row: int, column: int) -> bytes:
        """The bits of a block that keeps all of its pairs; the last blocks have fewer of them."""
        g = self.grid
        last = (row == g.query_blocks - 1, column == g.key_blocks - 1)
        if last not in self._whole:
            rows = g.query_len - row * g.query_size if last[0] else g.query_size
            keys = g.key_len - column * g.key_size if last[1] else g.key_size
            self._whole[last] = pack(np.ones((rows, keys), bool), g).tobytes()
        return self._whole[last]

    def entry(self, bits: bytes, row: int, column: int) -> int:
        """The entry of the index for a block with these bits, 0 for pairs outside the mask."""
        if bits == self._none:
            return NONE
        if bits == self.whole(row, column):
            return ALL
        return FIRST_BITS + self.patterns.setdefault(bits, len(self.patterns))

    def blocks(self, index: Array) -> Blocks:
        g = self.grid
        bits = np.frombuffer(b"".join(self.patterns), "<u8").reshape((-1, g.query_size, g.row_bytes // 8))
        index.flags.writeable = False
        return Blocks(index, bits, g.query_size, g.key_size)


def pack(kept: Array, grid: Grid) -> Array:
    """The bits (query_size, row_bytes) of a bool array of up to (query_size, key_size)."""
    bits = np.zeros((grid.query_size, grid.row_bytes), np.uint8)
    packed = np.packbits(kept, axis=1, bitorder="little")
    bits[: packed.shape[0], : packed.shape[1]] = packed
    return bits


def from_mod(mask_mod: MaskMod, grid: Grid) -> Blocks:
    """By ranges where they decide (:mod:`headwise._block_mask.intervals`), pair by pair in the other blocks."""
    batch = np.arange(grid.batch).reshape(-1, 1, 1, 1)
    heads = np.arange(grid.heads).reshape(1, -1, 1, 1)
    table = BitTable(grid)
    index = np.empty(grid.blocks, np.int32)
    unknown = np.ones(grid.blocks, bool)

    def evaluate(row: int, column: int, stop: int) -> None:
        """The key blocks ``column`` to ``stop`` of a row of blocks."""
        rows = slice(row * grid.query_size, min(grid.query_len, (row + 1) * grid.query_size))
        keys = slice(column * grid.key_size, min(grid.key_len, stop * grid.key_size))
        q = np.arange(rows.start, rows.stop, dtype=batch.dtype).reshape(1, 1, -1, 1)
        k = np.arange(keys.start, keys.stop, dtype=batch.dtype).reshape(1, 1, 1, -1)
        step = max(1, _PAIRS // (q.size * k.size))
        for b in range(0, grid.batch, max(1, step // grid.heads)):
            entries = batch[b : b + max(1, step // grid.heads)]
            for h in range(0, grid.heads, step):
                kept = call_mod(mask_mod, entries, heads[:, h : h + step], q, k)
                part = index[b : b + len(entries), h : h + step, row, column:stop]
                _classify(kept, table, part, row, column)

    if index.size:
        evaluate(0, 0, 1)
        decided, reach = _by_ranges(mask_mod, grid, batch, heads)
        if decided is not None and _agree(decided, index[:, :, 0, 0]):
            index[...] = decided
            unknown = decided < 0
            if reach < _INT32:  # no number that the function computes needs more: twice as fast
                batch, heads = batch.astype(np.int32), heads.astype(np.int32)
            if can_refine(grid):
                unknown &= ~_refine(mask_mod, (batch, heads), table, index)
    for row, start, stop in _runs(unknown, max(1, _PAIRS // (grid.query_size * grid.key_size))):
        evaluate(row, start, stop)
    return table.blocks(index)


def from_period(mask_mod: MaskMod, grid: Grid, period: int) -> Blocks:
    """The blocks of a function of ``(q - k) % period`` alone, the same for all batch entries and heads.

    Blocks whose first pairs have the same remainder are equal, but for the last ones, so one of each is evaluated.
    """
    table = BitTable(grid)
    rows, columns = (np.arange(n) for n in (grid.query_blocks, grid.key_blocks))
    remainders = ((rows * grid.query_size)[:, np.newaxis] - columns * grid.key_size) % period
    last = (rows == rows[-1])[:, np.newaxis] * 2 + (columns == columns[-1])
    _, first, inverse = np.unique(remainders * 4 + last, return_index=True, return_inverse=True)
    entries, head = np.empty(len(first), np.int32), np.zeros((1, 1, 1, 1), np.int64)
    for n, at in enumerate(first.tolist()):
        row, column = divmod(at, grid.key_blocks)
        q, k = row * grid.query_size, column * grid.key_size
        queries = np.arange(q, min(grid.query_len, q + grid.query_size)).reshape(1, 1, -1, 1)
        keys = np.arange(k, min(grid.key_len, k + grid.key_size)).reshape(1, 1, 1, -1)
        kept = call_mod(mask_mod, head, head, queries, keys)[0, 0]
        entries[n] = table.entry(pack(kept, grid).tobytes(), row, column)
    return table.blocks(np.ascontiguousarray(np.broadcast_to(entries[inverse].reshape(grid.blocks[2:]), grid.blocks)))


def _runs(unknown: Array, width: int) -> Iterator[tuple[int, int, int]]:
    """(row, first column, last column + 1) of neighbouring blocks of a row that are not known, at most ``width``."""
    for row in np.flatnonzero(unknown.any(axis=(0, 1, 3))).tolist():
        columns = unknown[:, :, row].any(axis=(0, 1))
        edges = np.flatnonzero(np.diff(columns, prepend=False, append=False)).reshape(-1, 2)
        for start, stop in edges.tolist():
            for column in range(start, stop, width):
                yield row, column, min(stop, column + width)


def _refine(mask_mod: MaskMod, heads: tuple[Array, Array], table: BitTable, index: Array) -> Array:
    """Fills the undecided entries of ``index``; returns where it did."""
    grid, done = table.grid, np.zeros(index.shape, bool)
    try:
        for blocks, kept in refined(mask_mod, grid, heads, np.argwhere(index < 0)):
            _clear_outside(kept, blocks, grid)
            bits = np.zeros((len(blocks), grid.query_size, grid.row_bytes), np.uint8)
            bits[..., : grid.key_size // 8] = np.packbits(kept, axis=2, bitorder="little")
            for one, (b, h, row, column) in zip(bits, blocks.tolist(), strict=True):
                index[b, h, row, column] = table.entry(one.tobytes(), row, column)
                done[b, h, row, column] = True
    except (UndecidedError, IndexError):  # a look-up; some of it may be done
        pass
    return done


def _clear_outside(kept: Array, blocks: Array, grid: Grid) -> None:
    """Clears the pairs outside the mask, in the last blocks."""
    rows, keys = grid.block_lengths()
    kept[blocks[:, 2] == grid.query_blocks - 1, rows[-1] :] = False
    kept[blocks[:, 3] == grid.key_blocks - 1, :, keys[-1] :] = False


def _agree(decided: Array, evaluated: Array) -> bool:
    """Whether the first block has the same answer by ranges as pair by pair."""
    first = decided[:, :, 0, 0]
    return bool(np.all((first < 0) | (first == evaluated)))


def call_mod(mask_mod: MaskMod, b: Array, h: Array, q: Array, k: Array) -> Array:
    """The mask of these pairs, checked, bool, (batch, heads, queries, keys)."""
    shape = (b.shape[0], h.shape[1], q.shape[2], k.shape[3])
    where = f"for queries {q.flat[0]} to {q.flat[-1]} and keys {k.flat[0]} to {k.flat[-1]}"
    try:
        result = mask_mod(b, h, q, k)
    except IndexError as error:
        raise ValueError(
            f"mask_mod: {error}, {where}; expected a function that looks up no index outside its arrays"
        ) from error
    if not isinstance(result, (np.ndarray, np.bool_, bool)):
        raise TypeError(f"mask_mod: returned {type(result).__name__}, expected an array of bool")
    kept = np.asarray(result)
    if kept.dtype != bool:
        raise TypeError(f"mask_mod: returned dtype {kept.dtype}, expected bool: a comparison such as q >= k")
    if kept.ndim > 4 or any(size not in (1, full) for size, full in zip(kept.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(
            f"mask_mod: returned shape {kept.shape} {where}, expected one that broadcasts to {shape}, as "
            f"comparisons of its arguments do, of shapes {b.shape}, {h.shape}, {q.shape} and {k.shape}"
        )
    return np.broadcast_to(kept, shape)


def _classify(kept: Array, table: BitTable, index: Array, row: int, column: int) -> None:
    """Fills ``index`` (batch, heads, key blocks) from the mask (batch, heads, queries, keys) of these blocks."""
    grid = table.grid
    for b, h in np.ndindex(*kept.shape[:2]):
        for n in range(index.shape[2]):
            block = kept[b, h, :, n * grid.key_size : (n + 1) * grid.key_size]
            index[b, h, n] = table.entry(pack(block, grid).tobytes(), row, column + n)


def _by_ranges(mask_mod: MaskMod, grid: Grid, batch: Array, heads: Array) -> tuple[Array | None, float]:
    """NONE, ALL or -1 for each block, or None if the function has no answer for ranges; and the largest number of all
    that it computed."""
    low_q = np.arange(0, grid.query_len, grid.query_size).reshape(1, 1, -1, 1)
    low_k = np.arange(0, grid.key_len, grid.key_size).reshape(1, 1, 1, -1)
    q = Interval(low_q, np.minimum(low_q + grid.query_size, grid.query_len) - 1, every=True)
    k = Interval(low_k, np.minimum(low_k + grid.key_size, grid.key_len) - 1, every=True)
    try:
        answer = mask_mod(batch, heads, q, k)
    except Exception:  # noqa: BLE001 (the function may do anything with arguments of another type than arrays)
        return None, 0.0
    if not isinstance(answer, Ternary):
        return None, 0.0
    sure, possible = (np.broadcast_to(x, grid.blocks) for x in (answer.sure, answer.possible))
    return np.where(sure, ALL, np.where(possible, -1, NONE)).astype(np.int32), answer.reach


def from_dense(kept: Array, grid: Grid) -> Blocks:
    """From a bool array (batch, heads, query_len, key_len)."""
    table = BitTable(grid)
    index = np.empty(grid.blocks, np.int32)
    for row in range(grid.query_blocks):
        rows = kept[:, :, row * grid.query_size : (row + 1) * grid.query_size]
        _classify(rows, table, index[:, :, row], row, 0)
    return table.blocks(index)


def combine(function: Callable[[Array, Array], Array], a: Blocks, b: Blocks, grid: Grid) -> Blocks:
    """``function`` of the bits of two masks with blocks of one size, by pairs of patterns."""
    table = BitTable(grid)
    shape = (*grid.blocks[:2], grid.query_blocks, grid.key_blocks)
    ia, ib = (np.broadcast_to(x.entries, shape).reshape(-1).astype(np.int64) for x in (a, b))
    rows, columns = np.indices(shape[2:]).reshape(2, -1)
    last = (rows == grid.query_blocks - 1) * 2 + (columns == grid.key_blocks - 1)
    edge = np.broadcast_to(last.reshape(shape[2:]), shape).reshape(-1)
    keys = (ia * (FIRST_BITS + len(b.bits)) + ib) * 4 + edge
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    size = shape[2] * shape[3]
    entries = np.empty(len(first), np.int32)
    for n, at in enumerate(first.tolist()):
        row, column = divmod(at % size, shape[3])
        whole = np.frombuffer(table.whole(row, column), np.uint8)
        bits = [_bits(x, int(i[at]), whole) for x, i in ((a, ia), (b, ib))]
        entries[n] = table.entry((function(*bits) & whole).tobytes(), row, column)
    return table.blocks(entries[inverse].reshape(shape))


def _bits(blocks: Blocks, entry: int, whole: Array) -> Array:
    if entry == NONE:
        return np.zeros_like(whole)
    return whole if entry == ALL else blocks.bits[entry - FIRST_BITS].view(np.uint8).reshape(-1)

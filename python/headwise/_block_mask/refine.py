"""Blocks that ranges leave undecided, in two steps: by the ranges of their parts of 16 x 16 pairs, then pair by pair.

Only for functions that have an answer for ranges: they consist of arithmetic, comparisons and logic, element by
element, so they take the indices of many blocks at once, with the blocks in the place of the batch entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._block_mask.intervals import Interval, Ternary, UndecidedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headwise._base.typing import Array
    from headwise._block_mask.evaluate import MaskMod
    from headwise._block_mask.grid import Grid

_PART = 16  # queries and keys of a part
_PAIRS = 1 << 20  # of the blocks of one step
_PARTS = 512  # of one call of the function


def can_refine(grid: Grid) -> bool:
    return all(size % _PART == 0 and size > _PART for size in (grid.query_size, grid.key_size))


def refined(mask_mod: MaskMod, grid: Grid, heads: tuple[Array, Array], blocks: Array) -> Iterator[tuple[Array, Array]]:
    """Some of the ``blocks``, rows of (batch, head, row, column), and their pairs (blocks, query_size, key_size), bool.

    ``heads`` are the indices of all batch entries and heads, in the dtype of the computation.
    """
    step = max(1, _PAIRS // (grid.query_size * grid.key_size))
    for start in range(0, len(blocks), step):
        some = blocks[start : start + step]
        b, h = (a.ravel()[i].reshape(-1, 1, 1, 1) for a, i in zip(heads, (some[:, 0], some[:, 1]), strict=True))
        q = _starts(some[:, 2], grid.query_size, b.dtype).reshape(len(some), 1, -1, 1)
        k = _starts(some[:, 3], grid.key_size, b.dtype).reshape(len(some), 1, 1, -1)
        answer = mask_mod(b, h, _parts(q, grid.query_len), _parts(k, grid.key_len))
        if not isinstance(answer, Ternary):
            raise UndecidedError
        shape = (len(some), 1, q.shape[2], k.shape[3])
        sure, possible = (np.broadcast_to(x, shape)[:, 0] for x in (answer.sure, answer.possible))
        kept = sure.repeat(_PART, axis=1).repeat(_PART, axis=2).reshape(len(some), q.shape[2], _PART, k.shape[3], _PART)
        n, row, column = np.nonzero(possible & ~sure)
        within = np.arange(_PART, dtype=b.dtype)
        for first in range(0, len(n), _PARTS):
            at = slice(first, first + _PARTS)
            rows = q[n[at], 0, row[at], 0].reshape(-1, 1, 1, 1) + within.reshape(-1, 1)
            keys = k[n[at], 0, 0, column[at]].reshape(-1, 1, 1, 1) + within
            pairs = np.broadcast_to(mask_mod(b[n[at]], h[n[at]], rows, keys), (len(rows), 1, _PART, _PART))
            kept[n[at], row[at], :, column[at]] = pairs[:, 0]
        yield some, kept.reshape(len(some), grid.query_size, grid.key_size)


def _parts(low: Array, length: int) -> Interval:
    """The ranges of the parts, of which those behind the last index have that one alone."""
    return Interval(np.minimum(low, length - 1), np.minimum(low + (_PART - 1), length - 1))


def _starts(blocks: Array, size: int, dtype: np.dtype[np.generic]) -> Array:
    """The first index of each part of these blocks."""
    starts: Array = blocks[:, np.newaxis].astype(dtype) * size + np.arange(0, size, _PART, dtype=dtype)
    return starts

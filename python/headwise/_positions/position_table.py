"""Tables of rows by position, which grow with the positions that calls ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, compact, fits, promote, snapshot
from headwise._base.ieee import cast_dtype
from headwise._base.outputs import check_room
from headwise._base.scalars import check_int

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


# Integers are exact in float64 up to this magnitude.
_MAX_POSITION = 1 << 53


def check_offset(offset: object, positions: object) -> int:
    """The position of the first row, checked: 0 if ``positions`` are given."""
    start = check_int(offset, "offset", -_MAX_POSITION, _MAX_POSITION)
    if start and positions is not None:
        raise ValueError(f"offset: {start}, expected 0 if positions are given")
    return start


def as_positions(positions: ArrayLike) -> Array:
    """A copy of ``positions`` as an array of integers; see :func:`headwise._base.arrays.snapshot`."""
    where = as_array(positions, "positions")
    if where.size == 0:
        return where.astype(np.intp)
    if where.dtype.kind not in "iu":
        raise TypeError(f"positions: dtype {where.dtype}, expected integers")
    check_room(*where.shape)
    return snapshot(where)


class PositionTable:
    """Rows ``function(position)`` for the positions 0, 1, 2, …: a read-only float64 table and its last cast.

    ``function`` maps float64 positions of any shape ``(…,)`` to rows ``(…, width)``.
    """

    # Maximum size of a float64 table, 64 MB. Rows of later positions are computed on demand, so that a single position
    # of 10^12 costs one row instead of a table up to it.
    max_bytes = 64 << 20

    def __init__(self, function: Callable[[Array], Array], length: int) -> None:
        self._function = function
        self.array: Array = self._rows(0, length)
        self._cast = self.array

    def first(self, length: int, dtype: np.dtype[Any]) -> Array:
        """The rows of positions ``0 .. length - 1``: (length, width)."""
        table = self._covering(length, dtype)
        return cast_dtype(self._rows(0, length), dtype) if table is None else table[:length]

    def at(self, positions: Array, dtype: np.dtype[Any]) -> Array:
        """The rows of any integer positions: (…, width)."""
        distinct = compact(positions)  # without the repetitions of broadcast axes
        if distinct.size and distinct.min() >= 0:
            table = self._covering(int(distinct.max()) + 1, dtype)
            if table is not None:
                return np.take(table, positions.astype(np.intp, copy=False), axis=0)
        return cast_dtype(self._function(positions.astype(np.float64)), dtype)

    def _rows(self, start: int, stop: int) -> Array:
        check_room(stop - start)
        rows = self._function(np.arange(start, stop, dtype=np.float64))
        rows.flags.writeable = False
        return rows

    def _covering(self, length: int, dtype: np.dtype[Any]) -> Array | None:
        """A table in ``dtype`` with at least ``length`` rows, or None if it would be too big.

        A table that is too short grows to ``length`` rows, and at least to twice its length. If several threads grow
        it at once, each uses its own result.
        """
        table = self.array
        if length > len(table):
            row_bytes = table[:1].nbytes
            if length * row_bytes > self.max_bytes:
                return None
            grown = max(length, min(2 * len(table), self.max_bytes // row_bytes))
            table = np.concatenate([table, self._rows(len(table), grown)])
            table.flags.writeable = False
            self.array = table
        if table.dtype == dtype:
            return table
        cast = self._cast
        if cast.dtype != dtype or len(cast) < len(table):
            cast = self._cast = cast_dtype(table, dtype)
        return cast


def row_positions(positions: ArrayLike | None, offset: int, shape: tuple[int, ...]) -> Array | None:
    """The positions of the rows of an ``x`` of this shape, (seq,) or (…, seq); None: 0, 1, 2, …."""
    start, rows = check_offset(offset, positions), shape[:-1]
    if positions is None:
        return np.arange(start, start + rows[-1]) if start else None
    where = as_positions(positions)
    if where.ndim == 0 or where.shape[-1] != rows[-1] or not fits(where.shape, rows):
        expected = f"({rows[-1]},)" if len(rows) == 1 else f"({rows[-1]},) or {rows}"
        raise ValueError(f"positions: shape {where.shape}, expected {expected} for x of shape {shape}")
    return where


def embedded_rows(x: ArrayLike, d_model: int) -> tuple[Array, np.dtype[Any], np.dtype[Any]]:
    """``x`` in the dtype of the computation, that dtype, and the dtype of the result."""
    rows = as_array(x, "x")
    dtype, result_dtype = promote(("x", rows))
    if rows.ndim < 2 or rows.shape[-1] != d_model:
        raise ValueError(f"x: shape {rows.shape}, expected (…, seq, d_model = {d_model})")
    return cast_dtype(rows, dtype), dtype, result_dtype

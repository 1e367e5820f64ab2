"""Tables of cosines and sines by position, for the rotary layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import check_room
from headwise._base.typing import FLOAT64
from headwise._positions.position_table import PositionTable

if TYPE_CHECKING:
    from headwise._base.typing import Array
    from headwise._positions.rope_scaling import RotaryScaling


class RotaryTable(PositionTable):
    """Rows ``[cos | sin]`` of the angles ``position * inv_freq``, times the attention factor, (positions, 2 pairs).

    A table that is not ``kept``, because its frequencies belong to a single sequence length, grows only if a call reads
    at least half of it. Otherwise, as in a decoding step, the rows are computed. The last computed rows are cached,
    because calls for queries, keys and further layers usually read the same ones.
    """

    def __init__(self, inv_freq: Array, attention_factor: float, length: int, kept: bool = True) -> None:
        self.inv_freq = inv_freq
        self.inv_freq.flags.writeable = False
        self._kept = kept
        self._made_of = inv_freq, attention_factor
        self._last: tuple[tuple[int, int, np.dtype[Any]], Array] | None = None
        super().__init__(partial(cosines_and_sines, inv_freq, attention_factor), length)

    def __reduce__(self) -> tuple[type[RotaryTable], tuple[Any, ...]]:
        return RotaryTable, (*self._made_of, len(self.array), self._kept)  # copies are read-only, too, without a cast

    def span(self, start: int, stop: int, dtype: np.dtype[Any]) -> Array:
        """The rows of positions ``start .. stop - 1``."""
        if start >= 0 and (self._kept or 2 * (stop - start) >= stop):
            table = self._covering(stop, dtype)
            if table is not None:
                return table[start:stop]
        span, last = (start, stop, dtype), self._last
        if last is None or last[0] != span:
            last = span, cast_dtype(self._rows(start, stop), dtype)
            if last[1].nbytes <= self.max_bytes:
                self._last = last
        return last[1]

    def between(self, low: int, high: int, positions: Array, dtype: np.dtype[Any]) -> Array:
        """The rows of any integer ``positions`` from ``low`` to ``high``: (…, 2 pairs)."""
        if low >= 0 and (self._kept or 2 * positions.size > high):
            table = self._covering(high + 1, dtype)
            if table is not None:
                return table.take(positions.astype(np.intp, copy=False), axis=0)
        return cast_dtype(self._function(positions.astype(FLOAT64)), dtype)


class RotaryTables:
    """The tables for all sequence lengths.

    Most families need one table. For families whose frequencies depend on the length, the table for trained lengths and
    the last table for other lengths are kept.
    """

    def __init__(self, scaling: RotaryScaling, length: int) -> None:
        self._scaling = scaling
        self._limit = scaling.trained_length if scaling.pinned is None else None
        self.trained = self._make(None, length)
        self._longer: tuple[int, RotaryTable] | None = None

    def of(self, length: int) -> RotaryTable:
        """The table for sequences of ``length``. Threads that need different tables at once each use their own
        result."""
        if self._limit is None or length <= self._limit:
            return self.trained
        regime, longer = self._scaling.regime(length), self._longer
        if longer is None or longer[0] != regime:
            longer = self._longer = regime, self._make(length, 1)
        return longer[1]

    def _make(self, length: int | None, rows: int) -> RotaryTable:
        scaling = self._scaling
        kept = length is None or scaling.regime(length) == scaling.regime(length + 1)
        return RotaryTable(scaling.inv_freq(length), scaling.attention_factor(length), rows, kept)


@ieee
def cosines_and_sines(inv_freq: Array, attention_factor: float, positions: Array) -> Array:
    """``[cos | sin]`` of ``positions * inv_freq``, times the factor: (…, 2 pairs)."""
    pairs = len(inv_freq)
    check_room(*positions.shape, 2 * pairs)
    rows = np.empty((*positions.shape, 2 * pairs))
    cos, sin = rows[..., :pairs], rows[..., pairs:]
    np.multiply.outer(positions, inv_freq, out=sin)
    np.cos(sin, out=cos)
    np.sin(sin, out=sin)
    if attention_factor != 1.0:
        rows *= attention_factor
    return rows

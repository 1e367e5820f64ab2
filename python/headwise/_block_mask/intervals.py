"""Arithmetic on ranges of indices: what a mask function says of whole blocks, without a look at every pair.

A mask function such as ``lambda b, h, q, k: (k <= q) & (q - k < 512)`` is called once with the ranges of queries and
keys of all blocks in place of their numbers. Comparisons of ranges are true for all pairs of a block, for none, or
undecided. What is not defined here raises, and the blocks are then evaluated pair by pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array

# Bounds beyond this may have wrapped around.
_LIMIT = 2.0**62


class UndecidedError(TypeError):
    """An operation that has no result for ranges."""


def _undecidable(*_: Any, **__: Any) -> NoReturn:
    raise UndecidedError


def _reach(x: Any) -> float:
    return float(np.abs(np.asarray(x, np.float64)).max(initial=0.0))


class _Ranges(NDArrayOperatorsMixin):
    """What both classes refuse: whatever would need the numbers themselves."""

    #: The largest absolute number of those that the object was computed from, and of its own.
    reach: float = 0.0

    __array__ = __array_function__ = __bool__ = __index__ = __int__ = __float__ = __len__ = __iter__ = _undecidable
    __getitem__ = __contains__ = _undecidable
    __hash__ = None  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        function = _FUNCTIONS.get(ufunc)
        if function is None or method != "__call__" or keywords:
            raise UndecidedError
        result = function(*inputs)
        result.reach = max(result.reach, *(x.reach if isinstance(x, _Ranges) else _reach(x) for x in inputs))
        return result


class Interval(_Ranges):
    """Numbers from ``low`` to ``high``, arrays of one number per block."""

    def __init__(self, low: Any, high: Any, *, every: bool = False) -> None:
        self.low, self.high = low, high
        self.every = every  # the ranges of all blocks of queries, or of keys, in order
        self.reach = max(_reach(low), _reach(high))
        if not self.reach <= _LIMIT:
            raise UndecidedError


class Ternary(_Ranges):
    """Whether something holds for all pairs of a block (``sure``), or for some of them (``possible``)."""

    def __init__(self, sure: Any, possible: Any) -> None:
        self.sure, self.possible = sure, possible


def _interval(x: Any) -> Interval:
    if isinstance(x, Interval):
        return x
    if isinstance(x, Ternary):
        raise UndecidedError
    a = np.asarray(x)
    if a.dtype.kind not in "iuf":
        raise UndecidedError
    if a.dtype.kind in "iu":
        a = a.astype(np.int64)
    return Interval(a, a)


def _ternary(x: Any) -> Ternary:
    if isinstance(x, Ternary):
        return x
    a = np.asarray(x)
    if isinstance(x, Interval) or a.dtype != bool:
        raise UndecidedError
    return Ternary(a, a)


def _constant(x: Any) -> Array:
    """A positive integer that is the same for all pairs of a block."""
    a = _interval(x)
    if a.low is not a.high or a.low.dtype.kind != "i" or not (a.low > 0).all():
        raise UndecidedError
    bound: Array = a.low
    return bound


def _on_intervals(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs: function(*(_interval(x) for x in inputs))


def _on_ternaries(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs: function(*(_ternary(x) for x in inputs))


def _product(a: Interval, b: Interval) -> Interval:
    for bound in (a, b):
        if (np.maximum(np.abs(bound.low), np.abs(bound.high)) > 2**31).any():
            raise UndecidedError
    products = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Interval(
        np.minimum(np.minimum(*products[:2]), np.minimum(*products[2:])),
        np.maximum(np.maximum(*products[:2]), np.maximum(*products[2:])),
    )


def _absolute(a: Interval) -> Interval:
    ends = np.abs(a.low), np.abs(a.high)
    inside = (a.low <= 0) & (a.high >= 0)
    return Interval(np.where(inside, 0, np.minimum(*ends)), np.maximum(*ends))


def _quotient(x: Any, divisor: Any) -> Interval:
    a, n = _interval(x), _constant(divisor)
    return Interval(a.low // n, a.high // n)


def _remainder(x: Any, divisor: Any) -> Interval:
    a, n = _interval(x), _constant(divisor)
    same = a.low // n == a.high // n
    return Interval(np.where(same, a.low % n, 0), np.where(same, a.high % n, n - 1))


def _less(a: Interval, b: Interval) -> Ternary:
    return Ternary(a.high < b.low, a.low < b.high)


def _less_equal(a: Interval, b: Interval) -> Ternary:
    return Ternary(a.high <= b.low, a.low <= b.high)


def _equal(x: Any, y: Any) -> Ternary:
    if isinstance(x, Ternary) or isinstance(y, Ternary):
        return _not(_on_ternaries(_xor)(x, y))
    a, b = _interval(x), _interval(y)
    return Ternary((a.low == a.high) & (b.low == b.high) & (a.low == b.low), (a.low <= b.high) & (b.low <= a.high))


def _not(a: Ternary) -> Ternary:
    return Ternary(~np.asarray(a.possible), ~np.asarray(a.sure))


def _and(a: Ternary, b: Ternary) -> Ternary:
    return Ternary(a.sure & b.sure, a.possible & b.possible)


def _or(a: Ternary, b: Ternary) -> Ternary:
    return Ternary(a.sure | b.sure, a.possible | b.possible)


def _xor(a: Ternary, b: Ternary) -> Ternary:
    return _or(_and(a, _not(b)), _and(_not(a), b))


_FUNCTIONS: dict[np.ufunc, Callable[..., Any]] = {
    np.add: _on_intervals(lambda a, b: Interval(a.low + b.low, a.high + b.high)),
    np.subtract: _on_intervals(lambda a, b: Interval(a.low - b.high, a.high - b.low)),
    np.negative: _on_intervals(lambda a: Interval(-a.high, -a.low)),
    np.multiply: _on_intervals(_product),
    np.absolute: _on_intervals(_absolute),
    np.floor_divide: _quotient,
    np.remainder: _remainder,
    np.minimum: _on_intervals(lambda a, b: Interval(np.minimum(a.low, b.low), np.minimum(a.high, b.high))),
    np.maximum: _on_intervals(lambda a, b: Interval(np.maximum(a.low, b.low), np.maximum(a.high, b.high))),
    np.less: _on_intervals(_less),
    np.less_equal: _on_intervals(_less_equal),
    np.greater: _on_intervals(lambda a, b: _less(b, a)),
    np.greater_equal: _on_intervals(lambda a, b: _less_equal(b, a)),
    np.equal: _equal,
    np.not_equal: lambda x, y: _not(_equal(x, y)),
    np.bitwise_and: _on_ternaries(_and),
    np.logical_and: _on_ternaries(_and),
    np.bitwise_or: _on_ternaries(_or),
    np.logical_or: _on_ternaries(_or),
    np.bitwise_xor: _on_ternaries(_xor),
    np.logical_xor: _on_ternaries(_xor),
    np.invert: _on_ternaries(_not),
    np.logical_not: _on_ternaries(_not),
}


def look_up(table: Array, at: Any) -> Any:
    """``table[at]`` for indices, or its range in each block: then ``at`` is the range of all indices of a block."""
    if not isinstance(at, Interval):
        return table[at]
    if not at.every:
        raise UndecidedError
    starts = at.low.ravel()
    low = np.minimum.reduceat(table, starts, axis=-1)
    high = np.maximum.reduceat(table, starts, axis=-1)
    if table.dtype == bool:
        return Ternary(low.reshape(at.low.shape), high.reshape(at.low.shape))
    return Interval(low.reshape(at.low.shape), high.reshape(at.low.shape))

"""Checks of arguments that are numbers, flags or seeds.

Every error message starts with the argument's name, then states the value given and the value expected.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from typing import TYPE_CHECKING

import numpy as np

from headwise._base.messages import shown

if TYPE_CHECKING:
    from headwise._base.typing import Array


def check_int(value: object, name: str, minimum: int = -sys.maxsize, maximum: int = sys.maxsize) -> int:
    """``value`` as an int between ``minimum`` and ``maximum``, by default within a C ``ssize_t``. bool is refused."""
    if type(value) is int:
        number = value
    else:
        if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
            raise TypeError(f"{name}: {shown(value)} of type {type(value).__name__}, expected an integer")
        try:
            number = operator.index(value)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise TypeError(f"{name}: {type(value).__name__}, expected an integer") from error
    if number < minimum:
        raise ValueError(f"{name}: {shown(number)}, expected at least {minimum}")
    if number > maximum:
        raise ValueError(f"{name}: {shown(number)}, expected at most {maximum}")
    return number


def check_size(value: object, name: str) -> int:
    """``value`` as an int of at least 1."""
    return check_int(value, name, 1)


def check_real(value: object, name: str) -> float:
    """``value`` as a finite float."""
    if type(value) is float:
        number = value
    else:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: {type(value).__name__}, expected a real number")
        try:
            number = float(value)
        except OverflowError:  # an integer or a fraction
            number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: {number}, expected a finite number")
    return number


def check_rate(value: object, name: str) -> float:
    """``value`` as a dropout rate in [0, 1)."""
    rate = check_real(value, name)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name}: {rate}, expected a rate in [0, 1)")
    return rate


def check_flag(value: object, name: str) -> bool:
    """``value`` as a bool; integers and NumPy's bool are accepted."""
    if value is True or value is False:
        return value
    if isinstance(value, (int, np.bool_)):
        return bool(value)
    raise TypeError(f"{name}: {type(value).__name__}, expected True or False")


def check_axis(axis: object, a: Array, name: str = "x") -> int:
    """``axis`` of the array ``a`` as a non-negative int."""
    number, rank = check_int(axis, "axis"), a.ndim
    if rank == 0:
        raise ValueError(f"{name}: a scalar, expected at least one axis")
    if not -rank <= number < rank:
        raise ValueError(f"axis: {number}, expected -{rank} to {rank - 1} for {name} of shape {a.shape}")
    return number % rank


def check_axes(axis: object, a: Array, name: str = "x") -> tuple[int, ...]:
    """``axis`` of the array ``a``, an int, a tuple of ints or None for all axes, as sorted non-negative ints."""
    rank = a.ndim
    if type(axis) is int and -rank <= axis < rank:
        return (axis % rank,)
    if axis is None:
        return tuple(range(rank))
    if not isinstance(axis, tuple):
        return (check_axis(axis, a, name),)
    axes = sorted(check_axis(one, a, name) for one in axis)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis: {axis}, expected each axis once")
    return tuple(axes)


def check_rng(rng: object, name: str = "rng") -> np.random.Generator:
    """The random generator that ``rng`` selects: a new one for None, a seeded one for an int, or ``rng`` itself.

    NumPy's global random state is not used.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng()
    if isinstance(rng, (bool, np.bool_)) or not hasattr(rng, "__index__"):
        raise TypeError(f"{name}: {type(rng).__name__}, expected None, an integer or a numpy.random.Generator")
    return np.random.default_rng(check_int(rng, name, 0))

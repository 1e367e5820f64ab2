"""Linear maps."""

from __future__ import annotations

from numpy.typing import ArrayLike

from oracle.numbers import Array, rounded, wide


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """``x @ weight + bias``."""
    return rounded(wide(x) @ wide(weight) + (0 if bias is None else wide(bias)), x, weight)

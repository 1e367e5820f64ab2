"""Type aliases and dtypes that the whole package names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]
    Axes: TypeAlias = int | tuple[int, ...] | None  # None: all axes
    Named: TypeAlias = tuple[str, Array]  # an argument's name, for messages, and its array
    Rng: TypeAlias = int | np.random.Generator | None
    Shape: TypeAlias = tuple[int, ...]

FLOAT16: np.dtype[Any] = np.dtype(np.float16)
FLOAT32: np.dtype[Any] = np.dtype(np.float32)
FLOAT64: np.dtype[Any] = np.dtype(np.float64)
INT64: np.dtype[Any] = np.dtype(np.int64)

"""The types that a :class:`headwise.KVCache` stores: float32, float64, or 16-bit types and int8 beside float32 queries.

int8 is symmetric, with a factor for each row and head: ``row = factor * integers``, ``factor = max(abs(row)) / 127``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.ieee import cast_dtype, ieee
from headwise._base.layer import parameter_dtype
from headwise._base.typing import FLOAT32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from headwise._base.typing import Array

INT8: np.dtype[Any] = np.dtype(np.int8)
_MAX = 127


class Part(NamedTuple):
    """An array of a cache, (batch, kv_heads, slots, width)."""

    name: str
    width: int
    dtype: np.dtype[Any]


def parts(head_dim: int, value_dim: int | None, dtype: np.dtype[Any]) -> list[Part]:
    """The arrays of a cache; those of values only if they have a ``value_dim`` of their own."""
    named = [("keys", head_dim)] + ([] if value_dim is None else [("values", value_dim)])
    arrays = []
    for name, width in named:
        arrays.append(Part(name, width, dtype))
        if dtype == INT8:
            arrays.append(Part(f"factors of {name}", 1, FLOAT32))
    return arrays


def storage_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """``dtype``, checked: a floating dtype or int8."""
    if isinstance(dtype, (str, type, np.dtype)) and dtype in ("int8", np.int8, INT8):
        return INT8
    return parameter_dtype(dtype).newbyteorder("=")


def activation_dtypes(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], ...]:
    """The dtypes that queries, and new keys and values, of a cache of ``dtype`` may have."""
    return (FLOAT32,) if dtype == INT8 else (dtype, FLOAT32) if dtype.itemsize == 2 else (dtype,)


def encode(rows: Sequence[Array], dtype: np.dtype[Any]) -> list[Array]:
    """New rows of keys and of values as a cache of ``dtype`` stores them, for each of its :func:`parts`."""
    if dtype == INT8:
        return [array for a in rows for array in _quantise(a)]
    if dtype.itemsize > 2:
        return list(rows)  # the assignment changes the byte order
    return [a if a.dtype == dtype or a.dtype.newbyteorder("=") == dtype else cast_dtype(a, dtype) for a in rows]


@ieee
def _quantise(rows: Array) -> tuple[Array, Array]:
    """Integers and factors. A row with NaN or infinity becomes NaN."""
    factors: Array = np.abs(rows).max(axis=-1, keepdims=True).astype(FLOAT32) / np.float32(_MAX)
    scaled = np.rint(rows / np.where(factors == 0, np.float32(1), factors))
    finite = np.isfinite(factors)
    factors = np.where(finite, factors, np.float32(np.nan))
    return np.where(finite, scaled.clip(-_MAX, _MAX), 0).astype(INT8), factors


@ieee
def decode(integers: Array, factors: Array) -> Array:
    """The rows of these ``integers`` and ``factors`` (..., 1), in float32."""
    rows: Array = integers * factors
    return rows

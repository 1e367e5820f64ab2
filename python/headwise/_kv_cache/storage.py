"""The types that a :class:`headwise.KVCache` stores: float32, float64, or 16-bit types and int8 beside float32 queries.

Rows of int8 are those of :mod:`headwise._base.int8`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.ieee import cast_dtype
from headwise._base.int8 import INT8, UINT8, bits_of_columns, byte_count, encode_int8
from headwise._base.layer import parameter_dtype
from headwise._base.typing import FLOAT32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from headwise._base.typing import Array


class Part(NamedTuple):
    """An array of a cache, (batch, kv_heads, slots, width)."""

    name: str
    width: int
    dtype: np.dtype[Any]


def parts(head_dim: int, value_dim: int, dtype: np.dtype[Any], value_from_key: tuple[int, int] | None) -> list[Part]:
    """The arrays of a cache. Values that are columns of keys have none of their own, but for bits of int8 that do not
    begin with a byte."""
    arrays = []
    for name, width in [("keys", head_dim)] + ([] if value_from_key else [("values", value_dim)]):
        arrays.append(Part(name, width, dtype))
        if dtype == INT8:
            arrays += [Part(f"factors of {name}", 1, FLOAT32), Part(f"bits of {name}", byte_count(width), UINT8)]
    if _has_own_bits(dtype, value_from_key):
        arrays.append(Part("bits of values", byte_count(value_dim), UINT8))
    return arrays


def value_parts(arrays: dict[str, Array], value_from_key: tuple[int, int] | None) -> tuple[Array, Array | None]:
    """The values and their bits, of the :func:`parts` of a cache."""
    bits = arrays.get("bits of values")
    if value_from_key is None:
        return arrays["values"], bits
    start, stop = value_from_key
    if bits is None and "bits of keys" in arrays:
        bits = arrays["bits of keys"][..., start // 8 : byte_count(stop)]
    return arrays["keys"][..., start:stop], bits


def _has_own_bits(dtype: np.dtype[Any], value_from_key: tuple[int, int] | None) -> bool:
    return dtype == INT8 and value_from_key is not None and value_from_key[0] % 8 != 0


def storage_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """``dtype``, checked: a floating dtype or int8."""
    if isinstance(dtype, (str, type, np.dtype)) and dtype in ("int8", np.int8, INT8):
        return INT8
    return parameter_dtype(dtype).newbyteorder("=")


def activation_dtypes(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], ...]:
    """The dtypes that queries, and new keys and values, of a cache of ``dtype`` may have."""
    return (FLOAT32,) if dtype == INT8 else (dtype, FLOAT32) if dtype.itemsize == 2 else (dtype,)


def encode(rows: Sequence[Array], dtype: np.dtype[Any], value_from_key: tuple[int, int] | None) -> list[Array]:
    """New rows of keys and of values as a cache of ``dtype`` stores them, for each of its :func:`parts`."""
    if dtype == INT8:
        arrays = [array for a in rows for array in encode_int8(a)]
        if value_from_key is not None and _has_own_bits(dtype, value_from_key):
            arrays.append(bits_of_columns(arrays[2], slice(*value_from_key)))
        return arrays
    if dtype.itemsize > 2:
        return list(rows)  # the assignment changes the byte order
    return [a if a.dtype == dtype or a.dtype.newbyteorder("=") == dtype else cast_dtype(a, dtype) for a in rows]

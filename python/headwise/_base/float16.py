"""Casts between float16 and float32 by vectorised arithmetic.

NumPy builds without F16C cast float16 one by one in software: 2 ns for an entry, up to 60 ns for one that becomes
subnormal. The functions here take about 0.4 ns and 1.2 ns, with the same results bit for bit, also where subnormal
numbers are flushed to 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.typing import FLOAT16, FLOAT32

if TYPE_CHECKING:
    from headwise._base.typing import Array

# Entries that are narrowed together, at most: two buffers of 256 KB stay in a second-level cache.
_BLOCK = 1 << 16

# Entries of a buffer. The C library takes larger arrays from the system at each call, whose page faults take several
# times as long as a cast, so buffers are kept: at most this many.
BUFFER, _MAX_KEPT = 1 << 17, 8
_kept: list[Array] = []

# Below, NumPy's own cast is faster than a dozen calls.
_FEW = 1 << 10

_LARGEST = 0x477FE000  # 65504, bits of float32
_INFINITE = 0x7C00  # bits of float16
_SMALLEST = np.float32(2.0**-136)  # the bits of the smallest float16, moved to the exponent and mantissa of a float32
_REBIAS = np.float32(2.0**112)  # the exponent bias of float32 less that of float16 is 112


def is_cast_of_float16(x: Array, dtype: np.dtype[Any]) -> bool:
    """Whether :func:`cast_of_float16` is the fastest cast of ``x`` to ``dtype``."""
    if x.size < _FEW:
        return False
    return (x.dtype is FLOAT16 and dtype is FLOAT32) or (x.dtype is FLOAT32 and dtype is FLOAT16)


def cast_of_float16(x: Array, dtype: np.dtype[Any]) -> Array:
    """float16 ``x`` in float32, in the layout of ``x``; or float32 ``x`` in float16, C-contiguous."""
    if dtype is FLOAT16:
        out = np.empty(x.shape, FLOAT16)
        narrow_into(out, x)
        return out
    out = np.empty_like(x, FLOAT32, subok=False)
    widen_into(out, x)
    return out


def widen_into(out: Array, x: Array) -> None:
    """``out[...] = x`` for float16 ``x`` and float32 ``out`` of the same shape."""
    with np.errstate(all="ignore"):
        _widen(out, x)


def _widen(wide: Array, x: Array) -> None:
    bits = wide.view(np.int32)
    bits[...] = x.view(np.int16)  # repeats the sign
    bits <<= 13
    bits &= -0x70002000  # 0x8FFFE000: the sign and 15 bits of exponent and mantissa
    wide *= _REBIAS
    # Infinity has become 65536, NaN a larger number; and subnormal numbers are so before the multiplication. Of the two
    # maxima of bits, the first is that of a positive, the second that of a negative number.
    largest = max(int(x.view(np.int16).max()), int(x.view(np.uint16).max()) - 0x8000)
    if largest > _INFINITE or not _SMALLEST * _REBIAS > 0:
        _every_float16().take(x.view(np.uint16), out=wide, mode="clip")
    elif largest == _INFINITE:
        wide *= _REBIAS  # 65504 stays finite
        wide /= _REBIAS


@lru_cache(maxsize=1)
def _every_float16() -> Array:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def borrow_buffer() -> Array:
    """``BUFFER`` entries of float32, for the caller alone until :func:`give_back`."""
    try:
        return _kept.pop()
    except IndexError:
        return np.empty(BUFFER, FLOAT32)


def give_back(buffer: Array) -> None:
    if len(_kept) < _MAX_KEPT:
        _kept.append(buffer)


@lru_cache(maxsize=1)
def _smallest_normals() -> Array:
    return np.full(_BLOCK, 2.0**-14, np.float32)


def narrow_into(out: Array, x: Array) -> None:
    """``out[...] = x`` for float32 ``x`` and C-contiguous float16 ``out`` of the same shape."""
    flat_in, flat_out = x.reshape(-1), out.reshape(-1).view(np.uint16)
    buffer = borrow_buffer()
    blocks = -(-x.size // _BLOCK)
    step = -(-x.size // max(1, blocks))
    with np.errstate(all="ignore"):
        for start in range(0, x.size, max(1, step)):
            block = slice(start, start + step)
            _narrow_block(flat_in[block], flat_out[block], buffer)
    give_back(buffer)


def _narrow_block(x: Array, out: Array, buffer: Array) -> None:
    """Round to the nearest, ties to even.

    For ``|x|`` with exponent e, at least -14 for the subnormal numbers of float16, the digits of float16 are multiples
    of ``2**(e - 10)``. That is the spacing of float32 at ``2**(e + 13)``, so the addition of this power rounds, and the
    low 16 bits of the sum are the rounded digits, to which the exponent is added modulo ``2**16``. A carry into the
    exponent gives the right result, infinity included.
    """
    size, power, smallest = buffer[: x.size], buffer[_BLOCK : _BLOCK + x.size], _smallest_normals()[: x.size]
    magnitude = x
    largest = x.view(np.uint32).max()
    signed = largest >= 0x80000000
    if signed:
        magnitude = np.abs(x, out=size)
        largest = size.view(np.uint32).max()
    if largest > _LARGEST:
        magnitude = np.minimum(magnitude, 65536.0, out=size)
    np.maximum(magnitude, smallest, out=power)  # by a scalar takes four times as long
    bits = power.view(np.uint32)
    bits &= 0x7F800000
    power *= 8194.0  # 2**13, and the exponent bias: the bits (-126 << 10) modulo 2**16
    result = np.add(magnitude, power, out=size).view(np.uint32)
    bits >>= 13  # multiplying by 8194 has added 13 to the exponent and set bit 11
    result += bits
    if signed:
        np.right_shift(x.view(np.uint32), 16, out=bits)
        bits &= 0x8000
        result |= bits
    np.copyto(out, result, casting="unsafe")
    if largest > 0x7F800000:  # infinity
        nan = np.isnan(x)
        out[nan] = x[nan].astype(np.float16).view(np.uint16)

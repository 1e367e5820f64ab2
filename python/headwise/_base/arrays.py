"""Input arrays: conversion from array-likes, dtype promotion, and the layout that backends read.

Every error message starts with the argument's name, then states the value given and the value expected.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.foreign_arrays import check_nothing_lost, is_torch_bfloat16, torch_bfloat16
from headwise._base.ieee import assign, cast_dtype
from headwise._base.outputs import check_room
from headwise._base.typing import FLOAT16, FLOAT32, FLOAT64

if TYPE_CHECKING:
    from headwise._base.typing import Array, Named, Shape


def as_array(x: object, name: str) -> Array:
    """``x`` as a plain ndarray, without a copy where its type allows.

    Accepts ndarrays, objects with ``__array__`` or ``__dlpack__``, scalars and nested sequences. The dtype is kept;
    :func:`promote` checks it. Arrays of other packages that would lose gradients, units or laziness are a TypeError.
    """
    if type(x) is np.ndarray:
        return x
    if x is None:
        raise TypeError(f"{name}: None, expected an array")
    if isinstance(x, np.ndarray) and hasattr(x, "filled"):
        raise TypeError(f"{name}: a masked array, whose mask would be lost; expected x.filled(...) or x.data")
    check_nothing_lost(x, name)
    if is_torch_bfloat16(x):
        return torch_bfloat16(x, name)
    try:
        if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.asarray(np.from_dlpack(x))  # pyright: ignore[reportArgumentType]
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name}: {type(x).__name__} cannot be read as an array: {error}") from error


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is the bfloat16 of ``ml_dtypes``, compared by name because the package is optional."""
    return dtype.kind == "V" and dtype.type.__name__ == "bfloat16"


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is a floating dtype up to float64, an integer or bool."""
    return dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8) or is_bfloat16(dtype)


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """TypeError unless :func:`is_real`."""
    if is_real(dtype):
        return
    raise TypeError(
        f"{name}: dtype {dtype}, expected float16, bfloat16, float32, float64, or integers or bool (taken as float64)"
    )


def is_canonical(*arrays: Array) -> bool:
    """Whether backends can read the arrays unchanged: all float32 or all float64, C-contiguous, aligned, writeable.

    :func:`promote` and :func:`cast_layout` can then be skipped, which for small arrays take longer than the operation
    itself: the dtype of the first array is both the dtype of the computation and that of the result.
    """
    dtype = arrays[0].dtype
    if dtype is not FLOAT32 and dtype is not FLOAT64:
        return False
    for a in arrays:  # noqa: SIM110 (all() over a generator takes longer)
        if a.dtype is not dtype or not a.flags.carray:
            return False
    return True


def is_canonical_or_16bit(*arrays: Array) -> bool:
    """:func:`is_canonical` for operations that read float16 and bfloat16 directly: all float16 or all bfloat16, too."""
    dtype = arrays[0].dtype
    if not (dtype is FLOAT32 or dtype is FLOAT64 or dtype is FLOAT16 or (is_bfloat16(dtype) and dtype.isnative)):
        return False
    for a in arrays:  # noqa: SIM110 (as in is_canonical)
        if a.dtype is not dtype or not a.flags.carray:
            return False
    return True


def promote(*arrays: Named) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """``(compute, result)``: the dtype of the computation, float32 or float64, and the dtype of the result.

    The result has the dtype to which NumPy promotes the arguments, or float64 for integers and bool. float16 and
    bfloat16 are computed in float32; bfloat16 together with another dtype counts as float32. Backends read and write
    16-bit arrays where :class:`headwise._runtime.backend.Backend` says so, else arrays of the first dtype.
    """
    first = arrays[0][1].dtype
    is_16bit = first is FLOAT16 or (is_bfloat16(first) and first.isnative)
    if is_16bit or first is FLOAT32 or first is FLOAT64:
        for _, array in arrays:
            if array.dtype is not first:
                break
        else:
            if is_16bit:
                _check_sizes(arrays, FLOAT32)
            return FLOAT32 if is_16bit else first, first
    for name, array in arrays:
        check_dtype(array.dtype, name)
    dtypes = {array.dtype.newbyteorder("=") for _, array in arrays}
    if len(dtypes) == 1:
        result = dtypes.pop()
    else:
        result = np.result_type(*(FLOAT32 if is_bfloat16(dtype) else dtype for dtype in dtypes))
    if result.kind in "biu":
        result = FLOAT64
    compute = FLOAT64 if result.kind == "f" and result.itemsize == 8 else FLOAT32
    _check_sizes(arrays, compute)
    return compute, result if result.kind != "f" or result.itemsize == 2 else compute


def _check_sizes(arrays: tuple[Named, ...], dtype: np.dtype[Any]) -> None:
    """MemoryError for a broadcast view whose entries, converted to ``dtype``, would exceed the address space."""
    for name, array in arrays:
        if array.size > sys.maxsize // dtype.itemsize:
            raise MemoryError(f"{name}: shape {array.shape} is too big for an array of {dtype}")


def compact(a: Array) -> Array:
    """The view of ``a`` with one entry along each broadcast (stride 0) axis."""
    if 0 not in a.strides:
        return a
    axes = zip(a.shape, a.strides, strict=True)
    return a[tuple(slice(0, 1) if stride == 0 and size > 1 else slice(None) for size, stride in axes)]


def snapshot(a: Array) -> Array:
    """A copy of ``a``, in which broadcast axes stay broadcast.

    Another thread or process may write to ``a`` during a call. Numbers that decide which memory is accessed, such as
    positions, are therefore copied, then checked, then used.
    """
    copy = compact(a).copy()
    return copy if copy.shape == a.shape else np.broadcast_to(copy, a.shape)


def cast_layout(a: Array, dtype: np.dtype[Any], *, last: bool = False) -> Array:
    """``a`` in ``dtype``, native byte order, aligned and, with ``last``, with a contiguous last axis.

    Returns ``a`` itself if all of this holds, else a copy in which broadcast axes stay broadcast.
    """
    strided = last and a.ndim > 0 and a.shape[-1] > 1 and a.strides[-1] != a.itemsize
    if a.dtype == dtype and a.flags.aligned and not strided:
        return a
    if a.itemsize == 2 and dtype.itemsize > 2 and a.flags.c_contiguous:
        return cast_dtype(a, dtype)
    small = compact(a)
    if strided and small.shape[-1] != a.shape[-1]:
        small = np.broadcast_to(small, (*small.shape[:-1], a.shape[-1]))
    check_room(*small.shape, dtype=dtype)
    copy = np.empty(small.shape, dtype)
    assign(copy, small)
    return copy if copy.shape == a.shape else np.broadcast_to(copy, a.shape)


def fits(shape: Shape, full: Shape) -> bool:
    """Whether ``shape`` broadcasts to ``full``: each axis, counted from the last, is 1 or of full size."""
    rank = len(shape)
    if rank > len(full):
        return False
    return shape == full[len(full) - rank :] or all(
        size in (1, whole) for size, whole in zip(reversed(shape), reversed(full), strict=False)
    )


def four_axes(a: Array, shape: Shape) -> Array:
    """``a``, which broadcasts to ``shape``, with four axes (outer, ., ., .).

    All axes of ``shape`` before its last three are merged into one. A copy is made only where strides do not allow a
    view.
    """
    own = a.shape
    if len(shape) > 4:
        lead, own = own[:-3], own[-3:]
        if math.prod(lead) != 1:
            if lead != shape[:-3]:
                a = np.broadcast_to(a, shape[:-3] + own)
            own = (math.prod(shape[:-3]), *own)
    return a if a.ndim == len(own) == 4 else a.reshape((1,) * (4 - len(own)) + own)

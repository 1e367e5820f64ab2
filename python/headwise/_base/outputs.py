"""Result arrays: allocation, the checks of ``out=``, and the last conversion to the caller's dtype."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.ieee import assign, cast_dtype
from headwise._base.typing import FLOAT64

if TYPE_CHECKING:
    from headwise._base.typing import Array, Named, Shape

# Work limit of np.shares_memory: whether two strided arrays overlap is NP-hard in general.
_OVERLAP_WORK: Any = 10_000  # Any: NumPy's stubs accept only 0 and -1


def allocate(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """``np.empty``; a size that no address can express raises MemoryError in place of NumPy's ValueError."""
    try:
        return np.empty(shape, dtype)
    except ValueError as error:
        raise MemoryError(f"an array of shape {shape} and dtype {dtype} is too big") from error


def check_room(*shape: int, dtype: np.dtype[Any] = FLOAT64) -> None:
    """MemoryError if no address can express the size of an array of ``shape``.

    For arrays that NumPy functions other than ``np.empty`` create (ranges, random numbers, copies): at such sizes NumPy
    raises ValueError or returns an empty array.
    """
    if 2 * math.prod(shape) > sys.maxsize // dtype.itemsize:  # 2: np.arange computes its length in float64, rounded up
        raise MemoryError(f"an array of shape {shape} and dtype {dtype} is too big")


def resolve_out(out: Array | None, shape: Shape, dtype: np.dtype[Any], *, contiguous: bool = False) -> Array:
    """The array of ``shape`` and ``dtype`` that a backend writes: ``out``, already checked, or a new array.

    ``out`` is used if its dtype is ``dtype`` and it is C-contiguous or, unless ``contiguous`` is set, has at most four
    axes with the last one contiguous.
    """
    if out is not None and type(out) is np.ndarray and out.dtype == dtype:
        if out.flags.c_contiguous:
            return out
        if not contiguous and 0 < len(shape) <= 4 and (shape[-1] == 1 or out.strides[-1] == out.itemsize):
            return out
    return allocate(shape, dtype)


def check_out(out: object, shape: Shape, dtype: np.dtype[Any], *inputs: Named, inplace: Array | None = None) -> Array:
    """``out``, checked: an array of ``shape`` and ``dtype`` that can be written while ``inputs`` are read.

    ``out`` must not overlap an input, except that it may be exactly the input ``inplace``.
    """
    if not isinstance(out, np.ndarray) or hasattr(out, "filled"):
        raise TypeError(f"out: {type(out).__name__}, expected a numpy.ndarray")
    if out.shape != shape:
        raise ValueError(f"out: shape {out.shape}, expected {shape}")
    if out.dtype != dtype:
        raise TypeError(f"out: dtype {out.dtype}, expected {dtype}")
    if not out.flags.writeable:
        raise ValueError("out: a read-only array, expected a writeable one")
    if not out.flags.aligned:
        raise ValueError("out: an unaligned array, expected an aligned one")
    if _may_overlap_itself(out):
        raise ValueError(f"out: entries share memory (strides {out.strides}), expected separate memory for each entry")
    for name, array in inputs:
        if array is not out and _overlap(array, out) and not (array is inplace and _same_memory(array, out)):
            allowed = "" if inplace is None else ", or exactly the input itself"
            raise ValueError(f"out: shares memory with {name}, expected separate memory{allowed}")
        if array is out and array is not inplace:
            raise ValueError(f"out: is {name} itself, expected separate memory")
    return out


def finalize(result: Array, out: Array | None, dtype: np.dtype[Any]) -> Array:
    """``result`` as returned to the caller: in ``dtype``, or copied into ``out``."""
    if out is None:
        return cast_dtype(result, dtype)
    if result is not out:
        assign(out, result)
    return out


def _same_memory(a: Array, b: Array) -> bool:
    return (
        a.shape == b.shape
        and a.strides == b.strides
        and a.dtype == b.dtype
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _overlap(a: Array, b: Array) -> bool:
    """Whether the arrays share memory; True where finding out would take too long."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=_OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True


def _may_overlap_itself(a: Array) -> bool:
    """Whether two entries of ``a`` may share memory."""
    if a.size <= 1 or a.flags.c_contiguous or a.flags.f_contiguous:
        return False
    end = a.itemsize  # bytes spanned by the axes visited so far, in order of increasing stride
    for stride, size in sorted((abs(stride), size) for stride, size in zip(a.strides, a.shape, strict=True)):
        if size == 1:
            continue
        if stride < end:
            return True
        end += stride * (size - 1)
    return False

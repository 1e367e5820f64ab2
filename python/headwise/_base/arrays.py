"""Checks of arguments and conversions of arrays that all operations share.

Every message starts with the argument's name, says what it was and what was expected.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Named = tuple[str, Array]

FLOAT16: np.dtype[Any] = np.dtype(np.float16)
FLOAT32: np.dtype[Any] = np.dtype(np.float32)
FLOAT64: np.dtype[Any] = np.dtype(np.float64)

# Steps np.shares_memory may spend on the (in general NP-hard) question whether two strided arrays overlap.
_OVERLAP_WORK: Any = 10_000  # Any: NumPy's stubs know only 0 and -1


# --- arrays in ---


def as_array(x: object, name: str) -> Array:
    """``x`` as a plain ndarray, without a copy where its type allows: NumPy's own arrays, ``__array__``,
    ``__dlpack__``, scalars and nested sequences. The dtype is left to :func:`promote`."""
    if type(x) is np.ndarray:
        return x
    if x is None:
        raise TypeError(f"{name}: None, expected an array")
    if isinstance(x, np.ndarray) and hasattr(x, "filled"):
        raise TypeError(f"{name}: a masked array, whose mask would be lost; expected x.filled(...) or x.data")
    try:
        if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.asarray(np.from_dlpack(x))  # pyright: ignore[reportArgumentType]
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name}: {type(x).__name__} cannot be read as an array: {error}") from error


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    # Known by its name: ml_dtypes, which registers it, need not be installed.
    return dtype.kind == "V" and dtype.type.__name__ == "bfloat16"


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """TypeError unless ``dtype`` is a floating dtype up to float64, an integer or bool."""
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8) or is_bfloat16(dtype):
        return
    raise TypeError(
        f"{name}: dtype {dtype}, expected float16, bfloat16, float32, float64, or integers or bool (taken as float64)"
    )


def plain(*arrays: Array) -> bool:
    """Whether there is nothing to convert: all float32 or all float64, C-contiguous, aligned and writeable.

    So it is in most calls, and small ones would spend longer on :func:`promote` and :func:`cast_layout` than on the
    numbers. Both have nothing to do then: the dtype is that of the first array, to compute in and of the result.
    """
    dtype = arrays[0].dtype
    if dtype is not FLOAT32 and dtype is not FLOAT64:
        return False
    for a in arrays:  # noqa: SIM110 (a generator would cost more than what it runs)
        if a.dtype is not dtype or not a.flags.carray:
            return False
    return True


def plain_or_half(*arrays: Array) -> bool:
    """:func:`plain` for operations that take halves, float16 or bfloat16, as they are: all of them the same then."""
    dtype = arrays[0].dtype
    if not (dtype is FLOAT32 or dtype is FLOAT64 or dtype is FLOAT16 or (is_bfloat16(dtype) and dtype.isnative)):
        return False
    for a in arrays:  # noqa: SIM110 (as in plain)
        if a.dtype is not dtype or not a.flags.carray:
            return False
    return True


def promote(*arrays: Named) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype to compute in (float32 or float64) and the dtype of the result.

    The result's is what NumPy promotes the arguments to, or float64 for integers and bool. Half precision is computed
    in float32; bfloat16 beside another dtype counts as float32. A backend reads and writes arrays of the result's dtype
    where :class:`headwise._backend.Backend` allows halves, else arrays of the first.
    """
    first = arrays[0][1].dtype
    half = first is FLOAT16 or (is_bfloat16(first) and first.isnative)
    if half or first is FLOAT32 or first is FLOAT64:
        for _, array in arrays:
            if array.dtype is not first:
                break
        else:
            if half:
                _check_sizes(arrays, FLOAT32)
            return FLOAT32 if half else first, first
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
    """MemoryError for a view whose entries, converted to ``dtype``, no address can express."""
    for name, array in arrays:
        if array.size > sys.maxsize // dtype.itemsize:
            raise MemoryError(f"{name}: shape {array.shape} is too big for an array of {dtype}")


def compact(a: Array) -> Array:
    """The view of ``a`` that takes one entry along each broadcast (stride 0) axis."""
    if 0 not in a.strides:
        return a
    axes = zip(a.shape, a.strides, strict=True)
    return a[tuple(slice(0, 1) if stride == 0 and size > 1 else slice(None) for size, stride in axes)]


def cast_layout(a: Array, dtype: np.dtype[Any], *, last: bool = False) -> Array:
    """``a`` in ``dtype``, native byte order, aligned and, if ``last``, with its last axis contiguous: itself where that
    is so, else a copy in which broadcast axes stay broadcast."""
    strided = last and a.ndim > 0 and a.shape[-1] > 1 and a.strides[-1] != a.itemsize
    if a.dtype == dtype and a.flags.aligned and not strided:
        return a
    if a.itemsize == 2 and dtype.itemsize > 2 and a.flags.c_contiguous:
        return a.astype(dtype)  # nothing to overflow
    small = compact(a)
    if strided and small.shape[-1] != a.shape[-1]:
        small = np.broadcast_to(small, (*small.shape[:-1], a.shape[-1]))
    check_room(*small.shape, dtype=dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        copy = np.array(small, dtype=dtype, order="C")
    return copy if copy.shape == a.shape else np.broadcast_to(copy, a.shape)


def fits(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether each axis, counted from the last, is 1 or of full size."""
    rank = len(shape)
    if rank > len(full):
        return False
    return shape == full[len(full) - rank :] or all(
        size in (1, whole) for size, whole in zip(reversed(shape), reversed(full), strict=False)
    )


def four_axes(a: Array, shape: tuple[int, ...]) -> Array:
    """``a``, whose axes are those of ``shape`` or 1, as (outer, ., ., .) with the leading axes of ``shape`` merged into
    one; a copy only where they cannot be merged otherwise."""
    own = a.shape
    if len(shape) > 4:
        lead, own = own[:-3], own[-3:]
        if math.prod(lead) != 1:
            if lead != shape[:-3]:
                a = np.broadcast_to(a, shape[:-3] + own)
            own = (math.prod(shape[:-3]), *own)
    return a if a.ndim == len(own) == 4 else a.reshape((1,) * (4 - len(own)) + own)


# --- arrays out ---


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """``np.empty``, with a MemoryError also for sizes that no address can express."""
    try:
        return np.empty(shape, dtype)
    except ValueError as error:
        raise MemoryError(f"an array of shape {shape} and dtype {dtype} is too big") from error


def check_room(*shape: int, dtype: np.dtype[Any] = FLOAT64) -> None:
    """MemoryError for a size that no address can express, of which NumPy says that a value is bad, or makes an empty
    array. It comes before what has no way to :func:`allocate`: ranges, random numbers, copies."""
    if 2 * math.prod(shape) > sys.maxsize // dtype.itemsize:  # np.arange counts in float64, and rounds up
        raise MemoryError(f"an array of shape {shape} and dtype {dtype} is too big")


def resolve_out(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any], *, contiguous: bool = False) -> Array:
    """Where a backend computes a result of ``shape`` and ``dtype``: ``out``, checked, if it can write that, with four
    axes and the last one contiguous, or ``contiguous`` as a whole; else a new array."""
    if out is not None and type(out) is np.ndarray and out.dtype == dtype:
        if out.flags.c_contiguous:
            return out
        if not contiguous and 0 < len(shape) <= 4 and (shape[-1] == 1 or out.strides[-1] == out.itemsize):
            return out
    return allocate(shape, dtype)


def check_out(
    out: object, shape: tuple[int, ...], dtype: np.dtype[Any], *inputs: Named, inplace: Array | None = None
) -> Array:
    """``out`` if results of ``shape`` and ``dtype`` can be written into it while ``inputs`` are read. ``inplace`` is
    the input that it may be, exactly."""
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
        raise ValueError(f"out: entries share memory (strides {out.strides}), expected one place for each")
    for name, array in inputs:
        if array is not out and _overlap(array, out) and not (array is inplace and _same_memory(array, out)):
            allowed = "" if inplace is None else ", or exactly the input itself"
            raise ValueError(f"out: shares memory with {name}, expected separate memory{allowed}")
        if array is out and array is not inplace:
            raise ValueError(f"out: is {name} itself, expected separate memory")
    return out


def finalize(work: Array, out: Array | None, dtype: np.dtype[Any]) -> Array:
    """The finished ``work`` as the caller gets it: in ``dtype``, or in ``out``."""
    if out is None:
        if work.dtype == dtype:
            return work
        with np.errstate(over="ignore", invalid="ignore"):
            return work.astype(dtype)
    if work is not out:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, work, casting="unsafe")
    return out


def _same_memory(a: Array, b: Array) -> bool:
    return (
        a.shape == b.shape
        and a.strides == b.strides
        and a.dtype == b.dtype
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _overlap(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=_OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True


def _may_overlap_itself(a: Array) -> bool:
    if a.size <= 1 or a.flags.c_contiguous or a.flags.f_contiguous:
        return False
    end = a.itemsize  # bytes spanned by the axes seen so far, tightest first
    for stride, size in sorted((abs(stride), size) for stride, size in zip(a.strides, a.shape, strict=True)):
        if size == 1:
            continue
        if stride < end:
            return True
        end += stride * (size - 1)
    return False


# --- scalars ---


def check_int(value: object, name: str, minimum: int = -sys.maxsize, maximum: int = sys.maxsize) -> int:
    """``value`` as an int of a size that C knows too; bool is not one here."""
    if type(value) is int:
        number = value
    else:
        if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
            raise TypeError(f"{name}: {value!r} of type {type(value).__name__}, expected an integer")
        try:
            number = operator.index(value)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise TypeError(f"{name}: {type(value).__name__}, expected an integer") from error
    if number < minimum:
        raise ValueError(f"{name}: {number}, expected at least {minimum}")
    if number > maximum:
        raise ValueError(f"{name}: {number}, expected at most {maximum}")
    return number


def check_size(value: object, name: str) -> int:
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
        number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: {number}, expected a finite number")
    return number


def check_rate(value: object, name: str) -> float:
    """A dropout rate."""
    rate = check_real(value, name)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name}: {rate}, expected a rate in [0, 1)")
    return rate


def check_flag(value: object, name: str) -> bool:
    if value is True or value is False:
        return value
    if isinstance(value, (int, np.bool_)):
        return bool(value)
    raise TypeError(f"{name}: {type(value).__name__}, expected True or False")


def check_axis(axis: object, a: Array, name: str = "x") -> int:
    """``axis`` counted from the front."""
    number, rank = check_int(axis, "axis"), a.ndim
    if rank == 0:
        raise ValueError(f"{name}: a scalar, expected at least one axis")
    if not -rank <= number < rank:
        raise ValueError(f"axis: {number}, expected -{rank} to {rank - 1} for {name} of shape {a.shape}")
    return number % rank


def check_rng(rng: object, name: str = "rng") -> np.random.Generator:
    """The generator to draw from: a fresh one for None, a seeded one for an int. NumPy's global one is never used."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng()
    if isinstance(rng, (bool, np.bool_)) or not hasattr(rng, "__index__"):
        raise TypeError(f"{name}: {type(rng).__name__}, expected None, an integer or a numpy.random.Generator")
    return np.random.default_rng(check_int(rng, name, 0))

"""softmax, log_softmax and logsumexp along one axis."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.outputs import allocate, check_out, finalize, resolve_out
from headwise._base.scalars import check_axis, check_flag
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


def softmax(x: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    """``exp(x) / sum(exp(x))`` along an axis. The max is subtracted first, so large entries do not overflow.

    Parameters
    ----------
    x : array_like, (..., n, ...)
        Real numbers; at least one axis.
    axis : int
        The axis along which the result sums to 1.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (..., n, ...)
        In the shape and dtype of `x`; float64 for integers and bool. float16 and bfloat16 are computed in float32 and
        rounded once. NaN where all entries along the axis are -inf.

    Raises
    ------
    ValueError
        If `x` has no such `axis`, or `out` has another shape, is read-only or partly overlaps `x`.
    TypeError
        If `x` is not real, `axis` is not an integer, or `out` has another dtype.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.softmax([[1000.0, 1000.0], [0.0, 0.0]])
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    return _normalize(current().softmax, x, axis, out)


def log_softmax(x: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    """``x - log(sum(exp(x)))`` along an axis: the logarithm of :func:`softmax` without its underflow.

    Parameters
    ----------
    x : array_like, (..., n, ...)
        Real numbers; at least one axis.
    axis : int
        The axis along which the exponentials of the result sum to 1.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (..., n, ...)
        In the shape and dtype of `x`; float64 for integers and bool. float16 and bfloat16 are computed in float32 and
        rounded once.

    Raises
    ------
    ValueError, TypeError
        As in :func:`softmax`.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.log_softmax([0.0, 1000.0])
    array([-1000.,     0.])
    """
    return _normalize(current().log_softmax, x, axis, out)


def logsumexp(x: ArrayLike, axis: int = -1, *, keepdims: bool = False) -> Array:
    """``log(sum(exp(x)))`` along an axis. The max is subtracted first, so large entries do not overflow.

    Parameters
    ----------
    x : array_like, (..., n, ...)
        Real numbers; at least one axis.
    axis : int
        The axis to sum along.
    keepdims : bool
        Whether the result keeps the axis, with size 1.

    Returns
    -------
    ndarray, (..., ...) or (..., 1, ...)
        In the dtype of `x`; float64 for integers and bool. float16 and bfloat16 are computed in float32 and rounded
        once. -inf for an axis of size 0 and where all entries along the axis are -inf.

    Raises
    ------
    ValueError, TypeError
        As in :func:`softmax`.

    Examples
    --------
    >>> import headwise as hw
    >>> round(float(hw.logsumexp([1000.0, 1000.0])), 3)
    1000.693
    """
    a = as_array(x, "x")
    ready = is_canonical_or_16bit(a)
    dtype = a.dtype if ready else promote(("x", a))[1]
    axis = check_axis(axis, a)
    keepdims = check_flag(keepdims, "keepdims")
    shape = a.shape
    lanes = outer, n, inner = _lanes(shape, axis)
    result = allocate((outer, inner), dtype)
    if n == 0:
        result.fill(-np.inf)
    elif result.size:
        current().logsumexp(a.reshape(lanes) if ready else _as_lanes(a, lanes, dtype), result)
    middle = (1,) if keepdims else ()
    return result.reshape(shape[:axis] + middle + shape[axis + 1 :])


def _normalize(kernel: Callable[[Array, Array], None], x: ArrayLike, axis: int, out: Array | None) -> Array:
    a = as_array(x, "x")
    ready = is_canonical_or_16bit(a)
    dtype = a.dtype if ready else promote(("x", a))[1]
    axis = check_axis(axis, a)
    shape = a.shape
    if out is not None:
        check_out(out, shape, dtype, ("x", a), inplace=a)
    result = resolve_out(out, shape, dtype, contiguous=True)
    if result.size:
        lanes = _lanes(shape, axis)
        kernel(a.reshape(lanes) if ready else _as_lanes(a, lanes, dtype), result.reshape(lanes))
    return finalize(result, out, dtype)


@lru_cache(maxsize=256)
def _lanes(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """``shape`` as (outer, n, inner), with n the size of ``axis``."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _as_lanes(a: Array, lanes: tuple[int, int, int], dtype: np.dtype[Any]) -> Array:
    _, n, inner = lanes
    form = cast_layout(a, dtype).reshape(lanes)
    contiguous = form.strides[2] == form.itemsize if inner > 1 else n <= 1 or form.strides[1] == form.itemsize
    return form if contiguous else np.ascontiguousarray(form)

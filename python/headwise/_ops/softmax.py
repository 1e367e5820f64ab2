"""softmax, log_softmax and logsumexp along any axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from headwise._base.arrays import as_array, cast_layout, fits, is_canonical_or_16bit, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import allocate, check_out, finalize, resolve_out
from headwise._base.scalars import check_axes, check_flag
from headwise._base.typing import FLOAT64
from headwise._ops.lanes import as_lanes, check_where, lanes_along, shape_without
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Axes


def softmax(x: ArrayLike, axis: Axes = -1, *, where: ArrayLike | None = None, out: Array | None = None) -> Array:
    """``exp(x) / sum(exp(x))`` along one or more axes. The max is subtracted first, so large entries do not overflow.

    Parameters
    ----------
    x : array_like, (..., n, ...)
        Real numbers.
    axis : int, tuple of int, or None
        The axes over which the result sums to 1; all axes if None.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Entries where it is False are masked: they have the result 0, and their
        values, NaN included, have no influence. The integers 0 and 1 are accepted too.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (..., n, ...)
        In the shape and dtype of `x`; float64 for integers and bool. float16 and bfloat16 are computed in float32 and
        rounded once. NaN where all entries along the axis are -inf; 0 where all of them are masked.

    Raises
    ------
    ValueError
        If `x` has no such `axis`, `where` does not broadcast, or `out` has another shape, is read-only or partly
        overlaps `x`.
    TypeError
        If `x` is not real, `axis` does not consist of integers, `where` is not bool, or `out` has another dtype.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.softmax([[1000.0, 1000.0], [0.0, 0.0]])
    array([[0.5, 0.5],
           [0.5, 0.5]])
    >>> hw.softmax([[1.0, 1.0], [1.0, 1.0]], axis=None)
    array([[0.25, 0.25],
           [0.25, 0.25]])
    >>> hw.softmax([0.0, 0.0, 9.0], where=[True, True, False])
    array([0.5, 0.5, 0. ])
    """
    return _normalize(current().softmax, x, axis, where, out, 0.0)


def log_softmax(x: ArrayLike, axis: Axes = -1, *, where: ArrayLike | None = None, out: Array | None = None) -> Array:
    """``x - log(sum(exp(x)))`` along one or more axes: the logarithm of :func:`softmax` without its underflow.

    Parameters
    ----------
    x : array_like, (..., n, ...)
        Real numbers.
    axis : int, tuple of int, or None
        The axes over which the exponentials of the result sum to 1; all axes if None.
    where : array_like of bool, optional
        As in :func:`softmax`; masked entries have the result -inf.
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
    return _normalize(current().log_softmax, x, axis, where, out, -np.inf)


@overload
def logsumexp(
    x: ArrayLike, axis: Axes = -1, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: bool = False, return_sign: Literal[False] = False,
) -> Array: ...  # fmt: skip
@overload
def logsumexp(
    x: ArrayLike, axis: Axes = -1, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: bool = False, return_sign: Literal[True],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def logsumexp(
    x: ArrayLike, axis: Axes = -1, *, b: ArrayLike | None = None, where: ArrayLike | None = None,
    keepdims: bool = False, return_sign: bool = False,
) -> Any: ...  # fmt: skip
def logsumexp(
    x: ArrayLike,
    axis: Axes = -1,
    *,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
) -> Any:
    """``log(sum(b * exp(x)))`` along one or more axes. The max is subtracted first, so large entries do not overflow.

    Parameters
    ----------
    x : array_like, (..., n, ...)
        Real numbers.
    axis : int, tuple of int, or None
        The axes to sum over; all axes if None.
    b : array_like, optional
        Factors of the exponentials; broadcasts to the shape of `x`. They may be negative. Where `b` is 0, the
        value of `x`, NaN included, has no influence. 1 by default.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Entries where it is False take no part, as if `b` were 0.
    keepdims : bool
        Whether the result keeps the axes, with size 1.
    return_sign : bool
        Whether the sign of the sum is returned too. The first result is then the logarithm of its absolute value.

    Returns
    -------
    result : ndarray, (..., ...) or (..., 1, ...)
        In the dtype to which `x` and `b` promote; float64 for integers and bool. float16 and bfloat16 are computed in
        float32 and rounded once. -inf where the sum is 0: for an axis of size 0, and where all entries are -inf or
        masked. NaN where the sum is negative and `return_sign` is False.
    sign : ndarray, of the shape and dtype of `result`
        1, 0 or -1, or NaN where the sum is NaN. Only if `return_sign` is set.

    Raises
    ------
    ValueError, TypeError
        As in :func:`softmax`.

    Notes
    -----
    The arguments are those of ``scipy.special.logsumexp``, whose `axis` is None by default. With `b`, NumPy computes in
    float64, in temporary arrays of the size of `x`, on both backends.

    Examples
    --------
    >>> import headwise as hw
    >>> round(float(hw.logsumexp([1000.0, 1000.0])), 3)
    1000.693
    >>> value, sign = hw.logsumexp([1000.0, 1000.0], b=[1.0, -3.0], return_sign=True)
    >>> round(float(value), 3), float(sign)
    (1000.693, -1.0)
    """
    a = as_array(x, "x")
    factors = None if b is None else as_array(b, "b")
    inputs = [("x", a)] if factors is None else [("x", a), ("b", factors)]
    ready = factors is None and is_canonical_or_16bit(a)
    dtype = a.dtype if ready else promote(*inputs)[1]
    axes = check_axes(axis, a)
    keep = None if where is None else check_where(where, a.shape)
    keepdims, return_sign = check_flag(keepdims, "keepdims"), check_flag(return_sign, "return_sign")
    shape = shape_without(a.shape, axes, keepdims)
    if factors is not None:
        if not fits(factors.shape, a.shape):
            raise ValueError(f"b: shape {factors.shape}, expected one that broadcasts to that of x, {a.shape}")
        exact, sign = _weighted(a, factors, keep, axes)
        if not return_sign:
            exact[sign < 0] = np.nan
        total = cast_dtype(exact, dtype)
    else:
        if keep is not None:
            a, ready = _masked(a, keep, allocate(a.shape, dtype)), True
        total = _logsumexp(a, axes, dtype, ready)
        sign = np.where(np.isnan(total), np.nan, ~np.isneginf(total)) if return_sign else total
    return (total.reshape(shape), cast_dtype(sign, dtype).reshape(shape)) if return_sign else total.reshape(shape)


def _logsumexp(a: Array, axes: tuple[int, ...], dtype: np.dtype[Any], ready: bool) -> Array:
    lanes = lanes_along(a.shape, axes)
    result = allocate((lanes.shape[0], lanes.shape[2]), dtype)
    if lanes.shape[1] == 0:
        result.fill(-np.inf)
    elif result.size:
        in_place = ready and lanes.order is None
        source = a.reshape(lanes.shape) if in_place else as_lanes(lanes.view(a), lanes.shape, dtype)
        current().logsumexp(source, result)
    return result


@ieee
def _weighted(a: Array, factors: Array, keep: Array | None, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """``log(abs(sum(factors * exp(a))))`` and the sign of the sum, both float64, with the axes kept.

    ``factors * exp(a)`` is ``sign(factors) * exp(a + log(abs(factors)))``, so that factors can neither overflow nor
    underflow.
    """
    b = cast_layout(factors, FLOAT64)
    b = np.broadcast_to(b, a.shape) if keep is None else np.where(keep, b, 0.0)
    terms: Array = cast_layout(a, FLOAT64) + np.log(np.abs(b))
    np.copyto(terms, -np.inf, where=b == 0)
    peak = terms.max(axis=axes, keepdims=True, initial=-np.inf)
    peak[np.isinf(peak)] = 0  # inf - inf would be NaN
    total = (np.sign(b) * np.exp(terms - peak)).sum(axis=axes, keepdims=True)
    return np.log(np.abs(total)) + peak, np.sign(total)


def _normalize(
    kernel: Callable[[Array, Array], None],
    x: ArrayLike,
    axis: Axes,
    where: ArrayLike | None,
    out: Array | None,
    masked: float,
) -> Array:
    """``masked`` is the result of masked entries."""
    a = as_array(x, "x")
    ready = is_canonical_or_16bit(a)
    dtype = a.dtype if ready else promote(("x", a))[1]
    axes = check_axes(axis, a)
    keep = None if where is None else check_where(where, a.shape)
    if out is not None:
        masks = [] if keep is None else [("where", keep)]
        check_out(out, a.shape, dtype, ("x", a), *masks, inplace=a)
    lanes = lanes_along(a.shape, axes)
    sizes, order = lanes
    if order is not None:
        result = resolve_out(None, lanes.view(a).shape, dtype)
    else:
        result = resolve_out(out, a.shape, dtype, contiguous=True)
    if result.size:
        target = result.reshape(sizes)
        if keep is not None:
            keep = lanes.view(keep)
            source = _masked(lanes.view(a), keep, result).reshape(sizes)
        elif ready and order is None:
            source = a.reshape(sizes)
        else:
            source = as_lanes(lanes.view(a), sizes, dtype)
        kernel(source, target)
        if keep is not None:
            np.copyto(result, np.asarray(masked, dtype), where=~keep)
    return finalize(result if order is None else lanes.restore(result), out, dtype)


@ieee
def _masked(a: Array, keep: Array, result: Array) -> Array:
    """``result``, filled with ``a`` where it is kept and with -inf elsewhere. ``result`` may be ``a``."""
    if result is not a:
        np.copyto(result, a, casting="unsafe")
    np.copyto(result, np.asarray(-np.inf, result.dtype), where=~keep)
    return result

"""Gradients of softmax, log_softmax and logsumexp along any axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, fits, promote
from headwise._base.ieee import assign, cast_dtype, ieee
from headwise._base.outputs import allocate
from headwise._base.scalars import check_axes
from headwise._base.typing import FLOAT64
from headwise._numpy.softmax import lane_blocks, lane_sum
from headwise._ops.gradients.results import as_gradient, finish, sum_to_shape
from headwise._ops.lanes import check_where, lanes_along, shape_without

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Axes


def softmax_backward(d_out: ArrayLike, probabilities: ArrayLike, axis: Axes = -1) -> Array:
    """The gradient of :func:`softmax` by its argument: ``p * (d_out - sum(p * d_out))``.

    Parameters
    ----------
    d_out : array_like, (..., n, ...)
        The gradient of a loss by `probabilities`.
    probabilities : array_like, (..., n, ...)
        The result of the forward pass.
    axis : int, tuple of int, or None
        As in the forward pass.

    Returns
    -------
    ndarray, (..., n, ...)
        In the dtype of `probabilities`. 16-bit types are computed in float32 and rounded once. An entry whose
        probability is 0, such as a masked one, has the gradient 0, and its `d_out`, NaN included, has no influence.

    Raises
    ------
    ValueError
        If the shapes differ, or there is no such `axis`.
    TypeError
        If an array is not real, or `axis` does not consist of integers.

    Examples
    --------
    >>> import headwise as hw
    >>> p = hw.softmax([0.0, 0.0])
    >>> hw.softmax_backward([1.0, 0.0], p)
    array([ 0.25, -0.25])
    """
    return _elementwise(_of_softmax, d_out, probabilities, "probabilities", axis)


def log_softmax_backward(d_out: ArrayLike, log_probabilities: ArrayLike, axis: Axes = -1) -> Array:
    """The gradient of :func:`log_softmax` by its argument: ``d_out - exp(log p) * sum(d_out)``.

    Parameters
    ----------
    d_out : array_like, (..., n, ...)
        The gradient of a loss by `log_probabilities`.
    log_probabilities : array_like, (..., n, ...)
        The result of the forward pass.
    axis : int, tuple of int, or None
        As in the forward pass.

    Returns
    -------
    ndarray, (..., n, ...)
        In the dtype of `log_probabilities`. 16-bit types are computed in float32 and rounded once. An entry of -inf,
        such as a masked one, has the gradient 0, and its `d_out`, NaN included, has no influence.

    Raises
    ------
    ValueError, TypeError
        As in :func:`softmax_backward`.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.log_softmax_backward([1.0, 0.0], hw.log_softmax([0.0, 0.0]))
    array([ 0.5, -0.5])
    """
    return _elementwise(_of_log_softmax, d_out, log_probabilities, "log_probabilities", axis)


def logsumexp_backward(
    d_out: ArrayLike, x: ArrayLike, axis: Axes = -1, *, b: ArrayLike | None = None, where: ArrayLike | None = None
) -> Array:
    """The gradient of :func:`logsumexp` by `x`: ``d_out * b * exp(x) / sum(b * exp(x))``.

    Parameters
    ----------
    d_out : array_like, (..., ...) or (..., 1, ...)
        The gradient of a loss by the result, with or without axes of size 1 for `axis`.
    x : array_like, (..., n, ...)
        The argument of the forward pass.
    axis : int, tuple of int, or None
        As in the forward pass, as the next two.
    b : array_like, optional
    where : array_like of bool, optional

    Returns
    -------
    ndarray, (..., n, ...)
        In the dtype of `x`. 16-bit types are computed in float32 and rounded once. Masked entries have the gradient 0.

    Raises
    ------
    ValueError, TypeError
        As in :func:`logsumexp`.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.logsumexp_backward(3.0, [0.0, 0.0, -1e9])
    array([1.5, 1.5, 0. ])
    """
    return logsumexp_gradients(d_out, x, axis, b, where, ("x",))["x"]


def logsumexp_gradients(
    d_out: ArrayLike, x: ArrayLike, axis: Axes, b: ArrayLike | None, where: ArrayLike | None, wrt: tuple[str, ...]
) -> dict[str, Array]:
    """The gradients by ``x`` and ``b``, those of ``wrt``."""
    a = as_array(x, "x")
    factors = None if b is None else as_array(b, "b")
    compute, dtype = promote(*((("x", a),) if factors is None else (("x", a), ("b", factors))))
    axes = check_axes(axis, a)
    keep = None if where is None else check_where(where, a.shape)
    d = as_array(d_out, "d_out")
    short, long = (shape_without(a.shape, axes, keepdims) for keepdims in (False, True))
    d = as_gradient(d, "d_out", long if d.shape == long else short, FLOAT64 if factors is not None else compute, "x")
    d = d.reshape(long)
    if factors is not None:
        if not fits(factors.shape, a.shape):
            raise ValueError(f"b: shape {factors.shape}, expected one that broadcasts to that of x, {a.shape}")
        by_x, by_b = _weighted(d, a, factors, keep, axes)
        of_b = {"b": finish(sum_to_shape(by_b, factors.shape), factors, dtype)} if "b" in wrt else {}
        return {"x": finish(by_x, a, dtype), **of_b}
    lanes = lanes_along(a.shape, axes)
    source, share = lanes.view(a).reshape(lanes.shape), lanes.view(d).reshape((lanes.shape[0], 1, lanes.shape[2]))
    kept = None if keep is None else lanes.view(keep).reshape(lanes.shape)
    result = allocate(lanes.shape, dtype)
    for o, i in lane_blocks(result):
        part = cast_dtype(source[o, :, i], compute)
        if kept is not None:
            part = np.where(kept[o, :, i], part, -np.inf)
        assign(result[o, :, i], _of_logsumexp(share[o, :, i], part))
    return {"x": finish(lanes.restore(result.reshape(lanes.view(a).shape)), a, dtype)}


def _elementwise(
    kernel: Callable[[Array, Array], Array], d_out: ArrayLike, result: ArrayLike, name: str, axis: Axes
) -> Array:
    """``kernel(d_out, result)`` over blocks of lanes, in the dtype of the computation, rounded once."""
    y = as_array(result, name)
    compute, dtype = promote((name, y))
    axes = check_axes(axis, y, name)
    d = as_gradient(d_out, "d_out", y.shape, dtype, name)
    lanes = lanes_along(y.shape, axes)
    d, forward = (lanes.view(a).reshape(lanes.shape) for a in (d, y))
    gradient = allocate(lanes.shape, dtype)
    for o, i in lane_blocks(gradient):
        where = o, slice(None), i
        assign(gradient[where], kernel(cast_dtype(d[where], compute), cast_dtype(forward[where], compute)))
    return lanes.restore(gradient.reshape(lanes.view(y).shape))


@ieee
def _of_softmax(d: Array, p: Array) -> Array:
    weighted = p * d
    weighted[p == 0] = 0
    weighted -= p * lane_sum(weighted)
    weighted[p == 0] = 0
    return weighted


@ieee
def _of_log_softmax(d: Array, y: Array) -> Array:
    masked = np.isneginf(y)
    d = np.where(masked, 0, d)
    result: Array = d - np.exp(y) * lane_sum(d)
    result[masked] = 0
    return result


@ieee
def _of_logsumexp(d: Array, x: Array) -> Array:
    peak = x.max(axis=1, keepdims=True, initial=-np.inf)
    peak[np.isneginf(peak)] = 0  # a lane without entries: its weights are 0
    weights = np.exp(x - peak)
    total = lane_sum(weights)
    total[total == 0] = 1
    weights /= total
    result: Array = weights * d
    result[weights == 0] = 0
    return result


@ieee
def _weighted(d: Array, x: Array, b: Array, keep: Array | None, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The gradients by ``x`` and by each entry of ``b``, broadcast to ``x``, in float64."""
    factors = np.broadcast_to(cast_layout(b, FLOAT64), x.shape)
    used = factors != 0 if keep is None else keep & (factors != 0)
    exponents = np.where(used, cast_layout(x, FLOAT64), -np.inf)
    peak = exponents.max(axis=axes, keepdims=True, initial=-np.inf)
    peak[np.isinf(peak)] = 0
    total = (np.where(used, factors, 0) * np.exp(exponents - peak)).sum(axis=axes, keepdims=True)
    # exp(x) / total, also where b is 0: the derivative by b there is not 0.
    present: Any = True if keep is None else keep
    by_b = np.where(present, np.exp(cast_layout(x, FLOAT64) - peak) / total * d, 0)
    return np.where(used, by_b * factors, 0), by_b

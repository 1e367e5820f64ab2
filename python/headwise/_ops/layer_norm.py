"""Layer and RMS normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._base.scalars import check_axis, check_real
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


def layer_normalization(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = -1,
    out: Array | None = None,
) -> Array:
    """Shift and scale ``x`` to mean 0 and variance 1 along an axis, then multiply by `gamma` and add `beta`.

    ``(x - mean) / sqrt(variance + eps) * gamma + beta``, equation (4) of [1]_. The variance divides by n.

    Parameters
    ----------
    x : array_like, (..., n, ...)
        Real numbers; at least one axis.
    gamma, beta : array_like, (n,), optional
        The scale and the shift of each entry along the axis; 1 and 0 if None.
    eps : float
        Added to the variance; at least 0.
    axis : int
        The axis to normalise.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (..., n, ...)
        In the shape of `x` and the dtype to which `x`, `gamma` and `beta` promote. float16 and bfloat16 are computed in
        float32 and rounded once.

    Raises
    ------
    ValueError
        If `gamma` or `beta` is not of shape (n,), `eps` is negative, or `out` does not have the result's shape.
    TypeError
        If an argument is not real.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> hw.layer_normalization([1.0, 3.0], gamma=np.ones(2), beta=np.zeros(2), eps=0.0)
    array([-1.,  1.])
    """
    return _normalize(x, gamma, beta, eps, axis, out, current().layer_normalization)


def rms_norm(x: ArrayLike, gamma: ArrayLike | None = None, *, eps: float = 1e-6, out: Array | None = None) -> Array:
    """Scale ``x`` to a mean square of 1 along the last axis, then multiply by `gamma`.

    ``x / sqrt(mean(x ** 2) + eps) * gamma``, equation (4) of [1]_.

    Parameters
    ----------
    x : array_like, (..., n)
        Real numbers; at least one axis.
    gamma : array_like, (n,), optional
        The scale of each entry along the axis; 1 if None. Models that store an offset from 1 (Gemma) add 1 first.
    eps : float
        Added to the mean of squares; at least 0. A row of zeros is NaN if it is 0.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (..., n)
        In the shape of `x` and the dtype to which `x` and `gamma` promote; float64 for integers and bool. float16 and
        bfloat16 are computed in float32 and rounded once. Squares that overflow or underflow do no harm. In a row with
        an infinite entry, that entry is NaN and finite ones are 0.

    Raises
    ------
    ValueError
        If `gamma` is not of shape (n,), `eps` is negative, or `out` does not have the result's shape.
    TypeError
        If an argument is not real.

    References
    ----------
    .. [1] B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.rms_norm([1.0, 7.0], eps=0.0)
    array([0.2, 1.4])
    """
    return _normalize(x, gamma, None, eps, -1, out, lambda rows, g, _, eps, out: current().rms_norm(rows, g, eps, out))


def _normalize(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    axis: int,
    out: Array | None,
    norm: Callable[[Array, Array | None, Array | None, float, Array], None],
) -> Array:
    a = as_array(x, "x")
    g, b = (None if p is None else as_array(p, name) for name, p in (("gamma", gamma), ("beta", beta)))
    parameters = [(name, p) for name, p in (("gamma", g), ("beta", b)) if p is not None]
    ready = is_canonical_or_16bit(a, *(p for _, p in parameters))
    dtype = a.dtype if ready else promote(("x", a), *parameters)[1]
    axis = check_axis(axis, a)
    n = a.shape[axis]
    for name, parameter in parameters:
        check_parameter(parameter, name, axis, a)
    epsilon = check_eps(eps)
    if out is not None:
        check_out(out, a.shape, dtype, ("x", a), *parameters, inplace=a)
    last = axis == a.ndim - 1
    moved = a if last else np.moveaxis(a, axis, -1)
    result = resolve_out(out if last else None, moved.shape, dtype, contiguous=True)
    if result.size:
        if not (ready and last):
            moved = cast_layout(moved, dtype, last=True)
            g, b = (None if p is None else cast_layout(p, dtype, last=True) for p in (g, b))
        norm(moved.reshape((-1, n)), g, b, epsilon, result.reshape((-1, n)))
    return finalize(result if last else np.moveaxis(result, -1, axis), out, dtype)


def check_parameter(parameter: Array, name: str, axis: int, x: Array) -> None:
    n = x.shape[axis]
    if parameter.shape != (n,):
        raise ValueError(f"{name}: shape {parameter.shape}, expected ({n},) for axis {axis} of x {x.shape}")


def check_eps(eps: object) -> float:
    epsilon = check_real(eps, "eps")
    if epsilon < 0.0:
        raise ValueError(f"eps: {epsilon}, expected at least 0")
    return epsilon

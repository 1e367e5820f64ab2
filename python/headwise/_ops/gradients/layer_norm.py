"""Gradients of layer and RMS normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.ieee import cast_dtype
from headwise._base.outputs import allocate
from headwise._base.scalars import check_axis
from headwise._base.typing import FLOAT32
from headwise._ops.gradients.results import as_gradient, finish, gradient_dtype, gradients_of
from headwise._ops.layer_norm import check_eps, check_parameter
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

LAYER_NORM_NAMES = ("x", "gamma", "beta")
RMS_NORM_NAMES = ("x", "gamma")


def layer_normalization_backward(
    d_out: ArrayLike, x: ArrayLike, gamma: ArrayLike | None = None, *, eps: float = 1e-5, axis: int = -1
) -> Any:
    """Gradients of :func:`layer_normalization` by its arguments.

    With ``y = (x - mean) / sqrt(variance + eps)`` and ``g = d_out * gamma``: ``d_x`` is
    ``(g - mean(g) - y * mean(g * y)) / sqrt(variance + eps)``, ``d_gamma`` the sum of ``d_out * y`` over all axes but
    `axis`, and ``d_beta`` that of `d_out`.

    Parameters
    ----------
    d_out : array_like, (..., n, ...)
        The gradient of a loss by the result.
    x : array_like, (..., n, ...)
        The arguments of the forward pass, as the next three.
    gamma : array_like, (n,), optional
    eps : float
    axis : int

    Returns
    -------
    d_x : ndarray, (..., n, ...)
        In the dtype of `x`, or that of the result if `x` holds integers.
    d_gamma, d_beta : ndarray, (n,)
        In the dtype of `gamma`, or that of the result; also if `gamma` is None. Their bits do not depend on the number
        of threads. 16-bit types are computed in float32, and every result is rounded once.

    Raises
    ------
    ValueError
        If a shape does not match, `eps` is negative, or `x` has no such `axis`.
    TypeError
        If an argument is not real.

    Examples
    --------
    >>> import headwise as hw
    >>> d_x, d_gamma, d_beta = hw.layer_normalization_backward([[1.0, 2.0]], [[1.0, 3.0]], eps=0.0)
    >>> d_gamma, d_beta
    (array([-1.,  2.]), array([1., 2.]))
    """
    return gradients_of(LAYER_NORM_NAMES, norm_gradients(d_out, x, gamma, None, eps, axis, LAYER_NORM_NAMES))


def rms_norm_backward(d_out: ArrayLike, x: ArrayLike, gamma: ArrayLike | None = None, *, eps: float = 1e-6) -> Any:
    """Gradients of :func:`rms_norm` by its arguments.

    With ``r = sqrt(mean(x ** 2) + eps)``, ``y = x / r`` and ``g = d_out * gamma``: ``d_x`` is
    ``(g - y * mean(g * y)) / r``, and ``d_gamma`` the sum of ``d_out * y`` over all axes but the last.

    Parameters
    ----------
    d_out : array_like, (..., n)
        The gradient of a loss by the result.
    x : array_like, (..., n)
        The arguments of the forward pass, as the next two.
    gamma : array_like, (n,), optional
    eps : float

    Returns
    -------
    d_x : ndarray, (..., n)
        As of :func:`layer_normalization_backward`, as the next one.
    d_gamma : ndarray, (n,)

    Raises
    ------
    ValueError, TypeError
        As in :func:`layer_normalization_backward`.

    Examples
    --------
    >>> import headwise as hw
    >>> d_x, d_gamma = hw.rms_norm_backward([[5.0, 5.0]], [[1.0, 7.0]], eps=0.0)
    >>> d_x, d_gamma
    (array([[ 0.84, -0.12]]), array([1., 7.]))
    """
    return gradients_of(RMS_NORM_NAMES, norm_gradients(d_out, x, gamma, None, eps, -1, RMS_NORM_NAMES))


def norm_gradients(
    d_out: ArrayLike,
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    axis: int,
    names: tuple[str, ...],
) -> dict[str, Array]:
    """The gradients of :func:`layer_normalization`, or of :func:`rms_norm`, whose ``names`` have no beta."""
    a, d = as_array(x, "x"), as_array(d_out, "d_out")
    g, b = (None if p is None else as_array(p, name) for name, p in (("gamma", gamma), ("beta", beta)))
    parameters = [(name, p) for name, p in (("gamma", g), ("beta", b)) if p is not None]
    ready = is_canonical_or_16bit(a, d, *(p for _, p in parameters))
    dtype = a.dtype if ready else promote(("x", a), *parameters)[1]
    axis = check_axis(axis, a)
    n = a.shape[axis]
    for name, parameter in parameters:
        check_parameter(parameter, name, axis, a)
    epsilon = check_eps(eps)
    d = as_gradient(d, "d_out", a.shape, dtype, "x")
    if axis != a.ndim - 1:
        a, d = (np.moveaxis(array, axis, -1) for array in (a, d))
    d_x = allocate(a.shape, dtype)
    d_gamma, d_beta = np.zeros((2, n), FLOAT32 if dtype.itemsize == 2 else dtype)
    if d_x.size:
        d_rows, rows = (cast_layout(array, dtype, last=True).reshape((-1, n)) for array in (d, a))
        scale = None if g is None else cast_layout(g, dtype, last=True)
        target, backend = d_x.reshape((-1, n)), current()
        if "beta" in names:
            backend.layer_normalization_backward(d_rows, rows, scale, epsilon, target, d_gamma, d_beta)
        else:
            backend.rms_norm_backward(d_rows, rows, scale, epsilon, target, d_gamma)
    by_gamma, by_beta = (
        cast_dtype(total, dtype if p is None else gradient_dtype(p, dtype))
        for total, p in ((d_gamma, g), (d_beta, g if b is None else b))
    )
    found = {"x": finish(np.moveaxis(d_x, -1, axis), a, dtype), "gamma": by_gamma, "beta": by_beta}
    return {name: found[name] for name in names}

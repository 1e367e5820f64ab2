"""Gradients of the linear map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._ops.gradients.results import as_gradient, finish, gradients_of
from headwise._ops.linear import check_parameters, linear

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

LINEAR_NAMES = ("x", "weight", "bias")


def linear_backward(d_out: ArrayLike, x: ArrayLike, weight: ArrayLike, *, precision: str | None = None) -> Any:
    """Gradients of :func:`linear` by its arguments: ``d_out @ weight.T``, ``x.T @ d_out`` and the sum of `d_out`.

    Parameters
    ----------
    d_out : array_like, (..., out_features)
        The gradient of a loss by the result.
    x : array_like, (..., in_features)
        The arguments of the forward pass, as the next one.
    weight : array_like, (in_features, out_features)
    precision : {"highest", "high", "medium"}, optional
        The precision of products in float32 and float16, see :func:`set_precision`; :func:`get_precision` if None.

    Returns
    -------
    d_x : ndarray, (..., in_features)
        In the dtype of `x`, or that of the result if `x` holds integers.
    d_weight : ndarray, (in_features, out_features)
        In the dtype of `weight`, likewise.
    d_bias : ndarray, (out_features,)
        The gradient of a bias in the dtype of the result.

    Raises
    ------
    ValueError
        If shapes do not match, or `precision` is unknown.
    TypeError
        If an array is not real.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> d_x, d_weight, d_bias = hw.linear_backward(np.ones((5, 3)), np.ones((5, 2)), np.ones((2, 3)))
    >>> d_x.shape, d_weight[0], d_bias
    ((5, 2), array([5., 5., 5.]), array([5., 5., 5.]))
    """
    return gradients_of(LINEAR_NAMES, linear_gradients(d_out, x, weight, None, precision, LINEAR_NAMES))


def linear_gradients(
    d_out: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    precision: str | None,
    wrt: tuple[str, ...],
) -> dict[str, Array]:
    """The gradients of ``wrt``. They are products like those of the forward pass, with its kernels."""
    a, w = as_array(x, "x"), as_array(weight, "weight")
    b = None if bias is None else as_array(bias, "bias")
    dtype = promote(("x", a), ("weight", w), *(() if b is None else (("bias", b),)))[1]
    check_parameters(w, b)
    if not a.ndim or a.shape[-1] != len(w):
        raise ValueError(f"x: shape {a.shape}, expected a last axis of in_features = {len(w)}")
    d = as_gradient(d_out, "d_out", (*a.shape[:-1], w.shape[1]), dtype, "the result")
    found: dict[str, Array] = {}
    if "x" in wrt:
        found["x"] = finish(linear(d, w.T, precision=precision), a, dtype)
    rows = d.reshape((-1, w.shape[1])) if d.size else np.zeros((0, w.shape[1]), dtype)
    if "weight" in wrt:
        columns = a.reshape((-1, len(w))).T if a.size and d.size else np.zeros((len(w), 0), dtype)
        found["weight"] = finish(linear(columns, rows, precision=precision), w, dtype)
    if "bias" in wrt:
        total = linear(np.ones((1, len(rows)), dtype), rows)[0]  # summed in the order of a product, and in its dtype
        found["bias"] = total if b is None else finish(total, b, dtype)
    return found

"""Layer and RMS normalisation, and their gradients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from oracle.numbers import Array, rounded, wide


def layer_normalization(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    axis: int = -1,
) -> Array:
    """Ba et al. (2016), with the biased variance."""
    rows = np.moveaxis(wide(x), axis, -1)
    centred = rows - rows.mean(axis=-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.longdouble(eps))
    scaled = normal * wide(1 if gamma is None else gamma) + wide(0 if beta is None else beta)
    return rounded(np.moveaxis(scaled, -1, axis), x)


def rms_norm(x: ArrayLike, gamma: ArrayLike | None = None, eps: float = 1e-6) -> Array:
    """Zhang and Sennrich (2019)."""
    rows = wide(x)
    normal = rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + np.longdouble(eps))
    return rounded(normal * wide(1 if gamma is None else gamma), x)


def layer_normalization_backward(
    d_out: ArrayLike, x: ArrayLike, gamma: ArrayLike | None = None, eps: float = 1e-5, axis: int = -1
) -> tuple[Array, Array, Array]:
    """tests/gradients compares gradients with differences of the forward pass, too."""
    rows, d = (np.moveaxis(wide(a), axis, -1) for a in (x, d_out))
    g = d * wide(1 if gamma is None else gamma)
    centred = rows - rows.mean(axis=-1, keepdims=True)
    by_x, by_gamma = norm_backward(d, g, g - g.mean(axis=-1, keepdims=True), centred, eps)
    return rounded(np.moveaxis(by_x, -1, axis), x), rounded(by_gamma, x), rounded(total(d), x)


def rms_norm_backward(
    d_out: ArrayLike, x: ArrayLike, gamma: ArrayLike | None = None, eps: float = 1e-6
) -> tuple[Array, Array]:
    d, g = wide(d_out), wide(d_out) * wide(1 if gamma is None else gamma)
    by_x, by_gamma = norm_backward(d, g, g, wide(x), eps)
    return rounded(by_x, x), rounded(by_gamma, x)


def norm_backward(d: Array, g: Array, direct: Array, centred: Array, eps: float) -> tuple[Array, Array]:
    root = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.longdouble(eps))
    y = centred / root
    return (direct - y * (g * y).mean(axis=-1, keepdims=True)) / root, total(d * y)


def total(x: Array) -> Array:
    """The sum over all axes but the last."""
    return np.asarray(x.sum(axis=tuple(range(x.ndim - 1))))

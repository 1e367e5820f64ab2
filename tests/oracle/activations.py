"""Activations and gated activations, and their gradients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from oracle.numbers import Array, rounded, wide


def gelu(x: ArrayLike, approximate: str = "none") -> Array:
    """Hendrycks and Gimpel (2016); -0 at -inf."""
    return rounded(weighted(x, "gelu" if approximate == "none" else "gelu_tanh")[0], x)


def silu(x: ArrayLike) -> Array:
    """Elfwing et al. (2017); -0 at -inf."""
    return rounded(weighted(x, "silu")[0], x)


def weighted(x: ArrayLike, name: str) -> tuple[Array, Array]:
    """x times a distribution function of x, and the derivative, with their limits at infinity."""
    t = wide(x)
    with np.errstate(all="ignore"):
        if name == "gelu":
            share = erfc(-t / np.sqrt(np.longdouble(2))) / 2
            density = np.exp(-(t**2) / 2) / np.sqrt(2 * PI)
        else:
            rate = 2 * np.sqrt(2 / PI)
            cubic = np.longdouble("0.044715")
            y, y_slope = (t, 1) if name == "silu" else (rate * (t + cubic * t**3), rate * (1 + 3 * cubic * t**2))
            share = 1 / (1 + np.exp(-y))
            density = share / (1 + np.exp(y)) * y_slope
        value, slope = t * share, share + t * density
    limit = np.isinf(t)
    return np.where(t == -np.inf, -0.0, value), np.where(limit, t > 0, slope)


PI = np.longdouble("3.14159265358979323846264338327950288")


def erfc(z: Array) -> Array:
    """By the series 7.1.6 of Abramowitz and Stegun (1964) near 0, else by their continued fraction 7.1.14."""
    a = np.asarray(np.abs(z))
    upper, near = np.empty_like(a), a < 1.5
    x = term = series = a[near]
    for n in range(1, 50):
        term = term * 2 * x**2 / (2 * n + 1)
        series = series + term
    upper[near] = 1 - 2 / np.sqrt(PI) * np.exp(-(x**2)) * series
    x = fraction = a[~near]
    for n in range(400, 0, -1):
        fraction = x + np.longdouble(n) / 2 / fraction
    upper[~near] = np.exp(-(x**2)) / np.sqrt(PI) / fraction
    return np.where(np.isnan(z), z, np.where(z < 0, 2 - upper, upper))


def gelu_backward(d_out: ArrayLike, x: ArrayLike, approximate: str = "none") -> Array:
    return rounded(wide(d_out) * weighted(x, "gelu" if approximate == "none" else "gelu_tanh")[1], x)


def silu_backward(d_out: ArrayLike, x: ArrayLike) -> Array:
    return rounded(wide(d_out) * weighted(x, "silu")[1], x)


def swiglu(gate: ArrayLike, up: ArrayLike) -> Array:
    """Shazeer (2020), equation 6."""
    return rounded(weighted(gate, "silu")[0] * wide(up), gate, up)


def geglu(gate: ArrayLike, up: ArrayLike, approximate: str = "none") -> Array:
    """Shazeer (2020), equation 5."""
    return rounded(weighted(gate, "gelu" if approximate == "none" else "gelu_tanh")[0] * wide(up), gate, up)


def swiglu_backward(d_out: ArrayLike, gate: ArrayLike, up: ArrayLike) -> tuple[Array, Array]:
    return gated_backward(d_out, gate, up, "silu")


def geglu_backward(d_out: ArrayLike, gate: ArrayLike, up: ArrayLike, approximate: str = "none") -> tuple[Array, Array]:
    return gated_backward(d_out, gate, up, "gelu" if approximate == "none" else "gelu_tanh")


def gated_backward(d_out: ArrayLike, gate: ArrayLike, up: ArrayLike, name: str) -> tuple[Array, Array]:
    value, slope = weighted(gate, name)
    return rounded(wide(d_out) * wide(up) * slope, gate), rounded(wide(d_out) * value, gate)

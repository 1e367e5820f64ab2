"""Activation functions and their gated forms, with derivatives; formulas in csrc/include/headwise/activation.h.

As in csrc/activation/functions-inl.h, all are x times a distribution function, computed at -|x| with small relative
error, and f'(|x|) = 1 - f'(-|x|). Exponentials are squares of a root, and a result that is subnormal is multiplied by
the root twice, so that it is rounded once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.ieee import assign, cast_dtype, ieee
from headwise._base.typing import FLOAT32, FLOAT64
from headwise._numpy.blocks import BLOCK, tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array


class _Constants(NamedTuple):
    """Of a dtype of computation; see csrc/activation/functions-inl.h."""

    unsigned: np.dtype[Any]
    high_half: int
    gelu: float  # results round to -0 below -gelu; likewise the next two
    gelu_tanh: float
    silu: float
    p: tuple[float, ...]
    q: tuple[float, ...]


_CONSTANTS = {
    FLOAT32: _Constants(
        np.dtype(np.uint32), 0xFFFFF000, 15.0, 12.0, 120.0,
        (0.5, 0.43867426, 0.18347186, 0.0407000615, 0.0041225282),
        (1.0, 1.6752334, 1.2035824, 0.4700843, 0.10202607, 0.010333534),
    ),
    FLOAT64: _Constants(
        np.dtype(np.uint64), 0xFFFFFFFFF8000000, 40.0, 22.0, 800.0,
        (
            0.5, 0.8244072681608273, 0.6739508317707674, 0.35286030642076066, 0.1297888249809221,
            0.034879147031061576, 0.006925144645138617, 0.0010041049326529115, 0.00010210913826887254,
            6.619168627067742e-06, 2.1005594944978134e-07,
        ),
        (
            1.0, 2.44669909712452, 2.8000850980674987, 1.9824772532291386, 0.967050904930957,
            0.34218446047718754, 0.08991279065699108, 0.01761365995348234, 0.002533509610306958,
            0.0002564761852623446, 1.659179523518304e-05, 5.26532182145183e-07,
        ),
    ),
}  # fmt: skip


@ieee
def activation(x: Array, up: Array | None, out: Array, function: str) -> None:
    for tile in tiles(*x.shape):
        value, _ = _FUNCTIONS[function](_wide(x[tile]), False)
        if up is not None:
            value *= _wide(up[tile])
        assign(out[tile], value)


@ieee
def activation_backward(
    d_out: Array, x: Array, up: Array | None, d_x: Array, d_up: Array | None, function: str
) -> None:
    rows, n = x.shape
    for tile in tiles(rows, n, BLOCK // 2):  # with the slope, a dozen arrays of a tile's size
        value, slope = _FUNCTIONS[function](_wide(x[tile]), True)
        gradient = _wide(d_out[tile])
        if up is not None and d_up is not None:
            value *= gradient
            assign(d_up[tile], value)
            gradient = gradient * _wide(up[tile])
        slope *= gradient
        assign(d_x[tile], slope)


def _wide(x: Array) -> Array:
    return cast_dtype(x, FLOAT32) if x.dtype.itemsize == 2 else x


def _gelu(x: Array, with_slope: bool) -> tuple[Array, Array]:
    """``x Phi(x)`` and, if it is asked for, the derivative. ``Phi(-t) = exp(-t ** 2 / 2) R(t)``, R a rational
    function."""
    constants = _CONSTANTS[x.dtype]
    x = np.maximum(x, -constants.gelu)
    t = np.minimum(np.abs(x), constants.gelu)
    square = t * t
    high = (t.view(constants.unsigned) & constants.unsigned.type(constants.high_half)).view(t.dtype)
    low = (high * high - square) + (t - high) * (t + high)  # the rounding error of square (Dekker 1971)
    root = np.exp(square * -0.25)
    root -= root * low * 0.25
    ratio = _polynomial(t, constants.p)
    ratio /= _polynomial(t, constants.q)
    ratio *= root  # Phi(-t) / root
    negative = x < 0
    value = x * np.where(negative, ratio, 1 - ratio * root)
    np.multiply(value, root, out=value, where=negative)
    if not with_slope:
        return value, value
    # f'(-t) = Phi(-t) - t exp(-t^2 / 2) / sqrt(2 pi)
    left = (ratio - t * root * (1 / math.sqrt(2 * math.pi))) * root
    return value, np.where(negative, left, 1 - left)


def _gelu_tanh(x: Array, with_slope: bool) -> tuple[Array, Array]:
    limit = _CONSTANTS[x.dtype].gelu_tanh
    linear = 2 * math.sqrt(2 / math.pi)
    cubic = linear * 0.044715
    x = np.maximum(x, -limit)
    a = np.minimum(np.abs(x), limit)
    square = a * a
    return _weighted_sigmoid(x, a * (square * cubic + linear), square * (3 * cubic) + linear, limit, with_slope)


def _silu(x: Array, with_slope: bool) -> tuple[Array, Array]:
    limit = _CONSTANTS[x.dtype].silu
    x = np.maximum(x, -limit)
    return _weighted_sigmoid(x, np.abs(x), 1.0, limit, with_slope)


def _weighted_sigmoid(
    x: Array, t: Array, y_slope: Array | float, limit: float, with_slope: bool
) -> tuple[Array, Array]:
    """``x sigmoid(y)`` from ``t = |y|``, and the derivative, for ``x >= -limit``."""
    root = np.exp(np.minimum(t, _CONSTANTS[x.dtype].silu) * -0.5)
    upper = 1 + root * root  # 1 / sigmoid(t)
    negative = x < 0
    value = np.where(negative, x * root, x)
    value /= upper
    np.multiply(value, root, out=value, where=negative)
    if not with_slope:
        return value, value
    # f'(-a) = sigmoid(-t) (1 - a sigmoid(t) y')
    left = root / upper * (1 - np.minimum(np.abs(x), limit) / upper * y_slope) * root
    return value, np.where(negative, left, 1 - left)


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    """The polynomial with these coefficients, the constant first."""
    total = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        total += coefficient
        total *= x
    total += coefficients[0]
    return total


_FUNCTIONS: dict[str, Callable[[Array, bool], tuple[Array, Array]]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
}

"""Layer normalisation (Ba et al. 2016, equation 4) and RMS normalisation (Zhang and Sennrich 2019, equation 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.ieee import assign, cast_dtype, ieee
from headwise._base.typing import FLOAT32
from headwise._numpy.blocks import in_float32, row_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array


class _Limits(NamedTuple):
    """Where squares overflow or underflow; see ``LayerNormScale`` in csrc/layer_norm/kernel-inl.h."""

    down: float
    up: float
    max_variance: float
    max_mean: float
    min_eps: float

    def scaled(self, eps: float, scale: float) -> float:
        """``eps`` of scaled rows. It must not underflow to 0, as it makes the result of a row of equal entries beta."""
        return max(eps * scale * scale, self.min_eps) if eps else 0.0


class _Moments(NamedTuple):
    mean: Array  # (rows, 1), as the next but one
    centred: Array  # (rows, n), new: the deviations from the mean
    variance: Array


_FLOAT32 = _Limits(2.0**-100, 2.0**100, 2.0**-90, 2.0**20, 2.0**-240)
_FLOAT64 = _Limits(2.0**-800, 2.0**600, 2.0**-960, 2.0**-400, 2.0**-1020)


@ieee
def layer_normalization(x: Array, gamma: Array | None, beta: Array | None, eps: float, out: Array) -> None:
    _normalize(x, gamma, beta, eps, out, _deviations)


@ieee
def rms_norm(x: Array, gamma: Array | None, eps: float, out: Array) -> None:
    _normalize(x, gamma, None, eps, out, _from_zero)


def _normalize(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, out: Array, moments: Callable[[Array], _Moments]
) -> None:
    gamma, beta = (None if a is None else cast_dtype(a, FLOAT32) if x.dtype.itemsize == 2 else a for a in (gamma, beta))

    def normalize(x: Array, out: Array) -> None:
        centred, divisor, _ = _centred(x, eps, moments)
        centred /= divisor
        if gamma is not None:
            centred *= gamma
        if beta is not None:
            centred += beta
        out[...] = centred

    for rows in row_blocks(x):
        in_float32(normalize, x[rows], out[rows])


@ieee
def layer_normalization_backward(
    d_out: Array, x: Array, gamma: Array | None, eps: float, d_x: Array, d_gamma: Array, d_beta: Array
) -> None:
    _differentiate(d_out, x, gamma, eps, d_x, d_gamma, d_beta)


@ieee
def rms_norm_backward(d_out: Array, x: Array, gamma: Array | None, eps: float, d_x: Array, d_gamma: Array) -> None:
    _differentiate(d_out, x, gamma, eps, d_x, d_gamma, None)


def _differentiate(
    d_out: Array, x: Array, gamma: Array | None, eps: float, d_x: Array, d_gamma: Array, d_beta: Array | None
) -> None:
    """With ``g = d_out * gamma``: ``d_x = (g - mean(g) - normal * mean(g * normal)) / divisor``, without mean(g) for
    RMS normalisation, which has no ``d_beta``."""
    by_gamma, by_beta = np.zeros((2, x.shape[1]))
    for rows in row_blocks(x):
        block, d = (cast_dtype(a[rows], FLOAT32) if a.dtype.itemsize == 2 else a[rows] for a in (x, d_out))
        normal, divisor, scale = _centred(block, eps, _from_zero if d_beta is None else _deviations)
        normal /= divisor
        by_gamma += (d * normal).sum(axis=0, dtype=np.float64)
        g = d.copy() if gamma is None else d * cast_dtype(gamma, d.dtype)
        along = (g * normal).mean(axis=1, keepdims=True)
        if d_beta is not None:
            by_beta += d.sum(axis=0, dtype=np.float64)
            g -= g.mean(axis=1, keepdims=True)
        g -= normal * along
        g /= divisor
        g *= scale
        assign(d_x[rows], g)
    d_gamma[...] = by_gamma
    if d_beta is not None:
        d_beta[...] = by_beta


def _centred(x: Array, eps: float, moments: Callable[[Array], _Moments]) -> tuple[Array, Array, Array]:
    """The rows, multiplied by powers of two, the divisors that normalise them, and the powers."""
    mean, centred, variance = moments(x)
    limits = _FLOAT32 if x.dtype == np.float32 else _FLOAT64
    divisor = variance.astype(np.float64) + limits.scaled(eps, 1.0)
    overflown = ~np.isfinite(variance[:, 0])
    small = divisor[:, 0] < limits.max_variance
    small &= np.abs(mean[:, 0]) < limits.max_mean
    scales = np.ones_like(variance)
    # Computed again from scaled rows: the result does not depend on the scale.
    for rows, scale in ((overflown, limits.down), (small, limits.up)):
        if not rows.any():
            continue
        _, centred[rows], variance = moments(x[rows] * x.dtype.type(scale))
        divisor[rows] = variance.astype(np.float64) + limits.scaled(eps, scale)
        scales[rows] = scale
    return centred, np.sqrt(divisor).astype(x.dtype), scales


def _deviations(rows: Array) -> _Moments:
    """The mean is subtracted twice: its rounding error matters in rows far from 0, and the second mean is that
    error."""
    mean = rows.mean(axis=1, keepdims=True)
    centred = rows - mean
    centred -= centred.mean(axis=1, keepdims=True)
    return _Moments(mean, centred, np.square(centred).mean(axis=1, keepdims=True))


def _from_zero(rows: Array) -> _Moments:
    mean = np.zeros((len(rows), 1), rows.dtype)
    return _Moments(mean, rows.copy(), np.square(rows).mean(axis=1, keepdims=True))

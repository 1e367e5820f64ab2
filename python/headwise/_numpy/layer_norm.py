"""Layer normalisation (Ba et al. 2016, equation 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.ieee import ieee
from headwise._numpy.blocks import in_float32, row_blocks

if TYPE_CHECKING:
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


_FLOAT32 = _Limits(2.0**-100, 2.0**100, 2.0**-90, 2.0**20, 2.0**-240)
_FLOAT64 = _Limits(2.0**-800, 2.0**600, 2.0**-960, 2.0**-400, 2.0**-1020)


@ieee
def layer_normalization(x: Array, gamma: Array, beta: Array, eps: float, out: Array) -> None:
    if x.dtype.itemsize == 2:
        gamma, beta = gamma.astype(np.float32), beta.astype(np.float32)

    def normalize(x: Array, out: Array) -> None:
        centred, variance = _deviations(x)
        limits = _FLOAT32 if x.dtype == np.float32 else _FLOAT64
        divisor = variance.astype(np.float64) + limits.scaled(eps, 1.0)
        overflown = ~np.isfinite(variance[:, 0])
        small = divisor[:, 0] < limits.max_variance
        if small.any():
            small &= np.abs(x.mean(axis=1)) < limits.max_mean
        # Computed again from scaled rows: the result does not depend on the scale.
        for rows, scale in ((overflown, limits.down), (small, limits.up)):
            if not rows.any():
                continue
            centred[rows], variance = _deviations(x[rows] * x.dtype.type(scale))
            divisor[rows] = variance.astype(np.float64) + limits.scaled(eps, scale)
        centred /= np.sqrt(divisor).astype(x.dtype)
        centred *= gamma
        np.add(centred, beta, out=out)

    for rows in row_blocks(x):
        in_float32(normalize, x[rows], out[rows])


def _deviations(rows: Array) -> tuple[Array, Array]:
    """The deviations from the mean, and their variance.

    The mean is subtracted twice: its rounding error matters in rows far from 0, and the second mean is that error.
    """
    centred = rows - rows.mean(axis=1, keepdims=True)
    centred -= centred.mean(axis=1, keepdims=True)
    return centred, np.square(centred).mean(axis=1, keepdims=True)

"""Layer normalisation (Ba et al. 2016, equation 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.ieee import ieee
from headwise._numpy.blocks import in_float32, row_blocks

if TYPE_CHECKING:
    from headwise._base.typing import Array


@ieee
def layer_normalization(x: Array, gamma: Array, beta: Array, eps: float, out: Array) -> None:
    if x.dtype.itemsize == 2:
        gamma, beta = gamma.astype(np.float32), beta.astype(np.float32)

    def normalize(x: Array, out: Array) -> None:
        centred, variance = _deviations(x)
        divisor = variance.astype(np.float64) + eps
        overflown = ~np.isfinite(variance[:, 0])
        if overflown.any():  # computed again from scaled rows: the result does not depend on the scale
            scale, minimum = (2.0**-100, 2.0**-240) if x.dtype == np.float32 else (2.0**-800, 2.0**-1020)
            centred[overflown], variance = _deviations(x[overflown] * x.dtype.type(scale))
            # eps must not underflow to 0: it makes the result of a constant row beta.
            divisor[overflown] = variance.astype(np.float64) + (max(eps * scale * scale, minimum) if eps else 0.0)
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

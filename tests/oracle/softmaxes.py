"""Softmax, log-softmax and log-sum-exp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from oracle.numbers import Array, rounded, wide

Axis = int | tuple[int, ...] | None


def softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike = True) -> Array:
    """``exp(x) / sum(exp(x))`` over the entries kept by ``where``, 0 elsewhere; an all -inf slice is NaN, as the
    formula says, and a slice without kept entries is 0."""
    with np.errstate(all="ignore"):
        kept = np.where(where, wide(x), -np.inf)
        powers = np.exp(kept - np.max(kept, axis=axis, keepdims=True))
        return rounded(np.where(where, powers / powers.sum(axis=axis, keepdims=True), 0), x)


def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    keepdims: bool = False,
    where: ArrayLike = True,
    b: ArrayLike = 1,
    return_sign: bool = False,
) -> Any:
    """``log(sum(b * exp(x)))``, where a slice of -inf (or of nothing) sums to zero: -inf; +inf anywhere: +inf."""
    with np.errstate(all="ignore"):
        kept = np.where(where & (wide(b) != 0), wide(x), -np.inf)
        top = np.max(kept, axis=axis, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(top), top, 0)
        total = (np.where(kept == -np.inf, 0, wide(b) * np.exp(kept - shift))).sum(axis=axis, keepdims=True)
        answers = [shift + np.log(np.abs(total) if return_sign else total), np.sign(total)]
    results = [rounded(answer if keepdims else answer.squeeze(axis), x) for answer in answers]
    return tuple(results) if return_sign else results[0]


def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike = True) -> Array:
    """``x - logsumexp(x)``, after subtraction of the maximum: a constant of 1e30 would absorb the logarithm."""
    with np.errstate(all="ignore"):
        kept = np.where(where, wide(x), -np.inf)
        shifted = kept - np.max(kept, axis=axis, keepdims=True)
        answer = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        return rounded(np.where(where, answer, -np.inf), x)

"""Normalisation of queries and keys between projection and rotation.

Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4; of queries and keys: Henry et al.,
"Query-Key Normalization for Transformers" (2020), and Dehghani et al., "Scaling Vision Transformers to 22 Billion
Parameters" (2023), section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from headwise._base.ieee import ieee
from headwise._base.messages import shown

if TYPE_CHECKING:
    from headwise._base.typing import Array

# Per head, as in Qwen3 and Gemma 3, or over all heads of a row together, as in OLMo 2.
QKNorms: TypeAlias = Literal["head", "full"]
QK_NORMS: tuple[QKNorms, ...] = ("head", "full")


def check_qk_norm(qk_norm: object) -> QKNorms | None:
    if qk_norm is None:
        return None
    for known in QK_NORMS:
        if isinstance(qk_norm, str) and qk_norm == known:
            return known
    raise ValueError(f"qk_norm: {shown(qk_norm)}, expected None, {' or '.join(map(repr, QK_NORMS))}")


class QKNorm(NamedTuple):
    """The factors of queries and keys after normalisation, (d_k,) or (heads * d_k,), in the dtype of the rows; None: no
    normalisation."""

    q: Array | None
    k: Array | None
    eps: float

    def backward(self, d_product: Array, product: Array, letters: str, widths: dict[str, int]) -> dict[str, Array]:
        """Replace the gradients by normalised rows, ``d_product``, by those by ``product``, the rows before
        :meth:`apply`. Returns the gradients of the factors, ``q_norm`` and ``k_norm``."""
        factors: dict[str, Array] = {}
        first = 0
        for letter in letters:
            columns = (..., slice(first, first + widths[letter]))
            gamma = {"q": self.q, "k": self.k}.get(letter)
            if gamma is not None:
                shape = (*product.shape[:-1], widths[letter] // len(gamma), len(gamma))
                d, x = d_product[columns].reshape(shape), product[columns].reshape(shape)
                d, factors[f"{letter}_norm"] = rms_normalize_backward(d, x, gamma, self.eps)
                d_product[columns] = d.reshape(d_product[columns].shape)
            first += widths[letter]
        return factors

    def apply(self, product: Array, letters: str, widths: dict[str, int]) -> None:
        """Normalise the queries and keys in rows ``[x_1 | x_2 | …]``, (batch, seq, sum of widths), in place."""
        first = 0
        for letter in letters:
            part = product[..., first : first + widths[letter]]
            gamma = {"q": self.q, "k": self.k}.get(letter)
            if gamma is not None:
                rms_normalize(part.reshape(*part.shape[:-1], part.shape[-1] // len(gamma), len(gamma)), gamma, self.eps)
            first += widths[letter]


@ieee
def rms_normalize(x: Array, gamma: Array, eps: float) -> None:
    """``x *= gamma / sqrt(mean(x ** 2) + eps)`` over the last axis."""
    scale = np.einsum("...i,...i->...", x, x)
    scale /= x.shape[-1]
    scale += eps
    np.sqrt(scale, out=scale)
    x /= scale[..., np.newaxis]
    x *= gamma


@ieee
def rms_normalize_backward(d: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array]:
    """The gradients of :func:`rms_normalize` by ``x``, before normalisation, and by ``gamma``.

    With ``r = 1 / sqrt(mean(x ** 2) + eps)`` and ``h = gamma * d`` they are ``r * (h - x * r ** 2 * mean(h * x))`` and
    the sum of ``d * x * r`` over the rows.
    """
    r = 1 / np.sqrt(np.einsum("...i,...i->...", x, x) / x.shape[-1] + np.asarray(eps, x.dtype))[..., np.newaxis]
    normalized = x * r
    by_gamma = (d * normalized).reshape((-1, len(gamma))).sum(axis=0)
    h = d * gamma
    h -= normalized * (np.einsum("...i,...i->...", h, normalized) / x.shape[-1])[..., np.newaxis]
    return h * r, by_gamma

"""Normalisation of queries and keys between projection and rotation.

Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4; of queries and keys: Henry et al.,
"Query-Key Normalization for Transformers" (2020), and Dehghani et al., "Scaling Vision Transformers to 22 Billion
Parameters" (2023), section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from headwise._base.messages import shown
from headwise._ops.gradients.layer_norm import rms_norm_backward
from headwise._runtime.backend import current

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
                d, factors[f"{letter}_norm"] = rms_norm_backward(d, x, gamma, eps=self.eps)
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


def rms_normalize(x: Array, gamma: Array, eps: float) -> None:
    """:func:`headwise.rms_norm` in place, for heads of C-contiguous rows: ``x`` is (batch, seq, heads, width)."""
    batch, seq, heads, width = x.shape
    rows = x.reshape((batch * seq, heads, width))  # a view
    for part in rows if len(rows) <= heads else rows.swapaxes(0, 1):
        current().rms_norm(part, gamma, eps, part)

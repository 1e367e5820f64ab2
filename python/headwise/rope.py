"""Rotary position embedding: the frequencies and the layer.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), https://arxiv.org/abs/2104.09864,
equations 14 and 34. :func:`headwise.apply_rope` is the rotation itself, given the cosines and sines.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import FLOAT64, allocate, as_array, check_flag, check_real, check_size, conform, promote
from ._layer import Layer, PositionTable, as_positions
from ._positions import rotate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ._arrays import Array

__all__ = ["RotaryPositionalEmbedding", "rope_frequencies"]


def rope_frequencies(dim: int, base: float = 10000.0) -> Array:
    """The angle by which each pair of features turns from one position to the next.

    Parameters
    ----------
    dim : int
        Number of rotated features, even.
    base : float
        Ratio of the largest to the (excluded) smallest frequency.

    Returns
    -------
    ndarray, (dim / 2,), float64
        ``base ** (-2 k / dim)`` for pair ``k``, in radians (RoFormer, section 3.2.2).

    Raises
    ------
    ValueError
        If ``dim`` is odd or not positive, or ``base`` is not positive.

    Examples
    --------
    >>> from headwise.rope import rope_frequencies
    >>> rope_frequencies(4)
    array([1.  , 0.01])
    """
    width = check_size(dim, "dim")
    if width % 2:
        raise ValueError(f"dim: {width}, expected an even number, as features are rotated in pairs")
    return _positive(base, "base") ** (-np.arange(0, width, 2, dtype=FLOAT64) / width)


class RotaryPositionalEmbedding(Layer):
    """Turns pairs of features by angles proportional to the position (RoPE).

    Pair ``k`` at position ``p`` is turned by ``p * base ** (-2 k / d_model)``. Turning keeps norms, and the product of
    a query at ``i`` and a key at ``j`` then depends on the positions through ``i - j`` alone. Angles are computed in
    float64 whatever the dtype of the input, so that positions beyond 10^5 stay exact.

    Parameters
    ----------
    d_model : int
        Number of features of the last axis, even: the head's width where heads are rotated.
    max_len : int
        Number of positions to precompute; the tables grow when more are asked for.
    base : float
        Frequency base.
    interleaved : bool
        Which features make a pair: ``(k, k + d_model / 2)`` if False, as in GPT-NeoX, Hugging Face and ONNX, or
        ``(2 k, 2 k + 1)`` if True, as in the original LLaMA.

    Attributes
    ----------
    cos_cached, sin_cached : ndarray, (max_len or more, d_model / 2), float64, read-only
        Cosines and sines of the angles by position and pair.
    inv_freq : ndarray, (d_model / 2,), float64
        Angle per position of each pair.

    Raises
    ------
    ValueError
        If ``d_model`` is odd, a size is not positive, or ``base`` is not positive.

    References
    ----------
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), equation 34.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> rope = hw.RotaryPositionalEmbedding(d_model=2)
    >>> rope([[1.0, 0.0], [1.0, 0.0]]).round(4)  # turned by 0 and by 1 radian
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])
    """

    def __init__(self, d_model: int, max_len: int = 2048, base: float = 10000.0, *, interleaved: bool = False) -> None:
        self.d_model = check_size(d_model, "d_model")
        if self.d_model % 2:
            raise ValueError(f"d_model: {self.d_model}, expected an even number, as features are rotated in pairs")
        self.max_len = check_size(max_len, "max_len")
        self.base = _positive(base, "base")
        self.interleaved = check_flag(interleaved, "interleaved")
        self.inv_freq = rope_frequencies(self.d_model, self.base)
        self._cos = PositionTable(partial(_of_angles, np.cos, self.inv_freq), self.max_len)
        self._sin = PositionTable(partial(_of_angles, np.sin, self.inv_freq), self.max_len)

    @property
    def cos_cached(self) -> Array:
        return self._cos.array

    @property
    def sin_cached(self) -> Array:
        return self._sin.array

    def forward(self, x: ArrayLike, positions: ArrayLike | None = None) -> Array:
        """Rotate ``x``.

        Parameters
        ----------
        x : array_like, (batch, seq, d_model), (batch, heads, seq, d_model) or (seq, d_model)
            Queries or keys.
        positions : array_like of int, (seq,) or (batch, seq), optional
            Where each row stands; ``0 .. seq - 1`` by default. Any integers will do, negative ones included.

        Returns
        -------
        ndarray
            Of the shape and floating dtype of ``x`` (float64 for integers). float16 and bfloat16 are turned by float32
            angles, computed in float32 and rounded once.

        Raises
        ------
        ValueError
            If the shape of ``x`` or ``positions`` does not fit.
        TypeError
            If ``positions`` are not integers.
        """
        rows = as_array(x, "x")
        if rows.ndim not in (2, 3, 4) or rows.shape[-1] != self.d_model:
            raise ValueError(
                f"x: shape {rows.shape}, expected (batch, seq, {self.d_model}), "
                f"(batch, heads, seq, {self.d_model}) or (seq, {self.d_model})"
            )
        compute, dtype = promote(("x", rows))
        if positions is None:
            cos, sin = (table.first(rows.shape[-2], compute) for table in (self._cos, self._sin))
        else:
            where = self._check_positions(positions, rows.shape)
            cos, sin = (table.at(where, compute) for table in (self._cos, self._sin))
        result = allocate(rows.shape, dtype)
        if result.size:
            rotate(conform(rows, dtype, last=True), cos, sin, self.interleaved, result)
        return result

    def rotate_half(self, x: ArrayLike) -> Array:
        """Turn each pair of features by 90 degrees, ``(a, b)`` to ``(-b, a)``.

        With the cosine and sine of a pair's angle repeated for both of its features, the rotation of ``x`` is
        ``x * cos + rotate_half(x) * sin``.

        Parameters
        ----------
        x : array_like, (…, d_model)

        Returns
        -------
        ndarray
            Of the shape and dtype of ``x``.
        """
        rows = as_array(x, "x")
        _, result_dtype = promote(("x", rows))
        if rows.ndim == 0 or rows.shape[-1] != self.d_model:
            raise ValueError(f"x: shape {rows.shape}, expected (…, {self.d_model})")
        half = self.d_model // 2
        first = slice(None, None, 2) if self.interleaved else slice(None, half)
        second = slice(1, None, 2) if self.interleaved else slice(half, None)
        turned = np.empty(rows.shape, result_dtype)
        turned[..., first] = rows[..., second]
        np.negative(turned[..., first], out=turned[..., first])
        turned[..., second] = rows[..., first]
        return turned

    @staticmethod
    def _check_positions(positions: ArrayLike, shape: tuple[int, ...]) -> Array:
        """``positions`` shaped so that their rows broadcast against ``x`` of this shape."""
        where = as_positions(positions)
        seq = shape[-2]
        if where.shape == (seq,):
            return where
        batch = shape[0]
        if len(shape) > 2 and where.shape in ((batch, seq), (1, seq)):
            return where if len(shape) == 3 else where[:, np.newaxis]
        expected = f"({seq},)" if len(shape) == 2 else f"({seq},) or ({batch}, {seq})"
        raise ValueError(f"positions: shape {where.shape}, expected {expected} for x of shape {shape}")


def _of_angles(function: np.ufunc, inv_freq: Array, positions: Array) -> Array:
    angles = np.multiply.outer(positions, inv_freq)
    return np.asarray(function(angles, out=angles))


def _positive(value: object, name: str) -> float:
    number = check_real(value, name)
    if number <= 0.0:
        raise ValueError(f"{name}: {number}, expected a positive number")
    return number

"""The layer of rotary position embedding.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), https://arxiv.org/abs/2104.09864,
equations 14 and 34. :func:`headwise.apply_rope` is the rotation itself, given the cosines and sines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, compact, promote
from headwise._base.layer import Layer
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._base.scalars import check_flag, check_int, check_size
from headwise._ops.positions import rotate
from headwise._positions.position_table import as_positions
from headwise._positions.rope_config import check_positive, read_scaling
from headwise._positions.rope_tables import RotaryTables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

__all__ = ["RotaryPositionalEmbedding"]

# A position is exact in float64 up to here.
_FARTHEST = 1 << 53


class RotaryPositionalEmbedding(Layer):
    """Turns pairs of features by angles proportional to the position (RoPE).

    Pair ``k`` at position ``p`` is turned by ``p * inv_freq[k]``, without scaling ``p * base ** (-2 k / d_model)``.
    Turning keeps norms, and the product of a query at ``i`` and a key at ``j`` then depends on the positions through
    ``i - j`` alone. Angles are computed in float64 whatever the dtype of the input, so that positions beyond 10^5 stay
    exact.

    Parameters
    ----------
    d_model : int
        Number of features of the last axis: the head's width where heads are rotated. Even, if all are turned.
    max_len : int
        Number of positions to precompute; the tables grow when more are asked for.
    base : float
        Frequency base; ``scaling['rope_theta']`` takes its place.
    interleaved : bool
        Which features make a pair: ``(k, k + rotary_dim / 2)`` if False, as in GPT-NeoX, Hugging Face and ONNX, or
        ``(2 k, 2 k + 1)`` if True, as in the original LLaMA.
    scaling : mapping, optional
        ``rope_parameters`` or ``rope_scaling`` of a Hugging Face configuration: :func:`rope_parameters`. Where the
        frequencies depend on the length of the sequence, that is the greatest position of the call and one.
    rotary_dim : int, optional
        How many features are turned, even: the first ones. The others stay what they are. All by default, or what
        ``scaling['partial_rotary_factor']`` says.
    max_position_embeddings : int, optional
        The configuration's, which some kinds of ``scaling`` need.

    Attributes
    ----------
    cos_cached, sin_cached : ndarray, (max_len or more, pairs), float64, read-only
        Cosines and sines of the angles by position and pair, times ``attention_factor``.
    inv_freq : ndarray, (pairs,), float64, read-only
        Angle per position of each pair. These three are those of sequences no longer than the model was trained for.
    attention_factor : float
        By how much the turned features are stretched: 1 but in ``yarn`` and ``longrope``.

    Raises
    ------
    ValueError
        If ``d_model`` or ``rotary_dim`` is odd, a size is not positive, ``base`` is not positive, or a parameter of
        ``scaling`` is unknown, missing or out of its range.

    Notes
    -----
    With ``dynamic`` and ``longrope``, keys that were turned in a shorter sequence and cached keep the frequencies of
    then, as they do in transformers. There, ``dynamic`` also keeps the frequencies of the longest sequence so far until
    one of trained length comes; here each call stands for itself.

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

    Half of the features, from position 1 on, at half the speed:

    >>> scaling = {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}
    >>> hw.RotaryPositionalEmbedding(d_model=4, scaling=scaling)([[1.0, 0.0, 5.0, 6.0]], offset=1).round(4)
    array([[0.8776, 0.4794, 5.    , 6.    ]])
    """

    d_model: int
    max_len: int
    interleaved: bool
    base: float
    rotary_dim: int
    scaling: dict[str, Any] | None
    attention_factor: float

    def __init__(
        self,
        d_model: int,
        max_len: int = 2048,
        base: float = 10000.0,
        *,
        interleaved: bool = False,
        scaling: Mapping[str, Any] | None = None,
        rotary_dim: int | None = None,
        max_position_embeddings: int | None = None,
    ) -> None:
        self.d_model = check_size(d_model, "d_model")
        self.max_len = check_size(max_len, "max_len")
        self.interleaved = check_flag(interleaved, "interleaved")
        rope = read_scaling(
            scaling, self.d_model, check_positive(base, "base"), max_position_embeddings, rotary_dim, name="d_model"
        )
        self.base = rope.base
        self.rotary_dim = rope.rotary_dim
        self.scaling = None if scaling is None else dict(scaling)
        self.attention_factor = rope.attention_factor
        self._tables = RotaryTables(rope, self.max_len)

    @property
    def inv_freq(self) -> Array:
        return self._tables.trained.inv_freq

    @property
    def cos_cached(self) -> Array:
        return self._tables.trained.array[:, : self.rotary_dim // 2]

    @property
    def sin_cached(self) -> Array:
        return self._tables.trained.array[:, self.rotary_dim // 2 :]

    def forward(
        self, x: ArrayLike, positions: ArrayLike | None = None, *, offset: int = 0, out: Array | None = None
    ) -> Array:
        """Rotate ``x``.

        Parameters
        ----------
        x : array_like, (batch, seq, d_model), (batch, heads, seq, d_model) or (seq, d_model)
            Queries or keys.
        positions : array_like of int, (seq,) or (batch, seq), optional
            Where each row stands; ``offset .. offset + seq - 1`` by default. Any integers will do, negative ones
            included.
        offset : int
            Position of the first row, where ``positions`` are not given.
        out : ndarray, optional
            Where to write the result, of its shape and dtype; it may be ``x`` itself.

        Returns
        -------
        ndarray
            Of the shape and floating dtype of ``x`` (float64 for integers). float16 and bfloat16 are turned by float32
            angles, computed in float32 and rounded once.

        Raises
        ------
        ValueError
            If the shape of ``x``, ``positions`` or ``out`` does not fit, or both ``positions`` and ``offset`` are
            given.
        TypeError
            If ``positions`` or ``offset`` are not integers.
        """
        rows = as_array(x, "x")
        shape = rows.shape
        if not 2 <= len(shape) <= 4 or shape[-1] != self.d_model:
            raise ValueError(
                f"x: shape {shape}, expected (batch, seq, {self.d_model}), "
                f"(batch, heads, seq, {self.d_model}) or (seq, {self.d_model})"
            )
        compute, dtype = promote(("x", rows))
        angles = self._angles(positions, offset, shape, compute)
        if out is not None:
            check_out(out, shape, dtype, ("x", rows), inplace=rows)
        result = resolve_out(out, shape, dtype)
        if result.size:
            self._turn(rows, angles, result)
        return result if out is None else finalize(result, out, dtype)

    if TYPE_CHECKING:
        __call__ = forward

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
            Of the shape and dtype of ``x``; 0 where features are not turned.

        Raises
        ------
        ValueError
            If the last axis is not ``d_model`` wide.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.RotaryPositionalEmbedding(d_model=4).rotate_half([[1.0, 2.0, 3.0, 4.0]])
        array([[-3., -4.,  1.,  2.]])
        """
        rows = as_array(x, "x")
        _, result_dtype = promote(("x", rows))
        if rows.ndim == 0 or rows.shape[-1] != self.d_model:
            raise ValueError(f"x: shape {rows.shape}, expected (…, {self.d_model})")
        width = self.rotary_dim
        first = slice(0, width, 2) if self.interleaved else slice(0, width // 2)
        second = slice(1, width, 2) if self.interleaved else slice(width // 2, width)
        turned = np.zeros(rows.shape, result_dtype)
        turned[..., first] = rows[..., second]
        np.negative(turned[..., first], out=turned[..., first])
        turned[..., second] = rows[..., first]
        return turned

    def _angles(self, positions: ArrayLike | None, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Cosines, then sines, of the angles of each row of ``x`` of this shape."""
        start = check_int(offset, "offset", -_FARTHEST, _FARTHEST)
        if positions is None:
            stop = start + shape[-2]
            return self._tables.of(stop).span(start, stop, dtype)
        if start:
            raise ValueError(f"offset: {start}, expected 0 where positions are given")
        where = self._check_positions(positions, shape)
        if where.size == 0:
            return self._tables.trained.span(0, 0, dtype).reshape(*where.shape, self.rotary_dim)
        low, high = _extent(where)
        table = self._tables.of(high + 1)
        # One position is a step of decoding.
        return table.span(low, high + 1, dtype) if where.size == 1 else table.between(low, high, where, dtype)

    def _turn(self, rows: Array, angles: Array, result: Array) -> None:
        width = self.rotary_dim
        cos, sin = angles[..., : width // 2], angles[..., width // 2 :]
        if width < self.d_model:
            if result is not rows:
                result[..., width:] = rows[..., width:]
            rows, result = rows[..., :width], result[..., :width]
        rotate(cast_layout(rows, result.dtype, last=True), cos, sin, self.interleaved, result)

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


def _extent(positions: Array) -> tuple[int, int]:
    """The least and the greatest; of few the interpreter finds them faster than NumPy."""
    if positions.size > 32:
        own = compact(positions)
        return int(own.min()), int(own.max())
    values = positions.ravel().tolist()
    return min(values), max(values)

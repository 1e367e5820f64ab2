"""The layer of rotary position embedding.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), https://arxiv.org/abs/2104.09864,
equations 14 and 34. :func:`headwise.apply_rope` is the rotation by given cosines and sines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, compact, promote
from headwise._base.layer import Layer, LayerGradients
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._base.scalars import check_flag, check_size
from headwise._ops.gradients.results import as_gradient, finish, gradients_of
from headwise._ops.rope import rotate
from headwise._positions.position_table import as_positions, check_offset
from headwise._positions.rope_config import check_positive, given_frequencies, read_scaling
from headwise._positions.rope_tables import RotaryTables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

__all__ = ["RotaryPositionalEmbedding"]


class RotaryPositionalEmbedding(Layer):
    """Rotates pairs of features by angles proportional to the position (RoPE) [1]_.

    The angle of pair ``k`` at position ``p`` is ``p * inv_freq[k]``, without scaling ``p * base ** (-2 k / d_model)``.
    Rotation preserves norms, and the product of a query at position ``i`` and a key at position ``j`` depends on the
    positions only through ``i - j``. Angles are computed in float64 whatever the dtype of the input, so they are
    accurate also at positions beyond 10^5.

    Parameters
    ----------
    d_model : int
        Number of features of the last axis: the width of a head where heads are rotated. Even if all features are
        rotated.
    max_len : int
        Number of precomputed positions; the tables grow on demand.
    base : float
        Frequency base; ``scaling['rope_theta']`` overrides it.
    interleaved : bool
        The pairs of features: ``(k, k + rotary_dim / 2)`` if False, as in GPT-NeoX, Hugging Face and ONNX, or
        ``(2 k, 2 k + 1)`` if True, as in the original LLaMA.
    scaling : mapping, optional
        ``rope_parameters`` or ``rope_scaling`` of a Hugging Face configuration; see :func:`rope_parameters`. If the
        frequencies depend on the length of the sequence, the length is the maximum position of the call plus one.
    rotary_dim : int, optional
        Number of rotated features, even: the first ones. The other features are unchanged. By default all, or the
        fraction ``scaling['partial_rotary_factor']``.
    max_position_embeddings : int, optional
        As in the configuration; some types of ``scaling`` require it.
    inv_freq : array_like, (pairs,), optional
        The angle of each pair in radians per position, in place of ``base`` and ``scaling``. ``2 * pairs`` features are
        rotated, and ``attention_factor`` is 1.
    regime : int, optional
        The length of the sequence whose frequencies every call uses, with ``dynamic`` and ``longrope``. It makes a
        prompt in chunks equal one call. By default the length is the maximum position of the call plus one.

    Attributes
    ----------
    cos_cached, sin_cached : ndarray, (max_len or more, pairs), float64, read-only
        Cosines and sines of the angles by position and pair, times ``attention_factor``, for sequences no longer than
        the model was trained for.
    inv_freq : ndarray, (pairs,), float64, read-only
        The angle of each pair in radians per position, for the same sequences.
    attention_factor : float
        The factor of cosines and sines: 1 except for ``yarn`` and ``longrope``, for the same sequences.

    Raises
    ------
    ValueError
        If ``d_model`` or ``rotary_dim`` is odd, a size or ``base`` is not positive, or a parameter of ``scaling`` is
        unknown, missing or out of its range.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    With ``dynamic`` and ``longrope``, cached keys that were rotated when the sequence was shorter keep the frequencies
    of that length, as in transformers. There, ``dynamic`` also keeps the frequencies of the longest sequence so far
    until a sequence of trained length follows; here the frequencies of a call depend on its own positions only, or on
    ``regime``.

    A second rotation adds to the first: ``RotaryPositionalEmbedding(d_model, inv_freq=rope.inv_freq)`` moves rotated
    keys to other positions without multiplying them by ``attention_factor`` once more.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, equation 34.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> rope = hw.RotaryPositionalEmbedding(d_model=2)
    >>> rope([[1.0, 0.0], [1.0, 0.0]]).round(4)  # rotated by 0 and by 1 radian
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])

    Half of the features rotated, from position 1 on, at half the frequency:

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

    def __init__(  # noqa: PLR0913 (public)
        self,
        d_model: int,
        max_len: int = 2048,
        base: float = 10000.0,
        *,
        interleaved: bool = False,
        scaling: Mapping[str, Any] | None = None,
        rotary_dim: int | None = None,
        max_position_embeddings: int | None = None,
        inv_freq: ArrayLike | None = None,
        regime: int | None = None,
    ) -> None:
        self.d_model = check_size(d_model, "d_model")
        self.max_len = check_size(max_len, "max_len")
        self.interleaved = check_flag(interleaved, "interleaved")
        self.base = check_positive(base, "base")
        if inv_freq is None:
            rope = read_scaling(scaling, self.d_model, self.base, max_position_embeddings, rotary_dim, name="d_model")
            self.base = rope.base
        else:
            rope = given_frequencies(inv_freq, self.d_model, scaling, rotary_dim)
        if regime is not None:
            rope = rope._replace(pinned=check_size(regime, "regime"))
        self.rotary_dim = rope.rotary_dim
        self.scaling = None if scaling is None else dict(scaling)
        self.attention_factor = rope.attention_factor(None)
        self._scaling = rope
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
        """Rotate the rows of ``x`` by their positions.

        Parameters
        ----------
        x : array_like, (batch, seq, d_model), (batch, heads, seq, d_model) or (seq, d_model)
            Queries or keys.
        positions : array_like of int, (seq,) or (batch, seq), optional
            The position of each row, any integers; ``offset .. offset + seq - 1`` by default.
        offset : int
            The position of the first row, if ``positions`` are not given.
        out : ndarray, optional
            The array to write the result to, of its shape and dtype; it may be ``x`` itself.

        Returns
        -------
        ndarray, of the shape of ``x``
            Of the floating dtype of ``x`` (float64 for integers). float16 and bfloat16 are computed in float32, with
            float32 cosines and sines, and rounded once.

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
            self._rotate(rows, angles, result)
        return result if out is None else finalize(result, out, dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def vjp(
        self, x: ArrayLike, positions: ArrayLike | None = None, *, offset: int = 0
    ) -> tuple[Array, Callable[[ArrayLike], LayerGradients]]:
        """The result of :meth:`forward`, and a function that computes its gradient.

        Parameters
        ----------
        x, positions, offset
            As for :meth:`forward`.

        Returns
        -------
        output : ndarray, of the shape of ``x``
        pullback : callable
            ``pullback(d_output)`` returns ``inputs``, with the gradient ``d_x``, and ``parameters``, which is empty.

        Raises
        ------
        ValueError, TypeError
            As :meth:`forward`.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.random.default_rng(0).standard_normal((2, 5, 4))
        >>> output, pullback = hw.RotaryPositionalEmbedding(d_model=4).vjp(x)
        >>> bool(np.allclose(pullback(output).inputs.d_x, x))  # the inverse rotation
        True
        """
        rows = as_array(x, "x")
        output = self.forward(rows, positions, offset=offset)

        def pullback(d_output: ArrayLike) -> LayerGradients:
            d = as_gradient(d_output, "d_output", output.shape, output.dtype, "output")
            return LayerGradients(
                gradients_of(("x",), {"x": finish(rotate_back(self, d, positions, offset), rows, output.dtype)}), {}
            )

        return output, pullback

    def query_scale(self, positions: ArrayLike) -> Array | None:
        """The factor of queries at ``positions`` that ``scaling['llama_4_scaling_beta']`` asks for.

        It is ``1 + beta ln(1 + floor(p / L))`` with ``L = scaling['original_max_position_embeddings']``, as in
        Ministral 3. :meth:`forward` does not apply it, as it rotates keys too; attention layers do.

        Parameters
        ----------
        positions : array_like of int, (…)

        Returns
        -------
        ndarray, (…), float64, or None
            None without ``llama_4_scaling_beta``.

        Raises
        ------
        TypeError
            If ``positions`` are not integers.

        Examples
        --------
        >>> import headwise as hw
        >>> scaling = {"original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.5}
        >>> hw.RotaryPositionalEmbedding(2, scaling=scaling).query_scale([0, 3, 4]).round(4)
        array([1.    , 1.    , 1.3466])
        """
        return self._scaling.query_scale(as_positions(positions).astype(np.float64))

    def rotate_half(self, x: ArrayLike) -> Array:
        """Rotate each pair of features by 90 degrees, ``(a, b)`` to ``(-b, a)``.

        The rotation of ``x`` by any angles is ``x * cos + rotate_half(x) * sin``, if ``cos`` and ``sin`` repeat the
        values of a pair for both of its features.

        Parameters
        ----------
        x : array_like, (…, d_model)

        Returns
        -------
        ndarray, (…, d_model)
            Of the floating dtype of ``x`` (float64 for integers); 0 for features that are not rotated.

        Raises
        ------
        ValueError
            If the last axis is not ``d_model`` wide.
        TypeError
            If the dtype of ``x`` is not real.

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
        rotated = np.zeros(rows.shape, result_dtype)
        rotated[..., first] = rows[..., second]
        np.negative(rotated[..., first], out=rotated[..., first])
        rotated[..., second] = rows[..., first]
        return rotated

    def _angles(self, positions: ArrayLike | None, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The rows ``[cos | sin]`` for the rows of an ``x`` of this shape."""
        start = check_offset(offset, positions)
        if positions is None:
            stop = start + shape[-2]
            return self._tables.of(stop).span(start, stop, dtype)
        where = self._check_positions(positions, shape)
        if where.size == 0:
            return self._tables.trained.span(0, 0, dtype).reshape(*where.shape, self.rotary_dim)
        low, high = _min_and_max(where)
        table = self._tables.of(high + 1)
        # A single position (a decoding step) is a span too.
        return table.span(low, high + 1, dtype) if where.size == 1 else table.between(low, high, where, dtype)

    def _rotate(self, rows: Array, angles: Array, result: Array) -> None:
        width = self.rotary_dim
        cos, sin = angles[..., : width // 2], angles[..., width // 2 :]
        if width < self.d_model:
            if result is not rows:
                result[..., width:] = rows[..., width:]
            rows, result = rows[..., :width], result[..., :width]
        rotate(cast_layout(rows, result.dtype, last=True), cos, sin, self.interleaved, result)

    @staticmethod
    def _check_positions(positions: ArrayLike, shape: tuple[int, ...]) -> Array:
        """``positions``, checked, with axes that broadcast against the rows of an ``x`` of this shape."""
        where = as_positions(positions)
        seq = shape[-2]
        if where.shape == (seq,):
            return where
        batch = shape[0]
        if len(shape) > 2 and where.shape in ((batch, seq), (1, seq)):
            return where if len(shape) == 3 else where[:, np.newaxis]
        expected = f"({seq},)" if len(shape) == 2 else f"({seq},) or ({batch}, {seq})"
        if where.ndim == 3:
            expected += " (for several coordinates use rope_tables and apply_rope)"
        raise ValueError(f"positions: shape {where.shape}, expected {expected} for x of shape {shape}")


def rotate_back(rope: RotaryPositionalEmbedding, d: Array, positions: ArrayLike | None, offset: int = 0) -> Array:
    """The gradient of ``rope.forward`` by its argument, from that by its result: the rotation by opposite angles."""
    compute, dtype = promote(("d", d))
    angles = rope._angles(positions, offset, d.shape, compute).copy()  # noqa: SLF001 (of a class of this module)
    half = rope.rotary_dim // 2
    np.negative(angles[..., half:], out=angles[..., half:])
    result = resolve_out(None, d.shape, dtype)
    if result.size:
        rope._rotate(d, angles, result)  # noqa: SLF001
    return result


def _min_and_max(positions: Array) -> tuple[int, int]:
    """The minimum and the maximum. For few positions Python's functions are faster than NumPy's."""
    if positions.size > 32:
        own = compact(positions)
        return int(own.min()), int(own.max())
    values = positions.ravel().tolist()
    return min(values), max(values)

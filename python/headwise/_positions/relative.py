"""Encodings of the distance between two positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from headwise._base.arrays import as_array, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.layer import Layer, LayerGradients, Parameter
from headwise._base.outputs import check_room
from headwise._base.scalars import check_size
from headwise._base.typing import FLOAT32
from headwise._ops.alibi import add_alibi, alibi_slopes
from headwise._ops.gradients.results import as_gradient, finish, gradients_of
from headwise._positions.learned import fresh_embeddings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike

    from headwise._base.typing import Array, Rng

__all__ = ["ALiBiPositionalBias", "RelativePositionalEncoding"]


class RelativePositionalEncoding(Layer):
    """A trainable vector for each distance between two positions, clipped to a maximum distance [1]_.

    Parameters
    ----------
    d_model : int
        Number of features.
    max_relative_position : int
        The maximum distance ``M``; greater distances share its embedding.
    rng : int or numpy.random.Generator, optional
        Draws the embeddings: normal with standard deviation 0.02.
    dtype : dtype, optional
        Of the embeddings; float64 by default.

    Attributes
    ----------
    embeddings : ndarray, (2 M + 1, d_model)
        Row ``M + t`` is the embedding of the distance ``t``. May be replaced or changed in place.

    Raises
    ------
    ValueError
        If a size is not positive.

    References
    ----------
    .. [1] P. Shaw, J. Uszkoreit, A. Vaswani, "Self-Attention with Relative Position Representations", 2018,
       section 3.2.

    Examples
    --------
    >>> import headwise as hw
    >>> relative = hw.RelativePositionalEncoding(d_model=1, max_relative_position=2)
    >>> relative.embeddings = [[-2.0], [-1.0], [0.0], [1.0], [2.0]]
    >>> relative(4)[..., 0]
    array([[ 0.,  1.,  2.,  2.],
           [-1.,  0.,  1.,  2.],
           [-2., -1.,  0.,  1.],
           [-2., -2., -1.,  0.]])
    """

    embeddings: Parameter[Array] = Parameter("_num_distances", "d_model")

    d_model: int
    max_relative_position: int

    def __init__(
        self, d_model: int, max_relative_position: int = 128, *, rng: Rng = None, dtype: DTypeLike | None = None
    ) -> None:
        self.d_model = check_size(d_model, "d_model")
        self.max_relative_position = check_size(max_relative_position, "max_relative_position")
        self._num_distances = 2 * self.max_relative_position + 1
        self.embeddings = fresh_embeddings(rng, self._num_distances, self.d_model, dtype)

    def forward(self, seq_len: int) -> Array:
        """The embedding of the distance of every pair of positions.

        Parameters
        ----------
        seq_len : int
            Number of positions.

        Returns
        -------
        ndarray, (seq_len, seq_len, d_model), read-only
            Entry ``[i, j]`` is the embedding of ``clip(j - i, -M, M)``. A strided view of a table of ``2 seq_len - 1``
            rows.

        Raises
        ------
        ValueError
            If ``seq_len`` is not positive.
        TypeError
            If ``seq_len`` is not an integer.
        """
        length, maximum = check_size(seq_len, "seq_len"), self.max_relative_position
        check_room(2 * length - 1, self.d_model)
        distances = np.arange(1 - length, length).clip(-maximum, maximum)
        return _by_distance(self.embeddings[distances + maximum], length).transpose(1, 2, 0)

    def vjp(self, seq_len: int) -> tuple[Array, Callable[[ArrayLike], LayerGradients]]:
        """The result of :meth:`forward`, and a function that computes the gradient of the embeddings.

        Parameters
        ----------
        seq_len : int
            As for :meth:`forward`.

        Returns
        -------
        output : ndarray, (seq_len, seq_len, d_model), read-only
        pullback : callable
            ``pullback(d_output)`` returns ``inputs``, which is empty, and ``parameters``, with the gradient of
            ``embeddings``: the sums over the pairs of each distance.

        Raises
        ------
        ValueError, TypeError
            As :meth:`forward`.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> relative = hw.RelativePositionalEncoding(d_model=1, max_relative_position=1)
        >>> output, pullback = relative.vjp(3)
        >>> pullback(np.ones((3, 3, 1))).parameters["embeddings"][:, 0]
        array([3., 3., 3.])
        """
        output, maximum = self.forward(seq_len), self.max_relative_position

        @ieee
        def pullback(d_output: ArrayLike) -> LayerGradients:
            wide = np.dtype(np.result_type(output.dtype, FLOAT32))
            d = as_gradient(d_output, "d_output", output.shape, wide, "output")
            total = np.zeros((self._num_distances, self.d_model), wide)
            for distance in range(1 - len(d), len(d)):
                total[maximum + min(max(distance, -maximum), maximum)] += d.trace(distance)
            return LayerGradients((), {"embeddings": cast_dtype(total, output.dtype)})

        return output, pullback

    if TYPE_CHECKING:
        __call__ = forward


class ALiBiPositionalBias(Layer):
    """Adds the bias ``-slope * abs(i - j)`` to the scores of each head (ALiBi) [1]_.

    The keyword ``alibi_slopes`` of attention has the same effect without an array of scores.

    Parameters
    ----------
    num_heads : int
        Number of heads; it need not be a power of two.
    max_len : int
        The size of ``bias``. Scores may have any size.

    Attributes
    ----------
    slopes : ndarray, (num_heads,), float64
        The slopes of the reference code of [1]_; see :func:`headwise.alibi_slopes`.
    bias : ndarray, (num_heads, max_len, max_len), float64, read-only
        The bias, computed when it is read: a strided view of ``num_heads x (2 max_len - 1)`` numbers.

    Raises
    ------
    ValueError
        If a size is not positive.

    References
    ----------
    .. [1] O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
       Extrapolation", 2021, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> alibi = hw.ALiBiPositionalBias(num_heads=8)
    >>> alibi(np.zeros((1, 8, 3, 3)))[0, 0]  # the slope of the first of 8 heads is 1/2
    array([[ 0. , -0.5, -1. ],
           [-0.5,  0. , -0.5],
           [-1. , -0.5,  0. ]])
    """

    num_heads: int
    max_len: int
    slopes: Array

    def __init__(self, num_heads: int, max_len: int = 2048) -> None:
        self.num_heads = check_size(num_heads, "num_heads")
        self.max_len = check_size(max_len, "max_len")
        self.slopes = alibi_slopes(self.num_heads)

    @property
    def bias(self) -> Array:
        check_room(2 * self.max_len - 1, self.num_heads)
        distances = np.abs(np.arange(1 - self.max_len, self.max_len))
        return _by_distance(np.multiply.outer(-distances, self.slopes), self.max_len)

    def forward(self, attention_scores: ArrayLike, seq_len: int | None = None, *, offset: int = 0) -> Array:
        """Add the bias to scores.

        Parameters
        ----------
        attention_scores : array_like, (…, num_heads, query_len, key_len)
            Scores before the softmax.
        seq_len : int, optional
            The expected ``key_len``.
        offset : int
            The position of query 0 among the keys.

        Returns
        -------
        ndarray, (…, num_heads, query_len, key_len)
            Of the floating dtype of the scores (float64 for integers); float16 and bfloat16 are computed in float32 and
            rounded once.

        Raises
        ------
        ValueError
            If the number of heads or ``seq_len`` does not fit the scores.
        TypeError
            If the dtype of the scores is not real, or ``seq_len`` or ``offset`` is not an integer.
        """
        scores = as_array(attention_scores, "attention_scores")
        promote(("attention_scores", scores))
        if scores.ndim < 3 or scores.shape[-3] != self.num_heads:
            raise ValueError(
                f"attention_scores: shape {scores.shape}, expected (…, {self.num_heads}, query_len, key_len)"
            )
        if seq_len is not None and check_size(seq_len, "seq_len") != scores.shape[-1]:
            raise ValueError(
                f"seq_len: {seq_len}, expected {scores.shape[-1]}, the last axis of attention_scores {scores.shape}"
            )
        return add_alibi(scores, self.slopes, offset=offset)

    def vjp(
        self, attention_scores: ArrayLike, seq_len: int | None = None, *, offset: int = 0
    ) -> tuple[Array, Callable[[ArrayLike], LayerGradients]]:
        """The result of :meth:`forward`, and a function that computes its gradient, which is that by the result.

        Parameters
        ----------
        attention_scores, seq_len, offset
            As for :meth:`forward`.

        Returns
        -------
        output : ndarray, (…, num_heads, query_len, key_len)
        pullback : callable
            ``pullback(d_output)`` returns ``inputs``, with the gradient ``d_attention_scores``, and ``parameters``,
            which is empty: :func:`headwise.vjp` of :func:`headwise.add_alibi` has the gradient of learned slopes.

        Raises
        ------
        ValueError, TypeError
            As :meth:`forward`.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> output, pullback = hw.ALiBiPositionalBias(num_heads=1).vjp(np.zeros((1, 2, 2)))
        >>> pullback(np.ones((1, 2, 2))).inputs.d_attention_scores
        array([[[1., 1.],
                [1., 1.]]])
        """
        scores = as_array(attention_scores, "attention_scores")
        output = self.forward(scores, seq_len, offset=offset)

        def pullback(d_output: ArrayLike) -> LayerGradients:
            d = as_gradient(d_output, "d_output", output.shape, output.dtype, "output")
            names = ("attention_scores",)
            return LayerGradients(gradients_of(names, {names[0]: finish(d, scores, output.dtype)}), {})

        return output, pullback

    if TYPE_CHECKING:
        __call__ = forward


def _by_distance(table: Array, length: int) -> Array:
    """(width, length, length) with ``[:, i, j] = table[j - i + length - 1]``, a read-only view.

    ``table`` (2 length - 1, width) is in ascending order of the distance. Its sliding window ``w`` begins at the
    distance ``w - (length - 1)``, as does row ``i = length - 1 - w`` of the result.
    """
    return sliding_window_view(table, length, axis=0)[::-1].transpose(1, 0, 2)

"""Sinusoidal encodings of absolute positions."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.ieee import ieee
from headwise._base.layer import Layer, LayerGradients
from headwise._base.outputs import check_room, finalize
from headwise._base.scalars import check_flag, check_rate, check_rng, check_size
from headwise._ops.dropout import dropout
from headwise._ops.gradients.results import as_gradient, finish, gradients_of
from headwise._positions.position_table import PositionTable, as_positions, embedded_rows, row_positions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Rng

__all__ = ["SinusoidalPositionalEncoding", "sinusoid"]


@ieee
def sinusoid(positions: Array, d_model: int, n: float = 10000.0) -> Array:
    """Sinusoidal encodings (…, d_model), float64: sines in the even columns and cosines in the odd ones.

    The angles of columns ``2 k`` and ``2 k + 1`` are ``position * n ** (-2 k / d_model)`` ("Attention Is All You Need",
    section 3.5). If ``d_model`` is odd, the last column is a sine.
    """
    check_room(*positions.shape, d_model)
    frequencies = n ** (-np.arange(0, d_model, 2, dtype=np.float64) / d_model)
    angles = np.multiply.outer(positions, frequencies)
    table = np.empty((*angles.shape[:-1], d_model))
    table[..., 0::2] = np.sin(angles)
    table[..., 1::2] = np.cos(angles[..., : d_model // 2])
    return table


class SinusoidalPositionalEncoding(Layer):
    """Adds sines and cosines of the position, at wavelengths from 2 pi to 10000 * 2 pi [1]_.

    There are no parameters. Sequences may have any length: the table has ``max_len`` positions initially and grows.

    Parameters
    ----------
    d_model : int
        Number of features; it may be odd.
    max_len : int
        Number of precomputed positions.
    dropout : float
        Rate in [0, 1) of the dropout after the addition, in training only.
    rng : int or numpy.random.Generator, optional
        Draws the dropout.

    Attributes
    ----------
    pe : ndarray, (max_len or more, d_model), float64, read-only
        The encoding of each position.
    training : bool
        Whether dropout acts; initially False.

    Raises
    ------
    ValueError
        If a size is not positive or the rate is outside [0, 1).

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, section 3.5.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> encoding = hw.SinusoidalPositionalEncoding(d_model=4)
    >>> encoding(np.zeros((1, 2, 4))).round(4)
    array([[[0.    , 1.    , 0.    , 1.    ],
            [0.8415, 0.5403, 0.01  , 1.    ]]])

    The second position alone, as in decoding:

    >>> encoding(np.zeros((1, 1, 4)), offset=1).round(4)
    array([[[0.8415, 0.5403, 0.01  , 1.    ]]])
    """

    d_model: int
    max_len: int
    dropout: float

    def __init__(self, d_model: int, max_len: int = 5000, dropout: float = 0.1, *, rng: Rng = None) -> None:
        self.d_model = check_size(d_model, "d_model")
        self.max_len = check_size(max_len, "max_len")
        self.dropout = check_rate(dropout, "dropout")
        self._rng = check_rng(rng)
        self._table = PositionTable(partial(sinusoid, d_model=self.d_model), self.max_len)

    @property
    def pe(self) -> Array:
        return self._table.array

    @ieee
    def forward(
        self,
        x: ArrayLike,
        positions: ArrayLike | None = None,
        *,
        offset: int = 0,
        training: bool | None = None,
        rng: Rng = None,
    ) -> Array:
        """Add the encoding of its position to each row of ``x``.

        Parameters
        ----------
        x : array_like, (…, seq, d_model)
            Embeddings of tokens.
        positions : array_like of int, (seq,) or (…, seq), optional
            The position of each row, any integers; ``offset .. offset + seq - 1`` by default.
        offset : int
            The position of the first row, if ``positions`` are not given.
        training : bool, optional
            Whether dropout acts in this call; the attribute ``training`` by default.
        rng : int or numpy.random.Generator, optional
            Draws the dropout of this call.

        Returns
        -------
        ndarray, (…, seq, d_model)
            Of the floating dtype of ``x`` (float64 for integers); float16 and bfloat16 are computed in float32 and
            rounded once.

        Raises
        ------
        ValueError
            If the last axis is not ``d_model`` wide, the shape of ``positions`` does not fit, or both ``positions`` and
            ``offset`` are given.
        TypeError
            If the dtype of ``x`` is not real, or ``positions`` or ``offset`` are not integers.
        """
        rows, dtype, result_dtype = embedded_rows(x, self.d_model)
        where = row_positions(positions, offset, rows.shape)
        acts = self.training if training is None else check_flag(training, "training")
        generator = self._rng if rng is None else check_rng(rng)
        encoded = rows + (self._table.first(rows.shape[-2], dtype) if where is None else self._table.at(where, dtype))
        return finalize(dropout(encoded, self.dropout, training=acts, rng=generator), None, result_dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def vjp(
        self,
        x: ArrayLike,
        positions: ArrayLike | None = None,
        *,
        offset: int = 0,
        training: bool | None = None,
        rng: Rng = None,
    ) -> tuple[Array, Callable[[ArrayLike], LayerGradients]]:
        """The result of :meth:`forward`, and a function that computes its gradient.

        Parameters
        ----------
        x, positions, offset, training, rng
            As for :meth:`forward`.

        Returns
        -------
        output : ndarray, (…, seq, d_model)
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
        >>> output, pullback = hw.SinusoidalPositionalEncoding(d_model=4).vjp(np.zeros((1, 2, 4)))
        >>> pullback(np.ones((1, 2, 4))).inputs.d_x.shape
        (1, 2, 4)
        """
        rows, generator = as_array(x, "x"), self._rng if rng is None else check_rng(rng)
        replay = copy.deepcopy(generator)  # in the state before the draws
        acts = self.training if training is None else check_flag(training, "training")
        output = self.forward(rows, positions, offset=offset, training=acts, rng=generator)

        def pullback(d_output: ArrayLike) -> LayerGradients:
            d = as_gradient(d_output, "d_output", output.shape, output.dtype, "output")
            d = dropout(d, self.dropout, training=acts, rng=copy.deepcopy(replay))
            return LayerGradients(gradients_of(("x",), {"x": finish(d, rows, output.dtype)}), {})

        return output, pullback

    def get_encoding(self, positions: ArrayLike) -> Array:
        """The encoding of the given positions.

        Parameters
        ----------
        positions : array_like of int, (…,)
            Any integers, also negative ones and those beyond ``max_len``.

        Returns
        -------
        ndarray, (…, d_model), float64

        Raises
        ------
        TypeError
            If ``positions`` are not integers.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.SinusoidalPositionalEncoding(d_model=4).get_encoding([0, 1]).round(4)
        array([[0.    , 1.    , 0.    , 1.    ],
               [0.8415, 0.5403, 0.01  , 1.    ]])
        """
        return self._table.at(as_positions(positions), np.dtype(np.float64))

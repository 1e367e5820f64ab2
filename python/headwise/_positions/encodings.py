"""Positional encodings as functions.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.outputs import check_room
from headwise._base.scalars import check_size
from headwise._positions.learned import fresh_embeddings
from headwise._positions.rope_config import check_positive
from headwise._positions.sinusoidal import sinusoid

if TYPE_CHECKING:
    from headwise._base.typing import Array, Rng

__all__ = ["learned_positional_encoding", "positional_encoding"]


def positional_encoding(seq_len: int, d_model: int, n: float = 10000) -> Array:
    """The sinusoidal encoding of the positions ``0 .. seq_len - 1`` [1]_.

    Parameters
    ----------
    seq_len : int
        Number of positions.
    d_model : int
        Number of features; it may be odd.
    n : float
        Base of the frequencies: approximately the ratio of the maximum to the minimum wavelength.

    Returns
    -------
    ndarray, (seq_len, d_model), float64
        Row ``p`` has ``sin(p * n ** (-2 k / d_model))`` in column ``2 k`` and its cosine in column ``2 k + 1``.

    Raises
    ------
    ValueError
        If a size or ``n`` is not positive.
    TypeError
        If a size is not an integer, or ``n`` is not a real number.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, section 3.5.

    Examples
    --------
    >>> import headwise as hw
    >>> from headwise.attention import positional_encoding
    >>> positional_encoding(2, 4).round(4)
    array([[0.    , 1.    , 0.    , 1.    ],
           [0.8415, 0.5403, 0.01  , 1.    ]])
    """
    length, width = check_size(seq_len, "seq_len"), check_size(d_model, "d_model")
    base = check_positive(n, "n")
    check_room(length, width)
    return sinusoid(np.arange(length, dtype=np.float64), width, base)


def learned_positional_encoding(seq_len: int, d_model: int, *, rng: Rng = None) -> Array:
    """Initial values of trainable position embeddings: normal with standard deviation 0.02, as in BERT and GPT-2.

    Parameters
    ----------
    seq_len : int
        Number of positions.
    d_model : int
        Number of features.
    rng : int or numpy.random.Generator, optional
        Draws the embeddings.

    Returns
    -------
    ndarray, (seq_len, d_model), float64

    Raises
    ------
    ValueError
        If a size is not positive.
    TypeError
        If a size is not an integer.

    See Also
    --------
    headwise.LearnedPositionalEmbedding : a layer that adds and updates such embeddings.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.learned_positional_encoding(100, 512, rng=0).shape
    (100, 512)
    """
    return fresh_embeddings(rng, check_size(seq_len, "seq_len"), check_size(d_model, "d_model"), None)

"""The frequencies of rotary position embedding, as functions of a model's configuration.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), https://arxiv.org/abs/2104.09864,
section 3.2.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwise._base.arrays import as_array, check_dtype
from headwise._base.scalars import check_int, check_real, check_size
from headwise._base.typing import FLOAT64
from headwise._positions.rope_config import check_positive, read_scaling
from headwise._positions.rope_tables import cosines_and_sines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

__all__ = ["rope_frequencies", "rope_parameters", "rope_tables"]


def rope_frequencies(dim: int, base: float = 10000.0) -> Array:
    """The frequency of each pair of features: its angle of rotation per position [1]_.

    Parameters
    ----------
    dim : int
        Number of rotated features, even.
    base : float
        Frequency base: the ratio of the maximum frequency to the (excluded) minimum.

    Returns
    -------
    ndarray, (dim / 2,), float64
        ``base ** (-2 k / dim)`` for pair ``k``, in radians per position.

    Raises
    ------
    ValueError
        If ``dim`` is odd or not positive, or ``base`` is not positive.
    TypeError
        If ``dim`` is not an integer, or ``base`` is not a real number.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, section 3.2.2.

    Examples
    --------
    >>> from headwise.rope import rope_frequencies
    >>> rope_frequencies(4)
    array([1.  , 0.01])
    """
    return rope_parameters(dim, base)[0]


def rope_parameters(
    dim: int,
    base: float = 10000.0,
    *,
    scaling: Mapping[str, Any] | None = None,
    seq_len: int | None = None,
    max_position_embeddings: int | None = None,
) -> tuple[Array, float]:
    """The frequencies of a model with scaled rotary embedding, and the factor of its cosines and sines.

    Parameters
    ----------
    dim : int
        Number of features of a head.
    base : float
        Frequency base; ``scaling['rope_theta']`` overrides it.
    scaling : mapping, optional
        ``rope_parameters`` (formerly ``rope_scaling``) of a Hugging Face configuration, unchanged. ``rope_type`` (or
        ``type``) is one of the types below, whose parameters are in the table. Entries that are None are ignored.
        ``partial_rotary_factor``, the fraction of the features that are rotated, ``rope_theta``,
        ``original_max_position_embeddings``, ``max_position_embeddings`` (as the argument) and
        ``llama_4_scaling_beta`` (see :meth:`headwise.RotaryPositionalEmbedding.query_scale`) are allowed with every
        type. Without effect are ``attn_factor``, which transformers does not read either, ``finetuned``, and
        ``mrope_section`` and ``mrope_interleaved``, which concern images.
    seq_len : int, optional
        Length of the sequence, i.e. its maximum position plus one. By default at most the length that the model was
        trained for.
    max_position_embeddings : int, optional
        As in the configuration. ``dynamic`` requires it. ``yarn`` and ``llama3`` use it if
        ``original_max_position_embeddings`` is missing; ``yarn`` and ``longrope`` compute a missing ``factor`` from the
        two.

    Returns
    -------
    inv_freq : ndarray, (pairs,), float64
        The angle of each pair, in radians per position.
    attention_factor : float
        The factor of cosines and sines. Scores are multiplied by its square.

    Raises
    ------
    ValueError
        If a parameter is unknown, missing or out of its range.
    TypeError
        If a parameter has a wrong type.

    Notes
    -----
    ================ ============================================================== ===================================
    rope_type        parameters (in brackets: optional)                             source
    ================ ============================================================== ===================================
    ``default``                                                                     Su et al., 2021
    ``linear``       factor                                                         Chen et al., 2023
    ``proportional`` [factor]                                                       Gemma 4
    ``dynamic``      factor                                                         bloc97 and emozilla, 2023
    ``yarn``         factor, original_max_position_embeddings [attention_factor,    Peng et al., 2023
                     beta_fast, beta_slow, mscale, mscale_all_dim, truncate]
    ``llama3``       factor, low_freq_factor, high_freq_factor,                     Llama 3.1, 2024
                     original_max_position_embeddings
    ``longrope``     short_factor, long_factor, original_max_position_embeddings    Ding et al., 2024
                     [attention_factor, factor, short_mscale, long_mscale]
    ================ ============================================================== ===================================

    ``su`` is a former name of ``longrope``, and ``mrope`` of ``default`` for text. Some configurations (Phi-3) have
    ``original_max_position_embeddings`` outside the mapping; here it must be inside.

    Examples
    --------
    >>> from headwise.rope import rope_parameters
    >>> rope_parameters(4, scaling={"rope_type": "linear", "factor": 4.0})
    (array([0.25  , 0.0025]), 1.0)
    >>> yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    >>> inv_freq, attention_factor = rope_parameters(8, scaling=yarn)
    >>> inv_freq.round(6), round(attention_factor, 6)
    (array([1.00e+00, 1.00e-01, 6.25e-03, 2.50e-04]), 1.138629)
    """
    rope = read_scaling(scaling, check_size(dim, "dim"), check_positive(base, "base"), max_position_embeddings)
    length = None if seq_len is None else check_int(seq_len, "seq_len", 0)
    return rope.inv_freq(length), rope.attention_factor(length)


def rope_tables(positions: ArrayLike, inv_freq: ArrayLike, factor: float = 1.0) -> tuple[Array, Array]:
    """The cosines and sines of ``positions * inv_freq``, for :func:`headwise.apply_rope`.

    Parameters
    ----------
    positions : array_like, (…)
        Integers or real numbers, such as ``p / s`` for interpolated positions.
    inv_freq : array_like, (pairs,)
        The angle of each pair, in radians per position.
    factor : float
        The factor of cosines and sines: the ``attention_factor`` of :func:`rope_parameters`.

    Returns
    -------
    cos, sin : ndarray, (…, pairs), float64
        Angles are computed in float64. :func:`headwise.apply_rope` computes in the dtype to which its arguments
        promote, so cast the tables to the dtype of its input.

    Raises
    ------
    ValueError
        If ``inv_freq`` is not a vector, or ``factor`` is not finite.
    TypeError
        If a dtype is not real, or ``factor`` is not a real number.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> inv_freq, factor = hw.rope_parameters(4)
    >>> cos, sin = hw.rope_tables(range(3), inv_freq, factor)
    >>> x = np.ones((3, 4))
    >>> bool((hw.apply_rope(x, cos, sin) == hw.RotaryPositionalEmbedding(4)(x)).all())
    True

    Image patches in two rows of three (axial rotation): the first pairs turn by the row, the others by the column.

    >>> row, column = np.divmod(np.arange(6), 3)
    >>> tables = zip(hw.rope_tables(row, inv_freq), hw.rope_tables(column, inv_freq))
    >>> cos, sin = (np.concatenate(both, axis=-1) for both in tables)
    >>> hw.apply_rope(np.ones((6, 8)), cos, sin).shape
    (6, 8)
    """
    where, frequencies = as_array(positions, "positions"), as_array(inv_freq, "inv_freq")
    for name, array in (("positions", where), ("inv_freq", frequencies)):
        check_dtype(array.dtype, name)
    if frequencies.ndim != 1:
        raise ValueError(f"inv_freq: shape {frequencies.shape}, expected (pairs,)")
    rows = cosines_and_sines(frequencies.astype(FLOAT64), check_real(factor, "factor"), where.astype(FLOAT64))
    pairs = len(frequencies)
    return rows[..., :pairs], rows[..., pairs:]

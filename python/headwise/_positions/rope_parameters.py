"""The frequencies of rotary position embedding, as functions of a model's configuration.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), https://arxiv.org/abs/2104.09864,
section 3.2.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwise._base.scalars import check_int, check_size
from headwise._positions.rope_config import check_positive, read_scaling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headwise._base.typing import Array

__all__ = ["rope_frequencies", "rope_parameters"]


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
        ``partial_rotary_factor``, the fraction of the features that are rotated, and ``rope_theta`` are allowed with
        every type.
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
                     [attention_factor, factor]
    ================ ============================================================== ===================================

    ``su`` is a former name of ``longrope``. Some configurations (Phi-3) have ``original_max_position_embeddings``
    outside the mapping; here it must be inside.

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
    return rope.inv_freq(length), rope.attention_factor

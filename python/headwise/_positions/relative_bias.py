"""Tables for the keyword ``relative_bias`` of attention: one number for each distance of a key from a query.

Entry ``M + t`` of the last axis is that of the distance ``t = j - i``, which the attention functions clip to ``-M`` to
``M``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import check_room
from headwise._base.scalars import check_flag, check_int, check_real, check_size
from headwise._positions.buckets import deberta_buckets, t5_buckets

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

__all__ = [
    "deberta_relative_bias",
    "fire_relative_bias",
    "kerple_relative_bias",
    "shaw_relative_bias",
    "t5_relative_bias",
    "transformer_xl_relative_bias",
]


def t5_relative_bias(table: ArrayLike, M: int, *, bidirectional: bool, max_distance: int = 128) -> Array:  # noqa: N803
    """The relative bias of T5 [1]_: a number for each bucket of distances and head.

    Parameters
    ----------
    table : array_like, (num_buckets, heads)
        The weight ``relative_attention_bias`` of a T5 model.
    M : int
        The maximum distance of the result. `max_distance` serves sequences of any length, as all greater distances have
        the same bucket.
    bidirectional : bool
        Whether keys after the query have buckets of their own: True in encoders, False in decoders.
    max_distance : int
        The distance from which all are in one bucket.

    Returns
    -------
    ndarray, (heads, 1, 2 M + 1)
        For ``relative_bias=`` of the attention functions, in the floating dtype of `table`. T5 does not scale scores:
        ``scale=1.0``.

    Raises
    ------
    ValueError
        If `table` does not have two axes and enough buckets, or a distance is too small.
    TypeError
        If a dtype is not real, or another argument has a wrong type.

    References
    ----------
    .. [1] C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020,
       section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> table = np.arange(8.0)[:, np.newaxis]  # each bucket has its own number
    >>> hw.t5_relative_bias(table, 6, bidirectional=True, max_distance=6)[0, 0]
    array([3., 3., 3., 2., 2., 1., 0., 5., 6., 6., 7., 7., 7.])
    """
    weight = _floating(table, "table")
    if weight.ndim != 2:
        raise ValueError(f"table: shape {weight.shape}, expected (num_buckets, heads)")
    reach, both = check_size(M, "M"), check_flag(bidirectional, "bidirectional")
    least = 4 if both else 2
    if len(weight) < least:
        raise ValueError(f"table: shape {weight.shape}, expected at least {least} buckets")
    exact = len(weight) // least
    greatest = check_int(max_distance, "max_distance", exact + 1)
    buckets = t5_buckets(_distances(reach), len(weight), both, greatest)
    return np.ascontiguousarray(weight[buckets].T[:, np.newaxis])


@ieee
def shaw_relative_bias(query: ArrayLike, table: ArrayLike, *, scale: float | None = None) -> Array:
    """The scores of queries with an embedding of each distance [1]_: ``scale * query @ table.T``.

    Parameters
    ----------
    query : array_like, (..., heads, query_len, head_dim)
        As given to attention.
    table : array_like, (2 M + 1, head_dim) or (heads, 2 M + 1, head_dim)
        The embeddings of the distances -M to M of a key from the query, such as
        ``RelativePositionalEncoding.embeddings``. The ``distance_embedding`` of a BERT model with relative keys has the
        distances of a query from the key: ``table[::-1]``.
    scale : float, optional
        That of attention; ``1 / sqrt(head_dim)`` if None.

    Returns
    -------
    ndarray, (..., heads, query_len, 2 M + 1)
        For ``relative_bias=``; float32 for 16-bit arguments.

    Raises
    ------
    ValueError
        If a shape does not fit, or the number of distances is even.
    TypeError
        If a dtype is not real, or `scale` is no number.

    References
    ----------
    .. [1] P. Shaw, J. Uszkoreit, A. Vaswani, "Self-Attention with Relative Position Representations", 2018,
       equations 2 and 5.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 4))
    >>> embeddings = hw.RelativePositionalEncoding(d_model=4, max_relative_position=3, rng=0)
    >>> bias = hw.shaw_relative_bias(query, embeddings.embeddings)
    >>> bias.shape
    (1, 2, 6, 7)
    >>> output = hw.flash_attention(query, key, value, relative_bias=bias)
    >>> scores = np.einsum("bhid,bhjd->bhij", query, key) + np.einsum("bhid,ijd->bhij", query, embeddings(6))
    >>> bool(np.allclose(output, hw.softmax(scores / 2) @ value))
    True
    """
    q, distances = _query_and_table(query, table, "table")
    return _products(q, distances, scale)


@ieee
def transformer_xl_relative_bias(
    query: ArrayLike, positions: ArrayLike, position_bias: ArrayLike | None = None, *, scale: float | None = None
) -> Array:
    """The positional term of Transformer-XL and XLNet [1]_: ``scale * (query + position_bias) @ positions.T``.

    The other term, ``scale * (query + content_bias) @ key.T``, is attention with the query ``query + content_bias``.
    With a memory, keys of earlier segments stand before those of the segment, and ``causal_alignment="lower_right"``
    gives the queries their positions.

    Parameters
    ----------
    query : array_like, (..., heads, query_len, head_dim)
        Without a bias.
    positions : array_like, (heads, 2 M + 1, head_dim) or (2 M + 1, head_dim)
        The projected embeddings of the distances -M to M of a key from the query. The models number distances of a
        query from the key, from the greatest to the least: that is the same order.
    position_bias : array_like, (heads, head_dim), optional
        ``v`` of [1]_, ``r_r_bias`` of the models.
    scale : float, optional
        That of attention; ``1 / sqrt(head_dim)`` if None.

    Returns
    -------
    ndarray, (..., heads, query_len, 2 M + 1)
        For ``relative_bias=``; float32 for 16-bit arguments.

    Raises
    ------
    ValueError, TypeError
        As :func:`shaw_relative_bias`.

    References
    ----------
    .. [1] Z. Dai et al., "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context", 2019, section 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> rng = np.random.default_rng(0)
    >>> query, (u, v) = rng.standard_normal((1, 2, 3, 4)), rng.standard_normal((2, 2, 4))
    >>> key, value = rng.standard_normal((2, 1, 2, 8, 4))  # of a memory of 5 tokens and a segment of 3
    >>> bias = hw.transformer_xl_relative_bias(query, rng.standard_normal((2, 17, 4)), v)
    >>> hw.flash_attention(
    ...     query + u[:, np.newaxis], key, value, relative_bias=bias, is_causal=True, causal_alignment="lower_right"
    ... ).shape
    (1, 2, 3, 4)
    """
    q, distances = _query_and_table(query, positions, "positions")
    if position_bias is not None:
        v = _floating(position_bias, "position_bias")
        if v.shape != (q.shape[-3], q.shape[-1]):
            raise ValueError(f"position_bias: shape {v.shape}, expected (heads, head_dim) = {q.shape[-3::2]}")
        q = q + v.astype(q.dtype, copy=False)[:, np.newaxis]
    return _products(q, distances, scale)


@ieee
def deberta_relative_bias(
    query: ArrayLike,
    key: ArrayLike,
    position_key: ArrayLike | None = None,
    position_query: ArrayLike | None = None,
    *,
    scale: float,
    buckets: int | None = None,
    max_distance: int = 512,
) -> Array:
    """The terms content-to-position and position-to-content of DeBERTa [1]_.

    ``scale * (query[i] @ position_key[d] + key[j] @ position_query[d])``, where ``d`` is the bucket of ``i - j``.

    Parameters
    ----------
    query : array_like, (..., heads, query_len, head_dim)
    key : array_like, (..., heads, key_len, head_dim)
    position_key : array_like, (heads, 2 span, head_dim), optional
        Projected embeddings of the buckets -span to span - 1; without it, there is no content-to-position term.
    position_query : array_like, (heads, 2 span, head_dim), optional
        Likewise for the position-to-content term.
    scale : float
        That of attention: ``1 / sqrt(3 * head_dim)`` in models with both terms.
    buckets : int, optional
        Distances from half of this number on share logarithmic buckets (``position_buckets`` of DeBERTa-v2); None: each
        distance has its own.
    max_distance : int
        ``max_relative_positions`` of the model.

    Returns
    -------
    ndarray, (..., heads, query_len, 2 M + 1)
        For ``relative_bias=``, with ``M = max(query_len, key_len) - 1``, as the second term depends on each key;
        float32 for 16-bit arguments.

    Raises
    ------
    ValueError
        If a shape does not fit, or neither `position_key` nor `position_query` is given.
    TypeError
        If a dtype is not real, or another argument has a wrong type.

    References
    ----------
    .. [1] P. He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2021, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 4))
    >>> position_key, position_query = np.random.default_rng(1).standard_normal((2, 2, 16, 4))
    >>> scale = 1 / np.sqrt(3 * 4)
    >>> bias = hw.deberta_relative_bias(query, key, position_key, position_query, scale=scale)
    >>> hw.flash_attention(query, key, value, relative_bias=bias, scale=scale).shape
    (1, 2, 6, 4)
    """
    q, k = _floating(query, "query"), _floating(key, "key")
    if q.ndim < 3 or k.shape != (*q.shape[:-2], k.shape[-2] if k.ndim > 1 else 0, q.shape[-1]):
        raise ValueError(
            f"key: shape {k.shape} beside query {q.shape}, expected (..., heads, key_len, head_dim) with equal heads"
        )
    number, count = check_real(scale, "scale"), None if buckets is None else check_int(buckets, "buckets", 4)
    greatest = check_int(max_distance, "max_distance", 2)
    rows, keys = q.shape[-2], k.shape[-2]
    reach = max(rows, keys, 1) - 1
    check_room(*q.shape[:-1], 2 * reach + 1)
    steps = _distances(reach)
    bias = np.zeros((*q.shape[:-1], 2 * reach + 1), q.dtype)
    given = 0
    for x, name, content in ((position_key, "position_key", q), (position_query, "position_query", k)):
        if x is None:
            continue
        given += 1
        table = _floating(x, name)
        if table.ndim != 3 or table.shape[::2] != q.shape[-3::2] or table.shape[1] % 2 or not table.shape[1]:
            raise ValueError(f"{name}: shape {table.shape}, expected (heads, 2 span, head_dim) = "
                             f"({q.shape[-3]}, an even number, {q.shape[-1]})")  # fmt: skip
        span = table.shape[1] // 2
        found = -steps if count is None else deberta_buckets(-steps, count, greatest)
        where = (found + span).clip(0, 2 * span - 1)
        products = _products(content, table.astype(q.dtype, copy=False), number)
        if name == "position_key":
            bias += products[..., where]
            continue
        j = np.arange(rows)[:, np.newaxis] + steps  # of each row and distance
        bias += np.where((j >= 0) & (j < keys), products[..., j.clip(0, max(keys - 1, 0)), where], 0) if keys else 0
    if not given:
        raise ValueError("position_key: None, as position_query, expected at least one of them")
    return bias


def kerple_relative_bias(r1: ArrayLike, r2: ArrayLike, M: int, *, kernel: str = "log") -> Array:  # noqa: N803
    """The kernelised relative bias KERPLE [1]_: ``-r1 * log(1 + r2 * d)`` or ``-r1 * d ** r2`` of the distance ``d``.

    Parameters
    ----------
    r1, r2 : array_like, (heads,)
        The parameters of each head, not negative; `r2` is at most 2 for the power kernel.
    M : int
        The maximum distance of the result: at least the length of the sequences less 1.
    kernel : {"log", "power"}

    Returns
    -------
    ndarray, (heads, 1, 2 M + 1)
        For ``relative_bias=``.

    Raises
    ------
    ValueError
        If shapes do not match, a parameter is out of its range or `kernel` is unknown.
    TypeError
        If a dtype is not real, or another argument has a wrong type.

    References
    ----------
    .. [1] T.-C. Chi et al., "KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation", 2022,
       equations 8 and 9.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.kerple_relative_bias([1.0], [1.0], 2, kernel="power")[0, 0]
    array([-2., -1., -0., -1., -2.])
    """
    a, b = _floating(r1, "r1"), _floating(r2, "r2")
    if a.ndim != 1:
        raise ValueError(f"r1: shape {a.shape}, expected (heads,)")
    if b.shape != a.shape:
        raise ValueError(f"r2: shape {b.shape}, expected that of r1, {a.shape}")
    if kernel not in ("log", "power"):
        raise ValueError(f"kernel: {kernel!r}, expected 'log' or 'power'")
    for name, x in (("r1", a), ("r2", b)):
        if not (x >= 0).all() or (name == "r2" and kernel == "power" and not (x <= 2).all()):
            raise ValueError(
                f"{name}: expected {'0 to 2' if kernel == 'power' and name == 'r2' else 'no number below 0'}"
            )
    steps = np.abs(_distances(check_size(M, "M"))).astype(a.dtype)
    a, b = a[:, np.newaxis, np.newaxis], b[:, np.newaxis, np.newaxis].astype(a.dtype)
    bias: Array = -a * (np.log1p(b * steps) if kernel == "log" else steps**b)
    return bias


def fire_relative_bias(
    function: Callable[[Array], ArrayLike],
    query_len: int,
    M: int,  # noqa: N803
    *,
    c: float,
    threshold: float,
    offset: int = 0,
) -> Array:
    """The functional relative bias FIRE [1]_: a function of ``log(c d + 1) / log(c max(threshold, i) + 1)``.

    ``d`` is the distance of a key from the query at the position ``i``, whose progressive interpolation keeps the
    argument of the function between 0 and 1 for causal attention.

    Parameters
    ----------
    function : callable
        Takes an array (query_len, 2 M + 1) and returns (query_len, 2 M + 1, heads), such as a small network.
    query_len : int
        Number of queries.
    M : int
        The maximum distance of the result.
    c : float
        The factor in the logarithm, above 0.
    threshold : float
        Positions below it are interpolated as this one.
    offset : int
        The position of query 0.

    Returns
    -------
    ndarray, (heads, query_len, 2 M + 1)
        For ``relative_bias=``.

    Raises
    ------
    ValueError
        If a number is out of its range or `function` returns another shape.
    TypeError
        If an argument has a wrong type.

    References
    ----------
    .. [1] S. Li et al., "Functional Interpolation for Relative Positions Improves Long Context Transformers", 2024,
       equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> bias = hw.fire_relative_bias(lambda x: -x[..., np.newaxis], 3, 2, c=1.0, threshold=2.0)
    >>> bias.shape, bias[0, 0].tolist()
    ((1, 3, 5), [-1.0, -0.6309297535714574, -0.0, -0.6309297535714574, -1.0])
    """
    rows, reach, first = check_size(query_len, "query_len"), check_size(M, "M"), check_int(offset, "offset")
    factor, least = check_real(c, "c"), check_real(threshold, "threshold")
    if factor <= 0 or least <= 0:
        name, number = ("c", factor) if factor <= 0 else ("threshold", least)
        raise ValueError(f"{name}: {number}, expected a positive number")
    check_room(rows, 2 * reach + 1)
    positions = np.maximum(np.arange(first, first + rows), least)[:, np.newaxis]
    arguments = np.log1p(factor * np.abs(_distances(reach))) / np.log1p(factor * positions)
    bias = _floating(function(arguments), "function")
    if bias.ndim != 3 or bias.shape[:2] != arguments.shape:
        raise ValueError(f"function: returned shape {bias.shape}, expected ({rows}, {2 * reach + 1}, heads)")
    return np.ascontiguousarray(bias.transpose(2, 0, 1))


def _distances(reach: int) -> Array:
    check_room(2 * reach + 1)
    return np.arange(-reach, reach + 1)


def _floating(x: Any, name: str) -> Array:
    """``x`` in float32 or float64."""
    a = as_array(x, name)
    compute, _ = promote((name, a))
    return cast_dtype(a, compute)


def _query_and_table(query: ArrayLike, table: ArrayLike, name: str) -> tuple[Array, Array]:
    """Both in one dtype; the table as (heads or 1, 2 M + 1, head_dim)."""
    q, t = _floating(query, "query"), _floating(table, name)
    if q.ndim < 3:
        raise ValueError(f"query: shape {q.shape}, expected (..., heads, query_len, head_dim)")
    if t.ndim not in (2, 3) or t.shape[-1] != q.shape[-1] or (t.ndim == 3 and t.shape[0] not in (1, q.shape[-3])):
        raise ValueError(
            f"{name}: shape {t.shape}, expected (2 M + 1, {q.shape[-1]}) or ({q.shape[-3]}, 2 M + 1, {q.shape[-1]})"
        )
    if t.shape[-2] % 2 == 0:
        raise ValueError(f"{name}: shape {t.shape}: {t.shape[-2]} distances, expected an odd number, -M to M")
    dtype = np.result_type(q, t)
    return q.astype(dtype, copy=False), t.astype(dtype, copy=False)


def _products(query: Array, table: Array, scale: float | None) -> Array:
    number = 1.0 / math.sqrt(query.shape[-1]) if scale is None else check_real(scale, "scale")
    products: Array = np.matmul(query, table.swapaxes(-1, -2))
    products *= number
    return products

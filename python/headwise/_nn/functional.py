"""Attention as functions: one call in, arrays out.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.layer import fresh_embeddings
from headwise._base.outputs import check_room
from headwise._base.scalars import check_int, check_rate, check_real, check_rng, check_size
from headwise._nn.layers import MultiHeadAttention
from headwise._nn.multi_head import Heads, check_heads, check_sequences, glorot_uniform, multi_head
from headwise._nn.projections import GivenProjections
from headwise._ops import scaled_dot_product_attention
from headwise._positions.absolute import sinusoid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from headwise._base.layer import Rng
    from headwise._base.typing import Array
    from headwise._ops.attention.options import AttentionOptions, FunctionOptions, MultiHeadOptions, Parameters

__all__ = [
    "attention_score_visualization",
    "cross_attention",
    "learned_positional_encoding",
    "multi_head_attention",
    "multi_head_self_attention",
    "positional_encoding",
    "self_attention",
]


@overload
def multi_head_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, num_heads: int, d_model: int,
    mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def multi_head_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, num_heads: int, d_model: int,
    mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def multi_head_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, num_heads: int, d_model: int,
    mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[MultiHeadOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def multi_head_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, num_heads: int, d_model: int,
    mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
def multi_head_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    num_heads: int,
    d_model: int,
    mask: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    *,
    params: Parameters | None = None,
    rng: Rng = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """Project to ``num_heads`` heads, attend in each, and project the joined heads.

    Parameters
    ----------
    query : array_like, (batch, query_len, query_width) or (query_len, query_width)
        Its width may differ from ``d_model``, to which it is projected; so may those of ``key`` and ``value``.
    key : array_like, (batch, key_len, key_width)
    value : array_like, (batch, key_len, value_width)
    num_heads : int
        Number of heads, a divisor of ``d_model``.
    d_model : int
        Width of all heads together, and of the output.
    mask : array_like, optional
        As for :meth:`headwise.MultiHeadAttention.forward`.
    dropout_rate : float
        Rate in [0, 1) at which attention weights are dropped.
    params : MultiHeadAttention or mapping, optional
        The projections ``W_q``, ``W_k``, ``W_v`` (width, d_model) and ``W_o`` (d_model, d_model), applied as ``x @ W``.
        A layer also brings its biases, heads, positions, causality and defaults. By default they are drawn uniformly as
        by Glorot & Bengio (2010).
    rng : int or numpy.random.Generator, optional
        Draws the projections and the dropout: the same seed gives the same result.
    **options
        The other keywords of :func:`headwise.scaled_dot_product_attention`.

    Returns
    -------
    output : ndarray, (batch, query_len, d_model)
        Of the rank of ``query`` and of the floating dtype of the inputs; float16 and bfloat16 are computed in float32,
        projections included, and rounded once.
    weights : ndarray, (batch, num_heads, query_len, key_len), or None
        Before dropout; None with ``need_weights=False``.
    lse : ndarray, (batch, num_heads, query_len)
        Only with ``return_lse=True``.

    Raises
    ------
    ValueError
        If ``d_model`` is not divisible by ``num_heads``, or a shape, a rate or ``params`` do not fit.
    TypeError
        If an argument has a wrong type.

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), section 3.2.2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 32))
    >>> output, weights = hw.multi_head_attention(x, x, x, num_heads=8, d_model=64, rng=0)
    >>> output.shape, weights.shape
    ((2, 5, 64), (2, 8, 5, 5))
    """
    width, heads = check_heads(d_model, num_heads)
    q, k, v = check_sequences(query, key, value)
    rate, generator = check_rate(dropout_rate, "dropout_rate"), check_rng(rng)
    if isinstance(params, MultiHeadAttention):
        if (params.num_heads, params.d_model) != (heads, width):
            raise ValueError(
                f"params: a layer with num_heads = {params.num_heads} and d_model = {params.d_model}, "
                f"expected {heads} and {width}"
            )
        return params._attend(q, k, v, mask, rate, generator, **options)
    if params is None:
        rows = zip(("W_q", "W_k", "W_v", "W_o"), (q.shape[-1], k.shape[-1], v.shape[-1], width), strict=True)
        given = GivenProjections({name: glorot_uniform(generator, n, width) for name, n in rows})
    else:
        given = GivenProjections.of(params, width)
    shape = Heads(given.widths, width, heads, heads)
    return multi_head(q, k, v, given, shape, mask, rate, generator, **options)


@overload
def multi_head_self_attention(
    x: ArrayLike, num_heads: int, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def multi_head_self_attention(
    x: ArrayLike, num_heads: int, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def multi_head_self_attention(
    x: ArrayLike, num_heads: int, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[MultiHeadOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def multi_head_self_attention(
    x: ArrayLike, num_heads: int, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
def multi_head_self_attention(
    x: ArrayLike,
    num_heads: int,
    d_model: int,
    mask: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    *,
    params: Parameters | None = None,
    rng: Rng = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """:func:`multi_head_attention` of a sequence to itself.

    Parameters
    ----------
    x : array_like, (batch, seq, width) or (seq, width)
        Query, key and value in one.
    num_heads, d_model, mask, dropout_rate, params, rng, **options
        As for :func:`multi_head_attention`.

    Returns
    -------
    output : ndarray, (batch, seq, d_model)
    weights : ndarray, (batch, num_heads, seq, seq), or None

    Raises
    ------
    ValueError, TypeError
        As :func:`multi_head_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 64))
    >>> output, weights = hw.multi_head_self_attention(x, num_heads=8, d_model=64, is_causal=True, rng=0)
    >>> output.shape, weights.shape
    ((2, 5, 64), (2, 8, 5, 5))
    """
    rows = as_array(x, "x")
    if rows.ndim not in (2, 3):
        raise ValueError(f"x: shape {rows.shape}, expected (batch, seq, width) or (seq, width)")
    return multi_head_attention(
        rows, rows, rows, num_heads, d_model, mask, dropout_rate, params=params, rng=rng, **options
    )


@overload
def self_attention(
    x: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[FunctionOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def self_attention(
    x: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[FunctionOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def self_attention(
    x: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[FunctionOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def self_attention(
    x: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[FunctionOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
def self_attention(
    x: ArrayLike,
    d_model: int,
    mask: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    *,
    rng: Rng = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """Scaled dot-product attention of a sequence to itself, with nothing projected.

    Parameters
    ----------
    x : array_like, (…, seq, d_model)
        Query, key and value in one.
    d_model : int
        The width that ``x`` is checked against.
    mask, dropout_rate, rng, **options
        As for :func:`headwise.scaled_dot_product_attention`.

    Returns
    -------
    output : ndarray, (…, seq, d_model)
    weights : ndarray, (…, seq, seq), or None

    Raises
    ------
    ValueError, TypeError
        If the width is not ``d_model``, or as :func:`headwise.scaled_dot_product_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 64))
    >>> output, weights = hw.self_attention(x, d_model=64)
    >>> output.shape, weights.shape
    ((2, 5, 64), (2, 5, 5))
    """
    rows = _of_width(x, "x", check_size(d_model, "d_model"))
    rate = check_rate(dropout_rate, "dropout_rate")
    return scaled_dot_product_attention(rows, rows, rows, mask, rate, rng=rng, **options)


@overload
def cross_attention(
    query: ArrayLike, context: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[FunctionOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def cross_attention(
    query: ArrayLike, context: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[FunctionOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def cross_attention(
    query: ArrayLike, context: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[FunctionOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def cross_attention(
    query: ArrayLike, context: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[FunctionOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
def cross_attention(
    query: ArrayLike,
    context: ArrayLike,
    d_model: int,
    mask: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    *,
    rng: Rng = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """Scaled dot-product attention of one sequence to another, with nothing projected.

    Parameters
    ----------
    query : array_like, (…, query_len, d_model)
        What attends, such as a decoder's state.
    context : array_like, (…, key_len, d_model)
        What is attended to, as key and as value, such as an encoder's output.
    d_model : int
        The width that both are checked against.
    mask, dropout_rate, rng, **options
        As for :func:`headwise.scaled_dot_product_attention`.

    Returns
    -------
    output : ndarray, (…, query_len, d_model)
    weights : ndarray, (…, query_len, key_len), or None

    Raises
    ------
    ValueError, TypeError
        If a width is not ``d_model``, or as :func:`headwise.scaled_dot_product_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> rng = np.random.default_rng(0)
    >>> decoder, encoder = rng.standard_normal((2, 3, 64)), rng.standard_normal((2, 7, 64))
    >>> output, weights = hw.cross_attention(decoder, encoder, d_model=64)
    >>> output.shape, weights.shape
    ((2, 3, 64), (2, 3, 7))
    """
    width = check_size(d_model, "d_model")
    rows, others = _of_width(query, "query", width), _of_width(context, "context", width)
    if others.ndim != rows.ndim or others.shape[:-2] != rows.shape[:-2]:
        expected = ", ".join(str(n) for n in (*rows.shape[:-2], "key_len", width))
        raise ValueError(f"context: shape {others.shape}, expected ({expected}) beside query {rows.shape}")
    rate = check_rate(dropout_rate, "dropout_rate")
    return scaled_dot_product_attention(rows, others, others, mask, rate, rng=rng, **options)


def positional_encoding(seq_len: int, d_model: int, n: float = 10000) -> Array:
    """The sinusoidal encoding of the positions ``0 .. seq_len - 1``.

    Parameters
    ----------
    seq_len : int
        Number of positions.
    d_model : int
        Number of features, odd numbers included.
    n : float
        Ratio of the longest wavelength to the shortest, about.

    Returns
    -------
    ndarray, (seq_len, d_model), float64
        ``sin(p * n ** (-2 k / d_model))`` in column ``2 k`` of row ``p``, the cosine in column ``2 k + 1``.

    Raises
    ------
    ValueError
        If a size or ``n`` is not positive.

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), section 3.5.

    Examples
    --------
    >>> import headwise as hw
    >>> from headwise.attention import positional_encoding
    >>> positional_encoding(2, 4).round(4)
    array([[0.    , 1.    , 0.    , 1.    ],
           [0.8415, 0.5403, 0.01  , 1.    ]])
    """
    length, width = check_size(seq_len, "seq_len"), check_size(d_model, "d_model")
    base = check_real(n, "n")
    if base <= 0.0:
        raise ValueError(f"n: {base}, expected a positive number")
    check_room(length, width)
    return sinusoid(np.arange(length, dtype=np.float64), width, base)


def learned_positional_encoding(seq_len: int, d_model: int, *, rng: Rng = None) -> Array:
    """Embeddings of positions to train: normal with standard deviation 0.02, as BERT and GPT-2 begin.

    Parameters
    ----------
    seq_len, d_model : int
        Number of positions and of features.
    rng : int or numpy.random.Generator, optional
        Draws them.

    Returns
    -------
    ndarray, (seq_len, d_model), float64

    Raises
    ------
    ValueError
        If a size is not positive.

    See Also
    --------
    headwise.LearnedPositionalEmbedding : a layer that adds and updates them.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.learned_positional_encoding(100, 512, rng=0).shape
    (100, 512)
    """
    return fresh_embeddings(rng, check_size(seq_len, "seq_len"), check_size(d_model, "d_model"), None)


def attention_score_visualization(
    attention_weights: ArrayLike, tokens: Sequence[str] | None = None, *, batch: int = 0, head: int = 0
) -> dict[str, Any]:
    """One map of attention weights with its labels and range, ready to draw.

    Parameters
    ----------
    attention_weights : array_like, (query_len, key_len)
        Or with axes before these: (batch,) or (batch, heads).
    tokens : sequence of str, optional
        A label for each key; the positions by default. Too few are padded with empty labels and too many are cut, and
        the entry ``note`` says so.
    batch, head : int
        Which map of several to take.

    Returns
    -------
    dict
        ``weights`` (query_len, key_len), ``tokens`` (a list), ``shape`` (of ``weights``), ``max_attention`` and
        ``min_attention`` (floats), and ``note`` (a str) where the labels were padded or cut.

    Raises
    ------
    ValueError
        If the shape has no map in it, or ``batch`` or ``head`` is none of its indices.

    Examples
    --------
    >>> import headwise as hw
    >>> view = hw.attention_score_visualization([[0.75, 0.25], [0.5, 0.5]], tokens=["so", "it", "goes"])
    >>> view["tokens"], view["max_attention"], view["min_attention"]
    (['so', 'it'], 0.75, 0.25)
    >>> view["note"]
    'tokens: 3 labels for 2 keys, the last 1 left out'
    """
    weights = as_array(attention_weights, "attention_weights")
    check_dtype(weights.dtype, "attention_weights")
    if weights.ndim not in (2, 3, 4) or weights.size == 0:
        raise ValueError(
            f"attention_weights: shape {weights.shape}, expected a map (query_len, key_len) that is not empty, "
            "with (batch,) or (batch, heads) before it or not"
        )
    shape = weights.shape
    for name, index, axes in (("batch", batch, weights.ndim - 2), ("head", head, weights.ndim - 3)):
        number, count = check_int(index, name), weights.shape[0] if axes > 0 else 1
        if not -count <= number < count:
            raise ValueError(f"{name}: {number}, expected {-count} to {count - 1} for weights of shape {shape}")
        if axes > 0:
            weights = weights[number]
    keys = weights.shape[1]
    labels = [str(position) for position in range(keys)] if tokens is None else list(tokens)
    view: dict[str, Any] = {
        "weights": weights,
        "tokens": (labels + [""] * (keys - len(labels)))[:keys],
        "shape": weights.shape,
        "max_attention": float(weights.max()),
        "min_attention": float(weights.min()),
    }
    if len(labels) < keys:
        view["note"] = f"tokens: {len(labels)} labels for {keys} keys, the last {keys - len(labels)} left empty"
    elif len(labels) > keys:
        view["note"] = f"tokens: {len(labels)} labels for {keys} keys, the last {len(labels) - keys} left out"
    return view


def _of_width(x: ArrayLike, name: str, d_model: int) -> Array:
    array = as_array(x, name)
    if array.ndim < 2 or array.shape[-1] != d_model:
        raise ValueError(f"{name}: shape {array.shape}, expected (…, seq, d_model = {d_model})")
    return array

"""Scaled dot-product attention over arrays of one sequence length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from headwise._ops.attention.call import attend
from headwise._ops.attention.keywords import hide_unknown, refuse
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.spec import check_dropout

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array
    from headwise._ops.attention.options import CoreOptions


@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: ArrayLike | None = None, dropout: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[CoreOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: ArrayLike | None = None, dropout: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[CoreOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: ArrayLike | None = None, dropout: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[CoreOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: ArrayLike | None = None, dropout: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[CoreOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
@hide_unknown
def scaled_dot_product_attention(  # noqa: PLR0913 (the public signature)
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    mask: ArrayLike | None = None,
    dropout: float = 0.0,
    *,
    bias: ArrayLike | None = None,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    score_mod: Callable[..., Any] | None = None,
    relative_bias: ArrayLike | None = None,
    relative_values: ArrayLike | None = None,
    need_weights: bool = True,
    return_lse: bool = False,
    precision: str | None = None,
    rng: int | np.random.Generator | None = None,
    out: Array | None = None,
    dropout_rate: float | None = None,
    **unknown: Any,
) -> tuple[Any, ...]:
    """Scaled dot-product attention: ``softmax(query @ key.T * scale) @ value``, equation (1) of [1]_.

    The order of operations is: scale, softcap, then mask, biases and ALiBi, then softmax, then dropout.

    Parameters
    ----------
    query : array_like, (..., query_len, head_dim)
        Four axes are (batch, heads, query_len, head_dim); three are (batch, query_len, head_dim).
    key : array_like, (..., key_len, head_dim)
        As many axes as `query`. With an axis of heads, (batch, kv_heads, key_len, head_dim), the number of query heads
        may be a multiple of `kv_heads`: grouped-query attention, which does not expand the heads in memory.
    value : array_like, (..., key_len, value_dim)
        As many heads as `key`.
    mask : array_like, (..., query_len, key_len) or (batch, key_len), optional
        A bool mask keeps a key where it is True, an integer mask of 0 and 1 where it is 1. A floating mask is added to
        the scores, unless it holds only 0.0 and 1.0, with at least one 1.0: then it is a keep-mask. Broadcast against
        the scores. ``create_padding_mask`` returns masks of (batch, key_len). A :class:`BlockMask` keeps what it holds,
        and the blocks that it drops cost no time.
    dropout : float
        Rate in [0, 1) at which weights become 0; the others are multiplied by ``1 / (1 - dropout)``. The weights
        returned are those before dropout.
    bias : array_like, (..., query_len, key_len), optional
        Added to the scores; -inf masks a key. Broadcast against the scores.
    is_causal : bool
        Whether query ``i`` sees only the keys up to its own position, in addition to any mask.
    causal_alignment : {"upper_left", "lower_right"}
        The position of query 0 among the keys: 0, or ``key_len - query_len``, so that the last query has the position
        of the last key, as with a cache of keys. The window and ALiBi use the same positions.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(head_dim)`` if None.
    window_size : int or (int, int), optional
        ``(left, right)``: query ``i`` sees keys ``i - left`` to ``i + right``; -1 leaves a side open. One number
        sets both.
    softcap : float, optional
        Scores ``s`` become ``softcap * tanh(s / softcap)`` [2]_. From 1e-30 to 1e30.
    alibi_slopes : array_like, (heads,), optional
        ``-slope * abs(i - j)`` is added to the scores [3]_; see :func:`alibi_slopes`.
    sinks : array_like, (heads,), optional
        One logit per head that is added to the softmax denominator and has no value [4]_.
    key_padding_mask : array_like, (batch, key_len), optional
        A mask of the keys of each sequence, by the rules of `mask`.
    key_lengths : array_like of integers, (batch,), optional
        The number of keys of each sequence of a right-padded batch. The keys behind them are masked and cost no time.
        With `causal_alignment` "lower_right", the last query of a sequence has the position of the last of these keys.
    score_mod : callable, optional
        ``score_mod(score, batch, head, q, k)`` returns other scores before masks apply: for modifiers that no keyword
        has. `score` is (batch, heads, queries, keys) of some rows, in the dtype of the computation, and the others are
        indices of int64 that broadcast against it. It is called for blocks of rows, so that memory is bounded. Such a
        call is computed by NumPy and has no gradient.
    relative_bias : array_like, (heads or 1, query_len or 1, 2 M + 1), optional
        A bias for each distance of a key from a query, or with the axes of the batch before: for a query ``i`` at the
        position ``p``, ``relative_bias[h, i, clip(j - p, -M, M) + M]`` is added to the scores [5]_; -inf masks a key.
        With 1 in place of `query_len`, all queries share the entries. No array of query_len x key_len is built.
    relative_values : array_like, (2 M + 1, value_dim) or (heads or 1, 2 M + 1, value_dim), optional
        A vector for each distance, which is added to the values [5]_: for a query at the position ``p``, the value of
        key ``j`` is ``value[j] + relative_values[h, clip(j - p, -M, M) + M]``. 16-bit arrays are computed in float32
        copies then.
    need_weights : bool
        If False, the weights are None and no array of query_len x key_len is allocated.
    return_lse : bool
        Whether to return the logarithm of the softmax denominator as well.
    precision : {"highest", "high", "medium"}, optional
        The precision of products in float32 and float16, see :func:`set_precision`; :func:`get_precision` if None.
    rng : int or numpy.random.Generator, optional
        Seed or generator of the random numbers of dropout.
    out : ndarray, (..., query_len, value_dim), optional
        Array of the output's dtype that the output is written to; it shares no memory with an input.
    dropout_rate : float, optional
        Another name of `dropout`.

    Returns
    -------
    output : ndarray, (..., query_len, value_dim)
        In the dtype to which `query`, `key` and `value` promote. 0 for a query that sees no key.
    weights : ndarray, (..., query_len, key_len), or None
        In the dtype of the output. Rows sum to 1; to 0 if the query sees no key, to less than 1 with `sinks`.
    lse : ndarray, (..., query_len)
        Only with `return_lse`. float64 for float64 inputs, else float32; -inf if the query sees no key and its head
        has no sink.

    Raises
    ------
    ValueError
        If shapes do not match, an integer mask holds other numbers than 0 and 1, or a number is out of its range.
    TypeError
        If an array is not real, or another argument has a wrong type.

    See Also
    --------
    flash_attention : The output alone.

    Notes
    -----
    Masked keys and values affect no result, whatever their entries are, NaN included.

    float16 and bfloat16 are computed in float32, without a float32 copy of the arrays, and rounded once: the error of
    the output is that of a float32 computation plus half a unit in the last place (2^-11 relative for float16, 2^-8
    for bfloat16). At sizes where the bf16 kernels are faster, bfloat16 weights are rounded to bfloat16 before the
    product with the values on avx512_amx and avx512_bf16, which adds up to about 2^-8 of the largest value, and float16
    is multiplied as a bf16 split of two terms on avx512_amx, which adds up to 2^-14.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017.
    .. [2] Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024, section 2.
    .. [3] O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long", 2021, section 3.
    .. [4] G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023, section 3.
    .. [5] P. Shaw, J. Uszkoreit, A. Vaswani, "Self-Attention with Relative Position Representations", 2018,
       section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((2, 3, 4))
    >>> output, weights = hw.scaled_dot_product_attention(x, x, x, is_causal=True)
    >>> output.shape, weights.shape
    ((2, 3, 4), (2, 3, 3))
    >>> bool(np.allclose(weights.sum(axis=-1), 1)), float(weights[0, 0, 2])
    (True, 0.0)
    """
    if unknown:
        refuse(unknown, ("mask", "dropout", *(scaled_dot_product_attention.__kwdefaults__ or ())))
    # Not SpecOptions(...), whose __new__ is a Python function that takes 0.2 µs more.
    options = tuple.__new__(SpecOptions, (
        mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask,
        precision, key_lengths, score_mod, relative_bias, relative_values,
    ))  # fmt: skip
    drops = check_dropout(dropout, dropout_rate, rng)
    output, weights, lse = attend(query, key, value, options, drops, need_weights, return_lse, out)
    return (output, weights, lse) if return_lse else (output, weights)


@overload
def flash_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: ArrayLike | None = None, *,
    return_lse: Literal[False] = False, **options: Unpack[CoreOptions],
) -> Array: ...  # fmt: skip
@overload
def flash_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: ArrayLike | None = None, *,
    return_lse: Literal[True], **options: Unpack[CoreOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def flash_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: ArrayLike | None = None, *,
    return_lse: bool = False, **options: Unpack[CoreOptions],
) -> Any: ...  # fmt: skip
@hide_unknown
def flash_attention(  # noqa: PLR0913 (the public signature)
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    bias: ArrayLike | None = None,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    score_mod: Callable[..., Any] | None = None,
    relative_bias: ArrayLike | None = None,
    relative_values: ArrayLike | None = None,
    return_lse: bool = False,
    precision: str | None = None,
    rng: int | np.random.Generator | None = None,
    out: Array | None = None,
    dropout_rate: float | None = None,
    **unknown: Any,
) -> Any:
    """The output of :func:`scaled_dot_product_attention` alone, with memory in O(query_len + key_len).

    ``softmax(query @ key.T * scale) @ value``, with the softmax computed online over blocks of keys [1]_.

    Parameters
    ----------
    query : array_like, (..., query_len, head_dim)
        Four axes are (batch, heads, query_len, head_dim); three are (batch, query_len, head_dim).
    key : array_like, (..., key_len, head_dim)
        With an axis of heads, (batch, kv_heads, key_len, head_dim), where `heads` is a multiple of `kv_heads`.
    value : array_like, (..., key_len, value_dim)
        As many heads as `key`.
    mask : array_like, (..., query_len, key_len) or (batch, key_len), optional
        Bool, or integers 0 and 1: keeps a key where it is 1. Floating: added to the scores, unless it holds only 0.0
        and 1.0, with at least one 1.0. Or a :class:`BlockMask`, whose dropped blocks cost no time.
    bias : array_like, (..., query_len, key_len), optional
        Added to the scores.
    is_causal : bool
        Whether query ``i`` sees only the keys up to its own position.
    causal_alignment : {"upper_left", "lower_right"}
        Whether query 0 has the position of key 0, or the last query that of the last key.
    scale : float, optional
        ``1 / sqrt(head_dim)`` if None.
    window_size : int or (int, int), optional
        ``(left, right)``: query ``i`` sees keys ``i - left`` to ``i + right``; -1 leaves a side open.
    softcap : float, optional
        Scores ``s`` become ``softcap * tanh(s / softcap)``.
    alibi_slopes : array_like, (heads,), optional
        ``-slope * abs(i - j)`` is added to the scores.
    sinks : array_like, (heads,), optional
        One logit per head that is added to the softmax denominator.
    key_padding_mask : array_like, (batch, key_len), optional
        A mask of the keys of each sequence, by the rules of `mask`.
    key_lengths : array_like of integers, (batch,), optional
        The number of keys of each sequence of a right-padded batch; the keys behind them are masked and cost no time.
    score_mod : callable, optional
        ``score_mod(score, batch, head, q, k)`` returns other scores for some rows, before masks apply.
    relative_bias : array_like, (heads or 1, query_len or 1, 2 M + 1), optional
        ``relative_bias[h, i, clip(j - i, -M, M) + M]`` is added to the scores.
    relative_values : array_like, (2 M + 1, value_dim) or (heads or 1, 2 M + 1, value_dim), optional
        ``relative_values[h, clip(j - i, -M, M) + M]`` is added to the value of key ``j`` for query ``i``.
    return_lse : bool
        Whether to return the logarithm of the softmax denominator as well.
    precision : {"highest", "high", "medium"}, optional
        The precision of products in float32 and float16; :func:`get_precision` if None.
    rng : int or numpy.random.Generator, optional
        Seed or generator of the random numbers of dropout.
    out : ndarray, (..., query_len, value_dim), optional
        Array of the output's dtype that the output is written to.
    dropout_rate : float, optional
        Rate in [0, 1) of dropout of the weights; 0 if None.

    Returns
    -------
    output : ndarray, (..., query_len, value_dim)
        In the dtype to which `query`, `key` and `value` promote. 0 for a query that sees no key.
    lse : ndarray, (..., query_len)
        Only with `return_lse`: a pair is returned then. float64 for float64 inputs, else float32.

    Raises
    ------
    ValueError, TypeError
        As in :func:`scaled_dot_product_attention`.

    See Also
    --------
    scaled_dot_product_attention : All arguments in detail, the weights, and the precision of 16-bit types.
    varlen_attention : Packed sequences of different lengths.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> q = np.random.default_rng(0).standard_normal((1, 8, 6, 16), dtype=np.float32)
    >>> kv = np.random.default_rng(1).standard_normal((2, 1, 2, 6, 16), dtype=np.float32)  # 8 query heads share 2
    >>> output = hw.flash_attention(q, *kv, is_causal=True)
    >>> output.shape, output.dtype
    ((1, 8, 6, 16), dtype('float32'))
    >>> hw.flash_attention(*[x.astype(np.float16) for x in (q, *kv)]).dtype
    dtype('float16')
    """
    if unknown:
        refuse(unknown, ("mask", *(flash_attention.__kwdefaults__ or ())))
    options = tuple.__new__(SpecOptions, (
        mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask,
        precision, key_lengths, score_mod, relative_bias, relative_values,
    ))  # fmt: skip
    drops = None if dropout_rate is None and rng is None else check_dropout(0.0, dropout_rate, rng)
    output, _, lse = attend(query, key, value, options, drops, False, return_lse, out)
    return (output, lse) if return_lse else output

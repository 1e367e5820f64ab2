"""Attention over packed sequences of different lengths: its checks, and the way to a backend's normal form."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from headwise._base.arrays import as_array, cast_layout, compact, is_canonical, promote
from headwise._base.outputs import allocate, check_out, finalize, resolve_out
from headwise._base.scalars import check_flag, check_real
from headwise._ops.attention.spec import check_softcap, check_window, per_head, query_offset
from headwise._runtime import backend as _backend
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array
    from headwise._ops.attention.options import VarlenOptions

    Shape = tuple[int, ...]

INT64: np.dtype[Any] = np.dtype(np.int64)


@overload
def varlen_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None, *, return_lse: Literal[False] = False, **options: Unpack[VarlenOptions],
) -> Array: ...  # fmt: skip
@overload
def varlen_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None, *, return_lse: Literal[True], **options: Unpack[VarlenOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def varlen_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None, *, return_lse: bool = False, **options: Unpack[VarlenOptions],
) -> Any: ...  # fmt: skip
def varlen_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None,
    *,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    return_lse: bool = False,
    precision: str | None = None,
    out: Array | None = None,
) -> Any:
    """Attention of each of many sequences to itself, or to its own keys, without padding.

    ``softmax(query @ key.T * scale) @ value``, equation (1) of [1]_, for each sequence, as :func:`flash_attention`
    computes it. The sequences lie one behind another in each array, as in ``flash_attn_varlen_func`` of
    FlashAttention-2 [2]_.

    Parameters
    ----------
    query : array_like, (total_query_len, heads, head_dim)
    key : array_like, (total_key_len, kv_heads, head_dim)
        Query heads are a multiple of `kv_heads`: grouped-query attention.
    value : array_like, (total_key_len, kv_heads, value_dim)
    cu_seqlens_q : array_like of integers, (sequences + 1,)
        Cumulative lengths: sequence ``s`` is rows ``cu_seqlens_q[s]`` to ``cu_seqlens_q[s + 1] - 1`` of `query`. From 0
        to total_query_len; equal neighbours are an empty sequence.
    cu_seqlens_k : array_like of integers, (sequences + 1,), optional
        The same for `key` and `value`; `cu_seqlens_q` if None.
    is_causal : bool
        Query ``i`` of a sequence sees the keys up to ``i`` of its sequence.
    causal_alignment : {"upper_left", "lower_right"}
        Where query 0 of a sequence stands among its keys: at key 0, or such that the last query meets the last key. The
        window and ALiBi count from there too.
    scale, window_size, softcap, alibi_slopes, sinks
        As in :func:`scaled_dot_product_attention`, for each sequence.
    return_lse : bool
        Also return the logarithm of the softmax's denominator.
    precision : {"highest", "high", "medium"}, optional
        As in :func:`scaled_dot_product_attention`.
    out : ndarray, optional
        Where to write the output, of its shape and dtype, sharing no memory with an input.

    Returns
    -------
    output : ndarray, (total_query_len, heads, value_dim)
        In the dtype that `query`, `key` and `value` promote to. 0 for a query that sees no key.
    lse : ndarray, (heads, total_query_len)
        Only with `return_lse`: a pair is returned then. float64 for float64 inputs, else float32; -inf, or the sink,
        where no key is seen.

    Raises
    ------
    ValueError
        If shapes do not match, cumulative lengths do not start at 0, decrease or do not end at the number of rows, or a
        number is out of its range.
    TypeError
        If a dtype or the type of an argument is not one of those above.

    See Also
    --------
    flash_attention : The same for sequences of one length, to the bit.

    Notes
    -----
    All sequences are computed in one parallel region, the longest first.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017.
    .. [2] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((9, 2, 8))  # sequences of 4, 0 and 5 tokens, 2 heads
    >>> output = hw.varlen_attention(x, x, x, [0, 4, 4, 9], is_causal=True)
    >>> output.shape
    (9, 2, 8)
    >>> last = x[4:].swapaxes(0, 1)[None]  # (batch, heads, seq, head_dim)
    >>> bool(np.array_equal(output[4:], hw.flash_attention(last, last, last, is_causal=True)[0].swapaxes(0, 1)))
    True
    """
    q, k, v = as_array(query, "query"), as_array(key, "key"), as_array(value, "value")
    ready = is_canonical(q, k, v)
    compute, dtype = (q.dtype, q.dtype) if ready else promote(("query", q), ("key", k), ("value", v))
    stored = dtype if dtype.itemsize == 2 else compute  # halves stay what they are
    shape, factor = _check_shapes(q.shape, k.shape, v.shape)
    starts_q, lengths_q = starts_k, lengths_k = _check_starts(cu_seqlens_q, "cu_seqlens_q", len(q), "query")
    if cu_seqlens_k is not None:
        starts_k, lengths_k = _check_starts(cu_seqlens_k, "cu_seqlens_k", len(k), "key")
        if len(lengths_k) != len(lengths_q):
            raise ValueError(f"cu_seqlens_k: {len(lengths_k)} sequences, expected {len(lengths_q)} as cu_seqlens_q has")
    elif len(k) != len(q):
        raise ValueError(f"cu_seqlens_k: None, expected to be given for {len(k)} rows of key and {len(q)} of query")
    lower_right = query_offset(causal_alignment, 0, 1) == 1
    offsets = lengths_k - lengths_q if lower_right else np.zeros(len(lengths_q), INT64)
    left, right = check_window(window_size, len(q) + len(k))
    if check_flag(is_causal, "is_causal"):
        right = 0
    factor = factor if scale is None else check_real(scale, "scale")
    heads = q.shape[1]
    slopes = None if alibi_slopes is None else per_head(alibi_slopes, "alibi_slopes", heads, compute)
    sink = None if sinks is None else per_head(sinks, "sinks", heads, compute)
    cap = check_softcap(softcap)
    precision = check_precision(precision)
    return_lse = check_flag(return_lse, "return_lse")

    if out is not None:
        given = (
            ("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k), ("alibi_slopes", alibi_slopes),
            ("sinks", sinks),
        )  # fmt: skip
        others = [(name, other) for name, other in given if isinstance(other, np.ndarray)]
        check_out(out, shape, dtype, ("query", q), ("key", k), ("value", v), *others)
    result = resolve_out(out, shape, stored)
    lse = allocate((heads, len(q)), compute) if return_lse else None
    if not ready:
        q, k, v = (
            cast_layout(q, stored, last=True),
            cast_layout(k, stored, last=True),
            cast_layout(v, stored, last=True),
        )
    if result.size or lse is not None:
        _backend.current().attention_varlen(
            q.swapaxes(0, 1), k.swapaxes(0, 1), v.swapaxes(0, 1), result.swapaxes(0, 1), lse, starts_q, lengths_q,
            starts_k, lengths_k, offsets, slopes, sink, factor, cap, left, right, precision,
        )  # fmt: skip
    result = finalize(result, out, dtype)
    return result if lse is None else (result, lse)


@lru_cache(maxsize=256)
def _check_shapes(query: Shape, key: Shape, value: Shape) -> tuple[Shape, float]:
    """The shape of the output and the default scale, if the three go together."""
    for name, shape, expected in (
        ("query", query, "(total_query_len, heads, head_dim)"),
        ("key", key, "(total_key_len, kv_heads, head_dim)"),
        ("value", value, "(total_key_len, kv_heads, value_dim)"),
    ):
        if len(shape) != 3:
            raise ValueError(f"{name}: shape {shape}, expected three axes {expected}")
    if query[2] == 0:
        raise ValueError(f"query: shape {query} has head_dim 0, expected at least 1")
    if key[2] != query[2]:
        raise ValueError(f"key: shape {key} does not match query {query}: head_dim is {key[2]}, expected {query[2]}")
    if value[:2] != key[:2]:
        raise ValueError(
            f"value: shape {value} does not match key {key}: (total_key_len, kv_heads) is {value[:2]}, "
            f"expected {key[:2]}"
        )
    heads, kv_heads = query[1], key[1]
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(
            f"key: shape {key} does not match query {query}: {heads} query heads are not divisible by {kv_heads}"
        )
    return (*query[:2], value[2]), 1.0 / math.sqrt(query[2])


def _check_starts(x: ArrayLike, name: str, total: int, rows_of: str) -> tuple[Array, Array]:
    """Where sequences start and how long they are, as int64, of cumulative lengths which lead from 0 to ``total``."""
    a = as_array(x, name)
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{name}: dtype {a.dtype}, expected integers")
    if a.ndim != 1 or a.size == 0:
        raise ValueError(f"{name}: shape {a.shape}, expected (sequences + 1,)")
    if a[0] != 0:
        raise ValueError(f"{name}: starts at {a[0]}, expected 0")
    if a[-1] != total:
        raise ValueError(f"{name}: ends at {a[-1]}, expected {total}, the number of rows of {rows_of}")
    if a.dtype.kind == "u" and compact(a).max() > total:  # which uint64 can be without being an int64
        raise ValueError(f"{name}: reaches {a.max()}, expected numbers that do not decrease, up to {total}")
    a = cast_layout(a, INT64, last=True)
    starts = a[:-1]
    lengths = a[1:] - starts
    if (lengths < 0).any():
        i = int(lengths.argmin()) + 1
        raise ValueError(f"{name}: {a[i]} at index {i} follows {a[i - 1]}, expected numbers that do not decrease")
    return starts, lengths

"""Attention over packed sequences of different lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical, promote
from headwise._base.attention_spec import PackedSequences, query_rows
from headwise._base.outputs import allocate, check_out, finalize, resolve_out
from headwise._base.scalars import check_flag
from headwise._base.typing import INT64
from headwise._ops.attention.keywords import hide_unknown, refuse
from headwise._ops.attention.options import UPPER_LEFT, SpecOptions
from headwise._ops.attention.relative_values import add_relative_values, check_relative_values
from headwise._ops.attention.shapes import check_packed_shapes
from headwise._ops.attention.spec import array_options, attention_spec, is_lower_right
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array
    from headwise._ops.attention.options import VarlenOptions
    from headwise._ops.attention.shapes import AttentionShape


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
@hide_unknown
def varlen_attention(  # noqa: PLR0913 (the public signature)
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
    relative_bias: ArrayLike | None = None,
    relative_values: ArrayLike | None = None,
    return_lse: bool = False,
    precision: str | None = None,
    out: Array | None = None,
    **unknown: Any,
) -> Any:
    """Attention of packed sequences of different lengths, each to its own keys, without padding.

    ``softmax(query @ key.T * scale) @ value``, equation (1) of [1]_, for each sequence, as :func:`flash_attention`
    computes it. The sequences are concatenated along the first axis of each array, as in ``flash_attn_varlen_func`` of
    FlashAttention-2 [2]_.

    Parameters
    ----------
    query : array_like, (total_query_len, heads, head_dim)
        The queries of all sequences.
    key : array_like, (total_key_len, kv_heads, head_dim)
        `heads` is a multiple of `kv_heads`: grouped-query attention.
    value : array_like, (total_key_len, kv_heads, value_dim)
        As many rows and heads as `key`.
    cu_seqlens_q : array_like of integers, (sequences + 1,)
        Cumulative lengths, from 0 to total_query_len: sequence ``s`` has rows ``cu_seqlens_q[s]`` to
        ``cu_seqlens_q[s + 1] - 1`` of `query`. Equal neighbours are an empty sequence.
    cu_seqlens_k : array_like of integers, (sequences + 1,), optional
        Cumulative lengths of `key` and `value`; `cu_seqlens_q` if None.
    is_causal : bool
        Whether query ``i`` of a sequence sees only the keys up to its own position.
    causal_alignment : {"upper_left", "lower_right"}
        The position of query 0 of a sequence among its keys: 0, or such that the last query has the position of the
        last key. The window and ALiBi use the same positions.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(head_dim)`` if None.
    window_size : int or (int, int), optional
        ``(left, right)``: query ``i`` sees keys ``i - left`` to ``i + right``; -1 leaves a side open.
    softcap : float, optional
        Scores ``s`` become ``softcap * tanh(s / softcap)``.
    alibi_slopes : array_like, (heads,), optional
        ``-slope * abs(i - j)`` is added to the scores.
    sinks : array_like, (heads,), optional
        One logit per head that is added to the softmax denominator.
    relative_bias : array_like, (heads or 1, total_query_len or 1, 2 M + 1), optional
        ``relative_bias[h, row, clip(j - i, -M, M) + M]`` is added to the scores of query ``i`` of a sequence, which is
        row ``row`` of `query`; see :func:`scaled_dot_product_attention`.
    relative_values : array_like, (2 M + 1, value_dim) or (heads or 1, 2 M + 1, value_dim), optional
        ``relative_values[h, clip(j - i, -M, M) + M]`` is added to the value of key ``j`` for query ``i`` of a sequence.
    return_lse : bool
        Whether to return the logarithm of the softmax denominator as well.
    precision : {"highest", "high", "medium"}, optional
        The precision of products in float32 and float16; :func:`get_precision` if None.
    out : ndarray, (total_query_len, heads, value_dim), optional
        Array of the output's dtype that the output is written to; it shares no memory with an input.

    Returns
    -------
    output : ndarray, (total_query_len, heads, value_dim)
        In the dtype to which `query`, `key` and `value` promote. 0 for a query that sees no key.
    lse : ndarray, (heads, total_query_len)
        Only with `return_lse`: a pair is returned then. float64 for float64 inputs, else float32. -inf, or the sink,
        for a query that sees no key.

    Raises
    ------
    ValueError
        If shapes do not match, cumulative lengths do not start at 0, decrease or do not end at the number of rows, or a
        number is out of its range.
    TypeError
        If an array is not real, or another argument has a wrong type.

    See Also
    --------
    flash_attention : Sequences of one length, with the same bits.

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
    if unknown:
        refuse(unknown, varlen_attention.__kwdefaults__ or ())
    q, k, v = as_array(query, "query"), as_array(key, "key"), as_array(value, "value")
    ready = is_canonical(q, k, v)
    compute, dtype = (q.dtype, q.dtype) if ready else promote(("query", q), ("key", k), ("value", v))
    stored = dtype if dtype.itemsize == 2 else compute  # backends read and write 16-bit arrays as they are
    shape = check_packed_shapes(q.shape, k.shape, v.shape)
    sequences = packed_sequences(cu_seqlens_q, cu_seqlens_k, shape, lower_right=is_lower_right(causal_alignment))
    # Positions, as in dense.py: keywords take 0.4 µs.
    options = tuple.__new__(SpecOptions, (
        None, None, is_causal, UPPER_LEFT, scale, window_size, softcap, alibi_slopes, sinks, None, precision, None,
        None, relative_bias, relative_values,
    ))  # fmt: skip
    table = None
    if relative_values is not None:  # added to the output before it is rounded
        table = check_relative_values(relative_values, shape, compute)
        ready, stored = ready and stored is compute, compute
    spec = attention_spec(shape, (compute, stored), options)
    return_lse = check_flag(return_lse, "return_lse")

    if out is not None:
        lengths = (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k))
        given = [(name, a) for name, a in lengths if isinstance(a, np.ndarray)]
        check_out(out, shape.output, dtype, ("query", q), ("key", k), ("value", v), *given, *array_options(options))
    result = resolve_out(out, shape.output, stored)
    lse = allocate(shape.scores[1:3], compute) if return_lse or table is not None else None
    if not ready:
        q, k = cast_layout(q, stored, last=True), cast_layout(k, stored, last=True)
        v = cast_layout(v, stored, last=True)
    if result.size or lse is not None:
        current().attention_varlen(
            q.swapaxes(0, 1), k.swapaxes(0, 1), v.swapaxes(0, 1), result.swapaxes(0, 1), lse, sequences, spec
        )
    if table is not None and lse is not None and result.size:
        add_of_sequences(q, k, result, lse, sequences, spec, table)
    result = finalize(result, out, dtype)
    return (result, lse) if return_lse else result


def add_of_sequences(
    query: Array, key: Array, output: Array, lse: Array, sequences: PackedSequences, spec: AttentionSpec, table: Array
) -> None:
    """Add the relative values of a ``table`` to the output of packed sequences, one after another.

    Arrays are those of :func:`varlen_attention`, (rows, heads, dim), and lse is (heads, rows).
    """
    for start, length, first, keys, offset in zip(*(a.tolist() for a in sequences), strict=True):
        if length and keys:
            rows, columns = slice(start, start + length), slice(first, first + keys)
            q, k, out = (a[where].swapaxes(0, 1)[None] for a, where in ((query, rows), (key, columns), (output, rows)))
            add_relative_values(q, k, out, lse[None, :, rows], query_rows(spec, rows)._replace(offset=offset), table)


def packed_sequences(
    cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike | None, shape: AttentionShape, *, lower_right: bool
) -> PackedSequences:
    """Where each sequence lies, from the cumulative lengths."""
    rows, keys = shape.scores[2:]
    starts_q, lengths_q = starts_k, lengths_k = _check_starts(cu_seqlens_q, "cu_seqlens_q", rows, "query")
    if cu_seqlens_k is not None:
        starts_k, lengths_k = _check_starts(cu_seqlens_k, "cu_seqlens_k", keys, "key")
        if len(lengths_k) != len(lengths_q):
            raise ValueError(f"cu_seqlens_k: {len(lengths_k)} sequences, expected {len(lengths_q)} as cu_seqlens_q has")
    elif keys != rows:
        raise ValueError(f"cu_seqlens_k: None, expected to be given for {keys} rows of key and {rows} of query")
    offsets = lengths_k - lengths_q if lower_right else np.zeros(len(lengths_q), INT64)
    return PackedSequences(starts_q, lengths_q, starts_k, lengths_k, offsets)


def _check_starts(x: ArrayLike, name: str, total: int, rows_of: str) -> tuple[Array, Array]:
    """(starts, lengths) of the sequences, int64, from cumulative lengths that go from 0 to ``total``."""
    a = as_array(x, name)
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{name}: dtype {a.dtype}, expected integers")
    if a.ndim != 1 or a.size == 0:
        raise ValueError(f"{name}: shape {a.shape}, expected (sequences + 1,)")
    # A copy in either case: another thread or process may write to `x` between the checks and the use.
    a = a.astype(INT64) if a.dtype.kind == "i" else a.copy()
    if a[0] != 0:
        raise ValueError(f"{name}: starts at {a[0]}, expected 0")
    if a[-1] != total:
        raise ValueError(f"{name}: ends at {a[-1]}, expected {total}, the number of rows of {rows_of}")
    if a.dtype.kind == "u":
        if a.max() > total:  # a uint64 may not fit into int64
            raise ValueError(f"{name}: reaches {a.max()}, expected numbers that do not decrease, up to {total}")
        a = a.astype(INT64)
    starts = a[:-1]
    lengths = a[1:] - starts
    if np.count_nonzero(lengths < 0):  # a third of the time that any() takes for short arrays
        i = int(lengths.argmin()) + 1
        raise ValueError(f"{name}: {a[i]} at index {i} follows {a[i - 1]}, expected numbers that do not decrease")
    return starts, lengths

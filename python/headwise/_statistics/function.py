"""``attention_statistics``: what attention's weights say, without an array of all weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.attention_spec import fill_without_keys
from headwise._base.attention_statistics import AttentionStatistics, TopKeys, zeros
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import allocate
from headwise._base.scalars import check_flag
from headwise._base.typing import FLOAT32, INT64
from headwise._numpy.attention_statistics import reduce_parts
from headwise._ops.attention.call import with_heads
from headwise._ops.attention.dropout import backend_of
from headwise._ops.attention.keywords import hide_unknown, refuse
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.shapes import check_shapes
from headwise._ops.attention.spec import attention_spec
from headwise._statistics.arguments import check_k, check_names, statistics_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import ArrayLike

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array, Shape
    from headwise._block_mask.grid import BlockSize, Grid

# Up to this many rows per key head, the kernel of few queries computes all weights, which are small enough to keep.
_FEW_ROWS = 8


@hide_unknown
def attention_statistics(  # noqa: PLR0913 (the public signature)
    query: ArrayLike,
    key: ArrayLike,
    *,
    which: str | Sequence[str] = ("key_mass", "entropy", "max_weight", "top_k", "block_mass"),
    k: int | None = None,
    block_size: BlockSize = None,
    average_heads: bool = False,
    mask: ArrayLike | None = None,
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
    precision: str | None = None,
    **unknown: Any,
) -> AttentionStatistics:
    """Statistics of the weights of attention, without an array of query_len x key_len.

    The weights of a block of queries are computed by the kernels of :func:`scaled_dot_product_attention`, reduced, and
    dropped: memory is that of the results, of one block for each thread and, for "key_mass", of up to 64 partial sums.

    Parameters
    ----------
    query : array_like, (..., query_len, head_dim)
        Four axes are (batch, heads, query_len, head_dim); three are (batch, query_len, head_dim).
    key : array_like, (..., key_len, head_dim)
        With an axis of heads, (batch, kv_heads, key_len, head_dim), where `heads` is a multiple of `kv_heads`.
    which : str or sequence of str
        The statistics to compute, of "key_mass", "entropy", "max_weight", "top_k", "block_mass" and "lse".
    k : int, optional
        The number of keys of "top_k", at most `key_len`; 8 if None, or `key_len` if that is less.
    block_size : int or (int, int), optional
        The queries and the keys of a block of "block_mass"; that of :class:`BlockMask` for these lengths if None.
    average_heads : bool
        Whether the statistics are those of the weights averaged over the heads, without an axis of heads. "lse" is not
        averaged.
    mask : array_like, (..., query_len, key_len) or (batch, key_len), or BlockMask, optional
        This and the other keywords are those of :func:`flash_attention`.
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
        One logit per head that is added to the softmax denominator. It has no weight of its own in the statistics.
    key_padding_mask : array_like, (batch, key_len), optional
        A mask of the keys of each sequence, by the rules of `mask`.
    key_lengths : array_like of integers, (batch,), optional
        The number of keys of each sequence of a right-padded batch.
    score_mod : callable, optional
        ``score_mod(score, batch, head, q, k)`` returns other scores for some rows, before masks apply.
    relative_bias : array_like, (heads or 1, query_len or 1, 2 M + 1), optional
        ``relative_bias[h, i, clip(j - i, -M, M) + M]`` is added to the scores.
    precision : {"highest", "high", "medium"}, optional
        The precision of products in float32; :func:`get_precision` if None.

    Returns
    -------
    AttentionStatistics
        A named tuple, whose fields are None for statistics that `which` does not name. Floating results are float64 for
        float64 inputs, else float32.

        ``key_mass`` (..., heads, key_len)
            The sum of each key's weights over the queries [1]_.
        ``entropy`` (..., heads, query_len)
            ``-sum(w * log(w))`` over the keys, in nats: 0 for one key, ``log(n)`` for ``n`` equal weights.
        ``max_weight`` (..., heads, query_len)
            The largest weight of each query.
        ``top_k``
            A named tuple of ``weights`` and ``indices`` (int64), (..., heads, query_len, k), in decreasing order; of
            equal weights the first keys. Where a query sees fewer keys, the last weights are 0.
        ``block_mass`` (..., heads, query_blocks, key_blocks)
            The sums of the weights of blocks, which :meth:`BlockMask.top_k_blocks` takes as scores.
        ``lse`` (..., heads, query_len)
            The logarithm of the softmax denominator.

    Raises
    ------
    ValueError
        If shapes do not match, `which` has an unknown name or none, `k` is not from 1 to `key_len`, `block_size` is out
        of range, or an option of attention is.
    TypeError
        If an array is not real, or another argument has a wrong type.

    See Also
    --------
    scaled_dot_product_attention : The weights themselves, and the keywords in detail.

    Notes
    -----
    Results have the same bits for any number of threads. Masked keys affect no result, whatever their entries are, NaN
    included. A query that sees no key has entropy, weights and mass 0. A query whose weights are NaN makes the mass of
    all keys of its head NaN.

    float16 and bfloat16 are computed in float32, and weights are not rounded to 16 bits.

    References
    ----------
    .. [1] Z. Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
       2023, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((1, 4, 100, 16), dtype=np.float32)
    >>> found = hw.attention_statistics(x, x, which=("key_mass", "top_k"), k=3, is_causal=True)
    >>> found.key_mass.shape, found.top_k.indices.shape, found.entropy is None
    ((1, 4, 100), (1, 4, 100, 3), True)
    >>> bool(np.isclose(found.key_mass.sum(), 4 * 100))  # the weights of each query sum to 1
    True
    """
    if unknown:
        refuse(unknown, attention_statistics.__kwdefaults__ or ())
    options = SpecOptions(
        mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask,
        precision, key_lengths, score_mod, relative_bias,
    )  # fmt: skip
    names = check_names(which)
    q, keys = as_array(query, "query"), as_array(key, "key")
    ready = is_canonical_or_16bit(q, keys)
    dtype = q.dtype
    compute = FLOAT32 if q.itemsize == 2 else dtype
    if not ready:
        compute, dtype = promote(("query", q), ("key", keys))
    stored = dtype if dtype.itemsize == 2 else compute
    shape = check_shapes(q.shape, keys.shape, (*keys.shape[:-1], 0))
    spec = attention_spec(shape, (compute, compute), options)
    average = check_flag(average_heads, "average_heads")
    count, grid = check_k(k, shape.key_len), statistics_grid(shape, block_size, average=average)
    if not ready:
        q, keys = cast_layout(q, stored, last=True), cast_layout(keys, stored, last=True)
    q, keys = with_heads(q), with_heads(keys)
    results = _empty(names, grid, shape.scores[1], count, compute)
    if shape.key_len == 0:
        if results.lse is not None:
            fill_without_keys(allocate((*shape.scores[:3], 0), compute), results.lse, spec.sinks)
    elif math.prod(shape.scores):
        _compute(q, keys, spec, results, grid, average=average)
    rows = shape.output[:-1]
    lead = rows[:-2] if average and shape.has_heads else rows[:-1]
    return _reshaped(results, lead, rows)


@ieee
def _compute(
    query: Array, key: Array, spec: AttentionSpec, results: AttentionStatistics, grid: Grid, *, average: bool
) -> None:
    """Fill ``results``, of which mass is 0, and whose heads are one if ``average``."""
    backend, block_size = backend_of(spec), (grid.query_size, grid.key_size)
    (heads, query_len), kv_heads = query.shape[1:3], key.shape[1]
    of_rows = (results.entropy, results.max_weight, results.top_k)
    if heads // kv_heads * query_len <= _FEW_ROWS or (average and any(part is not None for part in of_rows)):
        reduce_parts(backend.attention, query, key, results, block_size, spec, average=average)
        return
    wide = cast_dtype(query, FLOAT32) if query.itemsize == 2 else query
    per_head = results
    if average:  # mass is linear in the weights

        def of_heads(mass: Array | None) -> Array | None:
            return None if mass is None else zeros((len(mass), heads, *mass.shape[2:]), mass.dtype)

        per_head = results._replace(key_mass=of_heads(results.key_mass), block_mass=of_heads(results.block_mass))
    backend.attention_statistics(wide, key, per_head, block_size, spec)
    if average:
        for mean, masses in ((results.key_mass, per_head.key_mass), (results.block_mass, per_head.block_mass)):
            if mean is not None and masses is not None:
                np.mean(masses, axis=1, keepdims=True, out=mean)


def _empty(names: Collection[str], grid: Grid, heads: int, k: int, dtype: np.dtype[Any]) -> AttentionStatistics:
    """Arrays of 0 for the statistics ``names`` of weights of the sizes of ``grid``; lse has all ``heads``."""
    lead, queries = (grid.batch, grid.heads), grid.query_len

    def wanted(name: str, *shape: int) -> Array | None:
        return zeros(shape, dtype) if name in names else None

    top = None
    if "top_k" in names:
        top = TopKeys(zeros((*lead, queries, k), dtype), zeros((*lead, queries, k), INT64))
    return AttentionStatistics(
        wanted("key_mass", *lead, grid.key_len),
        wanted("entropy", *lead, queries),
        wanted("max_weight", *lead, queries),
        top,
        wanted("block_mass", *lead, grid.query_blocks, grid.key_blocks),
        wanted("lse", grid.batch, heads, queries),
    )


def _reshaped(found: AttentionStatistics, lead: Shape, rows: Shape) -> AttentionStatistics:
    """The statistics with the axes ``lead`` of the caller in place of (batch, heads); ``rows`` are those of lse."""

    def as_given(a: Array | None) -> Array | None:
        return None if a is None else a.reshape((*lead, *a.shape[2:]))

    top = found.top_k
    if top is not None:
        top = TopKeys(*(a.reshape((*lead, *a.shape[2:])) for a in top))
    return AttentionStatistics(
        as_given(found.key_mass),
        as_given(found.entropy),
        as_given(found.max_weight),
        top,
        as_given(found.block_mass),
        None if found.lse is None else found.lse.reshape(rows),
    )

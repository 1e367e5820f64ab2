"""Attention, from the weight of every key."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from oracle.numbers import Array, double, remembered, rounded, wide
from oracle.softmaxes import logsumexp


class Attention(NamedTuple):
    """Everything an attention call can return, in the rank of its query."""

    output: Array
    weights: Array
    lse: Array


def four_dimensional(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``(..., n, m)`` as ``(batch, heads, n, m)``; below rank 4 there is one head."""
    if len(shape) < 4:
        return (math.prod(shape[:-2]), 1, *shape[-2:])
    return (math.prod(shape[:-3]), *shape[-3:])


def spread(extra: Array, shape: tuple[int, ...]) -> Array:
    """A mask or bias for scores ``(..., query_len, key_len)``, broadcast to four dimensions.

    A plain 2-D mask is ``(query_len, key_len)`` where that fits and ``(batch, key_len)`` where it does not; a 4-D one
    is ``(batch, heads, query_len, key_len)`` for calls of lower rank as well; the rest broadcasts as in NumPy.
    """
    four = four_dimensional(shape)
    if extra.ndim == 2 and not all(n in (1, full) for n, full in zip(extra.shape, shape[-2:], strict=True)):
        return np.broadcast_to(extra[:, None, None, :], four)
    if extra.ndim == 4 and len(shape) < 4:
        return np.broadcast_to(extra, four)
    while extra.ndim > len(shape):
        (extra,) = extra
    return np.broadcast_to(extra, shape).reshape(four)


def is_keep(mask: Array) -> bool:
    """bool and integer masks select; so does a float mask of zeros and ones that has a one. Other floats are added."""
    if mask.dtype.kind in "bui":
        return True
    return bool(np.isin(mask, (0.0, 1.0)).all() and (mask == 1.0).any())


def kept_and_added(
    scores: tuple[int, ...],
    dtype: DTypeLike,
    mask: ArrayLike | None,
    bias: ArrayLike | None,
    key_padding_mask: ArrayLike | None,
) -> tuple[Array, Array]:
    """Which scores are kept, and the sum of what is added to them, in four dimensions. ``scores`` is their shape."""
    keep = np.ones(four_dimensional(scores), bool)
    added = np.zeros(keep.shape, dtype)
    biases = [] if bias is None else [double(bias)]
    if mask is not None and is_keep(np.asarray(mask)):
        keep &= spread(np.asarray(mask), scores) != 0
    elif mask is not None:
        biases.append(double(mask))
    if key_padding_mask is not None:
        padding = np.asarray(key_padding_mask)
        batch = scores[:-3] or scores[:-2] or (1,)
        padding = np.broadcast_to(padding, (*batch, scores[-1])).reshape(len(keep), 1, 1, scores[-1])
        if is_keep(padding):
            keep &= padding != 0
        else:
            biases.append(np.broadcast_to(double(padding), keep.shape).reshape(scores))
    highest = np.finfo(added.dtype).max
    for one in biases:
        keep &= spread(one, scores) != -np.inf
        finite = np.isfinite(added) & np.isfinite(spread(one, scores))
        with np.errstate(over="ignore", invalid="ignore"):
            added = added + spread(one, scores)
        added[finite] = np.clip(added[finite], -highest, highest)  # a sum of finite biases stays finite
    return keep, added


@remembered
def attention(  # noqa: PLR0913 (the options of attention, one by one)
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
    score_mod: Any = None,
    relative_bias: ArrayLike | None = None,
    relative_values: ArrayLike | None = None,
) -> Attention:
    """One query row at a time: scale, softcap, bias and ALiBi, softmax over the keys that are kept, sum of values."""
    query, key, value = double(query), double(key), double(value)
    lead = query.shape[:-2]
    query_len, key_len, value_dim = query.shape[-2], key.shape[-2], value.shape[-1]
    scores = (*lead, query_len, key_len)
    batch, heads = four_dimensional(scores)[:2]
    query, key, value = (x.reshape(four_dimensional(x.shape)) for x in (query, key, value))
    kv_heads = key.shape[1]

    keep, added = kept_and_added(scores, query.dtype, mask, bias, key_padding_mask)
    lengths = np.full(batch, key_len) if key_lengths is None else np.ravel(key_lengths)
    offsets = lengths - query_len if causal_alignment == "lower_right" else np.zeros(batch, int)
    left, right = (window_size, window_size) if isinstance(window_size, int) else window_size or (-1, -1)
    if is_causal:
        right = 0 if right < 0 else min(right, 0)
    scale = 1 / np.sqrt(query.dtype.type(query.shape[-1])) if scale is None else scale
    slopes = np.zeros(heads) if alibi_slopes is None else double(alibi_slopes)
    sinks = None if sinks is None else double(sinks)
    relative = np.zeros((batch, heads, query_len, 1), query.dtype)
    if relative_bias is not None:
        table = double(relative_bias)
        full = (*(lead[:-1] or lead), heads, query_len, table.shape[-1])
        relative = np.broadcast_to(table, full).reshape(relative.shape[:3] + full[-1:])

    vectors = np.zeros((1, value_dim)) if relative_values is None else double(relative_values)
    vectors = np.broadcast_to(vectors, (heads, *vectors.shape[-2:]))

    output = np.zeros((batch, heads, query_len, value_dim), query.dtype)
    weights = np.zeros(keep.shape, query.dtype)
    lse = np.full((batch, heads, query_len), -np.inf, query.dtype)
    with np.errstate(all="ignore"):
        for n, h, i in np.ndindex(batch, heads, query_len):
            position = i + int(offsets[n])
            keys = np.flatnonzero(keep[n, h, i, : lengths[n]])
            distance = keys - position
            close = relative[n, h, i, entry(distance, relative)]
            seen = (close != -np.inf) & ((left < 0) | (distance >= -left)) & ((right < 0) | (distance <= right))
            kept, distance, close = keys[seen], distance[seen], close[seen]
            score = scale * (key[n, h * kv_heads // heads, kept] @ query[n, h, i])
            if softcap is not None:
                score = softcap * np.tanh(score / softcap)
            score = score + added[n, h, i, kept] + close - slopes[h] * np.abs(distance)
            if score_mod is not None:
                score = score_mod(score, n, h, i, kept)
            logits = np.append(score, () if sinks is None else sinks[h]).astype(np.longdouble)
            largest = logits.max(initial=-np.inf)
            if not len(kept) and largest == -np.inf:
                continue
            powers = np.exp(logits - largest)
            lse[n, h, i] = largest + np.log(powers.sum())
            weights[n, h, i, kept] = powers[: len(kept)] / powers.sum()
            of_distances = vectors[h, entry(distance, vectors[h].T)]
            output[n, h, i] = weights[n, h, i, kept] @ (value[n, h * kv_heads // heads, kept] + of_distances)
    return Attention(
        output.reshape(*lead, query_len, value_dim), weights.reshape(scores), lse.reshape(*lead, query_len)
    )


def entry(distance: Any, table: Array) -> Any:
    """The index of a distance in a table of the distances -M to M (Shaw et al., 2018, section 3.2)."""
    middle = table.shape[-1] // 2
    return np.clip(distance, -middle, middle) + middle


def merge_attention(outputs: ArrayLike, lses: ArrayLike, axis: int = 0) -> tuple[Array, Array]:
    """Each part weighs as much as its softmax denominator."""
    sums, lse = wide(lses), wide(logsumexp(wide(lses), axis=axis))
    with np.errstate(invalid="ignore"):
        weights = np.exp(sums - np.expand_dims(lse, axis))
    parts = np.moveaxis(weights, axis, 0)[..., np.newaxis], np.moveaxis(wide(outputs), axis % sums.ndim, 0)
    return rounded(sum(weight * part for weight, part in zip(*parts, strict=True)), outputs), rounded(lse, outputs)

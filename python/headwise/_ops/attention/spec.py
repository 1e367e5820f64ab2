"""The arguments of attention, checked and made into what a backend takes.

A mask of the caller becomes a keep-mask (bool) or a bias (floating), of shape (batch, heads, query_len, key_len) or 1
along some of these axes. Masks are never combined into a bigger one and never expanded in memory.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, cast_layout, check_dtype, compact, fits, four_axes, is_bfloat16
from headwise._base.scalars import check_int, check_rate, check_real
from headwise._ops.attention.masks import CausalMask, PaddingMask

if TYPE_CHECKING:
    from headwise._base.typing import Array


class Scores(NamedTuple):
    """What follows from the shapes of query, key and value."""

    four: tuple[int, int, int, int]  # the scores' shape as backends see it, (batch, heads, query_len, key_len)
    full: tuple[int, ...]  # the same in the caller's rank
    batch: tuple[int, ...]  # its axes before those of heads, queries and keys; () for arrays of (seq, dim)
    output: tuple[int, ...]  # the output's shape
    scale: float  # 1 / sqrt(head_dim)

    @property
    def has_heads(self) -> bool:
        """Whether the caller's arrays have an axis of heads."""
        return len(self.full) > 3

    @property
    def key_len(self) -> int:
        return self.full[-1]


@lru_cache(maxsize=256)  # layers and steps repeat them, and a small call would spend more on them than on the numbers
def check_shapes(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> Scores:
    """What follows from the three shapes, if they go together."""
    rank = len(query)
    if rank < 2:
        raise ValueError(f"query: shape {query}, expected at least two axes (..., query_len, head_dim)")
    for name, shape in (("key", key), ("value", value)):
        if len(shape) != rank:
            raise ValueError(f"{name}: shape {shape} has {len(shape)} axes, expected {rank} as query {query} has")
    if query[-1] == 0:
        raise ValueError(f"query: shape {query} has head_dim 0, expected at least 1")
    if key[-1] != query[-1]:
        raise ValueError(f"key: shape {key} does not match query {query}: head_dim is {key[-1]}, expected {query[-1]}")
    if value[-2] != key[-2]:
        raise ValueError(f"value: shape {value} does not match key {key}: key_len is {value[-2]}, expected {key[-2]}")
    axes = rank - 3 if rank > 3 else rank - 2
    batch = query[:axes]
    for name, shape in (("key", key), ("value", value)):
        if shape[:axes] != batch:
            raise ValueError(
                f"{name}: shape {shape} does not match query {query}: batch is {shape[:axes]}, "
                f"expected {batch} (batches are not broadcast)"
            )
    heads, kv_heads = (query[-3], key[-3]) if rank > 3 else (1, 1)
    if rank > 3 and value[-3] != kv_heads:
        raise ValueError(f"value: shape {value} does not match key {key}: heads are {value[-3]}, expected {kv_heads}")
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(
            f"key: shape {key} does not match query {query}: {heads} query heads are not divisible by {kv_heads}"
        )
    four = (math.prod(batch), heads, query[-2], key[-2])
    return Scores(four, (*query[:-1], key[-2]), batch, (*query[:-1], value[-1]), 1.0 / math.sqrt(query[-1]))


def query_offset(name: object, query_len: int, key_len: int) -> int:
    """The position of query 0 on the axis of the keys."""
    if not isinstance(name, str):
        raise TypeError(f"causal_alignment: {type(name).__name__}, expected 'upper_left' or 'lower_right'")
    if name == "upper_left":
        return 0
    if name == "lower_right":
        return key_len - query_len
    raise ValueError(f"causal_alignment: {name!r}, expected 'upper_left' or 'lower_right'")


def check_window(size: object, reach: int) -> tuple[int, int]:
    """(left, right), where a side that reaches past every key is open: -1."""
    if size is None:
        return -1, -1
    if isinstance(size, (tuple, list)):
        if len(size) != 2:
            raise ValueError(f"window_size: {size!r}, expected an integer or a pair (left, right)")
        left, right = (check_int(side, "window_size", -1) for side in size)
    else:
        left = right = check_int(size, "window_size", -1)
    return -1 if left >= reach else left, -1 if right >= reach else right


def check_softcap(softcap: object) -> float:
    if softcap is None:
        return 0.0
    cap = check_real(softcap, "softcap")
    if cap <= 0.0:
        raise ValueError(f"softcap: {cap}, expected a positive number or None")
    return cap


def dropout_rate_of(dropout: object, dropout_rate: object) -> float:
    if dropout_rate is None:
        return check_rate(dropout, "dropout")
    if check_rate(dropout, "dropout") != 0.0:
        raise TypeError("dropout_rate: another name of dropout, expected only one of the two")
    return check_rate(dropout_rate, "dropout_rate")


def per_head(x: object, name: str, heads: int, dtype: np.dtype[Any]) -> Array:
    a = as_array(x, name)
    check_dtype(a.dtype, name)
    if a.shape != (heads,):
        raise ValueError(f"{name}: shape {a.shape}, expected one entry for each query head, ({heads},)")
    return cast_layout(a, dtype, last=True)


# --- masks ---

# Entries of a mask, above which a look at some of them is worth a call of NumPy's.
_MANY = 1 << 14


def attention_masks(
    mask: object,
    bias: object,
    key_padding_mask: object,
    scores: Scores,
    dtype: np.dtype[Any],
    stored: np.dtype[Any],
) -> tuple[list[Array], list[Array]]:
    """The keep-masks and the biases that the three arguments amount to: biases of the arrays' own dtype, ``stored``,
    as they are, others in ``dtype``."""
    keeps: list[Array] = []
    biases: list[Array] = []
    if mask is not None:
        array = as_array(mask, "mask")
        check_dtype(array.dtype, "mask")
        if isinstance(mask, PaddingMask) and mask.ndim == 2:
            keeps.append(_spread(_padding(array, "mask", scores), scores, keep=True))
        else:
            aligned = compact(_align(array, "mask", scores, pairs_only=isinstance(mask, CausalMask)))
            keep = _as_keep(aligned)
            if keep is not None:
                keeps.append(_spread(keep, scores, keep=True))
            else:
                biases.append(_spread(_cast(aligned, dtype, stored), scores))
    if key_padding_mask is not None:
        array = as_array(key_padding_mask, "key_padding_mask")
        check_dtype(array.dtype, "key_padding_mask")
        keeps.append(_spread(_padding(array, "key_padding_mask", scores), scores, keep=True))
    if bias is not None:
        array = as_array(bias, "bias")
        check_dtype(array.dtype, "bias")
        if array.dtype.kind == "b":
            raise TypeError("bias: dtype bool, expected numbers to add to the scores; a keep-mask goes to mask=")
        biases.append(_spread(_cast(compact(_align(array, "bias", scores)), dtype, stored), scores))
    return keeps, biases


def _padding(m: Array, name: str, scores: Scores) -> Array:
    """``(*batch, key_len)`` with axes of size 1 put in for heads and queries."""
    expected = (*scores.batch, scores.key_len)
    if not scores.batch and m.shape == (1, scores.key_len):
        m = m[0]
    if m.ndim != len(expected) or m.shape[-1] != scores.key_len or not fits(m.shape, expected):
        raise ValueError(f"{name}: shape {m.shape}, expected (batch, key_len) = {expected}")
    between = (1, 1) if scores.has_heads else (1,)
    return m.reshape((*m.shape[:-1], *between, m.shape[-1]))


def _align(m: Array, name: str, scores: Scores, *, pairs_only: bool = False) -> Array:
    """``m``, checked, with as many axes as the scores have in the caller's rank, or fewer to be put in front."""
    full = scores.full
    as_given = m.shape
    if m.ndim == 4 and len(full) == 3 and m.shape[1] == 1:  # (batch, heads, query_len, key_len) without heads
        m = m[:, 0]
    elif len(full) == 2 and m.ndim in (3, 4) and math.prod(m.shape[:-2]) == 1:
        m = m.reshape(m.shape[-2:])
    elif m.ndim == 2 and len(scores.batch) == 1 and not pairs_only and not fits(m.shape, full):
        padding = (*scores.batch, scores.key_len)
        m = _padding(m, name, scores) if m.shape == padding else m
    if m.ndim == 0 or not fits(m.shape, full):
        raise ValueError(
            f"{name}: shape {as_given} does not fit the scores {full}, expected each axis to be 1 or of full size, "
            "(query_len, key_len) last"
        )
    return m


def _as_keep(m: Array) -> Array | None:
    """The keep-mask that ``m`` is, or None if it is to be added: a float mask that holds only 0.0 and 1.0, and at least
    one 1.0, is what ``np.tril(np.ones(...))`` gives, while an additive one has no reason to hold 1.0 and 0.0 alone."""
    if m.dtype.kind == "b":
        return m
    if m.dtype.kind in "iu":
        return np.not_equal(m, 0)
    if m.size > _MANY:  # a row tells most of them
        row = m[(slice(0, 1),) * (m.ndim - 1)]
        if not np.all(_equals(row, 1) | _equals(row, 0)):
            return None
    one = _equals(m, 1)
    return one if one.any() and bool(np.all(one | _equals(m, 0))) else None


def _equals(m: Array, number: int) -> Array:
    """Where a floating ``m`` is ``number``, 0 or 1."""
    digits, bits = m, number
    if m.itemsize == 2 and m.dtype.isnative:  # NumPy widens halves one by one to compare them
        digits = m.view(np.uint16)
        if number == 0:
            digits = digits & 0x7FFF
        else:
            bits = 0x3F80 if is_bfloat16(m.dtype) else 0x3C00
    same: Array = np.equal(digits, bits)
    return same


def _cast(bias: Array, dtype: np.dtype[Any], stored: np.dtype[Any]) -> Array:
    """``bias`` as it is if in ``stored``, else in ``dtype``. A finite entry beyond its range, such as float64's lowest
    number, stays finite: -inf would drop the key, and a row that has nothing else would become 0 where it was uniform.
    """
    if bias.dtype == stored and bias.flags.aligned:
        return bias
    if is_bfloat16(bias.dtype):
        bias = bias.astype(np.float32)
    cast = cast_layout(bias, dtype)
    if bias.dtype.kind == "f" and bias.dtype.itemsize > dtype.itemsize:
        overflown = np.isinf(cast) & np.isfinite(bias)
        if overflown.any():
            cast = np.where(overflown, np.copysign(np.finfo(dtype).max, cast), cast)
    return cast


def _spread(m: Array, scores: Scores, *, keep: bool = False) -> Array:
    """``m``, aligned, as (batch, heads, query_len, key_len), each of them 1 or of full size, the last contiguous."""
    if keep and m.dtype.kind != "b":
        m = np.not_equal(m, 0)
    m = cast_layout(compact(m), m.dtype, last=True)
    if m.ndim == 3 and not scores.has_heads:
        m = m[:, None]
    return four_axes(m, scores.full)

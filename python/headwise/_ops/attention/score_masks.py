"""The arguments ``mask=``, ``key_padding_mask=`` and ``bias=`` as keep-masks and biases that a backend reads.

A keep-mask is bool, a bias is floating; both have the axes (batch, heads, query_len, key_len), each of full size or 1.
Masks are never combined into a larger one and never expanded in memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, compact, fits, four_axes, is_bfloat16, is_real
from headwise._ops.attention.masks import CausalMask, PaddingMask, only_0_and_1

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Named
    from headwise._ops.attention.options import SpecOptions
    from headwise._ops.attention.shapes import AttentionShape

    Dtypes = tuple[np.dtype[Any], np.dtype[Any]]  # of the computation, of the arrays that the backend reads

_MEANING = "bool or the integers 0 and 1, where 1 keeps a key, or floating numbers, which are added to the scores"

# Above this number of entries, looking at one row first is worth a NumPy call.
_LARGE = 1 << 14


def keep_and_bias(
    options: SpecOptions, shape: AttentionShape, dtypes: Dtypes
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The keep-masks and the biases that ``mask``, ``key_padding_mask`` and ``bias`` amount to."""
    return split_keep_and_bias(aligned_masks(options, shape), shape, dtypes)


def aligned_masks(options: SpecOptions, shape: AttentionShape) -> list[Named]:
    """``mask``, ``key_padding_mask`` and ``bias`` as far as they are given, by name, in the axes of the scores.

    Their shapes broadcast to ``shape.scores_as_given``; their entries are not read.
    """
    mask, key_padding_mask, bias = options.mask, options.key_padding_mask, options.bias
    aligned: list[Named] = []
    if mask is not None:
        array = _read(mask, "mask")
        if isinstance(mask, PaddingMask) and mask.ndim == 2:
            array = _over_keys(array, "mask", shape)
        else:
            array = _align(array, "mask", shape, pairs_only=isinstance(mask, CausalMask))
        aligned.append(("mask", array))
    if key_padding_mask is not None:
        array = _over_keys(_read(key_padding_mask, "key_padding_mask"), "key_padding_mask", shape)
        aligned.append(("key_padding_mask", array))
    if bias is not None:
        array = as_array(bias, "bias")
        if array.dtype.kind == "b" or not is_real(array.dtype):
            raise TypeError(
                f"bias: dtype {array.dtype}, expected numbers to add to the scores; a keep-mask goes to mask="
            )
        aligned.append(("bias", _align(array, "bias", shape)))
    return aligned


def split_keep_and_bias(
    aligned: Iterable[Named], shape: AttentionShape, dtypes: Dtypes
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The keep-masks and the biases among the results of :func:`aligned_masks`."""
    keeps: list[Array] = []
    biases: list[Array] = []
    for name, array in aligned:
        m = compact(array)
        keep = None if name == "bias" else _as_keep(m, name)
        if keep is None:
            biases.append(_bias(m, shape, dtypes))
        else:
            keeps.append(_four_axes(keep, shape))
    return tuple(keeps), tuple(biases)


def _read(mask: ArrayLike, name: str) -> Array:
    """``mask`` as an array of a dtype that masks have."""
    array = as_array(mask, name)
    if not is_real(array.dtype):
        raise TypeError(f"{name}: dtype {array.dtype}, expected {_MEANING}")
    return array


def _over_keys(m: Array, name: str, shape: AttentionShape) -> Array:
    """``m``, (*batch, key_len), with axes of size 1 for heads and queries inserted."""
    expected = (*shape.batch, shape.key_len)
    if not shape.batch and m.shape == (1, shape.key_len):
        m = m[0]
    if m.ndim != len(expected) or m.shape[-1] != shape.key_len or not fits(m.shape, expected):
        raise ValueError(f"{name}: shape {m.shape}, expected (batch, key_len) = {expected}")
    between = (1, 1) if shape.has_heads else (1,)
    return m.reshape((*m.shape[:-1], *between, m.shape[-1]))


def _align(m: Array, name: str, shape: AttentionShape, *, pairs_only: bool = False) -> Array:
    """``m``, checked to broadcast against the scores in the caller's rank.

    ``pairs_only`` excludes the reading of two axes as (batch, key_len).
    """
    full = shape.scores_as_given
    as_given = m.shape
    if m.ndim == 4 and len(full) == 3 and m.shape[1] == 1:  # (batch, heads, query_len, key_len) without heads
        m = m[:, 0]
    elif len(full) == 2 and m.ndim in (3, 4) and math.prod(m.shape[:-2]) == 1:
        m = m.reshape(m.shape[-2:])
    elif m.ndim == 2 and len(shape.batch) == 1 and not pairs_only and not fits(m.shape, full):
        m = _over_keys(m, name, shape) if m.shape == (*shape.batch, shape.key_len) else m
    if m.ndim == 0 or not fits(m.shape, full):
        by_batch = m.ndim == 3 and fits(m.shape, (*shape.batch[-1:], *full[-2:]))
        way_out = f"; per sequence: {name}[:, None]" if by_batch else ""
        raise ValueError(
            f"{name}: shape {as_given} does not fit the scores {full}, expected each axis to be 1 or of full size, "
            f"(query_len, key_len) last{way_out}"
        )
    if name == "mask" and m.ndim == 3 and len(full) == 4 and full[0] == full[1] == m.shape[0] > 1:
        raise ValueError(
            f"mask: shape {as_given} beside the scores {full} is per sequence or per head, expected mask[:, None] for "
            "a mask of each sequence, or mask[None] for a mask of each head"
        )
    return m


def _as_keep(m: Array, name: str) -> Array | None:
    """``m`` as a keep-mask, or None if ``m`` is additive.

    A floating mask that holds only 0.0 and 1.0, with at least one 1.0, is a keep-mask, such as
    ``np.tril(np.ones(...))``; an additive mask has no reason to hold only these two numbers. Integers have no reason to
    be additive, but people write ``(1 - keep) * -10000``: as a keep-mask that would keep what it is meant to mask.
    """
    if m.dtype.kind == "b":
        return m
    if m.dtype.kind in "iu":
        if not only_0_and_1(m):
            other = m.max() if m.max() > 1 else m.min()
            raise ValueError(f"{name}: the integer {other}, expected {_MEANING}; astype(float) makes it additive")
        return np.not_equal(m, 0)
    if m.size > _LARGE:  # most additive masks show it in one row
        row = m[(slice(0, 1),) * (m.ndim - 1)]
        if not np.all(_equals(row, 1) | _equals(row, 0)):
            return None
    one = _equals(m, 1)
    return one if one.any() and bool(np.all(one | _equals(m, 0))) else None


def _equals(m: Array, number: int) -> Array:
    """Where a floating ``m`` is ``number``, 0 or 1."""
    digits, bits = m, number
    if m.itemsize == 2 and m.dtype.isnative:  # compared as integers: NumPy converts 16-bit floats one by one
        digits = m.view(np.uint16)
        if number == 0:
            digits = digits & 0x7FFF  # without the sign
        else:
            bits = 0x3F80 if is_bfloat16(m.dtype) else 0x3C00
    same: Array = np.equal(digits, bits)
    return same


def _bias(m: Array, shape: AttentionShape, dtypes: Dtypes) -> Array:
    """The aligned ``m`` as a bias: unchanged in the dtype of the arrays, else cast to that of the computation."""
    compute, stored = dtypes
    unchanged = m.dtype == stored and m.flags.aligned
    return _four_axes(m if unchanged else cast_bias(m, compute), shape)


def cast_bias(m: Array, compute: np.dtype[Any]) -> Array:
    """``m`` in the dtype of the computation.

    A finite entry beyond the range of that dtype, such as the lowest float64, becomes its lowest or highest finite
    number. As -inf it would mask the key, and a row with no other key would give 0 in place of uniform weights.
    """
    if is_bfloat16(m.dtype):
        m = m.astype(np.float32)
    cast = cast_layout(m, compute)
    if m.dtype.kind == "f" and m.dtype.itemsize > compute.itemsize:
        overflown = np.isinf(cast) & np.isfinite(m)
        if overflown.any():
            cast = np.where(overflown, np.copysign(np.finfo(compute).max, cast), cast)
    return cast


def _four_axes(m: Array, shape: AttentionShape) -> Array:
    """The aligned ``m`` as (batch, heads, query_len, key_len), each of full size or 1, last axis contiguous."""
    m = cast_layout(compact(m), m.dtype, last=True)
    if m.ndim == 3 and not shape.has_heads:
        m = m[:, None]
    return four_axes(m, shape.scores_as_given)

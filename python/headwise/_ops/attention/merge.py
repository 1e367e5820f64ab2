"""Attention over parts of the keys, combined into attention over all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, cast_layout, check_dtype, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import finalize
from headwise._base.scalars import check_axis
from headwise._numpy.blocks import BLOCK
from headwise._ops.softmax import logsumexp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Shape


class Parts(NamedTuple):
    """The checked arguments of :func:`merge_attention`, with the axis of the parts first."""

    outputs: Array  # (parts, ..., query_len, value_dim)
    lses: Array  # (parts, ..., query_len), in the dtype of the computation
    dtype: np.dtype[Any]  # of the result
    axis: int


def merge_attention(outputs: ArrayLike, lses: ArrayLike, *, axis: int = 0) -> tuple[Array, Array]:
    """Combine attention of the same queries to several parts of the keys into attention to all keys.

    ``lse = log(sum(exp(lses)))`` and ``output = sum(exp(lses - lse) * outputs)`` over the parts [1]_. The parts may be
    computed at different times or by different processes.

    Parameters
    ----------
    outputs : array_like, (parts, ..., query_len, value_dim)
        The output of attention to each part, for instance a list of arrays.
    lses : array_like, (parts, ..., query_len)
        The logarithm of the softmax denominator of each part, as :func:`flash_attention` returns it with
        ``return_lse=True``.
    axis : int
        The axis of the parts, counted in `lses`.

    Returns
    -------
    output : ndarray, (..., query_len, value_dim)
        In the dtype of `outputs`; 16-bit types are summed in float32 and rounded once. 0 for a query whose lse is -inf.
    lse : ndarray, (..., query_len)
        float64 for float64 outputs, else float32.

    Raises
    ------
    ValueError
        If the shapes do not match, or there is no such `axis`.
    TypeError
        If an array is not real.

    Notes
    -----
    A part with an lse of -inf has no influence, whatever its output is. Sinks belong to one part only.

    References
    ----------
    .. [1] M. N. Rabe, C. Staats, "Self-attention Does Not Need O(n^2) Memory", 2021, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 6, 8))
    >>> parts = [hw.flash_attention(q, k[part], v[part], return_lse=True) for part in (slice(2), slice(2, 6))]
    >>> output, lse = hw.merge_attention(*zip(*parts))
    >>> bool(np.allclose(output, hw.flash_attention(q, k, v)))
    True
    """
    parts = read_parts(outputs, lses, axis)
    lse = logsumexp(parts.lses, axis=0)
    return finalize(_average(parts, lse), None, parts.dtype), lse


def read_parts(outputs: ArrayLike, lses: ArrayLike, axis: int) -> Parts:
    o, sums = as_array(outputs, "outputs"), as_array(lses, "lses")
    compute, dtype = promote(("outputs", o))
    check_dtype(sums.dtype, "lses")
    if o.ndim < 2 or sums.shape != o.shape[:-1]:
        raise ValueError(f"lses: shape {sums.shape}, expected that of outputs without its last axis, {o.shape[:-1]}")
    where = check_axis(axis, sums, "lses")
    return Parts(np.moveaxis(o, where, 0), np.moveaxis(cast_layout(sums, compute), where, 0), dtype, where)


@ieee
def part_weights(lses: Array, lse: Array) -> Array:
    """``exp(lses - lse)``; 0 where ``lse`` is -inf."""
    weights: Array = np.exp(lses - np.where(np.isneginf(lse), 0, lse))
    return weights


@ieee
def _average(parts: Parts, lse: Array) -> Array:
    """Block by block, so that no product of a whole part is in memory."""
    total = np.zeros(parts.outputs.shape[1:], lse.dtype)
    weights = part_weights(parts.lses, lse)
    for block in _blocks(total.shape):
        for output, weight in zip(parts.outputs, weights, strict=True):
            w = weight[block][..., np.newaxis]
            total[block] += np.where(w == 0, 0, w * cast_dtype(output[block], lse.dtype))
    return total


def _blocks(shape: Shape) -> Iterator[tuple[slice, ...]]:
    """Slices of the longest axis but the last, of about ``BLOCK`` entries each."""
    if len(shape) == 1 or not all(shape):
        yield ()
        return
    axis = int(np.argmax(shape[:-1]))
    step = max(1, BLOCK * shape[axis] // math.prod(shape))
    for start in range(0, shape[axis], step):
        yield (*[slice(None)] * axis, slice(start, start + step))

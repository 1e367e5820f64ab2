"""Rotary position embedding with given tables of cosines and sines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array, cast_layout, fits, four_axes, is_canonical, promote
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._base.scalars import check_flag
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


def apply_rope(
    x: ArrayLike, cos: ArrayLike, sin: ArrayLike, *, interleaved: bool = False, out: Array | None = None
) -> Array:
    """Rotate pairs of entries of the last axis by angles with given cosines and sines.

    Each pair ``(a, b)`` becomes ``(a cos - b sin, b cos + a sin)``, equation (34) of [1]_.

    Parameters
    ----------
    x : array_like, (..., seq_len, dim)
        `dim` is even.
    cos, sin : array_like, (..., seq_len, dim / 2)
        Broadcast to the shape of ``x[..., : dim // 2]``; tables of (seq_len, dim / 2) are shared by all heads.
    interleaved : bool
        If False, a pair is entries ``i`` and ``i + dim / 2`` (GPT-NeoX, Hugging Face, ONNX); if True, entries ``2 i``
        and ``2 i + 1`` (the original LLaMA).
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (..., seq_len, dim)
        In the dtype to which the three arrays promote. float16 and bfloat16 are computed in float32 and rounded once.

    Raises
    ------
    ValueError
        If `dim` is odd, `cos` or `sin` does not broadcast, or `out` does not have the result's shape.
    TypeError
        If an array is not real, or another argument has a wrong type.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> angle = np.array([[0.0], [np.pi / 2]])  # one for each of two positions
    >>> hw.apply_rope([[1.0, 0.0], [1.0, 0.0]], np.cos(angle), np.sin(angle)).round(6)
    array([[1., 0.],
           [0., 1.]])
    """
    a, c, s = as_array(x, "x"), as_array(cos, "cos"), as_array(sin, "sin")
    ready = is_canonical(a, c, s)
    compute, dtype = (a.dtype, a.dtype) if ready else promote(("x", a), ("cos", c), ("sin", s))
    interleaved = check_flag(interleaved, "interleaved")
    shape = a.shape
    if not shape or shape[-1] % 2:
        raise ValueError(f"x: shape {shape}, expected an even last axis")
    half = (*shape[:-1], shape[-1] // 2)
    for name, table in (("cos", c), ("sin", s)):
        if not fits(table.shape, half):
            raise ValueError(f"{name}: shape {table.shape}, expected one that broadcasts to {half}")
    if out is not None:
        check_out(out, shape, dtype, ("x", a), ("cos", c), ("sin", s), inplace=a)
    result = resolve_out(out, shape, dtype)
    if result.size:
        if not ready:
            a, c, s = (
                cast_layout(a, dtype, last=True),
                cast_layout(c, compute, last=True),
                cast_layout(s, compute, last=True),
            )
        rotate(a, c, s, interleaved, result)
    return finalize(result, out, dtype)


def rotate(a: Array, cos: Array, sin: Array, interleaved: bool, result: Array) -> None:
    """:func:`apply_rope` of checked arrays of any rank, written to ``result``."""
    half = (*a.shape[:-1], a.shape[-1] // 2)
    c, s = four_axes(_full_last(cos, half[-1]), half), four_axes(_full_last(sin, half[-1]), half)
    current().apply_rope(four_axes(a, a.shape), c, s, four_axes(result, a.shape), interleaved)


def _full_last(a: Array, size: int) -> Array:
    """``a`` with a contiguous last axis of ``size``, broadcast if it was 1 or missing."""
    if a.ndim and a.shape[-1] == size:
        return a
    return np.ascontiguousarray(np.broadcast_to(a, (*a.shape[:-1], size)))

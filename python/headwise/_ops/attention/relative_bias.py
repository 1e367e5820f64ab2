"""The argument ``relative_bias=`` as backends read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwise._base.arrays import as_array, cast_layout, compact, fits, four_axes, is_real
from headwise._ops.attention.score_masks import cast_bias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array
    from headwise._ops.attention.shapes import AttentionShape


def check_relative_bias(x: ArrayLike, shape: AttentionShape, dtype: np.dtype[Any]) -> Array:
    """``x`` as (batch, heads, query_len, 2 M + 1) of ``dtype``, each of the first three axes of full size or 1.

    The last axis is contiguous.
    """
    a = as_array(x, "relative_bias")
    if a.dtype.kind == "b" or not is_real(a.dtype):
        raise TypeError(f"relative_bias: dtype {a.dtype}, expected numbers to add to the scores")
    heads, query_len = shape.scores[1:3]
    if a.ndim not in (3, 3 + len(shape.batch)) or not fits(a.shape[:-1], (*shape.batch, heads, query_len)):
        axes = f"(heads, query_len, 2 M + 1) = ({heads} or 1, {query_len} or 1, an odd number)"
        with_batch = f", or with the axes {shape.batch} of the batch before" if shape.batch else ""
        raise ValueError(f"relative_bias: shape {a.shape}, expected {axes}{with_batch}")
    width = a.shape[-1]
    if width % 2 == 0:
        raise ValueError(
            f"relative_bias: shape {a.shape}: {width} entries of the last axis, expected an odd number 2 M + 1, one "
            "for each distance from -M to M"
        )
    cast = cast_layout(cast_bias(compact(a), dtype), dtype, last=True)
    return four_axes(cast, (*shape.batch, heads, query_len, cast.shape[-1]))

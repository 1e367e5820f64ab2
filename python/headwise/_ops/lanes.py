"""Arrays as lanes, (outer, n, inner), for operations along some of their axes, and the keyword ``where=``."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, cast_layout, compact, fits
from headwise._ops.attention.masks import only_0_and_1

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Shape


class Lanes(NamedTuple):
    """How an array of some shape is read as lanes."""

    shape: tuple[int, int, int]  # (outer, n, inner), with n the size of the axes together
    order: tuple[int, ...] | None  # the axes with those of the operation last; None: they are adjacent already

    def view(self, a: Array) -> Array:
        return a if self.order is None else a.transpose(self.order)

    def restore(self, a: Array) -> Array:
        """The inverse of :meth:`view`."""
        return a if self.order is None else a.transpose(np.argsort(self.order))


@lru_cache(maxsize=256)
def lanes_along(shape: Shape, axes: tuple[int, ...]) -> Lanes:
    """``axes`` are sorted."""
    first = axes[0] if axes else len(shape)
    stop = first + len(axes)
    if axes == tuple(range(first, stop)):
        return Lanes((math.prod(shape[:first]), math.prod(shape[first:stop]), math.prod(shape[stop:])), None)
    others = tuple(axis for axis in range(len(shape)) if axis not in axes)
    sizes = math.prod(shape[axis] for axis in others), math.prod(shape[axis] for axis in axes), 1
    return Lanes(sizes, (*others, *axes))


@lru_cache(maxsize=256)
def shape_without(shape: Shape, axes: tuple[int, ...], keepdims: bool) -> Shape:
    """``shape`` without ``axes``, or with sizes of 1 there."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape) if keepdims or axis not in axes)


def as_lanes(a: Array, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Array:
    """``a`` in ``dtype`` as (outer, n, inner), laid out as a backend reads it."""
    _, n, inner = shape
    form = cast_layout(a, dtype).reshape(shape)
    contiguous = form.strides[2] == form.itemsize if inner > 1 else n <= 1 or form.strides[1] == form.itemsize
    return form if contiguous else np.ascontiguousarray(form)


def check_where(where: ArrayLike, shape: Shape) -> Array:
    """``where=`` as a bool array of ``shape``, a view."""
    keep = as_array(where, "where")
    if keep.dtype.kind not in "biu":
        raise TypeError(f"where: dtype {keep.dtype}, expected bool, or the integers 0 and 1; 1 keeps an entry")
    small = compact(keep)
    if keep.dtype.kind != "b" and not only_0_and_1(small):
        raise ValueError(
            "where: an integer other than 0 and 1, expected bool, or the integers 0 and 1; 1 keeps an entry"
        )
    if not fits(keep.shape, shape):
        raise ValueError(f"where: shape {keep.shape}, expected one that broadcasts to that of x, {shape}")
    return np.broadcast_to(small.astype(bool, copy=False), shape)

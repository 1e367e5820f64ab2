"""Random features of Performers, whose products approximate the exponential of a softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array, cast_layout, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import check_room
from headwise._base.scalars import check_rng, check_size
from headwise._base.typing import FLOAT64

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Rng


class PerformerFeatures:
    """The feature map that :func:`performer_features` returns."""

    def __init__(self, projection: Array) -> None:
        #: (dim, num_features), read-only: the random directions as columns.
        self.projection: Array = projection

    def __call__(self, x: ArrayLike) -> Array:
        """The features of `x`, (..., dim), as (..., num_features), in the dtype of `x`; float64 for integers."""
        a = as_array(x, "x")
        compute, dtype = promote(("x", a))
        dim, count = self.projection.shape
        if not a.ndim or a.shape[-1] != dim:
            raise ValueError(f"x: shape {a.shape}, expected a last axis of {dim}, the dim of these features")
        return cast_dtype(self._features(cast_layout(a, compute), count), dtype)

    def __repr__(self) -> str:
        return f"<PerformerFeatures: {self.projection.shape[0]} -> {self.projection.shape[1]}>"

    @ieee
    def _features(self, x: Array, count: int) -> Array:
        scaled = x * x.dtype.type(x.shape[-1] ** -0.25)  # so that products have the scale 1 / sqrt(dim)
        exponents: Array = scaled @ self.projection.astype(x.dtype)
        exponents -= (scaled * scaled).sum(axis=-1, keepdims=True) / 2
        np.exp(exponents, out=exponents)
        exponents *= 1 / math.sqrt(count)
        return exponents


def performer_features(dim: int, num_features: int, *, rng: Rng = None) -> PerformerFeatures:
    """Random features of a Performer (FAVOR+): positive, with orthogonal directions [1]_.

    ``phi(x) = exp(x' @ w - dot(x', x') / 2) / sqrt(num_features)``, with ``x' = x / dim ** 0.25`` and random directions
    ``w``, so that the expectation of ``dot(phi(q), phi(k))`` is ``exp(dot(q, k) / sqrt(dim))``: normalized linear
    attention with these features approximates softmax attention with its default scale.

    Parameters
    ----------
    dim : int
        The last axis of queries and keys.
    num_features : int
        The number of features. The error falls with its square root, and grows exponentially with the lengths of
        queries and keys.
    rng : int or numpy.random.Generator, optional
        Seed or generator of the directions.

    Returns
    -------
    callable
        A feature map for :func:`linear_attention`: (..., dim) to (..., num_features), in the dtype of its argument. Its
        attribute ``projection``, (dim, num_features), holds the directions: orthogonal within each group of `dim`
        columns, with the lengths of independent normal vectors.

    Raises
    ------
    ValueError
        If a size is below 1, or `rng` is negative.
    TypeError
        If a size is not an integer, or `rng` is neither a seed nor a generator.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking Attention with Performers", 2021, lemma 1 and section 2.4.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 20, 8)) / 2
    >>> features = hw.performer_features(8, 256, rng=0)
    >>> output, _ = hw.linear_attention(q, k, v, feature_map=features)
    >>> bool(abs(output - hw.flash_attention(q, k, v)).max() < 0.05)
    True
    """
    dim, count = check_size(dim, "dim"), check_size(num_features, "num_features")
    generator = check_rng(rng)
    check_room(dim, count)
    check_room(dim, dim)
    blocks = []
    for start in range(0, count, dim):
        normal = generator.standard_normal((dim, dim))
        orthogonal, triangular = np.linalg.qr(normal)
        orthogonal *= np.where(np.diagonal(triangular) < 0, -1.0, 1.0)  # uniform over all rotations and reflections
        blocks.append(orthogonal[:, : min(dim, count - start)])
    lengths = np.sqrt((generator.standard_normal((dim, count)) ** 2).sum(axis=0))
    projection = np.concatenate(blocks, axis=1, dtype=FLOAT64) * lengths
    projection.flags.writeable = False
    return PerformerFeatures(projection)

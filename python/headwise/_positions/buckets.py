"""Buckets of distances, in float32 as in the models: rounded logarithms decide where one bucket ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from headwise._base.typing import Array


def t5_buckets(distances: Array, num_buckets: int, bidirectional: bool, max_distance: int) -> Array:
    """The bucket of each distance ``j - i`` of a key ``j`` from the query ``i``, as in transformers' T5."""
    if bidirectional:
        num_buckets //= 2
        first, steps = np.where(distances > 0, num_buckets, 0), np.abs(distances)
    else:
        first, steps = np.zeros_like(distances), np.maximum(-distances, 0)
    exact = num_buckets // 2
    share = _log(np.maximum(steps, 1), exact) / np.float32(math.log(max_distance / exact))
    large = exact + (share * np.float32(num_buckets - exact)).astype(np.int64)
    return first + np.where(steps < exact, steps, np.minimum(large, num_buckets - 1))


def deberta_buckets(distances: Array, buckets: int, max_distance: int) -> Array:
    """The bucket of each distance ``i - j`` of the query ``i`` from a key ``j``, as in transformers' DeBERTa-v2."""
    middle = buckets // 2
    steps = np.where(np.abs(distances) < middle, middle - 1, np.abs(distances))
    share = _log(steps, middle) / np.log(np.float32((max_distance - 1) / middle)) * np.float32(middle - 1)
    large = np.ceil(share).astype(np.int64) + middle
    return np.where(steps <= middle, distances, large * np.sign(distances))


def _log(steps: Array, exact: int) -> Array:
    """``log(steps / exact)``, rounded once to float32."""
    ratios = steps.astype(np.float32) / np.float32(exact)
    return np.log(ratios.astype(np.float64)).astype(np.float32)

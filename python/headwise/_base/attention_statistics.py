"""The results of ``attention_statistics``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from headwise._base.outputs import allocate

if TYPE_CHECKING:
    import numpy as np

    from headwise._base.typing import Array, Shape

NAMES = ("key_mass", "entropy", "max_weight", "top_k", "block_mass", "lse")


class TopKeys(NamedTuple):
    """The keys of the largest weights of each query, in decreasing order of the weights, and these weights."""

    weights: Array
    indices: Array


class AttentionStatistics(NamedTuple):
    """The result of :func:`headwise.attention_statistics`; fields that were not asked for are None.

    ``csrc/python/attention_statistics.cc`` reads the fields by position.
    """

    key_mass: Array | None
    entropy: Array | None
    max_weight: Array | None
    top_k: TopKeys | None
    block_mass: Array | None
    lse: Array | None


def zeros(shape: Shape, dtype: np.dtype[Any]) -> Array:
    array = allocate(shape, dtype)
    array.fill(0)
    return array

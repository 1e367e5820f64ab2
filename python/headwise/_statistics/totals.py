"""Statistics of attention's weights, gathered from parts of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import allocate
from headwise._base.typing import FLOAT64, INT64

if TYPE_CHECKING:
    from collections.abc import Collection

    from headwise._base.typing import Array
    from headwise._block_mask.grid import Grid

NAMES = ("key_mass", "entropy", "max_weight", "top_k", "block_mass", "lse")


class TopKeys(NamedTuple):
    """The keys of the largest weights of each query, in decreasing order of the weights, and these weights."""

    weights: Array
    indices: Array


class AttentionStatistics(NamedTuple):
    """The result of :func:`headwise.attention_statistics`; fields that were not asked for are None."""

    key_mass: Array | None
    entropy: Array | None
    max_weight: Array | None
    top_k: TopKeys | None
    block_mass: Array | None
    lse: Array | None


class Totals:
    """The statistics ``names`` of weights (batch, heads, query_len, key_len).

    ``grid`` has these sizes and those of the blocks, and ``k`` is the number of the largest weights. Sums over queries
    are float64, and rounded at the end.
    """

    def __init__(self, names: Collection[str], grid: Grid, k: int, dtype: np.dtype[Any]) -> None:
        lead, (queries, keys) = (grid.batch, grid.heads), (grid.query_len, grid.key_len)

        def wanted(name: str, *shape: int, dtype: np.dtype[Any] = dtype) -> Array | None:
            return allocate((*lead, *shape), dtype) if name in names else None

        self._grid, self._k, self._dtype = grid, k, dtype
        self._entropy = wanted("entropy", queries)
        self._max_weight = wanted("max_weight", queries)
        self._top_weights = wanted("top_k", queries, k)
        self._top_indices = wanted("top_k", queries, k, dtype=INT64)
        self._key_mass = wanted("key_mass", keys, dtype=FLOAT64)
        self._block_mass = wanted("block_mass", grid.query_blocks, grid.key_blocks, dtype=FLOAT64)
        for result in self.results(None):
            for array in result if isinstance(result, TopKeys) else (result,):
                if array is not None:
                    array.fill(0)

    def results(self, lse: Array | None) -> AttentionStatistics:
        """The statistics, in the dtype of the computation once that is asked for by :meth:`rounded`."""
        top = None
        if self._top_weights is not None and self._top_indices is not None:
            top = TopKeys(self._top_weights, self._top_indices)
        return AttentionStatistics(self._key_mass, self._entropy, self._max_weight, top, self._block_mass, lse)

    def rounded(self, lse: Array | None) -> AttentionStatistics:
        """The statistics, with sums rounded to the dtype of the computation."""
        for name in ("_key_mass", "_block_mass"):
            total = getattr(self, name)
            setattr(self, name, None if total is None else cast_dtype(total, self._dtype))
        return self.results(lse)

    @ieee
    def add(self, b: slice, h: slice, r: slice, weights: Array) -> None:
        """Take the ``weights`` of these batch entries, heads and query rows into account."""
        if self._key_mass is not None:
            self._key_mass[b, h] += weights.sum(axis=2)
        if self._max_weight is not None:
            weights.max(axis=3, out=self._max_weight[b, h, r])
        if self._entropy is not None:
            self._entropy[b, h, r] = _entropy(weights)
        if self._block_mass is not None:
            self._add_blocks(self._block_mass[b, h], r, weights)
        if self._top_weights is not None and self._top_indices is not None and self._k:
            self._top_weights[b, h, r], self._top_indices[b, h, r] = _top_keys(weights, self._k)

    def _add_blocks(self, totals: Array, r: slice, weights: Array) -> None:
        """Sums over the keys of each block, then over the rows of each block of queries."""
        size = self._grid.query_size
        by_keys = np.add.reduceat(weights, np.arange(0, weights.shape[3], self._grid.key_size), axis=3)
        for m in range(r.start // size, -(-r.stop // size)):
            rows = slice(max(0, m * size - r.start), max(0, (m + 1) * size - r.start))
            totals[:, :, m] += by_keys[:, :, rows].sum(axis=2)


def _entropy(weights: Array) -> Array:
    """``-sum(w * log(w))`` of each row, where weights of 0 contribute 0."""
    terms = np.maximum(weights, np.finfo(weights.dtype).tiny)
    np.log(terms, out=terms)
    terms *= weights
    entropy = -terms.sum(axis=3)
    # Weights are rounded, and one above 1 would make it negative; 0 is positive 0.
    result: Array = np.maximum(entropy, 0) + 0.0
    return result


def _top_keys(weights: Array, k: int) -> tuple[Array, Array]:
    """The ``k`` largest weights of each row in decreasing order, and their keys: of equal weights the first ones.

    Rows that are NaN have the first keys. ``np.argpartition`` would choose among equal weights as its version and the
    processor have it; the k-th largest weight, and the order of the keys, depend on neither.
    """
    key_len = weights.shape[3]
    rows = weights.reshape(-1, key_len)
    missing = np.isnan(rows)
    ranked = np.where(missing, np.inf, rows) if missing.any() else rows
    largest = np.partition(ranked, key_len - k, axis=1)[:, key_len - k :]
    least = largest[:, :1]
    chosen = ranked >= least
    keys = np.flatnonzero(chosen)
    if keys.size > len(rows) * k:  # several keys have the k-th largest weight, and not all of them fit
        more = np.flatnonzero(np.count_nonzero(chosen, axis=1) > k)
        room = k - np.count_nonzero(largest[more] > least[more], axis=1, keepdims=True)
        ties = ranked[more] == least[more]
        counted: Array = np.cumsum(ties, axis=1, dtype=np.int32 if key_len < 1 << 31 else np.int64)
        chosen[more] &= ~ties | (counted <= room)
        keys = np.flatnonzero(chosen)
    keys = keys.reshape(-1, k) % key_len
    order = np.argsort(-np.take_along_axis(ranked, keys, axis=1), axis=1, kind="stable")
    keys = np.take_along_axis(keys, order, axis=1)
    shape = (*weights.shape[:3], k)
    return np.take_along_axis(rows, keys, axis=1).reshape(shape), keys.reshape(shape)

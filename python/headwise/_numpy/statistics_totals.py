"""Statistics of attention's weights, gathered from parts of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.attention_statistics import zeros
from headwise._base.ieee import assign, ieee
from headwise._base.typing import FLOAT64

if TYPE_CHECKING:
    from headwise._base.attention_statistics import AttentionStatistics
    from headwise._base.typing import Array


class Totals:
    """The statistics of weights (batch, heads, query_len, key_len) in ``results``, of which mass is 0 at first.

    Sums over queries are float64, and rounded by :meth:`finish`.
    """

    def __init__(self, results: AttentionStatistics, block_size: tuple[int, int]) -> None:
        def wide(mass: Array | None) -> Array | None:
            return mass if mass is None or mass.dtype == FLOAT64 else zeros(mass.shape, FLOAT64)

        self._results, self._size = results, block_size
        self._key_mass, self._block_mass = wide(results.key_mass), wide(results.block_mass)

    def finish(self) -> None:
        """Write the sums over queries."""
        for result, total in ((self._results.key_mass, self._key_mass), (self._results.block_mass, self._block_mass)):
            if result is not None and total is not None and result is not total:
                assign(result, total)

    @ieee
    def add(self, b: slice, h: slice, r: slice, weights: Array) -> None:
        """Take the ``weights`` of these batch entries, heads and query rows into account."""
        found = self._results
        if self._key_mass is not None:
            self._key_mass[b, h] += weights.sum(axis=2)
        if found.max_weight is not None:
            weights.max(axis=3, out=found.max_weight[b, h, r])
        if found.entropy is not None:
            found.entropy[b, h, r] = entropies(weights)
        if self._block_mass is not None:
            self._add_blocks(self._block_mass[b, h], r, weights)
        if found.top_k is not None:
            top_weights, indices = found.top_k
            top_weights[b, h, r], indices[b, h, r] = top_keys(weights, indices.shape[3])

    def _add_blocks(self, totals: Array, r: slice, weights: Array) -> None:
        """Sums over the keys of each block, then over the rows of each block of queries."""
        size, key_size = self._size
        by_keys = np.add.reduceat(weights, np.arange(0, weights.shape[3], key_size), axis=3)
        for m in range(r.start // size, -(-r.stop // size)):
            rows = slice(max(0, m * size - r.start), max(0, (m + 1) * size - r.start))
            totals[:, :, m] += by_keys[:, :, rows].sum(axis=2)


def entropies(weights: Array) -> Array:
    """``-sum(w * log(w))`` of each row, where weights of 0 contribute 0."""
    terms = np.maximum(weights, np.finfo(weights.dtype).tiny)
    np.log(terms, out=terms)
    terms *= weights
    entropy = -terms.sum(axis=3)
    # Weights are rounded, and one above 1 would make it negative; 0 is positive 0.
    result: Array = np.maximum(entropy, 0) + 0.0
    return result


def top_keys(weights: Array, k: int) -> tuple[Array, Array]:
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

"""Eviction of rows of a :class:`headwise.KVCache` by scores, such as the attention that they have received.

Z. Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models" (2023),
section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.scalars import check_int
from headwise._kv_cache.checks import check_scores
from headwise._kv_cache.sequences import CachedSequences

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


class EvictableSequences(CachedSequences):
    """The part of :class:`headwise.KVCache` that removes rows from the middle of sequences."""

    def evict(self, scores: ArrayLike, *, keep: int) -> Array:
        """Keep the rows of each sequence that have the largest scores, and remove the others: heavy hitters [1]_.

        Rows stay in their order, and keep their positions: later queries see them as before, and windows, ALiBi,
        relative biases and rotary offsets count the positions of the sequence, those of removed rows included.
        ``lengths`` and :meth:`positions` do not change. The memory of removed rows is free for new ones.

        Parameters
        ----------
        scores : array_like, (batch, stored)
            One for each stored row; ``stored`` is the maximum number of rows of a sequence, and numbers behind the last
            row of a sequence are ignored. Of equal scores the later rows are kept. ``np.inf`` keeps a row in any case,
            such as the latest ones.
        keep : int
            The number of rows that a sequence keeps; one that has no more than these keeps all.

        Returns
        -------
        ndarray of int64, (batch, kept)
            The indices of the rows that are kept, in order, by which sums over rows are kept as well; behind those of a
            sequence that has fewer than ``kept``, -1.

        Raises
        ------
        ValueError
            If the shape of the scores does not fit, a score is NaN, `keep` is negative, or the cache is a ring, which
            drops rows by itself.
        TypeError
            If the scores are not real, or `keep` is not an integer.

        See Also
        --------
        attention_statistics : The mass of each key, as scores.

        References
        ----------
        .. [1] Z. Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
           2023, section 4.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.random.default_rng(0).standard_normal((1, 2, 6, 4), dtype=np.float32)
        >>> cache = hw.KVCache(1, 2, capacity=6, head_dim=4)
        >>> cache.append(x, x)
        >>> mass = hw.attention_statistics(x, x, which="key_mass", is_causal=True).key_mass.sum(axis=1)
        >>> mass[:, -2:] = np.inf  # the latest rows
        >>> kept = cache.evict(mass, keep=4)
        >>> kept.shape, cache.keys.shape, len(cache)
        ((1, 4), (1, 2, 4, 4), 6)
        >>> cache.key_positions(0)[-2:], cache.positions()
        (array([4, 5]), array([6]))
        """
        with self._exclusive:
            rows = self._rows
            count = check_int(keep, "keep", 0)
            if self.ring:
                raise ValueError(
                    "evict: the cache is a ring, which drops rows by itself; expected a KVCache without ring=True"
                )
            ends = [rows.end(i) for i in range(self.batch_size)]
            chosen = [_largest(row[:end], count) for row, end in zip(check_scores(scores, ends), ends, strict=True)]
            if any(len(slots) < end for slots, end in zip(chosen, ends, strict=True)):
                rows.evict(chosen)
        kept = np.full((self.batch_size, max(map(len, chosen))), -1, np.int64)
        for indices, slots in zip(kept, chosen, strict=True):
            indices[: len(slots)] = slots
        return kept

    def key_positions(self, index: int) -> Array:
        """The positions of the rows that :meth:`entry` shows of a sequence.

        Parameters
        ----------
        index : int
            The index of the sequence in the batch, from 0.

        Returns
        -------
        ndarray of int64, (stored,)
            In increasing order; with gaps after :meth:`evict`, and in a ring that keeps its first rows.

        Raises
        ------
        ValueError
            If there is no such sequence.
        TypeError
            If `index` is not an integer.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((1, 1, 9, 4), np.float32)
        >>> cache = hw.KVCache(1, 1, capacity=4, head_dim=4, ring=True, keep_first=1)
        >>> cache.append(x, x)
        >>> cache.key_positions(0)
        array([0, 6, 7, 8])
        """
        i = check_int(index, "index", 0, self.batch_size - 1)
        return self._rows.positions(i, self._kept(i)).astype(np.int64)


def _largest(scores: Array, count: int) -> Array:
    """The indices of the ``count`` largest scores, in increasing order; of equal scores the later ones."""
    order = np.argsort(-scores[::-1], kind="stable")[:count]
    return np.sort(len(scores) - 1 - order)

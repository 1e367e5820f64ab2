"""Projected keys and values of an encoder's output, for the cross-attention of a decoder.

Pope et al., "Efficiently Scaling Transformer Inference" (2022), https://arxiv.org/abs/2211.05102, section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise._base.arrays import as_array
from headwise._base.scalars import check_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


class CrossCache:
    """Keys and values that :meth:`headwise.MultiHeadAttention.make_cross_cache` projected once.

    It never changes, so layers, threads and calls may share it.

    Attributes
    ----------
    keys, values : ndarray, (batch, kv_heads, key_len, d_k), read-only
        In the dtype of the computation: float32 for float16 and bfloat16 inputs.
    """

    def __init__(self, keys: Array, values: Array) -> None:
        self.keys, self.values = keys.view(), values.view()
        self.keys.flags.writeable = self.values.flags.writeable = False

    @property
    def batch_size(self) -> int:
        return len(self.keys)

    def __len__(self) -> int:
        """The number of keys of each sequence."""
        length: int = self.keys.shape[2]
        return length

    def __bool__(self) -> bool:
        return True

    def select(self, indices: ArrayLike) -> CrossCache:
        """A cache whose sequence ``i`` is the sequence ``indices[i]`` of this one, such as the beams of a prompt.

        Parameters
        ----------
        indices : array_like of int, (new_batch,)

        Returns
        -------
        CrossCache

        Raises
        ------
        ValueError
            If ``indices`` is not a vector, or an index does not fit.
        TypeError
            If ``indices`` are not integers.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> cache = hw.MultiHeadAttention(8, 2, rng=0).make_cross_cache(np.ones((2, 5, 8)))
        >>> cache.select([0, 0, 1]).keys.shape
        (3, 2, 5, 4)
        """
        chosen = as_array(indices, "indices")
        if chosen.ndim != 1 or chosen.size == 0:
            raise ValueError(f"indices: shape {chosen.shape}, expected (new_batch,)")
        sources = [check_int(index, "indices", 0, self.batch_size - 1) for index in chosen.tolist()]
        return CrossCache(self.keys[sources], self.values[sources])

    def __repr__(self) -> str:
        batch, heads, length, width = self.keys.shape
        return f"CrossCache(batch_size={batch}, num_kv_heads={heads}, key_len={length}, head_dim={width})"


def check_cross(cache: CrossCache, query: Array, dtype: np.dtype[np.generic], heads: tuple[int, int]) -> None:
    """ValueError or TypeError unless ``query`` of a layer with ``heads`` key heads of a width can attend to it."""
    if (cache.keys.shape[1], cache.keys.shape[3]) != heads:
        raise ValueError(f"cache: {cache!r}, expected {heads[0]} heads of width {heads[1]}, as this layer makes it")
    batch = len(query) if query.ndim == 3 else 1
    if batch != cache.batch_size:
        raise ValueError(f"query: shape {query.shape}, expected a batch of {cache.batch_size}, as of the cache")
    if cache.keys.dtype != dtype:
        raise TypeError(f"query: dtype {query.dtype}, expected one that is computed in {cache.keys.dtype}, as the keys")

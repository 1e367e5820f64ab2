"""Keys and values of past tokens, stored for the queries of later tokens.

Pope et al., "Efficiently Scaling Transformer Inference" (2022), https://arxiv.org/abs/2211.05102, section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from headwise._kv_cache.attention import attend_rows
from headwise._kv_cache.checks import CacheShape, check_counts, check_free, check_new, check_query, check_shape
from headwise._kv_cache.eviction import EvictableSequences
from headwise._kv_cache.extension import Extension
from headwise._kv_cache.placement import check_placement, check_query_positions

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array
    from headwise._kv_cache.options import AttendOptions, CacheOptions, ExtendOptions

__all__ = ["KVCache", "extension"]


class KVCache(EvictableSequences):
    """Keys and values of a batch of sequences, allocated once and written in place.

    Each call appends any number of tokens. Their queries attend causally to all stored positions, and the results equal
    those of one call over the whole sequence. No step copies stored rows.

    Parameters
    ----------
    batch_size : int
        Number of sequences, which may have different lengths.
    num_kv_heads : int
        Number of key and value heads; the number of query heads may be a multiple of it.
    capacity : int
        Maximum number of positions of a sequence or, in a ring, of keys that a query sees.
    head_dim : int
        Width of a key head.
    value_dim : int, optional
        Width of a value head; ``head_dim`` by default.
    dtype : dtype or "int8"
        That keys and values are stored in: float32, float64, float16, bfloat16 or int8. Queries, new keys and new
        values have this dtype, or float32 with float16 and bfloat16, and float32 with int8; results have that of the
        queries.
    ring : bool
        If True, sequences are unlimited: only the latest positions are kept, and a query sees at most the last
        ``capacity`` keys including its own, however the tokens are split into calls. This is attention with
        ``window_size=(capacity - 1, 0)``. If False, appending to a full cache is an error.
    keep_first : int
        Number of first positions that a ring never drops, less than ``capacity`` (attention sinks [1]_). A query sees
        them and the last ``capacity - keep_first`` keys including its own. Positions are those of the sequence: keys
        keep the rotation that they were stored with, and ALiBi and windows count the dropped positions.
    value_from_key : (int, int), optional
        ``(start, stop)``: values are these columns of the keys, as in latent attention [2]_, and only keys are stored
        and appended. ``value_dim`` is ``stop - start``.

    Attributes
    ----------
    batch_size, num_kv_heads, capacity, head_dim, value_dim, keep_first : int
    dtype : numpy.dtype
    ring : bool
    value_from_key : (int, int) or None
    lengths : ndarray, (batch,), int64
        Number of positions of each sequence, including those that a ring has dropped; a copy.
    keys, values : ndarray, (batch, kv_heads, stored, dim), read-only; float32 with int8
        The stored rows if all lengths are equal (else ValueError); of a ring the last ``capacity`` positions, or those
        that ``keep_first`` and ``capacity`` leave. Views, whose contents later calls may change; copies only of int8,
        of a ring that has dropped positions behind the first ones, and while the sequences of a ring that had different
        lengths are not yet aligned in memory.
    nbytes : int
        Bytes reserved. The operating system provides memory when it is first written.

    Raises
    ------
    ValueError
        If a size is not positive.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    In memory, keys and values are (kv_heads, batch, slots, dim). A ring has a quarter more slots than ``capacity``, at
    least 32 more. Rows are written in order; when the last slot is reached, the latest rows move to the
    first slots. So the cost of an append is proportional to the rows written, and keys are always in order, as every
    keyword of attention requires.

    Keys and values of fewer bits than the queries are converted in the kernels. float16 and bfloat16 are rounded to
    nearest; float16 holds numbers up to 65504, larger ones become infinite. int8 is symmetric, with a ninth bit for
    each number and a factor for each row and head, ``max(abs(row)) / 127.5``; a row with NaN or infinity becomes NaN.
    For queries, keys and values of unit variance, the root mean square of the output's errors, and the largest error,
    are below 2e-4 and 1e-3 (float16), 1.5e-3 and 8e-3 (bfloat16), 2e-3 and 1e-2 (int8; rarely 1.2e-2, with one new
    query and few heads) of the largest output.

    ``len(cache)`` is the maximum length. ``bool(cache)`` is always True. Copies and pickles hold the stored rows and
    share no memory with the original.

    References
    ----------
    Pope et al., "Efficiently Scaling Transformer Inference" (2022), section 3.3; for rings Beltagy et al., "Longformer"
    (2020), section 3.1, and Jiang et al., "Mistral 7B" (2023), section 2.

    .. [1] G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023, section 3.2.
    .. [2] DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((1, 8, 6, 16), dtype=np.float32)  # 8 query heads share 2 key heads
    >>> key, value = rng.standard_normal((2, 1, 2, 6, 16), dtype=np.float32)
    >>> cache = hw.KVCache(batch_size=1, num_kv_heads=2, capacity=512, head_dim=16)
    >>> prompt = cache.extend(query[:, :, :5], key[:, :, :5], value[:, :, :5])
    >>> token = cache.extend(query[:, :, 5:], key[:, :, 5:], value[:, :, 5:])
    >>> whole = hw.flash_attention(query, key, value, is_causal=True)
    >>> bool(np.allclose(np.concatenate([prompt, token], axis=2), whole, atol=1e-6))
    True
    >>> cache
    KVCache(batch_size=1, num_kv_heads=2, capacity=512, head_dim=16, float32, length=6)
    """

    def __init__(  # noqa: PLR0913 (the public signature)
        self,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: DTypeLike = np.float32,
        ring: bool = False,
        keep_first: int = 0,
        value_from_key: tuple[int, int] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in CacheShape._fields}
        super().__init__(check_shape(given))

    def append(
        self,
        key: ArrayLike,
        value: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
    ) -> None:
        """Store the keys and values of new positions behind the stored ones, or at explicit positions. A ring takes any
        number of them.

        Parameters
        ----------
        key : array_like, (batch, kv_heads, new, head_dim)
            Of a dtype that the cache takes, see ``dtype`` of :class:`headwise.KVCache`.
        value : array_like, (batch, kv_heads, new, value_dim)
            Likewise. None, or omitted, with ``value_from_key``.
        lengths : array_like of int, (batch,), optional
            Number of the new rows that count for each sequence, 0 to ``new``; the rows behind them are padding. All
            count by default.
        positions : array_like of int, (new,) or (batch, new), optional
            The position of each new row, in any order. A row at a stored position replaces the stored row, such as that
            of a token that was changed; the others follow the stored rows without a gap. Keys with rotary positions
            are already rotated by these. The entries of padding are ignored. By default, new rows follow the stored
            rows; see :meth:`positions`.

        Raises
        ------
        ValueError
            If a shape does not fit, there is not enough room, or a position is negative, given twice, dropped by the
            ring, or would leave a gap. The cache is unchanged then.
        TypeError
            If a dtype is not one that the cache takes, or ``lengths`` or ``positions`` are not integers.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((2, 1, 3, 4), np.float32)
        >>> cache = hw.KVCache(2, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x, lengths=[3, 1])
        >>> cache.lengths
        array([3, 1])
        >>> cache.append(2 * x[:, :, :2], x[:, :, :2], positions=[[1, 2], [1, 0]])
        >>> cache.lengths
        array([3, 2])
        >>> cache.entry(0)[0][0, :, 0]
        array([1., 2., 2.], dtype=float32)
        """
        with self._exclusive:
            if positions is None:
                self._rows.append(*self._check_new(key, value, lengths))
            else:
                new = check_new(key, value, self._shape)
                self._rows.place(new, check_placement(positions, new[0].shape[2], lengths, self._rows, self.capacity))

    @overload
    def attend(
        self, query: ArrayLike, *,
        need_weights: Literal[False] = False, return_lse: Literal[False] = False, **options: Unpack[AttendOptions],
    ) -> Array: ...  # fmt: skip
    @overload
    def attend(
        self, query: ArrayLike, *,
        need_weights: Literal[True], return_lse: Literal[False] = False, **options: Unpack[AttendOptions],
    ) -> tuple[Array, Array]: ...  # fmt: skip
    @overload
    def attend(
        self, query: ArrayLike, *,
        need_weights: bool = False, return_lse: Literal[True], **options: Unpack[AttendOptions],
    ) -> tuple[Array, Any, Array]: ...  # fmt: skip
    @overload
    def attend(
        self, query: ArrayLike, *,
        need_weights: bool = False, return_lse: bool = False, **options: Unpack[AttendOptions],
    ) -> Any: ...  # fmt: skip
    def attend(
        self,
        query: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        **options: Unpack[CacheOptions],
    ) -> Any:
        """Attention of the latest positions, or of explicit ones, to the stored keys. A query sees the keys up to its
        position.

        Parameters
        ----------
        query : array_like, (batch, heads, new, head_dim)
            Queries of the last ``new`` positions, unless ``positions`` are given, of a dtype that the cache takes.
        lengths : array_like of int, (batch,), optional
            Number of the rows that count for each sequence, 0 to ``new``: these are its last positions, and the rows
            behind them are padding. All count by default.
        positions : array_like of int, (new,) or (batch, new), optional
            Stored positions of the queries, consecutive in each sequence, such as those of rows that :meth:`append`
            has replaced; not with ``is_causal=False``. The entries of padding are ignored.
        **options
            Keywords of :func:`headwise.scaled_dot_product_attention`: ``scale``, ``window_size``, ``softcap``,
            ``alibi_slopes`` (heads,), ``sinks`` (heads,), ``need_weights`` (False by default), ``return_lse``,
            ``relative_bias`` (heads or 1, new or 1, 2 M + 1) and ``relative_values`` (heads or 1, 2 M + 1, value_dim),
            by the distances of positions in the sequence, ``precision``, ``out`` (batch, heads, new, value_dim), and
            ``mask`` and ``bias``, broadcast against scores (batch, heads, new, stored) and combined with causality.
            With ``is_causal=False`` (True by default) a query sees later keys, too, and there may be more queries than
            stored positions, as in cross-attention.

        Returns
        -------
        output : ndarray, (batch, heads, new, value_dim)
            The only result unless ``need_weights`` or ``return_lse`` is set. 0 for padding.
        weights : ndarray, (batch, heads, new, stored), or None
            None if only ``return_lse`` is set. 0 for padding.
        lse : ndarray, (batch, heads, new)
            Only with ``return_lse``; -inf for padding.

        Raises
        ------
        ValueError
            If a shape does not fit, if there are more causal queries than positions, if ``positions`` are not stored or
            not consecutive, or if a ring has dropped keys that the queries see: :meth:`extend` processes any number of
            new rows at once.
        TypeError
            If the dtype is not one that the cache takes, ``positions`` are not integers, or an option is unknown or
            of a wrong type.

        Notes
        -----
        ``stored`` is the maximum number of keys that the new queries of a sequence see: its stored rows, or in a ring
        ``capacity - 1`` plus its number of new queries, if that is less. Column ``j`` is the ``j``-th of these keys, of
        which the first ``keep_first`` are those of the sequence; columns beyond a sequence's last key are ignored.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.random.default_rng(0).standard_normal((2, 4, 3, 8), dtype=np.float32)
        >>> cache = hw.KVCache(2, 4, capacity=16, head_dim=8)
        >>> cache.append(x, x, lengths=[3, 2])
        >>> output, weights = cache.attend(x[:, :, :1], need_weights=True)
        >>> output.shape, weights.shape
        ((2, 4, 1, 8), (2, 4, 1, 3))
        >>> (weights[:, 0, 0] > 0).tolist()
        [[True, True, True], [True, True, False]]
        """
        self._exclusive.check()
        q = check_query(query, self._shape)
        counts = check_counts(lengths, q.shape[2], self.batch_size)
        ends = self._rows.lengths
        if positions is not None:
            ends = check_query_positions(positions, q.shape[2], counts, ends, options.get("is_causal", True))
        return attend_rows(self._rows, ends, q, counts, options)

    @overload
    def extend(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike | None = None, *,
        need_weights: Literal[False] = False, return_lse: Literal[False] = False, **options: Unpack[ExtendOptions],
    ) -> Array: ...  # fmt: skip
    @overload
    def extend(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike | None = None, *,
        need_weights: Literal[True], return_lse: Literal[False] = False, **options: Unpack[ExtendOptions],
    ) -> tuple[Array, Array]: ...  # fmt: skip
    @overload
    def extend(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike | None = None, *,
        need_weights: bool = False, return_lse: Literal[True], **options: Unpack[ExtendOptions],
    ) -> tuple[Array, Any, Array]: ...  # fmt: skip
    @overload
    def extend(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike | None = None, *,
        need_weights: bool = False, return_lse: bool = False, **options: Unpack[ExtendOptions],
    ) -> Any: ...  # fmt: skip
    def extend(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        **options: Unpack[CacheOptions],
    ) -> Any:
        """:meth:`append` the keys and values of new positions, and :meth:`attend` with their queries.

        In contrast to the two calls, nothing has been appended after an error, and a ring takes any number of rows at
        once.

        Parameters
        ----------
        query : array_like, (batch, heads, new, head_dim)
            Of a dtype that the cache takes, like ``key`` and ``value``.
        key : array_like, (batch, kv_heads, new, head_dim)
            With rotary positions, already rotated; see :meth:`positions`.
        value : array_like, (batch, kv_heads, new, value_dim)
            None, or omitted, with ``value_from_key``.
        lengths : array_like of int, (batch,), optional
            Number of the new rows that count for each sequence, 0 to ``new``; all by default.
        **options
            As for :meth:`attend`.

        Returns
        -------
        output : ndarray, (batch, heads, new, value_dim)
            The only result unless ``need_weights`` or ``return_lse`` is set. 0 for padding.
        weights : ndarray, (batch, heads, new, stored), or None
            As from :meth:`attend`.
        lse : ndarray, (batch, heads, new)
            Only with ``return_lse``; -inf for padding.

        Raises
        ------
        ValueError, TypeError
            As :meth:`append` and :meth:`attend`.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.random.default_rng(0).standard_normal((1, 2, 100, 8), dtype=np.float32)
        >>> cache = hw.KVCache(1, 2, capacity=4, head_dim=8, ring=True)
        >>> output = cache.extend(x, x, x)
        >>> bool(np.allclose(output, hw.flash_attention(x, x, x, is_causal=True, window_size=(3, 0)), atol=1e-6))
        True
        >>> len(cache), cache.keys.shape
        (100, (1, 2, 4, 8))
        """
        with self._extension(query, key, value, lengths) as new:
            return new.attend(options)

    def _check_new(
        self, key: ArrayLike, value: ArrayLike | None, lengths: ArrayLike | None
    ) -> tuple[list[Array], list[int]]:
        new = check_new(key, value, self._shape)
        counts = check_counts(lengths, new[0].shape[2], self.batch_size)
        if not self.ring:
            check_free(counts, [self._rows.end(i) for i in range(self.batch_size)], self.capacity)
        return new, counts

    def _extension(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike | None, lengths: ArrayLike | None
    ) -> Extension:
        """See :func:`extension`."""

        def check() -> tuple[Array, list[Array], list[int]]:
            q = check_query(query, self._shape)
            new, counts = self._check_new(key, value, lengths)
            if q.shape[2] != new[0].shape[2]:
                raise ValueError(
                    f"query: shape {q.shape} does not match key {new[0].shape}: {q.shape[2]} rows for {new[0].shape[2]}"
                )
            return q, new, counts

        return Extension(self._exclusive, self._rows, check)


def extension(
    cache: KVCache, query: ArrayLike, key: ArrayLike, value: ArrayLike | None, lengths: ArrayLike | None
) -> Extension:
    """:meth:`KVCache.extend` as a context manager, for layers, which project the output before the rows are kept."""
    return cache._extension(query, key, value, lengths)  # noqa: SLF001 (of a class of this module)

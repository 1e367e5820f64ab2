"""Keys and values of past tokens, kept for the queries of those to come.

Pope et al., "Efficiently Scaling Transformer Inference" (2022), https://arxiv.org/abs/2211.05102, section 3.3.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.layer import parameter_dtype
from headwise._base.outputs import check_room
from headwise._base.scalars import check_flag, check_int, check_size
from headwise._kv_cache.attention import attend_rows
from headwise._kv_cache.rows import CacheRows, equal, of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array
    from headwise._kv_cache.options import AttendOptions, CacheOptions

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of a batch of sequences, allocated once and written in place.

    Tokens come in any number at a time. Their queries attend to all that is stored, causally, with the results of one
    call over the whole sequence; no step copies what is there.

    Parameters
    ----------
    batch_size : int
        Number of sequences, which may have different lengths.
    num_kv_heads : int
        Heads of keys and values; queries may have a multiple of them.
    capacity : int
        How many positions a sequence may have, or how many the latest query of a ring sees.
    head_dim : int
        Width of a key's head.
    value_dim : int, optional
        Width of a value's head; ``head_dim`` by default.
    dtype : dtype
        Of what is appended, and of queries: float32, float64, float16 or bfloat16.
    ring : bool
        If True, sequences have no end: only the latest positions are kept, and a query sees at most the last
        ``capacity`` keys, its own included, however the tokens are split into calls: attention with
        ``window_size=(capacity - 1, 0)``. If False, a full cache refuses more.

    Attributes
    ----------
    batch_size, num_kv_heads, capacity, head_dim, value_dim : int
    dtype : numpy.dtype
    ring : bool
    lengths : ndarray, (batch,), int64
        How many positions each sequence has had, those that a ring has dropped included; a copy.
    keys, values : ndarray, (batch, kv_heads, stored, dim), read-only
        What is stored, where all lengths are equal (else a ValueError); of a ring its last ``capacity`` positions.
        Views, which later calls may change; a copy only where sequences of a ring have just become equally long.
    nbytes : int
        Bytes set aside. The system provides them as they are written for the first time.

    Raises
    ------
    ValueError
        If a size is not positive.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    In memory both are (kv_heads, batch, room, dim). A ring has room for more than ``capacity``, by a quarter and at
    least 32 positions: rows are written behind each other, and when the end is reached the latest ones move to the
    front. So an append costs what it writes, and keys are always in order, for every keyword of attention.

    ``len(cache)`` is the longest of the lengths, and a cache is always true, empty or not. Copies and pickles hold what
    is stored, and share nothing.

    References
    ----------
    Pope et al., "Efficiently Scaling Transformer Inference" (2022), section 3.3; of rings Beltagy et al., "Longformer"
    (2020), section 3.1, and Jiang et al., "Mistral 7B" (2023), section 2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((1, 8, 6, 16), dtype=np.float32)  # 8 heads of queries share 2 of keys
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

    batch_size: int
    num_kv_heads: int
    capacity: int
    head_dim: int
    value_dim: int
    dtype: np.dtype[Any]
    ring: bool

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: DTypeLike = np.float32,
        ring: bool = False,
    ) -> None:
        self.batch_size = check_size(batch_size, "batch_size")
        self.num_kv_heads = check_size(num_kv_heads, "num_kv_heads")
        self.capacity = check_size(capacity, "capacity")
        self.head_dim = check_size(head_dim, "head_dim")
        self.value_dim = self.head_dim if value_dim is None else check_size(value_dim, "value_dim")
        self.dtype = parameter_dtype(dtype).newbyteorder("=")
        self.ring = check_flag(ring, "ring")
        self._rows = self._make_rows(self.capacity, self.ring)

    # --- what is there ---

    @property
    def lengths(self) -> Array:
        return np.array(self._rows.lengths, np.int64)

    @property
    def keys(self) -> Array:
        return self._stored("keys")

    @property
    def values(self) -> Array:
        return self._stored("values")

    @property
    def nbytes(self) -> int:
        return self._rows.keys.nbytes + self._rows.values.nbytes

    def entry(self, index: int) -> tuple[Array, Array]:
        """What is stored of one sequence.

        Parameters
        ----------
        index : int
            Which of the batch, from 0.

        Returns
        -------
        keys : ndarray, (kv_heads, stored, head_dim), read-only
            A view; later calls may change what it shows.
        values : ndarray, (kv_heads, stored, value_dim), read-only
            Likewise.

        Raises
        ------
        ValueError
            If there is no such sequence.
        TypeError
            If `index` is no integer.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((2, 1, 3, 4), np.float32)
        >>> cache = hw.KVCache(2, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x, lengths=[3, 1])
        >>> [cache.entry(i)[0].shape for i in range(2)]
        [(1, 3, 4), (1, 1, 4)]
        """
        i = check_int(index, "index", 0, self.batch_size - 1)
        rows = self._kept(i)
        return _read_only(self._rows.keys[i, :, rows]), _read_only(self._rows.values[i, :, rows])

    def positions(self, new: int = 1) -> Array:
        """The positions that the next rows will have, as rotary embedding asks for them.

        Parameters
        ----------
        new : int
            How many rows.

        Returns
        -------
        ndarray of int64, (new,), or (batch, new) where lengths differ

        Raises
        ------
        ValueError
            If `new` is negative.
        TypeError
            If it is no integer.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((2, 1, 3, 4), np.float32)
        >>> cache = hw.KVCache(2, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x)
        >>> cache.positions(2)
        array([3, 4])
        >>> cache.truncate([3, 1])
        >>> cache.positions(2)
        array([[3, 4],
               [1, 2]])
        """
        count = check_int(new, "new", 0)
        check_room(count)
        steps = np.arange(count, dtype=np.int64)
        return steps + len(self) if equal(self._rows.lengths) else self.lengths[:, np.newaxis] + steps

    def __len__(self) -> int:
        return max(self._rows.lengths)

    def __bool__(self) -> bool:
        return True  # `if cache:` asks whether there is one

    def __repr__(self) -> str:
        shortest, longest = min(self._rows.lengths), max(self._rows.lengths)
        facts = [f"{name}={getattr(self, name)}" for name in ("batch_size", "num_kv_heads", "capacity", "head_dim")]
        facts += [f"value_dim={self.value_dim}"] if self.value_dim != self.head_dim else []
        facts += [str(self.dtype), *(["ring"] if self.ring else [])]
        facts += [f"length={longest}" if shortest == longest else f"lengths={shortest}..{longest}"]
        return f"{type(self).__name__}({', '.join(facts)})"

    # --- in and out ---

    def append(self, key: ArrayLike, value: ArrayLike, *, lengths: ArrayLike | None = None) -> None:
        """Store the keys and values of new positions behind those that are there. A ring takes any number of them.

        Parameters
        ----------
        key : array_like, (batch, kv_heads, new, head_dim)
            Of the dtype of the cache.
        value : array_like, (batch, kv_heads, new, value_dim)
            Likewise.
        lengths : array_like of int, (batch,), optional
            How many of the new rows count for each sequence, 0 to ``new``; the others are padding behind them. All by
            default.

        Raises
        ------
        ValueError
            If a shape does not fit, or there is not enough room. Nothing has changed then.
        TypeError
            If a dtype is not that of the cache, or ``lengths`` are not integers.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((2, 1, 3, 4), np.float32)
        >>> cache = hw.KVCache(2, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x, lengths=[3, 1])
        >>> cache.lengths
        array([3, 1])
        """
        self._rows.put(*self._check_new(key, value, lengths))

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
    def attend(self, query: ArrayLike, *, lengths: ArrayLike | None = None, **options: Unpack[CacheOptions]) -> Any:
        """Attention of the latest positions to all that is stored, each to those up to its own.

        Parameters
        ----------
        query : array_like, (batch, heads, new, head_dim)
            Queries of the last ``new`` positions, of the dtype of the cache.
        lengths : array_like of int, (batch,), optional
            How many of the rows count for each sequence, 0 to ``new``: these are of its last positions, and the others
            are padding behind them. All by default.
        **options
            Keywords of :func:`headwise.scaled_dot_product_attention`: ``scale``, ``window_size``, ``softcap``,
            ``alibi_slopes``, ``sinks``, ``need_weights`` (False by default), ``return_lse``, ``precision``, ``out``,
            and ``mask`` and ``bias`` for scores (batch, heads, new, stored), besides causality.

        Returns
        -------
        output : ndarray, (batch, heads, new, value_dim)
            By itself unless ``need_weights`` or ``return_lse`` ask for more. 0 for padding.
        weights : ndarray, (batch, heads, new, stored), or None
            None with ``return_lse`` alone. 0 for padding.
        lse : ndarray, (batch, heads, new)
            Only with ``return_lse``; -inf for padding.

        Raises
        ------
        ValueError
            If a shape does not fit, if there are more queries than positions, or if a ring has dropped keys that they
            see: only :meth:`extend` does so many at once.
        TypeError
            If the dtype is not that of the cache, or an option is unknown or of a wrong type.

        Notes
        -----
        ``stored`` is the longest of the lengths, or in a ring ``capacity - 1 + new`` if that is less. Column ``j`` is
        the ``j``-th of the keys that a sequence's new queries see; what is beyond them counts for nothing.

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
        q = self._check_query(query)
        return attend_rows(self._rows, q, self._check_counts(lengths, q.shape[2]), options)

    @overload
    def extend(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike, *,
        need_weights: Literal[False] = False, return_lse: Literal[False] = False, **options: Unpack[AttendOptions],
    ) -> Array: ...  # fmt: skip
    @overload
    def extend(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike, *,
        need_weights: Literal[True], return_lse: Literal[False] = False, **options: Unpack[AttendOptions],
    ) -> tuple[Array, Array]: ...  # fmt: skip
    @overload
    def extend(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike, *,
        need_weights: bool = False, return_lse: Literal[True], **options: Unpack[AttendOptions],
    ) -> tuple[Array, Any, Array]: ...  # fmt: skip
    @overload
    def extend(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike, *,
        need_weights: bool = False, return_lse: bool = False, **options: Unpack[AttendOptions],
    ) -> Any: ...  # fmt: skip
    def extend(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        **options: Unpack[CacheOptions],
    ) -> Any:
        """:meth:`append` the keys and values of new positions, and :meth:`attend` with their queries.

        More than the two calls in two ways: after an error nothing has been appended, and a ring takes any number of
        rows at once.

        Parameters
        ----------
        query : array_like, (batch, heads, new, head_dim)
            All three of the dtype of the cache.
        key : array_like, (batch, kv_heads, new, head_dim)
            With a position already turned, where that is how positions are encoded; see :meth:`positions`.
        value : array_like, (batch, kv_heads, new, value_dim)
            Of as many rows.
        lengths : array_like of int, (batch,), optional
            How many of the new rows count for each sequence.
        **options
            As for :meth:`attend`.

        Returns
        -------
        output : ndarray, (batch, heads, new, value_dim)
            And so on, as :meth:`attend`.

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
        with self._extending(query, key, value, lengths, options) as answer:
            return answer

    @contextmanager
    def _extending(
        self, query: ArrayLike, key: ArrayLike, value: ArrayLike, lengths: ArrayLike | None, options: CacheOptions
    ) -> Iterator[Any]:
        """What :meth:`extend` returns, for a block that does something with it: if that fails, nothing is appended."""
        q = self._check_query(query)
        k, v, counts = self._check_new(key, value, lengths)
        new = k.shape[2]
        if q.shape[2] != new:
            raise ValueError(f"query: shape {q.shape} does not match key {k.shape}: {q.shape[2]} rows for {new}")
        rows = self._rows
        if not rows.can_take_back(counts):
            longer = self._make_rows(rows.reach + new, False)
            longer.behind(rows)
            longer.put(k, v, counts)
            yield attend_rows(longer, q, counts, options)
            rows.put(k, v, counts)
            return
        before = rows.lengths
        rows.put(k, v, counts)
        try:
            yield attend_rows(rows, q, counts, options)
        except BaseException:
            rows.cut(before)
            raise

    # --- back ---

    def truncate(self, length: ArrayLike) -> None:
        """Drop the latest positions, such as tokens that were guessed and found wrong.

        Parameters
        ----------
        length : int or array_like of int, (batch,)
            The positions to keep, of all sequences or of each.

        Raises
        ------
        ValueError
            If a sequence is not that long, or a ring no longer has what the next query would see. It has that at all
            lengths down to 16, or an eighth of the capacity, below the longest that a sequence has had; and at 0.
        TypeError
            If `length` is not of integers.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((2, 1, 5, 4), np.float32)
        >>> cache = hw.KVCache(2, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x)
        >>> cache.truncate([5, 3])
        >>> cache.lengths
        array([5, 3])
        """
        rows = self._rows
        lengths = self._integers(length, "length", alike=True)
        for i, (kept, now) in enumerate(zip(lengths, rows.lengths, strict=True)):
            if not 0 <= kept <= now:
                raise ValueError(f"length: {kept}, expected 0 to the length {now}{of(i, lengths)}")
            if 0 < kept < rows.shortest(i):
                raise ValueError(
                    f"length: {kept}, but the ring has dropped what comes before, expected 0 or at least "
                    f"{rows.shortest(i)}{of(i, lengths)}"
                )
        rows.cut(lengths)

    def reset(self) -> None:
        """Drop all positions; the memory stays.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> cache = hw.KVCache(1, 1, capacity=8, head_dim=4)
        >>> cache.append(np.ones((1, 1, 5, 4), np.float32), np.ones((1, 1, 5, 4), np.float32))
        >>> cache.reset()
        >>> len(cache)
        0
        """
        self._rows.cut([0] * self.batch_size)

    def reorder(self, indices: ArrayLike) -> None:
        """Put other sequences in the places of the batch, as beam search does when some beams go on and others end.

        Parameters
        ----------
        indices : array_like of int, (batch,)
            Sequence ``i`` becomes what ``indices[i]`` was. Only sequences that change are copied.

        Raises
        ------
        ValueError
            If the shape or an index does not fit.
        TypeError
            If `indices` are not integers.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((2, 1, 3, 4), np.float32)
        >>> cache = hw.KVCache(2, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x, lengths=[3, 1])
        >>> cache.reorder([1, 1])
        >>> cache.lengths
        array([1, 1])
        """
        sources = self._integers(indices, "indices")
        for source in sources:
            if not 0 <= source < self.batch_size:
                raise ValueError(f"indices: {source}, expected 0 to {self.batch_size - 1}")
        self._rows.reorder(sources)

    def __getstate__(self) -> dict[str, Any]:
        rows = self._rows
        stored = [slice(0, rows.end(i)) for i in range(self.batch_size)]
        return self.__dict__ | {
            "_rows": (
                rows.lengths,
                [rows.keys[i, :, part] for i, part in enumerate(stored)],
                [rows.values[i, :, part] for i, part in enumerate(stored)],
            )
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        lengths, keys, values = state["_rows"]
        self._rows = self._make_rows(self.capacity, self.ring)
        self._rows.hold(lengths, keys, values)

    # --- checks ---

    def _make_rows(self, capacity: int, ring: bool) -> CacheRows:
        return CacheRows(self.batch_size, self.num_kv_heads, capacity, self.head_dim, self.value_dim, self.dtype, ring)

    def _kept(self, entry: int) -> slice:
        end = self._rows.end(entry)
        return slice(max(0, end - self.capacity), end)

    def _stored(self, name: str) -> Array:
        rows = self._rows
        if not equal(rows.lengths):
            raise ValueError(
                f"{name}: the lengths differ, {_listed(rows.lengths)}; expected entry(i) to be used instead"
            )
        array: Array = getattr(rows, name)
        if equal(rows.shifts):
            return _read_only(array[:, :, self._kept(0)])
        return _read_only(np.stack([array[i, :, self._kept(i)] for i in range(self.batch_size)]))

    def _check_query(self, query: ArrayLike) -> Array:
        q = self._check_rows(query, "query", self.head_dim)
        if q.shape[1] % self.num_kv_heads or not q.shape[1]:
            raise ValueError(
                f"query: shape {q.shape}: {q.shape[1]} heads, expected a number divisible by num_kv_heads = "
                f"{self.num_kv_heads}"
            )
        return q

    def _check_new(self, key: ArrayLike, value: ArrayLike, lengths: ArrayLike | None) -> tuple[Array, Array, list[int]]:
        k, v = self._check_rows(key, "key", self.head_dim), self._check_rows(value, "value", self.value_dim)
        new = k.shape[2]
        for name, a in (("key", k), ("value", v)):
            if a.shape[1] != self.num_kv_heads:
                raise ValueError(f"{name}: shape {a.shape}: {a.shape[1]} heads, expected {self.num_kv_heads}")
        if v.shape[2] != new:
            raise ValueError(f"value: shape {v.shape} does not match key {k.shape}: {v.shape[2]} rows for {new}")
        counts = self._check_counts(lengths, new)
        if not self.ring:
            for i, (length, count) in enumerate(zip(self._rows.lengths, counts, strict=True)):
                if length + count > self.capacity:
                    raise ValueError(
                        f"key: {count} new rows, but the length {length}{of(i, counts)} leaves only "
                        f"{self.capacity - length} of the capacity {self.capacity}; truncate or reset the cache, or "
                        "make it larger or with ring=True"
                    )
        return k, v, counts

    def _check_rows(self, x: ArrayLike, name: str, width: int) -> Array:
        a = as_array(x, name)
        if a.dtype != self.dtype and a.dtype.newbyteorder("=") != self.dtype:
            raise TypeError(f"{name}: dtype {a.dtype}, expected {self.dtype}, the dtype of the cache")
        if a.ndim != 4 or a.shape[0] != self.batch_size or a.shape[3] != width:
            heads = "heads" if name == "query" else self.num_kv_heads
            raise ValueError(f"{name}: shape {a.shape}, expected ({self.batch_size}, {heads}, new, {width})")
        return a

    def _check_counts(self, lengths: ArrayLike | None, new: int) -> list[int]:
        if lengths is None:
            return [new] * self.batch_size
        counts = self._integers(lengths, "lengths")
        for count in counts:
            if not 0 <= count <= new:
                raise ValueError(f"lengths: {count}, expected 0 to {new}, the number of new rows")
        return counts

    def _integers(self, x: ArrayLike, name: str, *, alike: bool = False) -> list[int]:
        """One for each sequence, or, if they may be ``alike``, one for all."""
        a = as_array(x, name)
        if a.dtype.kind not in "iu":
            raise TypeError(f"{name}: dtype {a.dtype}, expected integers")
        if alike and a.ndim == 0:
            return [int(a)] * self.batch_size
        if a.shape != (self.batch_size,):
            raise ValueError(f"{name}: shape {a.shape}, expected one for each sequence, ({self.batch_size},)")
        return [int(n) for n in a]


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths[:8])) + (", ..." if len(lengths) > 8 else "")


def _read_only(view: Array) -> Array:
    view.flags.writeable = False
    return view

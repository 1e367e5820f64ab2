"""The sequences that a :class:`headwise.KVCache` stores, without attention: their lengths, rows and positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.outputs import check_room
from headwise._base.scalars import check_int
from headwise._kv_cache.checks import CacheShape, check_integers, check_shape, check_stored, of
from headwise._kv_cache.exclusive import Exclusive
from headwise._kv_cache.rows import CacheRows, equal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from headwise._base.typing import Array


class CachedSequences:
    """The base class of :class:`headwise.KVCache`: all but the writing of rows and attention."""

    batch_size: int
    num_kv_heads: int
    capacity: int
    head_dim: int
    value_dim: int
    dtype: np.dtype[Any]
    ring: bool
    keep_first: int
    value_from_key: tuple[int, int] | None

    def __init__(self, shape: CacheShape) -> None:
        for name, value in shape._asdict().items():
            setattr(self, name, value)
        self._shape = shape
        self._rows = CacheRows(shape)
        self._exclusive = Exclusive()

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
        return sum(rows.nbytes for rows in self._rows.arrays)

    def entry(self, index: int) -> tuple[Array, Array]:
        """The stored keys and values of one sequence.

        Parameters
        ----------
        index : int
            The index of the sequence in the batch, from 0.

        Returns
        -------
        keys : ndarray, (kv_heads, stored, head_dim), read-only
            A view; later calls may change its contents. With dtype "int8", a copy in float32.
        values : ndarray, (kv_heads, stored, value_dim), read-only
            A view as well.

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
        >>> x = np.ones((2, 1, 3, 4), np.float32)
        >>> cache = hw.KVCache(2, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x, lengths=[3, 1])
        >>> [cache.entry(i)[0].shape for i in range(2)]
        [(1, 3, 4), (1, 1, 4)]
        """
        i = check_int(index, "index", 0, self.batch_size - 1)
        keys, values = self._rows.shown(i, self._kept(i))
        return _read_only(keys), _read_only(values)

    def positions(self, new: int = 1) -> Array:
        """The positions of the next rows, as rotary embedding takes them.

        Parameters
        ----------
        new : int
            The number of rows.

        Returns
        -------
        ndarray of int64, (new,), or (batch, new) if lengths differ

        Raises
        ------
        ValueError
            If `new` is negative.
        TypeError
            If `new` is not an integer.

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

    def truncate(self, length: ArrayLike) -> None:
        """Remove the latest positions, such as rejected tokens of speculative decoding.

        Parameters
        ----------
        length : int or array_like of int, (batch,)
            The number of positions to keep, of all sequences or of each.

        Raises
        ------
        ValueError
            If a sequence is shorter than that, or if a ring has dropped keys that the next query would see. A ring can
            be truncated to 0, and to lengths at most 16, or an eighth of the capacity if that is more, below the
            maximum length that the sequence has had.
        TypeError
            If `length` does not consist of integers.

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
        with self._exclusive:
            rows = self._rows
            lengths = check_integers(length, "length", self.batch_size, scalar=True)
            for i, (kept, now) in enumerate(zip(lengths, rows.lengths, strict=True)):
                if not 0 <= kept <= now:
                    raise ValueError(f"length: {kept}, expected 0 to the length {now}{of(i, lengths)}")
                if 0 < kept < rows.min_length(i):
                    raise ValueError(
                        f"length: {kept}, but the ring has dropped keys that the next query would see, expected 0 or "
                        f"at least {rows.min_length(i)}{of(i, lengths)}"
                    )
            rows.truncate(lengths)

    def reset(self) -> None:
        """Remove all positions; the memory stays allocated.

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
        with self._exclusive:
            self._rows.truncate([0] * self.batch_size)

    def reorder(self, indices: ArrayLike) -> None:
        """Select sequences of the batch, as beam search does when it drops some beams and continues others twice.

        Parameters
        ----------
        indices : array_like of int, (batch,)
            Sequence ``i`` becomes a copy of the former sequence ``indices[i]``. Only sequences that change are copied.

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
        sources = check_integers(indices, "indices", self.batch_size)
        self._check_sources(sources)
        with self._exclusive:
            self._rows.reorder(sources)

    def copy(self) -> Self:
        """A cache with the same sequences, which shares no memory with this one: a fork.

        Returns
        -------
        KVCache
            A ring's copy has the same lengths, which include the positions that the ring has dropped.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((1, 1, 3, 4), np.float32)
        >>> cache = hw.KVCache(1, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x)
        >>> fork = cache.copy()
        >>> fork.append(x, x)
        >>> len(cache), len(fork)
        (3, 6)
        """
        return self.select(range(self.batch_size))

    def select(self, indices: ArrayLike) -> Self:
        """A cache whose sequence ``i`` is a copy of the sequence ``indices[i]`` of this one, with its positions.

        So a prompt is expanded to the beams of a search, and finished sequences are dropped. :meth:`reorder` changes
        the sequences of a cache in place instead, and copies only those that change.

        Parameters
        ----------
        indices : array_like of int, (new_batch,)
            May repeat, omit and reorder sequences.

        Returns
        -------
        KVCache
            Of ``batch_size`` new_batch; it shares no memory with this one.

        Raises
        ------
        ValueError
            If `indices` is not a vector of at least one index, or an index does not fit.
        TypeError
            If `indices` are not integers.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> x = np.ones((2, 1, 3, 4), np.float32)
        >>> cache = hw.KVCache(2, 1, capacity=8, head_dim=4)
        >>> cache.append(x, x, lengths=[3, 1])
        >>> cache.select([0, 0, 1]).lengths
        array([3, 3, 1])
        """
        self._exclusive.check()
        sources = check_integers(indices, "indices")
        self._check_sources(sources)
        state = self.__getstate__()
        lengths, *arrays = state["_rows"]
        picked = tuple([of_sequences[i] for i in sources] for of_sequences in (lengths, *arrays))
        kept = {"_kept": [state["_kept"][i] for i in sources]} if "_kept" in state else {}
        selected = type(self).__new__(type(self))
        selected.__setstate__({**state, **kept, "batch_size": len(sources), "_rows": picked})
        return selected

    def _check_sources(self, sources: list[int]) -> None:
        for source in sources:
            if not 0 <= source < self.batch_size:
                raise ValueError(f"indices: {source}, expected 0 to {self.batch_size - 1}")

    def __len__(self) -> int:
        return max(self._rows.lengths)

    def __bool__(self) -> bool:
        return True  # `if cache:` asks whether there is a cache, which may be empty

    def __repr__(self) -> str:
        shortest, longest = min(self._rows.lengths), max(self._rows.lengths)
        facts = [f"{name}={getattr(self, name)}" for name in ("batch_size", "num_kv_heads", "capacity", "head_dim")]
        facts += [f"value_dim={self.value_dim}"] if self.value_dim != self.head_dim else []
        facts += [f"value_from_key={self.value_from_key}"] if self.value_from_key else []
        facts += [str(self.dtype), *(["ring"] if self.ring else [])]
        facts += [f"keep_first={self.keep_first}"] if self.keep_first else []
        facts += [f"length={longest}" if shortest == longest else f"lengths={shortest}..{longest}"]
        return f"{type(self).__name__}({', '.join(facts)})"

    def __getstate__(self) -> dict[str, Any]:
        rows = self._rows
        stored = [slice(0, rows.end(i)) for i in range(self.batch_size)]
        state = {name: value for name, value in vars(self).items() if name not in ("_shape", "_exclusive")}
        kept = {} if rows.kept is None else {"_kept": [positions.copy() for positions in rows.kept]}
        return (
            state
            | kept
            | {"_rows": (rows.lengths, *([a[i, :, part] for i, part in enumerate(stored)] for a in rows.arrays))}
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        needed = {*CacheShape._fields, "_rows"} - CacheShape._field_defaults.keys()
        missing = needed - state.keys() if isinstance(state, dict) else {"dict"}
        if missing:
            raise ValueError(f"state: no {', '.join(sorted(missing))}, expected the state of a pickled KVCache")
        shape = check_shape(CacheShape._field_defaults | state)
        rows = CacheRows(shape)
        others = {name: value for name, value in state.items() if name != "_kept"}
        rows.restore(*check_stored(state["_rows"], shape, rows.slots, state.get("_kept")))
        vars(self).update(others, **shape._asdict())  # attributes of the types that __init__ gives them
        self._shape, self._rows, self._exclusive = shape, rows, Exclusive()

    def _kept(self, entry: int) -> slice | Array:
        """The slots of the rows that :attr:`keys` and :attr:`values` show of a sequence."""
        return self._rows.visible(entry, 1)

    def _stored(self, name: str) -> Array:
        rows = self._rows
        if not equal(rows.lengths):
            raise ValueError(
                f"{name}: the lengths differ, {_listed(rows.lengths)}; expected entry(i) to be used instead"
            )
        which = ("keys", "values").index(name)
        if equal(rows.offsets):
            return _read_only(rows.shown(slice(None), self._kept(0))[which])
        if not equal([rows.end(i) for i in range(self.batch_size)]) and not self.ring:
            raise ValueError(f"{name}: the numbers of rows that evict() has left differ; expected entry(i) instead")
        return _read_only(np.stack([rows.shown(i, self._kept(i))[which] for i in range(self.batch_size)]))


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths[:8])) + (", ..." if len(lengths) > 8 else "")


def _read_only(view: Array) -> Array:
    view.flags.writeable = False
    return view

"""The sizes of a :class:`headwise.KVCache`, and the checks of its methods' arguments against them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.int8 import INT8
from headwise._base.messages import shown
from headwise._base.scalars import check_flag, check_int, check_size
from headwise._kv_cache.storage import Part, activation_dtypes, encode, parts, storage_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


class CacheShape(NamedTuple):
    """The sizes, the dtype and the kind of a cache."""

    batch_size: int
    num_kv_heads: int
    capacity: int
    head_dim: int
    value_dim: int
    dtype: np.dtype[Any]
    ring: bool
    keep_first: int = 0
    value_from_key: tuple[int, int] | None = None

    def parts(self) -> list[Part]:
        return parts(self.head_dim, self.value_dim, self.dtype, self.value_from_key)


def check_shape(given: Mapping[str, Any]) -> CacheShape:
    """The checked arguments of :class:`headwise.KVCache`, by name."""
    slots, width = (check_size(given[name], name) for name in ("capacity", "head_dim"))
    is_ring, value_dim, value_from_key = check_flag(given["ring"], "ring"), given["value_dim"], given["value_from_key"]
    columns = None if value_from_key is None else _check_columns(value_from_key, width)
    default = width if columns is None else columns[1] - columns[0]
    values = default if value_dim is None else check_size(value_dim, "value_dim")
    if columns is not None and values != default:
        raise ValueError(f"value_dim: {values}, expected {default}, the columns of value_from_key, or None")
    first = check_int(given["keep_first"], "keep_first", 0)
    if first and not is_ring:
        raise ValueError(f"keep_first: {first}, expected 0 without ring=True, as no row is dropped")
    if first >= slots:
        raise ValueError(f"keep_first: {first}, expected less than the capacity {slots}, which includes these rows")
    return CacheShape(
        check_size(given["batch_size"], "batch_size"),
        check_size(given["num_kv_heads"], "num_kv_heads"),
        slots,
        width,
        values,
        storage_dtype(given["dtype"]),
        is_ring,
        first,
        columns,
    )


def _check_columns(value_from_key: object, head_dim: int) -> tuple[int, int]:
    if not isinstance(value_from_key, (tuple, list)) or len(value_from_key) != 2:
        raise TypeError(f"value_from_key: {shown(value_from_key)}, expected a pair (start, stop)")
    start, stop = (check_int(column, "value_from_key", 0, head_dim) for column in tuple(value_from_key))
    if start >= stop:
        raise ValueError(f"value_from_key: ({start}, {stop}), expected start < stop")
    return start, stop


def check_stored(
    state: object, shape: CacheShape, slots: int, kept: object = None
) -> tuple[list[int], list[list[Array]], list[Array] | None]:
    """The lengths, rows and kept positions of a pickled cache, checked: the file may be damaged, or from a stranger."""
    expected = shape.parts()
    if not isinstance(state, tuple) or len(state) != 1 + len(expected):
        *names, last = ("lengths", *(part.name for part in expected))
        raise ValueError(f"state: {shown(state)}, expected {', '.join(names)} and {last}")
    lengths = check_integers(state[0], "state: lengths", shape.batch_size)
    for (name, width, dtype), arrays in zip(expected, state[1:], strict=True):
        if not isinstance(arrays, list) or len(arrays) != shape.batch_size:
            raise ValueError(f"state: {name}: {type(arrays).__name__}, expected a list of {shape.batch_size} arrays")
        for i, (a, length) in enumerate(zip(arrays, lengths, strict=True)):
            if not isinstance(a, np.ndarray) or a.dtype != dtype:
                found = getattr(a, "dtype", type(a).__name__)
                raise ValueError(f"state: {name}[{i}]: {found}, expected an array of {dtype}")
            # A ring that has dropped rows still has all that the next query sees.
            least = min(length, shape.capacity - 1) if shape.ring else length if kept is None else 0
            rows = a.shape[1] if a.ndim == 3 else -1
            if a.shape != (shape.num_kv_heads, rows, width) or not least <= rows <= min(length, slots):
                raise ValueError(
                    f"state: {name}[{i}]: shape {a.shape}, expected ({shape.num_kv_heads}, rows, {width}) with {least} "
                    f"to {min(length, slots)} rows for the length {length}"
                )
    for part, arrays in zip(expected[1:], state[2:], strict=True):
        for i, (key, rows) in enumerate(zip(state[1], arrays, strict=True)):
            if key.shape[1] != rows.shape[1]:
                raise ValueError(
                    f"state: {part.name}[{i}]: {rows.shape[1]} rows, expected the {key.shape[1]} of the keys"
                )
    return lengths, list(state[1:]), None if kept is None else _check_kept(kept, lengths, state[1], ring=shape.ring)


def _check_kept(kept: object, lengths: list[int], keys: list[Array], *, ring: bool) -> list[Array]:
    """The positions of the first rows of each sequence, after an eviction, checked as those of a pickled cache."""
    if ring or not isinstance(kept, list) or len(kept) != len(lengths):
        raise ValueError(f"state: kept: {shown(kept)}, expected one array for each sequence of a cache without a ring")
    checked = []
    for i, (positions, length, rows) in enumerate(zip(kept, lengths, keys, strict=True)):
        a = np.array(positions)
        fits = a.ndim == 1 and a.dtype == np.int64 and len(a) <= rows.shape[1]
        if fits and a.size:  # behind the first rows, each of the positions up to the length has a row
            fits = a[0] >= 0 and (np.diff(a) > 0).all() and a[-1] < length - rows.shape[1] + len(a)
        if not fits:
            raise ValueError(f"state: kept[{i}]: {shown(positions)}, expected increasing positions of the first rows")
        checked.append(a)
    return checked


def check_scores(scores: ArrayLike, rows: Sequence[int]) -> Array:
    """``scores``, (batch, stored), in float64: one for each of the ``rows[i]`` rows of each sequence, and padding."""
    a = as_array(scores, "scores")
    check_dtype(a.dtype, "scores")
    expected = (len(rows), max(rows))
    if a.shape != expected:
        by_head = "; sum or average the heads first" if a.ndim == 3 else ""
        raise ValueError(
            f"scores: shape {a.shape}, expected one for each stored row of each sequence, {expected}{by_head}"
        )
    wide = a.astype(np.float64)
    for i, count in enumerate(rows):
        missing = np.isnan(wide[i, :count])
        if missing.any():
            raise ValueError(f"scores: NaN for row {int(missing.argmax())}{of(i, rows)}, expected numbers to compare")
    return wide


def check_query(query: ArrayLike, shape: CacheShape) -> Array:
    """``query``, checked: (batch, heads, new, head_dim)."""
    q = _check_rows(query, "query", shape.head_dim, shape)
    if q.shape[1] % shape.num_kv_heads or not q.shape[1]:
        raise ValueError(
            f"query: shape {q.shape}: {q.shape[1]} heads, expected a number divisible by num_kv_heads = "
            f"{shape.num_kv_heads}"
        )
    return q


def check_new(key: ArrayLike, value: ArrayLike | None, shape: CacheShape) -> list[Array]:
    """``key``, (batch, kv_heads, new, head_dim), and, unless values are columns of keys, ``value``, (batch, kv_heads,
    new, value_dim), checked and encoded as the cache stores them."""
    new = [_check_rows(key, "key", shape.head_dim, shape)]
    if shape.value_from_key is None:
        new.append(_check_rows(value, "value", shape.value_dim, shape))
    elif value is not None:
        start, stop = shape.value_from_key
        raise ValueError(f"value: given, expected None: values are columns {start} to {stop - 1} of key")
    for name, a in zip(("key", "value"), new, strict=False):
        if a.shape[1] != shape.num_kv_heads:
            raise ValueError(f"{name}: shape {a.shape}: {a.shape[1]} heads, expected {shape.num_kv_heads}")
    k, v = new[0], new[-1]
    if v.shape[2] != k.shape[2]:
        raise ValueError(f"value: shape {v.shape} does not match key {k.shape}: {v.shape[2]} rows for {k.shape[2]}")
    return encode(new, shape.dtype, shape.value_from_key)


def check_free(counts: Sequence[int], stored: Sequence[int], capacity: int) -> None:
    """ValueError if a cache that is no ring has no room for ``counts[i]`` rows beside the ``stored[i]`` there are."""
    for i, (rows, count) in enumerate(zip(stored, counts, strict=True)):
        if rows + count > capacity:
            raise ValueError(
                f"key: {count} new rows, but {rows} stored rows{of(i, counts)} leave only {capacity - rows} of the "
                f"capacity {capacity}; truncate or reset the cache, or create it larger or with ring=True"
            )


def check_counts(lengths: ArrayLike | None, new: int, batch_size: int) -> list[int]:
    """The number of rows that count for each sequence, of ``new``; all of them by default."""
    if lengths is None:
        return [new] * batch_size
    counts = check_integers(lengths, "lengths", batch_size)
    for count in counts:
        if not 0 <= count <= new:
            raise ValueError(f"lengths: {count}, expected 0 to {new}, the number of new rows")
    return counts


def check_integers(x: ArrayLike, name: str, batch_size: int | None = None, *, scalar: bool = False) -> list[int]:
    """One integer for each sequence, or at least one if ``batch_size`` is None.

    With ``scalar``, a single integer stands for all sequences.
    """
    a = as_array(x, name)
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{name}: dtype {a.dtype}, expected integers")
    if scalar and a.ndim == 0 and batch_size is not None:
        return [int(a)] * batch_size
    if batch_size is None and (a.ndim != 1 or a.size == 0):
        raise ValueError(f"{name}: shape {a.shape}, expected (new_batch,), one index or more")
    if batch_size is not None and a.shape != (batch_size,):
        raise ValueError(f"{name}: shape {a.shape}, expected one for each sequence, ({batch_size},)")
    return [int(n) for n in a]


def of(entry: int, batch: Sequence[object]) -> str:
    """The sequence that an error message is about, if there are several."""
    return f" of sequence {entry}" if len(batch) > 1 else ""


def _check_rows(x: ArrayLike | None, name: str, width: int, shape: CacheShape) -> Array:
    a = as_array(x, name)
    if a.dtype != shape.dtype or shape.dtype == INT8:
        allowed = activation_dtypes(shape.dtype)
        if a.dtype.newbyteorder("=") not in allowed:
            words, own = " or ".join(map(str, allowed)), allowed == (shape.dtype,)
            of_cache = "the dtype of the cache" if own else f"for a cache of {shape.dtype}"
            raise TypeError(f"{name}: dtype {a.dtype}, expected {words}, {of_cache}")
    if a.ndim != 4 or a.shape[0] != shape.batch_size or a.shape[3] != width:
        heads = "heads" if name == "query" else shape.num_kv_heads
        raise ValueError(f"{name}: shape {a.shape}, expected ({shape.batch_size}, {heads}, new, {width})")
    return a

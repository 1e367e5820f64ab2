"""The sizes of a :class:`headwise.KVCache`, and the checks of its methods' arguments against them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.layer import parameter_dtype
from headwise._base.messages import shown
from headwise._base.scalars import check_flag, check_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike

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


def check_shape(
    batch_size: object,
    num_kv_heads: object,
    capacity: object,
    head_dim: object,
    value_dim: object,
    dtype: DTypeLike,
    ring: object,
) -> CacheShape:
    return CacheShape(
        check_size(batch_size, "batch_size"),
        check_size(num_kv_heads, "num_kv_heads"),
        check_size(capacity, "capacity"),
        check_size(head_dim, "head_dim"),
        check_size(value_dim, "value_dim"),
        parameter_dtype(dtype).newbyteorder("="),
        check_flag(ring, "ring"),
    )


def check_stored(state: object, shape: CacheShape, slots: int) -> tuple[list[int], list[Array], list[Array]]:
    """The lengths, keys and values of a pickled cache, checked: the file may be damaged, or from a stranger."""
    if not isinstance(state, tuple) or len(state) != 3:
        raise ValueError(f"state: {shown(state)}, expected lengths, keys and values")
    lengths = check_integers(state[0], "state: lengths", shape.batch_size)
    for name, arrays, width in (("keys", state[1], shape.head_dim), ("values", state[2], shape.value_dim)):
        if not isinstance(arrays, list) or len(arrays) != shape.batch_size:
            raise ValueError(f"state: {name}: {type(arrays).__name__}, expected a list of {shape.batch_size} arrays")
        for i, (a, length) in enumerate(zip(arrays, lengths, strict=True)):
            if not isinstance(a, np.ndarray) or a.dtype != shape.dtype:
                found = getattr(a, "dtype", type(a).__name__)
                raise ValueError(f"state: {name}[{i}]: {found}, expected an array of {shape.dtype}")
            # A ring that has dropped rows still has all that the next query sees.
            least = min(length, shape.capacity - 1) if shape.ring else length
            rows = a.shape[1] if a.ndim == 3 else -1
            if a.shape != (shape.num_kv_heads, rows, width) or not least <= rows <= min(length, slots):
                raise ValueError(
                    f"state: {name}[{i}]: shape {a.shape}, expected ({shape.num_kv_heads}, rows, {width}) with {least} "
                    f"to {min(length, slots)} rows for the length {length}"
                )
    for i, (key, value) in enumerate(zip(state[1], state[2], strict=True)):
        if key.shape[1] != value.shape[1]:
            raise ValueError(f"state: values[{i}]: {value.shape[1]} rows, expected the {key.shape[1]} of the keys")
    return lengths, state[1], state[2]


def check_query(query: ArrayLike, shape: CacheShape) -> Array:
    """``query``, checked: (batch, heads, new, head_dim)."""
    q = _check_rows(query, "query", shape.head_dim, shape)
    if q.shape[1] % shape.num_kv_heads or not q.shape[1]:
        raise ValueError(
            f"query: shape {q.shape}: {q.shape[1]} heads, expected a number divisible by num_kv_heads = "
            f"{shape.num_kv_heads}"
        )
    return q


def check_key_value(key: ArrayLike, value: ArrayLike, shape: CacheShape) -> tuple[Array, Array]:
    """``key`` and ``value``, checked: (batch, kv_heads, new, head_dim) and (batch, kv_heads, new, value_dim)."""
    k = _check_rows(key, "key", shape.head_dim, shape)
    v = _check_rows(value, "value", shape.value_dim, shape)
    for name, a in (("key", k), ("value", v)):
        if a.shape[1] != shape.num_kv_heads:
            raise ValueError(f"{name}: shape {a.shape}: {a.shape[1]} heads, expected {shape.num_kv_heads}")
    if v.shape[2] != k.shape[2]:
        raise ValueError(f"value: shape {v.shape} does not match key {k.shape}: {v.shape[2]} rows for {k.shape[2]}")
    return k, v


def check_free(counts: Sequence[int], lengths: Sequence[int], capacity: int) -> None:
    """ValueError if a cache that is no ring has no room for ``counts[i]`` rows behind the ``lengths[i]`` there are."""
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if length + count > capacity:
            raise ValueError(
                f"key: {count} new rows, but the length {length}{of(i, counts)} leaves only {capacity - length} of the "
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


def check_integers(x: ArrayLike, name: str, batch_size: int, *, scalar: bool = False) -> list[int]:
    """One integer for each sequence. With ``scalar``, a single integer stands for all sequences."""
    a = as_array(x, name)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: dtype {a.dtype}, expected integers")
    if scalar and a.ndim == 0:
        return [int(a)] * batch_size
    if a.shape != (batch_size,):
        raise ValueError(f"{name}: shape {a.shape}, expected one for each sequence, ({batch_size},)")
    return [int(n) for n in a]


def of(entry: int, batch: Sequence[object]) -> str:
    """The sequence that an error message is about, if there are several."""
    return f" of sequence {entry}" if len(batch) > 1 else ""


def _check_rows(x: ArrayLike, name: str, width: int, shape: CacheShape) -> Array:
    a = as_array(x, name)
    if a.dtype != shape.dtype and a.dtype.newbyteorder("=") != shape.dtype:
        raise TypeError(f"{name}: dtype {a.dtype}, expected {shape.dtype}, the dtype of the cache")
    if a.ndim != 4 or a.shape[0] != shape.batch_size or a.shape[3] != width:
        heads = "heads" if name == "query" else shape.num_kv_heads
        raise ValueError(f"{name}: shape {a.shape}, expected ({shape.batch_size}, {heads}, new, {width})")
    return a

"""The mask functions of ``BlockMask``'s builders, and what they check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, is_real
from headwise._base.blocks import ALL, NONE
from headwise._base.scalars import check_int, check_size
from headwise._block_mask.intervals import look_up
from headwise._ops.attention.spec import check_window, is_lower_right

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array
    from headwise._block_mask.evaluate import MaskMod
    from headwise._block_mask.grid import Grid


def offset(alignment: str, query_len: int, key_len: int) -> int:
    """The position of query 0 among the keys."""
    lengths = check_size(query_len, "query_len"), check_size(key_len, "key_len")
    return lengths[1] - lengths[0] if is_lower_right(alignment) else 0


def window(window_size: object, reach: int, position: int) -> MaskMod:
    left, right = check_window(window_size, reach)
    left, right = (reach if side < 0 else side for side in (left, right))
    return lambda _, __, q, k: (k >= q + (position - left)) & (k <= q + (position + right))


def _integers(x: ArrayLike, name: str) -> Array:
    """A copy of ``x`` as int64: nothing changes it between the checks and the use."""
    a = as_array(x, name)
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{name}: dtype {a.dtype}, expected integers")
    return np.array(a, np.int64)


def check_ids(x: ArrayLike, name: str) -> Array:
    ids = _integers(x, name)
    if ids.ndim not in (1, 2) or ids.size == 0:
        raise ValueError(f"{name}: shape {ids.shape}, expected the document of each token, (seq,) or (batch, seq)")
    return ids


def documents(queries: Array, keys: Array) -> MaskMod:
    def same(b: Any, _: Any, q: Any, k: Any) -> Any:
        return _by_entry(queries, b, q) == _by_entry(keys, b, k)

    return same


def _by_entry(ids: Array, b: Array, at: Any) -> Any:
    """The ids of the tokens ``at`` in each batch entry."""
    if ids.ndim == 1:
        return look_up(ids, at)
    if isinstance(at, np.ndarray):
        return ids[b, at]
    found = [look_up(row, at) for row in ids[b.ravel()]]
    return type(found[0])(np.concatenate([x.low for x in found]), np.concatenate([x.high for x in found]))


def prefix(lengths: ArrayLike) -> tuple[MaskMod, int]:
    """The mask function, and the number of batch entries; 0: one for all."""
    n = _integers(lengths, "prefix")
    if n.ndim > 1 or n.size == 0:
        raise ValueError(f"prefix: shape {n.shape}, expected an integer, or one for each sequence, (batch,)")
    if n.min() < 0:
        raise ValueError(f"prefix: {n.min()}, expected at least 0")
    if n.ndim == 0:
        return lambda _, __, q, k: (k < n) | (k <= q), 0
    return lambda b, _, q, k: (k < n[b]) | (k <= q), len(n)


def global_tokens(tokens: ArrayLike, query_len: int, key_len: int) -> MaskMod:
    positions = _integers(tokens, "tokens")
    longest = max(query_len, key_len)
    if positions.ndim == 0:
        positions = np.arange(check_int(int(positions), "tokens", 0, longest))
    if positions.ndim != 1:
        raise ValueError(f"tokens: shape {positions.shape}, expected positions, (n,), or an integer")
    if positions.size and not 0 <= positions.min() <= positions.max() < longest:
        wrong = positions.min() if positions.min() < 0 else positions.max()
        raise ValueError(f"tokens: position {wrong}, expected 0 to {longest - 1}")
    is_global = np.zeros(longest, bool)
    is_global[positions] = True
    queries, keys = is_global[:query_len], is_global[:key_len]
    return lambda _, __, q, k: look_up(queries, q) | look_up(keys, k)


def top_k(scores: Array, k: int, grid: Grid) -> Array:
    """The index of blocks that keeps the ``k`` with the highest scores of each row."""
    if not is_real(scores.dtype):
        raise TypeError(f"scores: dtype {scores.dtype}, expected real numbers")
    if scores.shape != grid.blocks:
        raise ValueError(
            f"scores: shape {scores.shape[2:]} of blocks, expected {grid.blocks[2:]} for lengths "
            f"{(grid.query_len, grid.key_len)} and block_size {(grid.query_size, grid.key_size)}"
        )
    x = scores.astype(np.float64)
    if np.isnan(x).any():
        raise ValueError("scores: NaN, expected numbers that have an order")
    order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    index = np.full(grid.blocks, NONE, np.int32)
    np.put_along_axis(index, order, np.int32(ALL), axis=-1)
    index[np.isneginf(x)] = NONE
    return index

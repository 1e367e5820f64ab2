"""The NumPy backend: the functions of :class:`headwise._backend.Backend`.

Everything is done in blocks that stay in cache: attention never holds more than a block of its scores, and of halves
(float16 and bfloat16) no more than a block is held as float32. Entries that overflow or turn into NaN do so by IEEE
rules and without warnings, as in the native core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Entries of a block: temporaries of half a MB in float32, so that a few of them stay in a second-level cache.
_BLOCK = 1 << 17

_threads = 1


# --- along an axis ---


def softmax(x: Array, out: Array) -> None:
    for o, p in _lanes(x):
        _in_float(_softmax, x[o, :, p], out[o, :, p])


def log_softmax(x: Array, out: Array) -> None:
    for o, p in _lanes(x):
        _in_float(_log_softmax, x[o, :, p], out[o, :, p])


def logsumexp(x: Array, out: Array) -> None:
    for o, p in _lanes(x):
        _in_float(_logsumexp, x[o, :, p], out[o, p])


def _softmax(x: Array, out: Array) -> None:
    np.subtract(x, x.max(axis=1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= _sum(out)


def _log_softmax(x: Array, out: Array) -> None:
    shifted = x - x.max(axis=1, keepdims=True)
    np.subtract(shifted, np.log(_sum(np.exp(shifted))), out=out)


def _logsumexp(x: Array, out: Array) -> None:
    peak = x.max(axis=1, keepdims=True)
    # An infinite peak is the result by itself; inf - inf would make it NaN.
    peak[np.isinf(peak)] = 0
    out[...] = (np.log(_sum(np.exp(x - peak))) + peak)[:, 0]


def _in_float(function: Callable[[Array, Array], None], x: Array, out: Array) -> None:
    """``function(x, out)`` of a block; halves are computed in float32 and rounded once."""
    with np.errstate(all="ignore"):
        if x.dtype.itemsize > 2:
            function(x, out)
            return
        result = np.empty(out.shape, np.float32)
        function(x.astype(np.float32), result)
        out[...] = result


def _sum(x: Array) -> Array:
    # NumPy sums pairwise only along a contiguous axis; elsewhere the rounding of float32 would grow with its length.
    total: Array = x.sum(axis=1, keepdims=True, dtype=x.dtype if x.shape[2] == 1 else np.float64)
    return total.astype(x.dtype, copy=False)


def _lanes(x: Array) -> Iterator[tuple[slice, slice]]:
    """Slices of the first and of the last axis: about a block of entries each; of long lanes that are no halves a cache
    line and more at once, which is several times as fast as one."""
    _, n, inner = x.shape
    columns = max(1 if x.dtype.itemsize == 2 else 64, _BLOCK // max(1, n))
    for rows in _parts(x):
        for start in range(0, inner, columns):
            yield rows, slice(start, start + columns)


def _parts(x: Array) -> Iterator[slice]:
    """Slices of the first axis with about a block of entries each."""
    step = max(1, _BLOCK * len(x) // max(1, x.size))
    for start in range(0, len(x), step):
        yield slice(start, start + step)


# --- attention ---


def attention(
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    keep: Sequence[Array],
    bias: Sequence[Array],
    drop: Array | None,
    slopes: Array | None,
    sinks: Array | None,
    scale: float,
    softcap: float,
    left: int,
    right: int,
    offset: int,
    drop_scale: float,
    precision: str,
) -> None:
    """Block by block: some batches and heads, some rows of queries, and all the keys that these rows can see.

    Heads that share a key head are put below each other, (group, rows) -> group * rows, so that each block is one
    matrix product for each key head.
    """
    batch, heads, query_len, head_dim = query.shape
    kv_heads, key_len = key.shape[1:3]
    value_dim = value.shape[3]
    group = heads // kv_heads
    half = query.dtype.itemsize == 2
    dtype = np.dtype(np.float32) if half else query.dtype
    width = max(head_dim, value_dim) if half else 0
    scores_shape = (batch, heads, query_len, key_len)
    keep, bias = ([np.broadcast_to(mask, scores_shape) for mask in masks] for masks in (keep, bias))

    with np.errstate(all="ignore"):
        for b, g, r in _blocks(batch, kv_heads, group, query_len, key_len, width):
            h = slice(g.start * group, g.stop * group)
            first = offset + r.start  # the position of the block's first query among the keys
            rows = r.stop - r.start
            start = max(0, first - left) if left >= 0 else 0
            stop = min(key_len, first + rows + right) if right >= 0 else key_len
            k = slice(start, max(start, stop))
            four = (b.stop - b.start, h.stop - h.start, rows, k.stop - k.start)
            stacked = (four[0], g.stop - g.start, group * rows)
            pieces = list(_pieces(k, stacked[0] * stacked[1] * width))

            scaled = np.empty((*four[:3], head_dim), dtype)
            np.multiply(query[b, h, r].astype(dtype, copy=False), scale, out=scaled)
            scores = np.empty(four, dtype)
            to = scores.reshape((*stacked, four[3]))
            for part, keys in pieces:
                transposed = key[b, g, keys].astype(dtype, copy=False).swapaxes(2, 3)
                np.matmul(scaled.reshape((*stacked, head_dim)), transposed, out=to[..., part])
            if softcap:
                scores /= softcap
                np.tanh(scores, out=scores)
                scores *= softcap
            added = [_small(view[b, h, r, k]).astype(dtype, copy=False) for view in bias]
            for term in added:
                scores += term
            if slopes is not None:
                scores -= slopes[h, None, None] * _distance(first, rows, k.start, four[3], dtype)
            # Only now, and by selection: whatever a dropped score has become, it ends as -inf.
            for term in added:
                np.copyto(scores, -np.inf, where=np.isneginf(term))
            for kept in keep:
                np.copyto(scores, -np.inf, where=~_small(kept[b, h, r, k]))
            _drop_outside(scores, first - k.start, left, right)

            peak = scores.max(axis=3, keepdims=True, initial=-np.inf)
            if sinks is not None:
                np.maximum(peak, sinks[h, None, None], out=peak)
            peak[np.isneginf(peak)] = 0  # nothing to see: exp(-inf - 0) makes the weights 0
            scores -= peak
            np.exp(scores, out=scores)
            total = scores.sum(axis=3, keepdims=True)
            if sinks is not None:
                total += np.exp(sinks[h, None, None] - peak)
            if lse is not None:
                lse[b, h, r] = (np.log(total) + peak)[..., 0]
            total[total == 0] = 1
            if weights is not None:
                # NaN where the row is: which keys the block has met must not show.
                weights[b, h, r, : k.start] = weights[b, h, r, k.stop :] = 0 * total
                np.divide(scores, total, out=weights[b, h, r, k], casting="unsafe")  # to halves, too
            if drop is not None:
                scores *= drop[b, h, r, k]
                total /= drop_scale
            average = reduce(
                np.add,
                (_weighted_sum(to[..., part], value[b, g, keys].astype(dtype, copy=False)) for part, keys in pieces),
            )
            average /= total.reshape((*stacked, 1))
            output[b, h, r] = average.reshape((*four[:3], value_dim))


def attention_varlen(
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array | None,
    query_starts: Array,
    query_lengths: Array,
    key_starts: Array,
    key_lengths: Array,
    offsets: Array,
    slopes: Array | None,
    sinks: Array | None,
    scale: float,
    softcap: float,
    left: int,
    right: int,
    precision: str,
) -> None:
    vectors = (query_starts, query_lengths, key_starts, key_lengths, offsets)
    for start, rows, first_key, keys, offset in zip(*(vector.tolist() for vector in vectors), strict=True):
        r, k = np.s_[None, :, start : start + rows], np.s_[None, :, first_key : first_key + keys]
        part_lse = None if lse is None else lse[r]
        if keys == 0:
            output[r] = 0
            if part_lse is not None:
                part_lse[...] = -np.inf if sinks is None else sinks[:, None]
        elif rows > 0 and len(query) > 0:
            attention(
                query[r], key[k], value[k], output[r], None, part_lse, (), (), None, slopes, sinks, scale, softcap,
                left, right, offset, 1.0, precision,
            )  # fmt: skip


def _blocks(
    batch: int, kv_heads: int, group: int, query_len: int, key_len: int, width: int
) -> Iterator[tuple[slice, slice, slice]]:
    """(batches, key heads, rows) of blocks of about ``_BLOCK`` scores: rows of one head first, and more heads only
    where all rows of one are not enough, because few rows leave more keys to skip under a causal mask or a window.
    Nor are there more than that of queries, keys or values that are widened, ``width`` entries each."""
    rows = min(query_len, max(1, _BLOCK // (group * max(key_len, width))))
    for b, g in _tiles(batch, kv_heads, max(group * rows * max(key_len, width), key_len * width)):
        for r in range(0, query_len, rows):
            yield b, g, slice(r, min(r + rows, query_len))


def _tiles(batch: int, heads: int, size: int) -> Iterator[tuple[slice, slice]]:
    """(batches, heads) that together have about ``_BLOCK`` entries, with ``size`` for each head of each batch."""
    fit = max(1, _BLOCK // max(1, size))
    for b in range(0, batch, max(1, fit // heads)):
        for h in range(0, heads, fit):
            yield slice(b, min(b + max(1, fit // heads), batch)), slice(h, min(h + fit, heads))


def _pieces(keys: slice, size: int) -> Iterator[tuple[slice, slice]]:
    """Parts of ``keys`` of about ``_BLOCK`` entries, ``size`` for each key, behind where they are among these keys. One
    part, be it empty, where ``size`` is 0."""
    step = max(1, _BLOCK // size if size else keys.stop - keys.start)
    for start in range(keys.start, max(keys.start + 1, keys.stop), step):
        stop = min(start + step, keys.stop)
        yield slice(start - keys.start, stop - keys.start), slice(start, stop)


def _small(a: Array) -> Array:
    """One entry along each broadcast axis."""
    return a[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in a.strides)]


def _distance(first: int, rows: int, start: int, keys: int, dtype: np.dtype[Any]) -> Array:
    """``abs(i - j)`` for queries at positions from ``first`` and keys from ``start``."""
    steps: Array = np.arange(first - start, first - start + rows)[:, None] - np.arange(keys)
    return np.abs(steps).astype(dtype)


def _drop_outside(scores: Array, first: int, left: int, right: int) -> None:
    """-inf where key ``j`` is outside ``[i - left, i + right]`` for the queries ``i`` from ``first``, touching only the
    columns in which some row ends."""
    rows, keys = scores.shape[2:]
    i = np.arange(first, first + rows)[:, None]
    if right >= 0:
        begin = max(0, first + right + 1)
        np.copyto(scores[..., begin:], -np.inf, where=np.arange(begin, max(begin, keys)) > i + right)
    if left >= 0:
        end = min(keys, max(0, first + rows - 1 - left))
        np.copyto(scores[..., :end], -np.inf, where=np.arange(end) < i - left)


def _weighted_sum(weights: Array, value: Array) -> Array:
    """``weights @ value``, where a weight of 0 makes nothing of whatever value it meets.

    By IEEE rules 0 * inf and 0 * NaN are NaN, so such a value shows in every row of the product. Then, and only then,
    the finite values are summed alone, and each kind of the others is added where a weight is not 0.
    """
    product: Array = np.matmul(weights, value)
    if np.isfinite(product).all():
        return product
    finite = np.isfinite(value)
    if finite.all():
        return product
    product = np.matmul(weights, np.where(finite, value, 0))
    met = (weights != 0).astype(weights.dtype)
    for special in (np.inf, -np.inf, np.nan):
        where = np.isnan(value) if np.isnan(special) else value == special
        if where.any():
            product += np.where(np.matmul(met, where.astype(weights.dtype)) != 0, special, 0).astype(weights.dtype)
    return product


# --- positions ---


def apply_rope(x: Array, cos: Array, sin: Array, out: Array, interleaved: bool) -> None:
    batch, heads, seq, dim = x.shape
    first = slice(0, None, 2) if interleaved else slice(0, dim // 2)
    second = slice(1, None, 2) if interleaved else slice(dim // 2, None)
    cos, sin = (np.broadcast_to(table, (batch, heads, seq, dim // 2)) for table in (cos, sin))
    rows = max(1, min(seq, _BLOCK // dim))
    for start in range(0, seq, rows):
        for tile in _tiles(batch, heads, rows * dim):
            where = (*tile, slice(start, start + rows))
            c, s = cos[where], sin[where]

            def rotate(x: Array, out: Array, c: Array = c, s: Array = s) -> None:
                a, b = x[..., first], x[..., second]
                # Both halves before either is written: `out` may be `x`.
                out[..., first], out[..., second] = a * c - b * s, b * c + a * s

            _in_float(rotate, x[where], out[where])


def add_alibi(scores: Array, slopes: Array, offset: int, out: Array) -> None:
    batch, heads, query_len, key_len = scores.shape
    rows = max(1, min(query_len, _BLOCK // max(1, key_len)))
    for start in range(0, query_len, rows):
        distance = _distance(offset + start, min(rows, query_len - start), 0, key_len, slopes.dtype)
        for b, h in _tiles(batch, heads, rows * key_len):
            bias = slopes[h, None, None] * distance

            def subtract(scores: Array, out: Array, bias: Array = bias) -> None:
                np.subtract(scores, bias, out=out)

            where = b, h, slice(start, start + rows)
            _in_float(subtract, scores[where], out[where])


# --- what stands around attention ---


def linear(x: Array, weight: Array, bias: Array | None, out: Array, precision: str) -> None:
    inner, columns = weight.shape
    # The whole at once, or blocks that are widened; those of rows again for each of columns.
    width = max(256, _BLOCK // inner) if x.dtype.itemsize == 2 else max(1, columns)
    for start in range(0, columns, width):
        c = slice(start, start + width)
        w = weight[:, c].astype(np.float32) if x.dtype.itemsize == 2 else weight[:, c]

        def multiply(x: Array, out: Array, w: Array = w, c: slice = c) -> None:
            np.matmul(x, w, out=out)
            if bias is not None:
                out += bias[c]

        for rows in _parts(x) if x.dtype.itemsize == 2 else (slice(None),):
            _in_float(multiply, x[rows], out[rows, c])


def pack_linear(weight: Array, bias: Array | None, precision: str) -> Callable[[Array, Array], None]:
    return lambda x, out: linear(x, weight, bias, out, precision)


def layer_normalization(x: Array, gamma: Array, beta: Array, eps: float, out: Array) -> None:
    if x.dtype.itemsize == 2:
        gamma, beta = gamma.astype(np.float32), beta.astype(np.float32)

    def normalize(x: Array, out: Array) -> None:
        centred, variance = _deviations(x)
        spread = variance.astype(np.float64) + eps
        overflown = ~np.isfinite(variance[:, 0])
        if overflown.any():
            scale, least = (2.0**-100, 2.0**-240) if x.dtype == np.float32 else (2.0**-800, 2.0**-1020)
            centred[overflown], variance = _deviations(x[overflown] * x.dtype.type(scale))
            # Not to 0: it makes beta of a constant row.
            spread[overflown] = variance.astype(np.float64) + (max(eps * scale * scale, least) if eps else 0.0)
        centred /= np.sqrt(spread).astype(x.dtype)
        centred *= gamma
        np.add(centred, beta, out=out)

    for part in _parts(x):
        _in_float(normalize, x[part], out[part])


def _deviations(rows: Array) -> tuple[Array, Array]:
    """From the mean, and their variance. The mean is rounded, and rows far from 0 feel it: its error is taken off."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    centred -= centred.mean(axis=1, keepdims=True)
    return centred, np.square(centred).mean(axis=1, keepdims=True)


# --- configuration ---


def set_num_threads(n: int) -> None:
    global _threads
    _threads = n


def get_num_threads() -> int:
    return _threads


def set_target(name: str) -> None:
    if name != "numpy":
        raise ValueError(f"target: {name!r}, expected one of those available: numpy")


def get_target() -> str:
    return "numpy"


def list_targets() -> list[str]:
    return ["numpy"]

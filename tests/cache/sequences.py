"""Sequences, and their results with and without a cache, for the tests of the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import headwise as hw
import oracle
from calls import Sizes, numbers
from operations import OPTIONS
from support import bf16_split_atol, dtype_named, normal

BATCH, HEADS, KV_HEADS, LENGTH, DIM, VALUE_DIM = 2, 4, 2, 53, 12, 7

KEYWORDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.4},
    "window": {"window_size": 9},
    "window-left": {"window_size": (20, -1)},
    "softcap": {"softcap": 1.3},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 1.5])},
    "sinks": {"sinks": np.array([0.5, -np.inf, 4.0, -1.0])},
    "bias": {"bias": normal((HEADS, LENGTH, LENGTH))},
    "keep-mask": {"mask": normal((BATCH, 1, LENGTH, LENGTH)) > -0.5},
    "relative_values": {"relative_values": normal((HEADS, 9, VALUE_DIM), 4)},
    "float-mask": {"mask": normal((LENGTH, LENGTH))},
}

# Options of attention in the table that the cases above do not have.
_SIZES = Sizes((BATCH, HEADS), KV_HEADS, LENGTH, LENGTH, DIM, VALUE_DIM)
_COVERED = {"is_causal", "causal_alignment"}.union(*KEYWORDS.values())
KEYWORDS |= {
    name: {**option.needs, name: option.value(_SIZES, numbers)}
    for name, option in OPTIONS.items()
    if option.varlen and option.exact and name not in _COVERED
}
KEYWORDS["all"] = {name: value for these in KEYWORDS.values() for name, value in these.items() if name != "mask"}

KEYWORDS["all"]["mask"] = KEYWORDS["keep-mask"]["mask"]

CHUNKS = {
    "once": [LENGTH],
    "two": [30, 23],
    "prompt-and-tokens": [40, *[1] * 13],
    "tokens": [1] * LENGTH,
    "uneven": [1, 9, 0, 20, 3, 17, 3],
}

TOLERANCE = {"float32": 1e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 1e-2}

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def arrays(dtype: str = "float32", length: int = LENGTH, batch: int = BATCH, heads: int = HEADS) -> Arrays:
    query, key = normal((batch, heads, length, DIM), 1), normal((batch, KV_HEADS, length, DIM), 2)
    value = normal((batch, KV_HEADS, length, VALUE_DIM), 3)
    return tuple(a.astype(dtype_named(dtype)) for a in (query, key, value))  # type: ignore[return-value]


def make(
    dtype: str = "float32", capacity: int = LENGTH, batch: int = BATCH, ring: bool = False, keep_first: int = 0
) -> hw.KVCache:
    cache = hw.KVCache(
        batch, KV_HEADS, capacity, DIM,
        value_dim=VALUE_DIM, dtype=dtype_named(dtype), ring=ring, keep_first=keep_first,
    )  # fmt: skip
    for memory in cache._rows.arrays:
        memory.fill(99 if memory.dtype.kind in "iu" else np.nan)  # masked for every query
    return cache


def steps(chunks: Sequence[int]) -> Iterator[slice]:
    start = 0
    for chunk in chunks:
        yield slice(start, start + chunk)
        start += chunk


def of_step(keywords: dict[str, Any], rows: slice, columns: slice) -> dict[str, Any]:
    """The part of masks and biases over the whole sequence that belongs to the scores of one step."""
    parts = {"mask": (..., rows, columns), "bias": (..., rows, columns), "relative_bias": (..., rows, slice(None))}
    return {name: value[parts[name]] if name in parts else value for name, value in keywords.items()}


def split(cache: hw.KVCache, given: Arrays, chunks: Sequence[int], **keywords: Any) -> np.ndarray:
    """The outputs of all steps, concatenated."""
    outputs = []
    for rows in steps(chunks):
        first = max(0, rows.start - cache.capacity + 1) if cache.ring else 0
        parts = (a[:, :, rows] for a in given)
        outputs.append(cache.extend(*parts, **of_step(keywords, rows, slice(first, rows.stop))))
    return np.concatenate(outputs, axis=2)


def whole(given: Arrays, **keywords: Any) -> np.ndarray:
    return hw.flash_attention(*given, is_causal=True, **keywords)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    tolerance = TOLERANCE[actual.dtype.name]
    more = bf16_split_atol(actual.dtype.name) * 2
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(oracle.double(actual), oracle.double(expected), rtol=tolerance, atol=tolerance + more)

"""Hashes the results of several hundred calls, to show that a change alters no bit of them.

    python bench/bits.py > before.txt           # with the package as it was
    python bench/bits.py --compare before.txt   # with the package as it is

Every operation runs on each instruction set of the machine, or on the NumPy backend with HEADWISE_BACKEND=numpy, with
one thread and with two. The inputs are the same in every run. Results of the NumPy backend also depend on NumPy and
its BLAS, so both runs have to use the same versions on the same machine.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import headwise as hw

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, metavar="FILE", help="a file that this program wrote")
    args = parser.parse_args()
    lines = dict(hashes())
    if args.compare is None:
        print(*(f"{key}\t{value}" for key, value in lines.items()), sep="\n")
        return 0
    before = dict(line.split("\t") for line in args.compare.read_text().splitlines())
    differ = [key for key in sorted(before.keys() | lines.keys()) if before.get(key) != lines.get(key)]
    print(*differ, sep="\n", end="\n" if differ else "")
    print(f"{len(differ)} of {len(before.keys() | lines.keys())} differ")
    return bool(differ)


def hashes() -> Iterator[tuple[str, str]]:
    """The key and the hash of each call on each implementation."""
    implementations = ["numpy"] if hw.config()["backend"] == "numpy" else hw.list_targets()
    for implementation in implementations:
        if implementation != "numpy":
            hw.set_target(implementation)
        for name, call in calls():
            for threads in (1, 2):
                hw.set_num_threads(threads)
                yield f"{implementation}/{name}/{threads}", digest(call())


def digest(result: Any) -> str:
    found = hashlib.sha256()
    for array in result if isinstance(result, tuple | list) else (result,):
        if array is None:
            found.update(b"none")
            continue
        plain = np.ascontiguousarray(array)
        found.update(f"{plain.dtype.name}{plain.shape}".encode() + plain.view(np.uint8).tobytes())
    return found.hexdigest()[:16]


def calls() -> Iterator[tuple[str, Call]]:
    for dtype in (*map(np.dtype, ("float64", "float32", "float16")), *bfloat16()):
        yield from attention_calls(dtype)
        yield from other_calls(dtype)
        yield from layer_calls(dtype)


def bfloat16() -> list[np.dtype[Any]]:
    try:
        import ml_dtypes
    except ImportError:
        return []
    return [np.dtype(ml_dtypes.bfloat16)]


def draw(dtype: np.dtype[Any], *shape: int, seed: int = 0) -> Array:
    """Normally distributed numbers of variance 1."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


#: (batch, query heads, key heads, queries, keys, head_dim, value_dim)
SHAPES = [
    (1, 1, 1, 16, 16, 16, 16),
    (2, 4, 2, 37, 65, 24, 40),
    (1, 2, 2, 150, 300, 64, 64),
    (1, 2, 1, 300, 700, 64, 64),
    (1, 4, 4, 130, 257, 33, 17),
    (2, 4, 1, 1, 700, 64, 64),
    (1, 8, 2, 2, 1500, 128, 128),
    (1, 2, 2, 5, 0, 8, 8),
]


def keywords(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, dict[str, Any]]:
    """Options of attention, by the name in the key of the hash."""
    batch, heads, _, queries, keys, _, _ = shape
    rng = np.random.default_rng(7)
    mask = rng.random((queries, keys)) < 0.7
    padding = np.arange(keys) < rng.integers(0, keys + 1, (batch, 1))
    bias = draw(np.dtype(np.float32), heads, queries, keys, seed=5)
    slopes, sinks = hw.alibi_slopes(heads), draw(np.dtype(np.float64), heads, seed=6)
    dropped = np.where(rng.random((1, 1, queries, keys)) < 0.2, -np.inf, bias[:1])
    return {
        "plain": {},
        "causal": {"is_causal": True},
        "lower right": {"is_causal": True, "causal_alignment": "lower_right"},
        "window": {"window_size": (20, 3)},
        "causal window": {"is_causal": True, "window_size": 30, "causal_alignment": "lower_right"},
        "mask": {"mask": mask},
        "padding": {"key_padding_mask": padding},
        "bias": {"bias": bias},
        "bias of the dtype": {"bias": bias.astype(dtype)},
        "two biases": {"bias": dropped.astype(dtype), "mask": bias},
        "key bias": {"bias": bias[:, :1, :]},
        "softcap": {"softcap": 3.0},
        "alibi": {"alibi_slopes": slopes},
        "alibi and softcap": {"alibi_slopes": slopes, "softcap": 5.0, "is_causal": True},
        "sinks": {"sinks": sinks},
        "scale": {"scale": 0.3},
        "high": {"precision": "high"},
        "medium": {"precision": "medium"},
        "everything": {
            "mask": mask, "bias": bias, "is_causal": True, "causal_alignment": "lower_right", "window_size": 200,
            "softcap": 5.0, "alibi_slopes": slopes, "sinks": sinks, "key_padding_mask": padding,
        },
    }  # fmt: skip


def attention_calls(dtype: np.dtype[Any]) -> Iterator[tuple[str, Call]]:
    sdpa, flash = hw.scaled_dot_product_attention, hw.flash_attention
    for shape in SHAPES:
        batch, heads, kv_heads, queries, keys, head_dim, value_dim = shape
        query = draw(dtype, batch, heads, queries, head_dim)
        key = draw(dtype, batch, kv_heads, keys, head_dim, seed=1)
        value = draw(dtype, batch, kv_heads, keys, value_dim, seed=2)
        where = f"{dtype.name}/{shape}"
        for name, options in keywords(shape, dtype).items():
            yield f"flash {where}/{name}", partial(flash, query, key, value, return_lse=True, **options)
            yield f"weights {where}/{name}", partial(sdpa, query, key, value, return_lse=True, **options)
        with_nan = value.copy()
        with_nan[..., ::7, :] = np.nan
        hidden = (np.arange(keys) % 7 != 0)[None]
        yield f"hidden NaN {where}", partial(sdpa, query, key, with_nan, hidden)
        yield f"NaN {where}", partial(sdpa, query, key, with_nan)
        yield f"dropout {where}", partial(sdpa, query, key, value, dropout=0.3, rng=3, is_causal=True)
        turned = np.ascontiguousarray(query.swapaxes(1, 2)).swapaxes(1, 2)[:, :, ::-1]
        yield f"strides {where}", partial(flash, turned, key[..., ::-1], value[..., ::-1])
    starts = np.cumsum([0, 0, 5, 5, 300, 1, 64])
    x, kv = draw(dtype, int(starts[-1]), 4, 32), draw(dtype, 2, int(starts[-1]), 2, 32, seed=1)
    for name, options in {
        "plain": {},
        "causal": {"is_causal": True},
        "everything": {
            "is_causal": True, "window_size": 40, "softcap": 4.0, "alibi_slopes": hw.alibi_slopes(4),
            "sinks": draw(np.dtype(np.float64), 4), "causal_alignment": "lower_right",
        },
    }.items():  # fmt: skip
        yield f"varlen {dtype.name}/{name}", partial(hw.varlen_attention, x, *kv, starts, return_lse=True, **options)


def other_calls(dtype: np.dtype[Any]) -> Iterator[tuple[str, Call]]:
    for shape in [(7, 1), (3, 17), (5, 1000), (2, 3, 33), (70000, 3), (3, 70000)]:
        x = draw(dtype, *shape) * dtype.type(4)
        for axis in (-1, 0):
            for function in (hw.softmax, hw.log_softmax, hw.logsumexp):
                yield f"{function.__name__} {dtype.name}/{shape}/{axis}", partial(function, x, axis=axis)
        gamma, beta = draw(dtype, shape[-1], seed=1), draw(dtype, shape[-1], seed=2)
        yield f"norm {dtype.name}/{shape}", partial(hw.layer_normalization, x, gamma, beta)
    for heads, seq, dim in [(1, 3, 2), (3, 65, 34), (4, 200, 128)]:
        x = draw(dtype, 2, heads, seq, dim)
        angles = np.random.default_rng(3).random((seq, dim // 2)) * 6
        cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
        for pairs in (False, True):
            yield f"rope {dtype.name}/{x.shape}/{pairs}", partial(hw.apply_rope, x, cos, sin, interleaved=pairs)
        scores = draw(dtype, 2, heads, seq, seq + 5)
        yield f"alibi {dtype.name}/{scores.shape}", partial(hw.add_alibi, scores, offset=3)
    for rows, inner, columns in [(1, 64, 100), (4, 300, 257), (12, 128, 512), (40, 96, 33), (200, 300, 170), (0, 4, 3)]:
        x, weight = draw(dtype, rows, inner), draw(dtype, inner, columns, seed=1) / dtype.type(inner**0.5)
        bias, turned = draw(dtype, columns, seed=2), np.ascontiguousarray(weight.T).T
        for level in ("highest", "high", "medium"):
            where = f"{dtype.name}/{(rows, inner, columns)}/{level}"
            yield f"linear {where}", partial(hw.linear, x, weight, bias, precision=level)
            yield f"linear turned {where}", partial(hw.linear, x, turned, precision=level)
            yield f"packed {where}", partial(packed, x, weight, bias, level)


def packed(x: Array, weight: Array, bias: Array, level: str) -> Array:
    return hw.PackedLinear(weight, bias, precision=level)(x)


def layer_calls(dtype: np.dtype[Any]) -> Iterator[tuple[str, Call]]:
    x = draw(dtype, 2, 20, 64)
    options: dict[str, Any] = {"rng": 0, "dtype": np.float64 if dtype == np.float64 else np.float32}
    yield f"layer {dtype.name}", partial(hw.CausalAttention(64, 8, **options), x)
    if dtype.itemsize == 2:
        return
    dropping = hw.CausalAttention(64, 8, 0.5, **options)
    yield f"layer dropout {dtype.name}", partial(dropping, x, training=True, rng=3)
    grouped = hw.CausalAttention(64, 8, num_kv_heads=2, bias=True, alibi=True, **options)
    yield f"layer grouped {dtype.name}", partial(grouped, x)
    rotary = hw.RotaryPositionalEmbedding(8)
    turning = hw.CausalAttention(64, 8, num_kv_heads=2, rope=rotary, bias=True, **options)
    for ring in (False, True):
        yield f"decode {dtype.name}/{ring}", partial(decode, turning, x, ring=ring)
    for name in ("linear", "dynamic", "llama3"):
        entry: dict[str, Any] = {"rope_type": name, "factor": 4.0}
        if name == "llama3":
            entry |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
        rope = hw.RotaryPositionalEmbedding(64, scaling=entry, max_position_embeddings=64)
        yield f"rope layer {dtype.name}/{name}", partial(rope.forward, x)
    yield f"sinusoidal {dtype.name}", partial(hw.SinusoidalPositionalEncoding(64, 16).forward, x)
    yield f"learned {dtype.name}", partial(hw.LearnedPositionalEmbedding(32, 64, rng=0).forward, x)


def decode(layer: hw.MultiHeadAttention, x: Array, *, ring: bool) -> list[Array]:
    """Outputs of a prompt, two single tokens, and the rest of the sequence."""
    cache = layer.make_cache(2, capacity=12 if ring else 32, ring=ring, dtype=x.dtype)
    steps = [x[:, :9], x[:, 9:10], x[:, 10:11], x[:, 11:]]
    return [layer(step, cache=cache, need_weights=False)[0] for step in steps]


if __name__ == "__main__":
    sys.exit(main())

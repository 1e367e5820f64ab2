"""Sizes larger than memory: MemoryError, with a message, from every call that makes an array, and no crash, hang, NumPy
error about a bad value, or array of a smaller size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

import headwise as hw
from calls import Sizes
from headwise.attention import positional_encoding
from operations import cases

pytestmark = pytest.mark.above_operations

MAX = 2**63 - 1  # of an int64


def endless(*shape: int, dtype: str = "float32") -> np.ndarray:
    """A view of one number, of up to 2**63 bytes."""
    return np.broadcast_to(np.ones((), dtype), shape)


ROWS = 2**46  # of one float32 each: more than an address space of 47 bits
LONG = endless(ROWS, 8)
BYTES = endless(2**62, dtype="int8")  # which is 2**65 bytes of float64
FLOAT16 = endless(2**59, 4, dtype="float16")
CACHE = hw.KVCache(1, 1, 4, 8, ring=True)
LAYER = hw.MultiHeadAttention(8, 2, rng=0)
ROPE = hw.RotaryPositionalEmbedding(8, 4)
SINUSOIDAL = hw.SinusoidalPositionalEncoding(8, 4)
RELATIVE = hw.RelativePositionalEncoding(8, 4, rng=0)


def of_operations() -> Iterator[tuple[str, Callable[[], object]]]:
    """Each operation in each floating dtype, with more rows than an address space has bytes."""
    for case in cases(short=True):
        if case.variant == "block_mask":  # which is as large itself: see NUMBERS
            continue
        sizes = Sizes(case.operation.lead, 1, ROWS, 4, 8, 8)
        for dtype in ("float32", "float16"):
            yield f"{case} of {dtype}", partial(case.run, case.arguments(sizes, partial(endless_argument, dtype)))


def endless_argument(dtype: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return endless(*shape, dtype=dtype)


#: Of arrays whose results, or copies, are larger than memory.
VIEWS: dict[str, Callable[[], object]] = dict(of_operations()) | {
    "flash": lambda: hw.flash_attention(LONG, LONG[:4], LONG[:4]),
    "flash past int64": lambda: hw.flash_attention(LONG, LONG[:4], endless(4, 2**20)),
    "flash lse": lambda: hw.flash_attention(LONG, LONG[:4], LONG[:4, :0], return_lse=True),
    "flash batch": lambda: hw.flash_attention(*[endless(2**40, 2**10, 4, 8)] * 3),
    "flash head_dim": lambda: hw.flash_attention(endless(4, 2**58), endless(4, 2**58), LONG[:4]),
    "flash value_dim": lambda: hw.flash_attention(LONG[:4], LONG[:4], endless(4, 2**58)),
    "flash of integers": lambda: hw.flash_attention(BYTES[:, None], BYTES[:4, None], BYTES[:4, None]),
    "flash of float16": lambda: hw.flash_attention(FLOAT16, FLOAT16[:4], FLOAT16[:4]),
    "flash mask": lambda: hw.flash_attention(LONG, LONG[:4], LONG[:4], endless(ROWS, 4)),
    "flash bias": lambda: hw.flash_attention(LONG, LONG[:4], LONG[:4], bias=endless(ROWS, 4, dtype="float64")),
    "flash key_padding_mask": lambda: hw.flash_attention(
        *[endless(ROWS, 2, 4, 8)] * 3, key_padding_mask=endless(ROWS, 4, dtype="int8")
    ),
    "dropout of weights": lambda: hw.flash_attention(LONG, LONG[:4], LONG[:4], dropout_rate=0.5, rng=0),
    "weights": lambda: hw.scaled_dot_product_attention(LONG[:1024], LONG, LONG),
    "weights past int64": lambda: hw.scaled_dot_product_attention(LONG, LONG, LONG),
    "varlen": lambda: hw.varlen_attention(LONG[:, None], LONG[:4, None], LONG[:4, None], [0, ROWS], [0, 4]),
    "varlen lse": lambda: hw.varlen_attention(
        LONG[:, None], LONG[:4, None], LONG[:4, None, :0], [0, ROWS], [0, 4], return_lse=True
    ),
    "varlen sequences": lambda: hw.varlen_attention(*[LONG[:0, None]] * 3, endless(ROWS, dtype="int64") * 0),
    "softmax": lambda: hw.softmax(LONG),
    "softmax axis": lambda: hw.softmax(LONG, 0),
    "softmax of integers": lambda: hw.softmax(BYTES),
    "softmax of float16": lambda: hw.softmax(FLOAT16),
    "log_softmax": lambda: hw.log_softmax(LONG),
    "logsumexp": lambda: hw.logsumexp(LONG),
    "logsumexp of one row": lambda: hw.logsumexp(LONG, 0),
    "logsumexp of integers": lambda: hw.logsumexp(BYTES),
    "linear": lambda: hw.linear(LONG, LONG[:8]),
    "linear past int64": lambda: hw.linear(LONG, endless(8, 2**20)),
    "linear columns": lambda: hw.linear(LONG[:4], endless(8, 2**57)),
    "linear depth": lambda: hw.linear(endless(4, 2**58), endless(2**58, 4)),
    "linear of integers": lambda: hw.linear(BYTES, BYTES[:, None]),
    "PackedLinear": lambda: hw.PackedLinear(LONG),
    "PackedLinear columns": lambda: hw.PackedLinear(endless(8, 2**57), endless(2**57)),
    "PackedLinear past int64": lambda: hw.PackedLinear(endless(2**31, 2**30, dtype="int8")),
    "PackedLinear call": lambda: hw.PackedLinear(np.eye(8, dtype=np.float32))(LONG),
    "apply_rope": lambda: hw.apply_rope(LONG, LONG[0, :4], LONG[0, :4]),
    "apply_rope angles": lambda: hw.apply_rope(LONG, LONG[:, :4], LONG[:, :4]),
    "apply_rope width": lambda: hw.apply_rope(endless(4, 2**58), endless(1), endless(1)),
    "add_alibi": lambda: hw.add_alibi(endless(1, 2**24, 2**24)),
    "add_alibi heads": lambda: hw.add_alibi(endless(2**58, 1, 1)),
    "layer_normalization": lambda: hw.layer_normalization(LONG, LONG[0], LONG[0]),
    "layer_normalization axis": lambda: hw.layer_normalization(LONG, endless(ROWS), endless(ROWS), axis=0),
    "layer_normalization of integers": lambda: hw.layer_normalization(BYTES, BYTES, BYTES),
    "rms_norm": lambda: hw.rms_norm(LONG),
    "rms_norm of integers": lambda: hw.rms_norm(BYTES),
    "gelu": lambda: hw.gelu(LONG),
    "gelu of integers": lambda: hw.gelu(BYTES),
    "swiglu": lambda: hw.swiglu(LONG, LONG),
    "gelu_backward": lambda: hw.gelu_backward(LONG, LONG),
    "swiglu_backward": lambda: hw.swiglu_backward(LONG, LONG, LONG),
    "rms_norm_backward": lambda: hw.rms_norm_backward(LONG, LONG),
    "layer_normalization_backward axis": lambda: hw.layer_normalization_backward(LONG, LONG, axis=0),
    "dropout": lambda: hw.dropout(LONG, 0.5),
    "dropout of integers": lambda: hw.dropout(BYTES, 0.5),
    "dropout of integers, off": lambda: hw.dropout(BYTES, 0.0),
    "create_padding_mask": lambda: hw.create_padding_mask(BYTES),
    "multi-head attention": lambda: LAYER(LONG),
    "multi-head attention, batch": lambda: LAYER(endless(2**56, 2, 8), need_weights=False),
    "multi-head attention of integers": lambda: LAYER(endless(2**59, 8, dtype="int8")),
    "self_attention": lambda: hw.self_attention(LONG, 8, rng=0),
    "sinusoidal": lambda: SINUSOIDAL(LONG),
    "sinusoidal, batch": lambda: SINUSOIDAL(endless(2**55, 4, 8)),
    "sinusoidal, positions": lambda: SINUSOIDAL.get_encoding(endless(2**58, dtype="int64")),
    "sinusoidal, positions of a byte": lambda: SINUSOIDAL.get_encoding(BYTES),
    "rotary": lambda: ROPE(LONG),
    "rotary, batch": lambda: ROPE(endless(2**55, 4, 8)),
    "rotary, positions": lambda: ROPE(LONG, endless(ROWS, dtype="int64")),
    "rotary, rotate_half": lambda: ROPE.rotate_half(LONG),
    "ALiBi": lambda: hw.ALiBiPositionalBias(2)(endless(2**55, 2, 2, 2)),
    "learned": lambda: hw.LearnedPositionalEmbedding(4, 8)(endless(2**55, 4, 8)),
    "permute_rope_weights": lambda: hw.permute_rope_weights(endless(8, ROWS), 1, to="interleaved"),
    "cache, extend": lambda: CACHE.extend(*[endless(1, 1, ROWS, 8)] * 3),
}  # fmt: skip

#: Calls with a size: larger than memory, than a float64 array can be, and than an int64 can count bytes.
NUMBERS: dict[str, Callable[[int], object]] = {
    "alibi_slopes": hw.alibi_slopes,
    "alibi_bias, num_heads": lambda n: hw.alibi_bias(n, 1),
    "alibi_bias, query_len": lambda n: hw.alibi_bias(1, n),
    "alibi_bias, key_len": lambda n: hw.alibi_bias(1, 1, n),
    "create_causal_mask": hw.create_causal_mask,
    "BlockMask, query_len": lambda n: hw.BlockMask.causal(n, 1),
    "BlockMask, both lengths": lambda n: hw.BlockMask.causal(n, n),
    "BlockMask, heads": lambda n: hw.BlockMask.from_mod(lambda b, h, q, k: k > h, 4, 4, heads=n),
    "positional_encoding": lambda n: positional_encoding(n, 8),
    "positional_encoding, d_model": lambda n: positional_encoding(8, n),
    "learned_positional_encoding": lambda n: hw.learned_positional_encoding(n, 8),
    "SinusoidalPositionalEncoding, max_len": lambda n: hw.SinusoidalPositionalEncoding(8, n),
    "SinusoidalPositionalEncoding, d_model": hw.SinusoidalPositionalEncoding,
    "LearnedPositionalEmbedding, max_len": lambda n: hw.LearnedPositionalEmbedding(n, 8),
    "LearnedPositionalEmbedding, d_model": lambda n: hw.LearnedPositionalEmbedding(8, n),
    "RelativePositionalEncoding, d_model": hw.RelativePositionalEncoding,
    "RelativePositionalEncoding, distance": lambda n: hw.RelativePositionalEncoding(8, n),
    "RelativePositionalEncoding, seq_len": RELATIVE,
    "RotaryPositionalEmbedding, d_model": lambda n: hw.RotaryPositionalEmbedding(n & ~1, 8),
    "RotaryPositionalEmbedding, max_len": lambda n: hw.RotaryPositionalEmbedding(8, n),
    "ALiBiPositionalBias, num_heads": hw.ALiBiPositionalBias,
    "ALiBiPositionalBias, max_len": lambda n: hw.ALiBiPositionalBias(2, n).bias,
    "KVCache, capacity": lambda n: hw.KVCache(1, 1, n, 8),
    "KVCache, capacity of a ring": lambda n: hw.KVCache(1, 1, n, 8, ring=True),
    "KVCache, batch_size": lambda n: hw.KVCache(n, 1, 8, 8),
    "KVCache, num_kv_heads": lambda n: hw.KVCache(1, n, 8, 8),
    "KVCache, head_dim": lambda n: hw.KVCache(1, 1, 8, n),
    "KVCache, value_dim": lambda n: hw.KVCache(1, 1, 8, 8, value_dim=n),
    "KVCache, positions": CACHE.positions,
    "MultiHeadAttention, d_model": lambda n: hw.MultiHeadAttention(n, 1),
    "MultiHeadAttention, kdim": lambda n: hw.MultiHeadAttention(8, 1, kdim=n),
    "LinearAttention, d_model": lambda n: hw.LinearAttention(n, 1),
    "LinearAttention, make_state": hw.LinearAttention(8, 2).make_state,
    "MultiHeadAttention, num_buckets": lambda n: hw.MultiHeadAttention(
        8, 2, relative={"num_buckets": n & ~1, "bidirectional": True, "max_distance": n}
    ),
    "MultiHeadAttention, max_distance": lambda n: hw.MultiHeadAttention(
        8, 2, relative={"num_buckets": 8, "bidirectional": True, "max_distance": n}
    ),
    "MultiHeadAttention, make_cache": lambda n: LAYER.make_cache(1, n),
}


def assert_works() -> None:
    small = np.ones((4, 8), np.float32)
    np.testing.assert_array_equal(hw.flash_attention(small, small, small), small)


@pytest.mark.parametrize("name", VIEWS)
def test_results_larger_than_memory_raise_memory_error(name: str) -> None:
    with pytest.raises(MemoryError, match=r"\d"):
        VIEWS[name]()
    assert_works()


@pytest.mark.parametrize("number", [2**50, 2**60 - 1, 2**62, MAX], ids=["2**50", "2**60-1", "2**62", "2**63-1"])
@pytest.mark.parametrize("name", NUMBERS)
def test_sizes_larger_than_memory_raise_memory_error(name: str, number: int) -> None:
    with pytest.raises(MemoryError, match=r"\d"):
        NUMBERS[name](number)
    assert_works()


def test_values_without_features_cost_nothing() -> None:
    """Values without features take no memory and no time for any number of queries."""
    nothing = LONG[:4, :0]
    assert hw.flash_attention(LONG, LONG[:4], nothing).shape == (ROWS, 0)
    assert hw.flash_attention(LONG, LONG[:4], nothing, dropout_rate=0.5, rng=0).shape == (ROWS, 0)
    packed = hw.varlen_attention(LONG[:, None], LONG[:4, None], nothing[:, None], [0, ROWS], [0, 4])
    assert packed.shape == (ROWS, 1, 0)


def test_a_ring_reads_only_the_rows_it_keeps() -> None:
    """The other rows are not read."""
    cache = hw.KVCache(1, 1, 4, 8, ring=True)
    cache.append(endless(1, 1, ROWS, 8), endless(1, 1, ROWS, 8))
    assert len(cache) == ROWS and cache.keys.shape == (1, 1, 4, 8)

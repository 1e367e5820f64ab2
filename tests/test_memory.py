"""Memory: none of the size of the scores unless asked for, none lost, and a MemoryError where there is none left."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest

import headwise as hw
from in_process import in_process
from support import dtype_named, normal

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@linux
def test_flash_attention_holds_no_scores(implementation: str) -> None:
    """4096 x 4096 scores would be 64 MB; what is needed is a few blocks."""
    peak = float(
        in_process(
            implementation,
            """
        S = 4096
        x = np.ones((1, 1, S, 8), np.float32)
        hw.flash_attention(x[:, :, :300], x[:, :, :300], x[:, :, :300])
        before = megabytes("VmHWM")
        hw.flash_attention(x, x, x)
        hw.flash_attention(x, x, x, np.ones((1, S), bool), is_causal=True, window_size=(3000, 0), softcap=3.0,
                           alibi_slopes=[0.1], sinks=[0.0], key_padding_mask=np.ones((1, S), bool),
                           bias=np.zeros((S, 1)), return_lse=True)
        print(megabytes("VmHWM") - before)
        """,
        )
    )
    assert peak < 32


@linux
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_packed_sequences_are_neither_padded_nor_scored_as_a_whole(implementation: str, dtype: str) -> None:
    """One of 3000 among 5000 of one token: padded to its length, they would be 960 MB, and 8000 x 8000 scores 256."""
    peak = float(
        in_process(
            implementation,
            f"""
        x = np.ones((8000, 1, 16), "{dtype}")
        starts = np.concatenate([np.arange(2500), np.arange(5500, 8001)])
        hw.varlen_attention(x[:300], x[:300], x[:300], [0, 300])
        before = megabytes("VmHWM")
        hw.varlen_attention(x, x, x, starts, is_causal=True, window_size=(2000, 0), softcap=3.0, alibi_slopes=[0.1],
                            sinks=[0.0], return_lse=True)
        print(megabytes("VmHWM") - before)
        """,
        )
    )
    assert peak < 32


@linux
def test_scratch_does_not_grow_with_the_sequence(implementation: str) -> None:
    first, second = in_process(
        implementation,
        """
        x = np.ones((1, 1, 65536, 8), np.float32)
        query = x[:, :, :512]
        out = np.empty_like(query)
        def peak(length):
            before = megabytes("VmHWM")
            hw.flash_attention(query, x[:, :, :length], x[:, :, :length], out=out)
            return megabytes("VmHWM") - before
        print(peak(2048), peak(65536))
        """,
    ).split()
    assert float(second) < float(first) + 16


@linux
def test_grouped_heads_are_not_expanded(implementation: str) -> None:
    """32 query heads over one of keys and values, 16 MB each: 512 MB each if they were repeated."""
    grown = float(
        in_process(
            implementation,
            """
        key = np.ones((1, 1, 65536, 64), np.float32)
        query = np.ones((1, 32, 1, 64), np.float32)
        hw.flash_attention(query, key[:, :, :100], key[:, :, :100])
        before = megabytes("VmHWM")
        hw.flash_attention(query, key, key)
        print(megabytes("VmHWM") - before)
        """,
        )
    )
    assert grown < 48


def test_no_copy_of_views() -> None:
    """Heads inside the sequence, and broadcast batches, are read where they stand."""
    joined = normal((1, 4000, 4 * 64)).reshape(1, 4000, 4, 64).swapaxes(1, 2)
    batch = np.broadcast_to(normal((1, 1, 4000, 64)), (30, 1, 4000, 64))
    query = np.ones((30, 1, 1, 64), np.float32)
    hw.flash_attention(query, batch, batch)
    tracemalloc.start()
    hw.flash_attention(joined[:, :, :1], joined, joined)
    hw.flash_attention(query, batch, batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6, "one copy would be 4 MB, or 30"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 2048, 4096), (8192, 1, 32, 32), (1, 8192, 32, 32)], ids=str)
def test_halves_are_not_copied_to_float32(shape: tuple[int, ...], dtype: str) -> None:
    """16 MB of them, which would be 32 MB of float32."""
    x = np.zeros(shape, dtype_named(dtype))
    out = np.empty_like(x)
    angles, ones = np.ones((shape[2], shape[3] // 2), x.dtype), np.ones(shape[3], x.dtype)
    slopes = np.ones(shape[1])
    layer = hw.RotaryPositionalEmbedding(shape[3], shape[2])
    layer(x[:1, :1])  # makes its tables
    tracemalloc.start()
    for axis in (0, 2, 3):
        hw.softmax(x, axis, out=out)
        hw.log_softmax(x, axis, out=out)
    hw.logsumexp(x, 3)
    hw.apply_rope(x, angles, angles, out=out)
    hw.apply_rope(x, angles, angles, interleaved=True, out=out)
    hw.add_alibi(x, slopes, out=out)
    hw.layer_normalization(x, ones, ones, out=out)
    tables = 2 * 4 * angles.size
    assert tracemalloc.get_traced_memory()[1] < 8e6 + tables
    tracemalloc.reset_peak()
    layer(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16.8e6 + 8e6 + tables, "the result, and little more"


@linux
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_does_not_copy_halves_to_float32(implementation: str, dtype: str) -> None:
    """Each array is 16 MB, or 32 MB as float32: a long query over few keys, few queries and one over many keys, and
    many short sequences."""
    dtype_named(dtype)  # skips, where it is not known
    grown = float(
        in_process(
            implementation,
            f"""
        if "{dtype}" == "bfloat16":
            import ml_dtypes
        long = np.zeros((1, 1, 131072, 64), "{dtype}")
        short = long.reshape(8192, 1, 16, 64)
        out = np.zeros_like(long)
        def calls(long, short, out):
            hw.flash_attention(long, long[:, :, :16], long[:, :, :16], out=out)
            hw.flash_attention(long[:, :, :9], long, long, out=out[:, :, :9])
            hw.flash_attention(long[:, :, :1], long, long, out=out[:, :, :1])
            hw.flash_attention(short, short, short, out=out.reshape(short.shape))
            hw.flash_attention(short[:, :, :1], short, short, out=out.reshape(short.shape)[:, :, :1])
        calls(long[:, :, :2048], short[:128], out[:, :, :2048])
        before = megabytes("VmHWM")
        calls(long, short, out)
        print(megabytes("VmHWM") - before)
        """,
        )
    )
    assert grown < 16


@linux
def test_no_leak_over_many_calls(implementation: str) -> None:
    grown = float(
        in_process(
            implementation,
            """
        x = np.random.default_rng(0).standard_normal((1, 2, 20, 16)).astype(np.float32)
        mask, weight, ones = x[0, 0, :, :1] > 0, x[0, 0, :16], np.ones(16, np.float32)
        cos, sin = np.cos(x[0, 0, :, :8]), np.sin(x[0, 0, :, :8])
        def calls(n):
            for _ in range(n):
                hw.scaled_dot_product_attention(x, x, x, mask, bias=np.zeros((1, 20)), is_causal=True, return_lse=True,
                                                alibi_slopes=[0.1, 0.2], sinks=[0, 1], dropout=0.1, rng=0)
                hw.flash_attention(x, x, x)
                hw.varlen_attention(x[0], x[0], x[0], [0, 1, 2], return_lse=True)
                hw.softmax(x, 1); hw.log_softmax(x); hw.logsumexp(x)
                hw.apply_rope(x, cos, sin); hw.add_alibi(x)
                hw.linear(x, weight, ones); hw.layer_normalization(x, ones, ones)
                try:
                    hw.flash_attention(x, x, x, np.ones((7, 7)))
                except ValueError:
                    pass
        calls(300)
        before = megabytes("VmRSS")
        calls(1000)
        print(megabytes("VmRSS") - before)
        """,
        )
    )
    assert grown < 2, "10**4 calls that lost 200 bytes each would grow by 2 MB"


@linux
def test_memory_error_under_a_limit_and_the_call_after_it(implementation: str) -> None:
    """With the address space cut to a little more than what is in use, a large call fails, in words, and a small one
    that follows is right."""
    assert "fine" in in_process(
        implementation,
        """
        import resource
        x = np.ones((1, 8, 2048, 64), np.float32)
        small = np.ones((4, 8), np.float32)
        hw.flash_attention(x[:, :, :64], x[:, :, :64], x[:, :, :64])
        limit = int((megabytes("VmSize") + 64) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for _ in range(3):
            try:
                hw.scaled_dot_product_attention(x, x, x)
            except MemoryError:
                assert (hw.flash_attention(small, small, small) == 1).all()
            else:
                raise SystemExit("128 MB of weights fitted into 64 MB")
        print("fine")
        """,
    )

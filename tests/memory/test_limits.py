"""A small address space: MemoryError, with a message, from every call that makes an array; and fewer threads where
threads cannot start."""

from __future__ import annotations

import sys

import pytest

from in_process import in_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status, and limits that Linux keeps")

#: Each call takes 64 MB or more; its inputs, views of one number, take none.
CODE = """
import ctypes, resource
from functools import partial
from headwise.attention import positional_encoding
from calls import Sizes
from operations import cases

def endless_argument(name, shape):
    return endless(*shape)

def endless(*shape, dtype="float32"):
    return np.broadcast_to(np.ones((), dtype), shape)

rows, small, wide = endless(2**22, 8), np.ones((4, 8), np.float32), endless(4096, 8192)
keys = np.ones((2, 4), np.float32)
layer = hw.MultiHeadAttention(8, 2, bias=True, rng=0)
large_layer = hw.MultiHeadAttention(2048, 2, rng=0)
state = large_layer.state_dict()
packed = hw.PackedLinear(np.eye(8, dtype=np.float32))
cache = hw.KVCache(2, 1, 2**18, 64)
cache.append(*[endless(2, 1, 2**18, 64)] * 2)
growing = hw.SinusoidalPositionalEncoding(64, 8), hw.RotaryPositionalEmbedding(64, 8)
positions = endless(2**18, dtype="int64")
CALLS = {
    str(case): partial(case.run, case.arguments(Sizes(case.operation.lead, 1, 2**22, 4, 8, 8), endless_argument))
    for case in cases(short=True)
} | {
    "flash_attention of float16": lambda: hw.flash_attention(*[endless(2**23, 8, dtype="float16")] * 3),
    "weights": lambda: hw.scaled_dot_product_attention(rows[:5000], rows[:5000], rows[:5000]),
    "PackedLinear": lambda: hw.PackedLinear(wide),
    "PackedLinear, a call": lambda: packed(rows),
    "permute_rope_weights": lambda: hw.permute_rope_weights(wide, 2, to="interleaved"),
    "alibi_slopes": lambda: hw.alibi_slopes(2**24),
    "alibi_bias": lambda: hw.alibi_bias(1, 4096),
    "create_causal_mask": lambda: hw.create_causal_mask(5000),
    "create_padding_mask": lambda: hw.create_padding_mask(wide),
    "positional_encoding": lambda: positional_encoding(2**18, 64),
    "learned_positional_encoding": lambda: hw.learned_positional_encoding(2**18, 64),
    "SinusoidalPositionalEncoding": lambda: hw.SinusoidalPositionalEncoding(64, 2**18),
    "SinusoidalPositionalEncoding, a call": lambda: growing[0](endless(2**19, 64)),
    "SinusoidalPositionalEncoding, positions": lambda: growing[0].get_encoding(positions),
    "LearnedPositionalEmbedding": lambda: hw.LearnedPositionalEmbedding(2**18, 64),
    "RelativePositionalEncoding": lambda: hw.RelativePositionalEncoding(64, 2**18),
    "RotaryPositionalEmbedding": lambda: hw.RotaryPositionalEmbedding(64, 2**18),
    "RotaryPositionalEmbedding, a call": lambda: growing[1](endless(2**19, 64)),
    "RotaryPositionalEmbedding, positions": lambda: growing[1](endless(2**19, 64), endless(2**19, dtype="int64")),
    "ALiBiPositionalBias": lambda: hw.ALiBiPositionalBias(1)(wide[None]),
    "KVCache": lambda: hw.KVCache(1, 1, 2**18, 64),
    "KVCache, a ring": lambda: hw.KVCache(1, 1, 2**18, 64, ring=True),
    "KVCache, reorder": lambda: cache.reorder([1, 0]),
    "KVCache, attend": lambda: cache.attend(endless(2, 1, 2**17, 64)),
    "KVCache, append of its own": lambda: cache.append(cache.keys, cache.values),
    "MultiHeadAttention": lambda: hw.MultiHeadAttention(4096, 2),
    "MultiHeadAttention, a call": lambda: layer(rows, need_weights=False),
    "state_dict": lambda: large_layer.state_dict("llama"),
    "load_state_dict": lambda: large_layer.load_state_dict(state),
    "multi_head_attention": lambda: hw.multi_head_attention(rows, rows, rows, 2, 8, need_weights=False),
}
hw.flash_attention(endless(300, 8), endless(300, 8), endless(300, 8))
hw.linear(endless(300, 64), endless(64, 64))
endless(300, 64).copy() @ np.ones((64, 64), np.float32)  # NumPy's own products have their memory then
cache.truncate(2**17)
trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # else free memory of glibc's heap adds to the limit
for name, call in CALLS.items():
    trim(0)
    resource.setrlimit(resource.RLIMIT_AS, (int((megabytes("VmSize") + 48) * 2**20), resource.RLIM_INFINITY))
    for _ in range(2):
        try:
            call()
        except MemoryError as error:
            assert "memory" in str(error) or "allocate" in str(error), f"{name}: {error!r}"
        else:
            raise SystemExit(f"{name}: it fitted into 48 MB")
        assert (hw.flash_attention(small, small, small) == 1).all(), name
        assert cache.lengths.tolist() == [2**17] * 2, name
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(CALLS), "fine")
"""


@pytest.mark.slow
@pytest.mark.above_operations
def test_results_that_do_not_fit_raise_memory_error(implementation: str) -> None:
    assert "fine" in in_process(implementation, CODE)


LIMITS = {
    # Less than the stack of a thread needs.
    "address space": "resource.setrlimit(resource.RLIMIT_AS, (int((megabytes('VmSize') + 4) * 2**20), -1))",
    # The number of processes of root is not limited.
    "processes": "os.geteuid() or os.setuid(65534); resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))",
}


@pytest.mark.single_implementation
@pytest.mark.parametrize("limit", LIMITS)
def test_calls_work_when_threads_cannot_start(implementation: str, limit: str) -> None:
    """For instance in a container at its limit of processes."""
    if implementation == "numpy":
        pytest.skip("the threads are those of the native core")
    assert "fine" in in_process(
        implementation,
        f"""
        import os, resource
        hw.set_num_threads(4)
        x = np.random.default_rng(0).standard_normal((1, 4, 256, 64), dtype=np.float32)
        out = np.empty_like(x)
        hw.flash_attention(x[:, :, :8], x[:, :, :8], x[:, :, :8])
        before = resource.getrlimit(resource.RLIMIT_AS)
        {LIMITS[limit]}
        hw.flash_attention(x, x, x, out=out)
        hw.linear(x, x[0, 0, :64])
        resource.setrlimit(resource.RLIMIT_AS, (before[0], before[1]))
        assert (hw.flash_attention(x, x, x) == out).all()
        print("fine")
        """,
    )

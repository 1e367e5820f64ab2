"""Memory: no array of the size of the scores unless asked for, no leak, and MemoryError if there is none left."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

import headwise as hw
from headwise._base.attention_spec import AttentionSpec, PackedSequences
from headwise._runtime import backend as _backend
from implementations import PROFILE
from in_process import in_process
from memory.memory_calls import CHEAP, ERRORS, INPUTS
from support import dtype_named, normal

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@linux
def test_flash_attention_holds_no_scores(implementation: str) -> None:
    """4096 x 4096 scores would take 64 MB; a few blocks are enough."""
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


@pytest.mark.slow
@linux
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_packed_sequences_are_neither_padded_nor_scored_as_a_whole(implementation: str, dtype: str) -> None:
    """A sequence of 3000 tokens and 5000 of one token: padded they would take 960 MB, 8000 x 8000 scores 256 MB."""
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
def test_grouped_heads_are_not_repeated(implementation: str) -> None:
    """32 query heads over one head of keys and values of 16 MB each: repeated they would take 512 MB each."""
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


def test_views_are_not_copied() -> None:
    """Heads inside the sequence and broadcast batches are read without a copy."""
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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 2048, 4096), (8192, 1, 32, 32), (1, 8192, 32, 32)], ids=str)
def test_16bit_arrays_are_not_copied_to_float32(shape: tuple[int, ...], dtype: str) -> None:
    """An array of 16 MB, which would be 32 MB as float32."""
    x = np.zeros(shape, dtype_named(dtype))
    out = np.empty_like(x)
    angles, ones = np.ones((shape[2], shape[3] // 2), x.dtype), np.ones(shape[3], x.dtype)
    slopes = np.ones(shape[1])
    layer = hw.RotaryPositionalEmbedding(shape[3], shape[2])
    layer(x[:1, :1])  # the first call makes the tables
    tracemalloc.start()
    for axis in (0, 2, 3):
        hw.softmax(x, axis, out=out)
        hw.log_softmax(x, axis, out=out)
    hw.logsumexp(x, 3)
    hw.apply_rope(x, angles, angles, out=out)
    hw.apply_rope(x, angles, angles, interleaved=True, out=out)
    hw.add_alibi(x, slopes, out=out)
    hw.layer_normalization(x, ones, ones, out=out)
    hw.rms_norm(x, ones, out=out)
    hw.gelu(x, out=out)
    hw.swiglu(x, x, out=out)
    tables = 2 * 4 * angles.size
    assert tracemalloc.get_traced_memory()[1] < 8e6 + tables
    tracemalloc.reset_peak()
    layer(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16.8e6 + 8e6 + tables, "the result, and little more"


@pytest.mark.slow
@linux
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_does_not_copy_16bit_arrays_to_float32(implementation: str, dtype: str) -> None:
    """Each array is 16 MB, or 32 MB as float32: a long query over few keys, few queries and one over many keys, and
    many short sequences."""
    dtype_named(dtype)  # skips without ml_dtypes
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


#: Calls per round, each of those of ``memory_calls`` in turn, with errors of every kind between them;
#: ``HEADWISE_TEST_PROFILE=long`` makes 10**5 in all.
CALLS, ROUNDS = (25_000 if PROFILE == "long" else 1_000), 4


@pytest.mark.slow
@linux
@pytest.mark.above_operations
def test_no_leak_over_many_calls(implementation: str) -> None:
    """The least growth of several rounds: a leak shows in each of them, a heap that the allocator enlarges in one."""
    grown = in_process(
        implementation,
        f"""
        from memory.memory_calls import CHEAP, ERRORS
        def calls(n):
            for i in range(n):
                subject = CHEAP[i % len(CHEAP)]
                subject.call(subject.make())
                try:
                    ERRORS[i % len(ERRORS)]()
                except (MemoryError, TypeError, ValueError):
                    continue
                raise SystemExit(f"no error: {{i % len(ERRORS)}}")
        calls(1000)  # until memory has been in use as it will be
        for _ in range({ROUNDS}):
            before = megabytes("VmRSS")
            calls({CALLS})
            print(megabytes("VmRSS") - before)
        """,
        timeout=3600,
    )
    lost = min(float(line) for line in grown.split()) * 2**20 / CALLS
    print(f"{implementation}: {lost:.0f} bytes more per call and error, over {ROUNDS * CALLS} of them")
    assert lost < (20 if PROFILE == "long" else 200)


@pytest.mark.slow
def test_no_reference_is_lost_in_errors() -> None:
    """Reference counts of arrays are unchanged after an error of any kind and after a result."""
    before = [sys.getrefcount(a) for a in INPUTS]
    for _ in range(5):
        for error in ERRORS:
            with pytest.raises((MemoryError, TypeError, ValueError)):
                error()
        for subject in CHEAP:
            subject.call(subject.make())
    gc.collect()
    assert [sys.getrefcount(a) for a in INPUTS] == before


@pytest.mark.single_implementation
def test_no_reference_is_lost_in_errors_of_the_bindings(implementation: str) -> None:
    """The Python checks leave the bindings no errors, so these are direct calls with a wrong object in each place."""
    if implementation == "numpy":
        pytest.skip("there is no native core")
    core = _backend.current()
    x = np.ones((2, 3, 8, 16), np.float32)
    flat, matrix, vector = x.reshape(-1, 16).copy(), np.ones((16, 16), np.float32), np.ones(16, np.float32)
    ints = np.zeros(1, np.int64)
    good: dict[str, list[Any]] = {
        "softmax": [x[0], x[0].copy()],
        "log_softmax": [x[0], x[0].copy()],
        "logsumexp": [x[0], np.ones((3, 16), np.float32)],
        "attention": [x, x, x, x.copy(), None, None, AttentionSpec(1.0, bias=(x[..., :8].copy(),))],
        "attention_varlen": [
            x[0], x[0], x[0], x[0].copy(), None, PackedSequences(*[ints] * 5), AttentionSpec(1.0)
        ],
        "attention_varlen_backward": [
            x[0], x[0], x[0], x[0], x[0], matrix[:3, :8].copy(), None, x[0].copy(), x[0].copy(), x[0].copy(),
            None, None, PackedSequences(*[ints] * 5), AttentionSpec(1.0),
        ],
        "apply_rope": [x, x[..., :8].copy(), x[..., :8].copy(), x.copy(), False],
        "add_alibi": [x, vector[:3], 0, x.copy()],
        "linear": [flat, matrix, vector, flat.copy(), "highest"],
        "pack_linear": [matrix, vector, "highest"],
        "layer_normalization": [flat, vector, vector, 1e-5, flat.copy()],
        "rms_norm": [flat, vector, 1e-5, flat.copy()],
        "layer_normalization_backward": [flat, flat, vector, 1e-5, flat.copy(), vector.copy(), vector.copy()],
        "rms_norm_backward": [flat, flat, vector, 1e-5, flat.copy(), vector.copy()],
        "activation": [flat, flat, flat.copy(), "gelu"],
        "activation_backward": [flat, flat, flat, flat.copy(), flat.copy(), "silu"],
    }  # fmt: skip
    wrong: list[Any] = [np.ones(3, complex), np.ones((1, 1, 1, 1, 1), np.float32), "no array", object()]
    for name, arguments in good.items():
        function = getattr(core, name)
        function(*arguments)
        arrays = [a for a in arguments if isinstance(a, np.ndarray)] + wrong
        before = [sys.getrefcount(a) for a in arrays]
        errors = 0
        for place in range(len(arguments)):
            for bad in wrong:
                try:
                    function(*arguments[:place], bad, *arguments[place + 1 :])
                except (TypeError, ValueError):
                    errors += 1
                except Exception as other:
                    pytest.fail(f"{name}, argument {place}: {other!r}")
        bad = None
        assert errors > 4 * len([a for a in arguments if isinstance(a, np.ndarray)]) - 2, name
        assert [sys.getrefcount(a) for a in arrays] == before, name


@linux
def test_memory_error_under_an_address_space_limit(implementation: str) -> None:
    """With an address space of little more than is in use, a large call raises MemoryError with a message, and a small
    call after it is right."""
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

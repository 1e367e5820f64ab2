"""The peak of memory of each call besides its inputs: its result, and the amount stated here."""

from __future__ import annotations

import sys

import pytest

from in_process import in_process

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status and writes /proc/self/clear_refs"),
    pytest.mark.above_operations,
]

CODE = """
import ctypes, gc
from functools import cache, partial
from headwise.attention import positional_encoding
from operations import cases

# The core has working memory for each thread, the NumPy backend a few blocks of 2**17 entries. Neither depends on
# lengths, but NumPy's scores of one query, and of its group of heads, are never divided.
SCRATCH = 2 * 2.5 if backend == "native" else 5.5
RELATIVE = 8 * 4 * 2**18 / 1e6  # relative values: masses or weights of a block of rows, their gradients and biases
DRAWS = (4 + 1) * 2**22 / 1e6  # of dropout: random numbers, and whether a weight is kept, for a block of rows
hw.set_num_threads(2)
libc = ctypes.CDLL(None)

def array(*shape, dtype="float32"):
    return np.random.default_rng(0).random(shape, dtype=np.float32).astype(dtype)

@cache
def by_shape(shape):
    return array(*shape)

def argument(name, shape):
    return by_shape(shape)

def mb(*arrays):
    return sum(a.nbytes for a in arrays) / 1e6

def size_of(result):
    return mb(*(a for a in (result if isinstance(result, tuple) else (result,)) if isinstance(a, np.ndarray)))

x, angles, ones = array(1, 8, 4096, 128), array(4096, 64), array(128)  # 16.8 MB
x16, angles16 = x.astype("float16"), angles.astype("float16")
out = np.zeros_like(x)
columns = x.reshape(8, 4096, 128)
long_row = array(4, 2**20)
q, many, one = array(1, 4, 2048, 64), array(1, 1, 65536, 64), array(1, 16, 1, 64)
mask, numbers = np.ones((2048, 2048), bool), np.ones((2048, 2048), np.int32)
additive, binary = np.full((2048, 2048), -0.5, np.float32), np.ones((2048, 2048), np.float32)
mask16 = additive.astype("float16")
packed_rows, starts = array(16384, 4, 64), np.arange(0, 16385, 64)
rows, weight, bias = array(4096, 512), array(512, 2048), array(2048)
rows16, weight16 = rows.astype("float16"), weight.astype("float16")
layer = hw.CausalAttention(512, 8, bias=True, rope=hw.RotaryPositionalEmbedding(64, 2048), rng=0, dtype=np.float32)
tokens = array(2, 2048, 512)  # 8.4 MB
cache = layer.make_cache(2, 16384)
cache.append(*[array(2, 8, 8192, 64)] * 2)
packed = hw.PackedLinear(weight, bias)
sinusoidal, rotary = hw.SinusoidalPositionalEncoding(128, 4096), hw.RotaryPositionalEmbedding(128, 4096)
learned, relative = hw.LearnedPositionalEmbedding(4096, 128, rng=0), hw.RelativePositionalEncoding(128, rng=0)
state = layer.state_dict("llama")
rows_of_linear = by_shape((1, 4, 4096, 64))

# The memory of each call in MB, besides its result and the scratch memory: none, unless there is a reason.
MORE = {
    "dropout": x.size / 1e6,  # bool: which entries are kept
    "logsumexp-where": mb(x) + x.size / 1e6,  # -inf where x is masked, and which entries are
    "layer_normalization-axis--2": mb(x),  # with the axis moved to the end
    "layer_normalization_backward-axis--2": 2 * mb(x),  # and the gradient of the result likewise
    # The output; natively also a sum of d_query for each of four chunks of keys.
    "attention_gradients": (5 if backend == "native" else 1) * mb(q),
    "attention_gradients-block_mask": (5 if backend == "native" else 1) * mb(q),
    "attention_gradients-all": (5 if backend == "native" else 1) * mb(q) + RELATIVE + 0.5,  # and relative biases
    "flash_attention-all": RELATIVE,
    "scaled_dot_product_attention-all": RELATIVE,
    "varlen_attention-all": RELATIVE,
    "attention_statistics-all": 4 * 2**18 * 4 / 1e6,  # which of many weights of 0 are the first, for a part of 2**18
    "linear_attention-delta": 2 * mb(rows_of_linear),  # the features of queries and keys
    "linear_attention-gated_delta": 2 * mb(rows_of_linear),
    # A copy of the weights, and the packed form: as much again, or 1.5 times.
    "packed_linear": 2.5 * mb(weight),
    "packed_linear-bias": 2.5 * mb(weight),
}
CALLS = {
    str(case): (
        partial(case.run, case.arguments(case.operation.large, argument)), MORE.get(str(case), 0)
    )
    for case in cases(short=True)
} | {
    "softmax in place": (lambda: hw.softmax(out, out=out), -mb(out)),
    "softmax of long rows": (lambda: hw.softmax(long_row), 0),
    "softmax of float16": (lambda: hw.softmax(x16), 0),
    "apply_rope of float16": (lambda: hw.apply_rope(x16, angles16, angles16), 2 * mb(angles)),  # in float32
    "linear of float16": (lambda: hw.linear(rows16, weight16), 0),
    "linear of float16 weights": (lambda: hw.linear(rows[:16], weight16), 0),
    "PackedLinear, a call": (lambda: packed(rows), 0),
    "flash, integer mask": (lambda: hw.flash_attention(q, q, q, numbers), mb(mask)),  # as bool
    "flash, float mask": (lambda: hw.flash_attention(q, q, q, additive), 0),
    "flash, float mask of 0 and 1": (lambda: hw.flash_attention(q, q, q, binary), 3 * mb(mask)),  # as bool; is it one?
    "flash of float16": (lambda: hw.flash_attention(*[x16[:, :, :2048]] * 3), 0),
    "flash of x16, mask and bias": (lambda: hw.flash_attention(*[x16[:, :, :2048]] * 3, mask16,
                                                                  bias=mask16), 0),
    "flash, many keys": (lambda: hw.flash_attention(q[:, :, :512], many, many), 0),
    "one query, many keys": (lambda: hw.flash_attention(one, many, many), 0),
    "dropout of weights": (lambda: hw.flash_attention(q, q, q, dropout_rate=0.5, rng=0), DRAWS),
    "weights, dropout": (lambda: hw.scaled_dot_product_attention(q, q, q, dropout=0.5, rng=0), DRAWS + 4 * 2**22 / 1e6),
    "alibi_bias": (lambda: hw.alibi_bias(4, 1024), 2 * 8 * 1024**2 / 1e6),  # distances
    "create_causal_mask": (lambda: hw.create_causal_mask(2048), mb(mask)),
    "create_padding_mask": (lambda: hw.create_padding_mask(mask), mb(mask)),
    "positional_encoding": (lambda: positional_encoding(16384, 128), 8 * 16384 * 128 / 1e6),  # angles, sines
    "SinusoidalPositionalEncoding": (lambda: sinusoidal(x), 0),
    "LearnedPositionalEmbedding": (lambda: learned(x), 0),
    "LearnedPositionalEmbedding, update": (lambda: learned.update_embeddings(x[0]), 3 * mb(learned.embeddings)),
    "RotaryPositionalEmbedding": (lambda: rotary(x), 0),
    "RelativePositionalEncoding": (lambda: relative(4096).shape, 8 * 8192 * 128 / 1e6),  # a row for each distance
    # Queries, keys and values; the heads of the output side by side.
    "MultiHeadAttention": (lambda: layer(tokens, need_weights=False), 4 * mb(tokens)),
    "MultiHeadAttention with weights": (lambda: layer(tokens[:, :1024]), 2 * mb(tokens)),
    "MultiHeadAttention, a token": (lambda: layer(tokens[:, :1], cache=cache, need_weights=False), 0),
    "state_dict": (lambda: len(layer.state_dict("llama")), 4 * mb(layer.W_q)),
    "load_state_dict": (lambda: layer.load_state_dict(state), 4 * mb(layer.W_q)),
    "KVCache, extend": (lambda: cache.extend(*[tokens.reshape(2, 8, -1, 64)[:, :, :64]] * 3), 0),
    "KVCache, reorder": (lambda: cache.reorder([1, 0]), cache.nbytes / 2 / 8 / 1e6),  # the keys of a head
}
for name, (call, more) in CALLS.items():
    for _ in range(3):
        call()
    gc.collect()
    libc.malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # VmHWM begins anew
    before = megabytes("VmRSS")
    result = call()
    taken = (megabytes("VmHWM") - before) * 1.048576 - size_of(result)
    told = f"{name}: {taken:.1f} MB besides the result, of {more:.1f} and {SCRATCH} of scratch memory that it may take"
    print(told)
    assert taken < more + SCRATCH, told
    del result
"""


@pytest.mark.slow
def test_peak_memory(implementation: str) -> None:
    """Blocks above 64 KB return to the system as soon as they are free, so that those of the next call are measured."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "OPENBLAS_NUM_THREADS": "1"}
    assert "KVCache, reorder" in in_process(implementation, CODE, environment)

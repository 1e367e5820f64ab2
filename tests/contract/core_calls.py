"""Random calls of the native core, most of them wrong: ``python core_calls.py FIRST COUNT [NAME...]``.

The core must answer each with a result or an exception of :data:`ALLOWED`, whatever the shapes, dtypes and strides of
its arguments, and write to no memory but the entries of its outputs. Each array ends, or begins, at a page without
access.
Each call is named on standard output before it is made, so the last line names a call that ends the process;
``python core_calls.py NUMBER 1 NAME show`` prints its arguments. Calls take turns on the instruction sets.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np

from headwise._base.attention_spec import AttentionSpec

ALLOWED = (TypeError, ValueError, MemoryError)
FLOATS = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
BOOL, INT8, INT64 = np.dtype(bool), np.dtype(np.int8), np.dtype(np.int64)
OTHERS = [np.dtype(t) for t in (np.uint8, np.int32, np.complex64, ">f4", "V2", object, "M8[s]", "f4,i4")]
NO_ACCESS = 0
MAX_BYTES = 1 << 20

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def core() -> Any:
    return import_module("headwise._core")


class Slot:
    """Memory between two pages without access."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        self.memory = mmap.mmap(-1, MAX_BYTES + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for guard in (start, start + page + MAX_BYTES):
            assert libc.mprotect(guard, page, NO_ACCESS) == 0, os.strerror(ctypes.get_errno())
        self.bytes = np.frombuffer(self.memory, np.uint8, MAX_BYTES, page)
        self.used = self.bytes[:0]


class Call:
    """Draws the arguments of one call."""

    def __init__(self, seed: tuple[int, int], slots: list[Slot]) -> None:
        self.rng = np.random.default_rng(seed)
        self.slots = slots
        self.arrays: list[tuple[np.ndarray[Any, Any], Slot]] = []
        #: How likely each argument is to be spoilt; a quarter of the calls have none that is.
        self.spoil = self.rng.choice([0.0, 0.05, 0.15, 0.4])

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def spoilt(self) -> bool:
        return self.chance(self.spoil)

    def size(self) -> int:
        return int(self.rng.choice([0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65]))

    def pick(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def array(self, dtype: np.dtype[Any], *shape: int, optional: bool = False) -> Any:
        """An array as the core expects it, or a spoilt one."""
        if optional and self.chance(0.5):
            return None
        if not self.spoilt():
            return self.place(dtype, list(shape))
        kind = self.rng.integers(12)
        sizes = list(shape)
        if kind == 0:
            return self.pick(None, 3, "x", [[1.0]], object(), np.float32(1), b"1234")
        if kind == 1:
            return self.place(self.pick(*FLOATS, BOOL, INT64, *OTHERS), sizes)
        if kind == 2 and sizes:
            sizes.pop(self.rng.integers(len(sizes)))
        elif kind == 3:
            sizes.insert(self.rng.integers(len(sizes) + 1), self.size())
        elif kind == 4 and sizes:
            self.rng.shuffle(sizes)
        elif kind in (5, 6, 7) and sizes:
            axis = self.rng.integers(len(sizes))
            sizes[axis] = max(0, self.pick(0, 1, sizes[axis] - 1, sizes[axis] + 1, 2 * sizes[axis], self.size()))
        return self.place(dtype, sizes, kind)

    def place(self, dtype: np.dtype[Any], shape: list[int], kind: int = -1) -> np.ndarray[Any, Any]:
        """An array of random numbers in a slot of its own, at one of its ends."""
        if dtype.hasobject:
            return np.full(shape, None, dtype)
        strides = self.strides(dtype.itemsize, shape, kind) if math.prod(shape) else None
        reach = [] if strides is None else [s * (size - 1) for s, size in zip(strides, shape, strict=True)]
        before = -sum(r for r in reach if r < 0)
        extent = 0 if strides is None else before + sum(r for r in reach if r > 0) + dtype.itemsize
        if extent > MAX_BYTES - 8:
            return self.place(dtype, [min(size, 2) for size in shape], kind)
        slot = self.slots[len(self.arrays)]
        shift = int(self.rng.integers(1, 8)) if kind == 7 else 0  # not aligned
        start = shift if self.chance(0.3) else MAX_BYTES - extent - shift
        slot.used = slot.bytes[max(0, start - 256) : start + extent + 256]
        slot.used[:] = self.rng.integers(0, 256, slot.used.size, np.uint8)
        array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, slot.bytes, start + before, strides)
        if dtype == BOOL:
            array[...] = self.rng.random(shape) < 0.8
        elif dtype in FLOATS and self.chance(0.9):  # else any bits, NaN among them
            array[...] = self.rng.standard_normal(shape)
        if kind == 0:
            array.flags.writeable = False
        self.arrays.append((array, slot))
        return array

    def strides(self, itemsize: int, shape: list[int], kind: int) -> list[int]:
        order = self.rng.permutation(len(shape)) if kind == 8 else np.arange(len(shape))
        strides = [0] * len(shape)
        step = itemsize * (2 if kind == 9 else 1)
        for axis in reversed(order):
            strides[axis] = step
            step *= shape[axis] + (int(self.rng.integers(3)) if kind == 8 or self.chance(0.1) else 0)
        if kind == 10:
            for axis in range(len(shape)):
                if self.chance(0.5):
                    strides[axis] = self.pick(0, 0, -strides[axis], itemsize, strides[axis] // 2)
        elif kind == 11 and strides:
            strides[-1] = self.pick(0, -strides[-1], 2 * strides[-1])
        return strides

    def integers(self, numbers: np.ndarray[Any, Any]) -> Any:
        """An int64 array of ``numbers``, of which one may be far away."""
        array = self.array(INT64, len(numbers))
        if isinstance(array, np.ndarray) and array.shape == numbers.shape and array.dtype == INT64:
            writeable, array.flags.writeable = array.flags.writeable, True
            array[...] = numbers
            if array.size and self.spoilt():
                array[self.rng.integers(len(array))] = self.pick(-1, 70, 2**40, 2**63 - 1, -(2**63))
            array.flags.writeable = writeable
        return array

    def number(self, value: float) -> Any:
        if not self.spoilt():
            return value
        return self.pick(0.0, -1.0, 1e-40, 1e300, math.inf, math.nan, None, "1", 2**70, 1j)

    def integer(self, value: int) -> Any:
        if not self.spoilt():
            return value
        return self.pick(0, -1, -2, 2**31, 2**62, 2**63 - 1, -(2**63), 2**63, None, "1", 1.5, True)

    def precision(self) -> Any:
        return (
            self.pick("", "lowest", None, b"high", "\0", 3) if self.spoilt() else self.pick("highest", "high", "medium")
        )

    def tuple(self, *fields: Any) -> Any:
        if not self.spoilt():
            return fields
        return self.pick(None, [*fields], fields[:-1], (*fields, None), fields[::-1], (), dict(enumerate(fields)))

    def float_type(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """A dtype, and that of its accumulator."""
        dtype = self.pick(*FLOATS)
        return dtype, FLOATS[0] if dtype.itemsize == 2 else dtype


def softmax(call: Call) -> tuple[Any, ...]:
    dtype, shape = call.float_type()[0], (call.size(), call.size(), call.pick(1, call.size()))
    return call.array(dtype, *shape), call.array(dtype, *shape)


def logsumexp(call: Call) -> tuple[Any, ...]:
    dtype, (outer, n, inner) = call.float_type()[0], (call.size(), call.size(), call.pick(1, call.size()))
    return call.array(dtype, outer, n, inner), call.array(dtype, outer, inner)


def spec(
    call: Call,
    dtype: np.dtype[Any],
    scores: tuple[int, ...],
    *,
    masks: bool = True,
    scales: tuple[Any, Any] = (None, None),
) -> Any:
    accumulator = FLOATS[0] if dtype.itemsize == 2 else dtype

    def score_arrays(dtype: np.dtype[Any]) -> list[Any]:
        count = call.pick(0, 0, 1, 2) if masks or call.spoilt() else 0
        return [call.array(dtype, *(call.pick(1, size) for size in scores[:3]), scores[3]) for _ in range(count)]

    lengths: tuple[Any, Any] = (None, None)
    if call.chance(0.3) and (masks or call.spoilt()):
        lengths = (
            call.integers(call.rng.integers(0, scores[3] + 1, scores[0])),
            call.integers(np.zeros(scores[0], INT64)),
        )
    return call.tuple(
        call.number(0.3),
        call.number(call.pick(0.0, 5.0)),
        call.integer(call.pick(-1, 0, 3)),
        call.integer(call.pick(-1, 0, 3)),
        call.integer(call.pick(0, 2, -2)),
        call.precision(),
        call.tuple(*score_arrays(BOOL)),
        call.tuple(*score_arrays(call.pick(dtype, accumulator))),
        call.array(accumulator, scores[1], optional=True),
        call.array(accumulator, scores[1], optional=True),
        (score_arrays(BOOL) or [None])[0],
        call.number(1.25),
        *lengths,
        *scales,
        None,  # blocks: given by the calls of functions alone
        None,  # score_mod
        relative_bias(call, accumulator, scores),
    )


def relative_bias(call: Call, dtype: np.dtype[Any], scores: tuple[int, ...]) -> Any:
    width = call.pick(1, 3, 7) + (1 if call.spoilt() else 0)
    return call.array(dtype, *(call.pick(1, size) for size in scores[:3]), width, optional=True)


def stored_keys(call: Call, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[np.dtype[Any], tuple[Any, Any]]:
    """The dtype of keys and values of ``shape``, and the factors of int8."""
    if dtype != FLOATS[0] or call.chance(0.6):
        return dtype, (None, None)
    stored = call.pick(INT8, *(one for one in FLOATS if one.itemsize == 2))
    if stored != INT8:
        return stored, (None, None)
    return stored, (call.array(FLOATS[0], *shape), call.array(FLOATS[0], *shape))


def attention(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    batch, kv_heads = call.pick(0, 1, 2), call.pick(0, 1, 2, 3)
    heads, query_len, key_len = kv_heads * call.pick(1, 2), call.size(), call.size()
    head_dim, value_dim = call.size(), call.size()
    stored, scales = stored_keys(call, dtype, (batch, kv_heads, key_len))
    return (
        call.array(dtype, batch, heads, query_len, head_dim),
        call.array(stored, batch, kv_heads, key_len, head_dim),
        call.array(stored, batch, kv_heads, key_len, value_dim),
        call.array(dtype, batch, heads, query_len, value_dim),
        call.array(dtype, batch, heads, query_len, key_len, optional=True),
        call.array(accumulator, batch, heads, query_len, optional=True),
        spec(call, dtype, (batch, heads, query_len, key_len), scales=scales),
    )


def attention_backward(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    batch, kv_heads = call.pick(0, 1, 2), call.pick(0, 1, 2, 3)
    heads, query_len, key_len = kv_heads * call.pick(1, 2), call.size(), call.size()
    head_dim, value_dim = call.size(), call.size()
    query, key = (batch, heads, query_len, head_dim), (batch, kv_heads, key_len, head_dim)
    value, output = (batch, kv_heads, key_len, value_dim), (batch, heads, query_len, value_dim)
    scores = (batch, heads, query_len, key_len)
    description = spec(call, dtype, scores)
    whole = isinstance(description, tuple) and len(description) == len(AttentionSpec._fields)
    biases = description[7] if whole and isinstance(description[7], tuple) else ()
    d_slopes, d_sinks = (call.array(accumulator, heads, optional=True) for _ in range(2))
    return (
        call.array(dtype, *output),
        call.array(dtype, *query),
        call.array(dtype, *key),
        call.array(dtype, *value),
        call.array(dtype, *output),
        call.array(accumulator, *scores[:3]),
        call.array(accumulator, *scores[:3], optional=True),
        call.array(dtype, *scores, optional=True),
        call.array(dtype, *query, optional=True),
        call.array(dtype, *key, optional=True),
        call.array(dtype, *value, optional=True),
        call.tuple(*(call.array(accumulator, *(call.pick(1, n) for n in scores), optional=True) for _ in biases)),
        None if whole and description[8] is None and not call.spoilt() else d_slopes,
        None if whole and description[9] is None and not call.spoilt() else d_sinks,
        d_relative(call, accumulator, description[18] if whole else None),
        description,
    )


def d_relative(call: Call, dtype: np.dtype[Any], bias: Any) -> Any:
    """The gradient of a relative bias, or another array."""
    if not isinstance(bias, np.ndarray):
        return call.array(dtype, 1, 1, 1, 3) if call.spoilt() else None
    return call.array(dtype, *(call.pick(1, n) for n in bias.shape[:-1]), *bias.shape[-1:], optional=True)


def attention_varlen(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    kv_heads = call.pick(0, 1, 2)
    heads, queries, keys = kv_heads * call.pick(1, 2), call.size(), call.size()
    head_dim, value_dim, count = call.size(), call.size(), call.pick(0, 1, 2, 5)

    def ranges(rows: int) -> tuple[Any, Any]:
        cuts = np.sort(call.rng.integers(0, rows + 1, count + 1))
        return call.integers(cuts[:-1]), call.integers(np.diff(cuts))

    stored, scales = stored_keys(call, dtype, (kv_heads, keys))
    return (
        call.array(dtype, heads, queries, head_dim),
        call.array(stored, kv_heads, keys, head_dim),
        call.array(stored, kv_heads, keys, value_dim),
        call.array(dtype, heads, queries, value_dim),
        call.array(accumulator, heads, queries, optional=True),
        call.tuple(*ranges(queries), *ranges(keys), call.integers(call.rng.integers(-9, 9, count))),
        spec(call, dtype, (1, heads, queries, keys), masks=False, scales=scales),
    )


def attention_varlen_backward(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    kv_heads = call.pick(0, 1, 2)
    heads, queries, keys = kv_heads * call.pick(1, 2), call.size(), call.size()
    head_dim, value_dim, count = call.size(), call.size(), call.pick(0, 1, 2, 5)

    def ranges(rows: int) -> tuple[Any, Any]:
        cuts = np.sort(call.rng.integers(0, rows + 1, count + 1))
        return call.integers(cuts[:-1]), call.integers(np.diff(cuts))

    query, key = (heads, queries, head_dim), (kv_heads, keys, head_dim)
    value, output = (kv_heads, keys, value_dim), (heads, queries, value_dim)
    description = spec(call, dtype, (1, heads, queries, keys), masks=False)
    whole = isinstance(description, tuple) and len(description) == len(AttentionSpec._fields)
    d_slopes, d_sinks = (call.array(accumulator, count, heads, optional=True) for _ in range(2))
    return (
        *(call.array(dtype, *shape) for shape in (output, query, key, value, output)),
        call.array(accumulator, heads, queries),
        call.array(accumulator, heads, queries, optional=True),
        *(call.array(dtype, *shape, optional=True) for shape in (query, key, value)),
        None if whole and description[8] is None and not call.spoilt() else d_slopes,
        None if whole and description[9] is None and not call.spoilt() else d_sinks,
        call.tuple(*ranges(queries), *ranges(keys), call.integers(call.rng.integers(-9, 9, count))),
        description,
    )


def apply_rope(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    shape, half = (call.pick(0, 1, 2), call.pick(1, 2, 3), call.size()), call.size()
    tables = [call.array(accumulator, *(call.pick(1, size) for size in shape), half) for _ in range(2)]
    x, out = (call.array(dtype, *shape, 2 * half) for _ in range(2))
    return x, *tables, out, call.pick(True, False)


def add_alibi(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    shape = (call.pick(0, 1, 2), call.pick(1, 2, 3), call.size(), call.size())
    return call.array(dtype, *shape), call.array(accumulator, shape[1]), call.integer(2), call.array(dtype, *shape)


def linear(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    rows, depth, columns = call.size(), call.size(), call.size()
    stored = call.float_type()[0] if dtype == np.float32 and call.chance(0.5) else dtype
    weight = call.array(stored, depth, columns)
    if call.chance(0.3):
        weight = call.array(stored, columns, depth)
        weight = weight.T if isinstance(weight, np.ndarray) else weight
    bias = call.array(accumulator, columns, optional=True)
    return call.array(dtype, rows, depth), weight, bias, call.array(dtype, rows, columns), call.precision()


def linear_attention(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    batch, kv_heads, tokens = call.pick(0, 1, 2), call.pick(0, 1, 2, 3), call.size()
    heads, features, value_dim = kv_heads * call.pick(1, 2), call.size(), call.size()
    is_causal, normalize = call.pick(True, True, False), call.pick(True, False)
    queries = tokens if is_causal or call.chance(0.3) else call.size()
    state = (batch, kv_heads, features, value_dim + normalize)
    rates = [call.pick(1, size) for size in (batch, kv_heads, tokens)]
    wrong = call.spoilt()
    decay = call.array(accumulator, *rates, call.pick(1, features), optional=True) if is_causal or wrong else None
    beta = call.array(accumulator, *rates, optional=True) if is_causal or wrong else None
    return (
        call.array(dtype, batch, heads, queries, features),
        call.array(dtype, batch, kv_heads, tokens, features),
        call.array(dtype, batch, kv_heads, tokens, value_dim),
        decay,
        beta,
        call.array(accumulator, *state, optional=True),
        call.array(dtype, batch, heads, queries, value_dim),
        call.array(accumulator, *state),
        call.tuple(call.pick(True, False), normalize, is_causal, call.number(0.3), call.integer(call.pick(1, 5, 64))),
    )


def layer_normalization(call: Call) -> tuple[Any, ...]:
    dtype, (rows, n) = call.float_type()[0], (call.size(), call.size())
    x, out = (call.array(dtype, rows, n) for _ in range(2))
    gamma, beta = (call.array(dtype, n, optional=True) for _ in range(2))
    return x, gamma, beta, call.number(1e-5), out


def rms_norm(call: Call) -> tuple[Any, ...]:
    x, gamma, _, eps, out = layer_normalization(call)
    return x, gamma, eps, out


def layer_normalization_backward(call: Call) -> tuple[Any, ...]:
    (dtype, accumulator), (rows, n) = call.float_type(), (call.size(), call.size())
    d_out, x, d_x = (call.array(dtype, rows, n) for _ in range(3))
    d_gamma, d_beta = (call.array(accumulator, n) for _ in range(2))
    return d_out, x, call.array(dtype, n, optional=True), call.number(1e-5), d_x, d_gamma, d_beta


def rms_norm_backward(call: Call) -> tuple[Any, ...]:
    return layer_normalization_backward(call)[:-1]


def activation(call: Call) -> tuple[Any, ...]:
    dtype, shape = call.float_type()[0], (call.size(), call.size())
    x, out = (call.array(dtype, *shape) for _ in range(2))
    return x, call.array(dtype, *shape, optional=True), out, call.pick("gelu", "gelu_tanh", "silu")


def activation_backward(call: Call) -> tuple[Any, ...]:
    dtype, shape = call.float_type()[0], (call.size(), call.size())
    d_out, x, d_x = (call.array(dtype, *shape) for _ in range(3))
    up, d_up = (call.array(dtype, *shape, optional=True) for _ in range(2))
    return d_out, x, up, d_x, d_up, call.pick("gelu", "gelu_tanh", "silu")


def call_packed_linear(x: Any, weight: Any, bias: Any, out: Any, precision: Any) -> None:
    packed = core().pack_linear(weight, bias, precision)
    if isinstance(weight, np.ndarray):
        reshape_in_place(weight)  # as its owner may
    packed(x, out)


def reshape_in_place(array: np.ndarray[Any, Any]) -> None:
    try:
        array.shape = array.shape[::-1] if array.size % 2 else (array.size, 1)
    except (AttributeError, ValueError):  # a view whose memory the shape does not fit
        return


#: The generators of arguments, by the name of the function.
FUNCTIONS: dict[str, Callable[[Call], tuple[Any, ...]]] = {
    "softmax": softmax,
    "log_softmax": softmax,
    "logsumexp": logsumexp,
    "attention": attention,
    "attention_backward": attention_backward,
    "attention_varlen": attention_varlen,
    "attention_varlen_backward": attention_varlen_backward,
    "apply_rope": apply_rope,
    "add_alibi": add_alibi,
    "linear": linear,
    "PackedLinear": linear,
    "linear_attention": linear_attention,
    "layer_normalization": layer_normalization,
    "rms_norm": rms_norm,
    "layer_normalization_backward": layer_normalization_backward,
    "rms_norm_backward": rms_norm_backward,
    "activation": activation,
    "activation_backward": activation_backward,
}
#: Their outputs, if that is not the last argument.
OUTPUTS = {
    "attention": (3, 4, 5),
    "attention_backward": (8, 9, 10, 11, 12, 13, 14),
    "attention_varlen": (3, 4),
    "attention_varlen_backward": (7, 8, 9, 10, 11),
    "apply_rope": (3,),
    "linear": (3,),
    "PackedLinear": (3,),
    "linear_attention": (6, 7),
    "layer_normalization_backward": (4, 5, 6),
    "rms_norm_backward": (4, 5),
    "activation": (2,),
    "activation_backward": (3, 4),
}


def describe(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return f"{argument.dtype}{argument.shape} strides {argument.strides}" + " unaligned" * (
            not argument.flags.aligned
        )
    return tuple(map(describe, argument)) if isinstance(argument, tuple) else argument


def run(name: str, first: int, count: int, *, show: bool = False) -> None:
    generate = FUNCTIONS[name]
    function = call_packed_linear if name == "PackedLinear" else getattr(core(), name)
    slots = [Slot() for _ in range(40)]
    targets = core().list_targets()
    results = 0
    for number in range(first, first + count):
        os.write(1, f"{name} {number}\n".encode())
        core().set_target(targets[number % len(targets)])
        call = Call((list(FUNCTIONS).index(name), number), slots)
        arguments = generate(call)
        if show:
            os.write(1, "".join(f"{describe(a)}\n" for a in arguments).encode())
        outputs = [a for i in OUTPUTS.get(name, (-1,)) for a in _arrays(arguments[i])]
        before = [slot.used.copy() for _, slot in call.arrays]
        with np.errstate(all="ignore"):
            try:
                function(*arguments)
            except ALLOWED as error:
                if show:
                    os.write(1, f"{error!r}\n".encode())
            else:
                results += 1
        for (array, slot), content in zip(call.arrays, before, strict=True):
            if any(array is output for output in outputs) and array.flags.writeable:
                array[...] = np.ndarray(array.shape, array.dtype, content, offset_of(array, slot), array.strides)
            assert np.array_equal(slot.used, content), f"wrote outside its outputs: {describe(array)}"
    os.write(1, f"results: {name} {results}\n".encode())


def _arrays(argument: Any) -> list[Any]:
    return list(argument) if isinstance(argument, (tuple, list)) else [argument]


def offset_of(array: np.ndarray[Any, Any], slot: Slot) -> int:
    return int(array.__array_interface__["data"][0] - slot.used.__array_interface__["data"][0])


if __name__ == "__main__":
    for chosen in sys.argv[3:] or FUNCTIONS:
        if chosen != "show":
            run(chosen, int(sys.argv[1]), int(sys.argv[2]), show="show" in sys.argv)

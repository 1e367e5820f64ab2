"""A call of every operation, layer and object that holds arrays, for the tests of memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import headwise as hw
from calls import Arguments, Case, Sizes, arrays_in, cast
from headwise.attention import positional_encoding
from operations import cases
from support import normal


class Subject(NamedTuple):
    """The call is ``call(make())``; a call that fails does not change the object of ``make``."""

    call: Callable[[Any], Any]
    make: Callable[[], Any] = lambda: None


def arrays_of(x: object) -> Iterator[np.ndarray[Any, Any]]:
    """The arrays of a result or of an object: parameters, tables, rows of a cache."""
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, dict):
        for value in x.values():
            yield from arrays_of(value)
    elif isinstance(x, (tuple, list)):
        for value in x:
            yield from arrays_of(value)
    elif isinstance(x, hw.KVCache):
        yield x.lengths
        for i in range(x.batch_size):
            yield from x.entry(i)
    elif isinstance(x, hw.MultiHeadAttention):
        yield from arrays_of(x._parameters())
    elif isinstance(x, hw.LearnedPositionalEmbedding):
        yield x.embeddings


def bits(x: object) -> list[tuple[tuple[int, ...], bytes]]:
    return [(a.shape, a.tobytes()) for a in arrays_of(x)]


X = normal((2, 4, 100, 64))
KEY, VALUE = normal((2, 2, 220, 64), 1), normal((2, 2, 220, 48), 2)
FLOAT16 = [a.astype(np.float16) for a in (X, KEY, VALUE)]
MANY = normal((2, 2, 1500, 64), 3)
ROWS = normal((200, 4, 64), 4)
STARTS = [0, 3, 140, 140, 200]
WEIGHT, BIAS = normal((64, 1200), 5), normal((1200,), 6)
ANGLES = normal((4, 100, 64), 7)[..., ::2]
ONES, ONES_100 = np.ones(64, np.float32), np.ones(100, np.float32)
IN = normal((2, 100, 256), 8)
LONG = normal((2, 70_000), 9)
MASK = normal((100, 220), 10) > 0


def layer(**options: Any) -> hw.MultiHeadAttention:
    made = hw.CausalAttention(
        256, 4, num_kv_heads=2, bias=True, rope=hw.RotaryPositionalEmbedding(64, 8), sinks=True, rng=0, **options
    )
    made.load_state_dict({name: a.astype(np.float32) for name, a in made.state_dict().items()})
    return made


def warm_layer() -> hw.MultiHeadAttention:
    """With packed weights and tables made."""
    made = layer()
    for _ in range(3):
        made(IN)
    return made


def filled(ring: bool = False, lengths: list[int] | None = None) -> hw.KVCache:
    cache = hw.KVCache(2, 2, 400, 64, value_dim=48, ring=ring)
    cache.append(KEY, VALUE, lengths=lengths)
    return cache


def with_cache(ring: bool = False) -> tuple[hw.MultiHeadAttention, hw.KVCache]:
    made = warm_layer()
    cache = made.make_cache(2, 250, ring=ring)
    made(IN, cache=cache)
    return made, cache


def loaded(made: hw.MultiHeadAttention, state_format: str) -> hw.MultiHeadAttention:
    made.load_state_dict(STATES[state_format])
    return made


def packed(dtype: type) -> hw.PackedLinear:
    return hw.PackedLinear(WEIGHT.astype(dtype), BIAS.astype(dtype))


def then(made: Any, change: Callable[[Any], object]) -> Any:
    change(made)
    return made


STATES = {name: layer().state_dict(name) for name in ("headwise", "llama")}
#: Sizes whose allocations are larger than 64 KB, so that they can be made to fail.
SIZES = Sizes((2, 4), 2, 100, 220, 64, 48)
SIZES_OF = {"linear": SIZES._replace(value_dim=1200), "packed_linear": SIZES._replace(value_dim=1200)}
TABLE_INPUTS: list[np.ndarray] = []


def run(case: Case, arguments: Arguments, _: object) -> object:
    return case.run(arguments)


def of_operations() -> Iterator[tuple[str, Subject]]:
    """Every operation in float32, and its plain and its fullest call in float16."""
    for case in cases(short=True):
        sizes = SIZES_OF.get(case.operation.name, SIZES)
        for dtype in ("float32", "float16") if case.variant in ("", "all") else ("float32",):
            arguments = cast(case.arguments(sizes), dtype)
            TABLE_INPUTS.extend(arguments[name] for name in arrays_in(arguments))
            yield (
                f"{case} of {dtype}",
                Subject(partial(run, case, arguments)),
            )


SUBJECTS: dict[str, Subject] = dict(of_operations()) | {
    "flash of integers": Subject(lambda _: hw.flash_attention(X.astype(np.int64), KEY, VALUE)),
    "flash of strided arrays": Subject(lambda _: hw.flash_attention(X[..., ::2], KEY[..., ::2], VALUE[..., ::-1])),
    "few queries": Subject(lambda _: hw.flash_attention(X[:, :, :1], MANY, MANY, return_lse=True)),
    "few queries of float16": Subject(
        lambda _: hw.flash_attention(FLOAT16[0][:, :, :2], *[MANY.astype(np.float16)] * 2)
    ),
    "dropout of weights": Subject(lambda _: hw.scaled_dot_product_attention(X, KEY, VALUE, dropout=0.3, rng=0)),
    "softmax of long rows": Subject(lambda _: hw.softmax(LONG)),
    "softmax of strided arrays": Subject(lambda _: hw.softmax(X[..., ::2])),
    "linear of few rows": Subject(lambda _: hw.linear(X[0, 0, :9].repeat(40, 1), WEIGHT.repeat(40, 0), BIAS)),
    "linear of float64": Subject(lambda _: hw.linear(X.astype(float), WEIGHT, BIAS)),
    "PackedLinear, a call": Subject(lambda p: p(X), lambda: packed(np.float32)),
    "PackedLinear of float16, a call": Subject(lambda p: p(FLOAT16[0]), lambda: packed(np.float16)),
    "apply_rope of strided tables": Subject(lambda _: hw.apply_rope(X, ANGLES, ANGLES)),
    "PackedLinear, pickled": Subject(lambda p: pickle.loads(pickle.dumps(p))(X), lambda: packed(np.float32)),
    "permute_rope_weights": Subject(lambda _: hw.permute_rope_weights(WEIGHT.T, 4, to="interleaved")),
    "rope_parameters": Subject(lambda _: hw.rope_parameters(40_000)[0]),
    "alibi_slopes": Subject(lambda _: hw.alibi_slopes(20_000)),
    "alibi_bias": Subject(lambda _: hw.alibi_bias(2, 100)),
    "create_causal_mask": Subject(lambda _: hw.create_causal_mask(200)),
    "create_padding_mask": Subject(lambda _: hw.create_padding_mask(MASK)),
    "self_attention": Subject(lambda _: hw.self_attention(IN, 256, rng=0)),
    "cross_attention": Subject(lambda _: hw.cross_attention(IN, IN, 256, rng=0)),
    "multi_head_attention": Subject(lambda _: hw.multi_head_attention(IN, IN, IN, 4, 256, rng=0)),
    "positional_encoding": Subject(lambda _: positional_encoding(200, 64)),
    "learned_positional_encoding": Subject(lambda _: hw.learned_positional_encoding(200, 64, rng=0)),
    "SinusoidalPositionalEncoding": Subject(lambda s: s(IN), lambda: hw.SinusoidalPositionalEncoding(256, 8)),
    "SinusoidalPositionalEncoding, positions": Subject(
        lambda s: s.get_encoding(np.arange(-9, 199)), lambda: hw.SinusoidalPositionalEncoding(64, 8)
    ),
    "LearnedPositionalEmbedding": Subject(lambda e: e(IN), lambda: hw.LearnedPositionalEmbedding(100, 256, rng=0)),
    "LearnedPositionalEmbedding, update": Subject(
        lambda e: then(e, lambda e: e.update_embeddings(IN)), lambda: hw.LearnedPositionalEmbedding(100, 256, rng=0)
    ),
    "RelativePositionalEncoding": Subject(lambda r: r(200)[:2], lambda: hw.RelativePositionalEncoding(64, rng=0)),
    "RotaryPositionalEmbedding": Subject(lambda r: r(X), lambda: hw.RotaryPositionalEmbedding(64, 8)),
    "RotaryPositionalEmbedding, positions": Subject(
        lambda r: r(X, np.arange(5, 105)), lambda: hw.RotaryPositionalEmbedding(64, 8)
    ),
    "ALiBiPositionalBias": Subject(lambda a: (a(X), a.bias[:, :2]), lambda: hw.ALiBiPositionalBias(4, 2000)),
    "MultiHeadAttention": Subject(lambda _: hw.MultiHeadAttention(256, 4, bias=True, rng=0)(IN)),
    "a layer's first calls": Subject(lambda made: [made(IN) for _ in range(3)], layer),
    "a layer": Subject(lambda made: made(IN, return_lse=True), warm_layer),
    "a layer of float64": Subject(lambda made: made(IN), lambda: hw.MultiHeadAttention(256, 4, rng=0)),
    "a layer of float16": Subject(lambda made: made(IN.astype(np.float16)), warm_layer),
    "a layer in training": Subject(lambda made: made(IN, training=True, rng=0), warm_layer),
    "a layer with a cache": Subject(lambda pair: (pair[0](IN, cache=pair[1]), pair[1]), with_cache),
    "a layer with a ring": Subject(lambda pair: (pair[0](IN, cache=pair[1]), pair[1]), lambda: with_cache(True)),
    "state_dict": Subject(lambda made: made.state_dict("llama"), layer),
    "load_state_dict": Subject(lambda made: loaded(made, "headwise"), lambda: layer(dropout=0.2)),
    "load_state_dict of Llama": Subject(lambda made: loaded(made, "llama"), lambda: layer(dropout=0.2)),
    "a layer, copied": Subject(copy.deepcopy, warm_layer),
    "KVCache, append": Subject(lambda c: then(c, lambda c: c.append(KEY[:, :, :99], VALUE[:, :, :99])), filled),
    "KVCache, append of its own": Subject(
        lambda c: then(c, lambda c: c.append(c.keys[:, :, -150:], VALUE[:, :, :150])), filled
    ),
    "KVCache, ring, append": Subject(
        lambda c: then(c, lambda c: c.append(KEY.repeat(2, 2), VALUE.repeat(2, 2))), lambda: filled(True)
    ),
    "KVCache, ring, append of its own": Subject(
        lambda c: then(c, lambda c: c.append(c.keys[:, :, :200], VALUE[:, :, :200])), lambda: filled(True)
    ),
    "KVCache, ring, append of swapped bytes": Subject(
        lambda c: then(c, lambda c: c.append(KEY.astype(">f4"), VALUE.astype(">f4"))), lambda: filled(True)
    ),
    "KVCache, extend": Subject(
        lambda c: (c.extend(X, KEY[:, :, :100], VALUE[:, :, :100], return_lse=True), c), filled
    ),
    "KVCache, extend, ragged": Subject(
        lambda c: (c.extend(X, KEY[:, :, :100], VALUE[:, :, :100], lengths=[90, 20], need_weights=True), c),
        lambda: filled(lengths=[220, 20]),
    ),
    "KVCache, ring, extend": Subject(
        lambda c: (c.extend(X, KEY[:, :, :100], VALUE[:, :, :100]), c),
        lambda: then(filled(True), lambda c: c.append(KEY, VALUE)),
    ),
    "KVCache, ring, token": Subject(
        lambda c: (c.extend(X[:, :, :1], KEY[:, :, :1], VALUE[:, :, :1]), c),
        lambda: then(filled(True), lambda c: c.append(KEY, VALUE)),
    ),
    "KVCache, attend": Subject(lambda c: c.attend(X), filled),
    "KVCache, reorder": Subject(lambda c: then(c, lambda c: c.reorder([1, 0])), filled),
    "KVCache, copied": Subject(copy.deepcopy, filled),
}  # fmt: skip

#: Arrays that calls read, and to which they keep no reference.
INPUTS = (X, KEY, VALUE, *FLOAT16, MANY, ROWS, WEIGHT, BIAS, ANGLES, ONES, IN, LONG, MASK, *TABLE_INPUTS)
_SLOW = ("a layer", "MultiHead", "multi_head", "load_state", "state_dict", "softmax of long", "Relative")
#: The subjects that take about a millisecond at most, for many calls.
CHEAP = [subject for name, subject in SUBJECTS.items() if not name.startswith(_SLOW)]
SMALL_LAYER = hw.CausalAttention(8, 2, bias=True, rng=0)
SMALL = normal((2, 5, 8), 12)


def small_layer_with_cache() -> object:
    cache = SMALL_LAYER.make_cache(2, 9, ring=True)
    for _ in range(3):
        SMALL_LAYER(SMALL, cache=cache)
    return SMALL_LAYER.load_state_dict(SMALL_LAYER.state_dict("torch"))


CHEAP += [
    Subject(lambda _: small_layer_with_cache()),
    Subject(lambda _: hw.MultiHeadAttention(8, 2, rng=0)(SMALL)),
    Subject(lambda _: hw.MultiHeadAttention(8, 2, rng=0)(SMALL, training=True)),
]

#: Calls that raise TypeError, ValueError or MemoryError.
BIG = np.broadcast_to(np.float32(1), (2**46, 64))
ERRORS: list[Callable[[], object]] = [
    lambda: hw.flash_attention(X, KEY, VALUE, np.ones((7, 7))),
    lambda: hw.flash_attention(X, KEY, VALUE[..., :9, :]),
    lambda: hw.flash_attention(X, KEY, VALUE, precision="low"),
    lambda: hw.flash_attention(X, KEY, VALUE, out=X),
    lambda: hw.flash_attention(X, KEY, VALUE, alibi_slopes=np.ones(3)),
    lambda: hw.flash_attention(X, KEY, VALUE.astype(complex)),
    lambda: hw.flash_attention(BIG, BIG[:4], BIG[:4]),
    lambda: hw.scaled_dot_product_attention(BIG, BIG, BIG),
    lambda: hw.varlen_attention(ROWS, ROWS, ROWS, [0, 3]),
    lambda: hw.varlen_attention(ROWS, ROWS, ROWS, STARTS, sinks=MASK),
    lambda: hw.softmax(X, 4),
    lambda: hw.softmax(X, out=X[..., ::-1]),
    lambda: hw.log_softmax(BIG),
    lambda: hw.logsumexp(X, "last"),  # type: ignore[arg-type]
    lambda: hw.linear(X, WEIGHT, BIAS[1:]),
    lambda: hw.linear(X, WEIGHT.T),
    lambda: hw.linear(BIG, WEIGHT),
    lambda: hw.PackedLinear(WEIGHT, BIAS[1:]),
    lambda: hw.PackedLinear(WEIGHT[:, :9])(ANGLES),
    lambda: hw.apply_rope(X, ANGLES, ANGLES[..., 1:]),
    lambda: hw.add_alibi(X, ONES),
    lambda: hw.layer_normalization(X, ONES, ONES_100),
    lambda: hw.rms_norm(X, ONES_100),
    lambda: hw.gelu(BIG),
    lambda: hw.swiglu(X, X[..., 1:]),
    lambda: hw.rms_norm_backward(X, X, ONES_100),
    lambda: hw.dropout(BIG, 0.5),
    lambda: hw.permute_rope_weights(WEIGHT, 7, to="interleaved"),
    lambda: hw.create_causal_mask(2**40),
    lambda: SMALL_LAYER(X),
    lambda: SMALL_LAYER(SMALL, mask=MASK),
    lambda: SMALL_LAYER.load_state_dict({"W_q": WEIGHT}),
    lambda: hw.KVCache(2, 2, 9, 64, value_dim=48).append(KEY, VALUE),
    lambda: hw.KVCache(2, 2, 9, 64, value_dim=48, ring=True).extend(X, KEY, VALUE),
]

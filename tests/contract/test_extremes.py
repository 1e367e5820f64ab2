"""The largest and smallest numbers, infinities and NaN in every argument of every operation and of every layer.

They never warn or raise: ``np.seterr`` and the filters of warnings are about the caller's own arithmetic.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import headwise as hw
from calls import Case, Sizes
from calls import numbers as ordinary
from comparison import both
from implementations import IMPLEMENTATIONS, choose
from operations import OPERATIONS, cases
from support import dtype_named

Array = np.ndarray[Any, Any]

DTYPES = ["float32", "float64", "float16", "bfloat16"]
SIZES = Sizes((1, 2), 2, 9, 17, 12, 10)


def limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The smallest and the largest positive number."""
    info = (np if dtype.kind == "f" else sys.modules["ml_dtypes"]).finfo(dtype)
    return float(info.smallest_subnormal), float(info.max)


EXTREMES: dict[str, Callable[[np.dtype[Any]], float]] = {
    "max": lambda dtype: limits(dtype)[1],
    "-max": lambda dtype: -limits(dtype)[1],
    "half the max": lambda dtype: limits(dtype)[1] / 2,
    "beyond the root of max": lambda dtype: 2 * limits(dtype)[1] ** 0.5,
    "subnormal": lambda dtype: limits(dtype)[0],
    "inf": lambda dtype: np.inf,
    "-inf": lambda dtype: -np.inf,
    "nan": lambda dtype: np.nan,
}


@contextmanager
def strict() -> Iterator[None]:
    """Every floating-point condition raises, and so does every warning."""
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def extreme(names: list[str], dtype: np.dtype[Any], share: float = 0.5) -> Callable[[str, tuple[int, ...]], Array]:
    """Makes arrays in ``dtype`` of which a ``share`` are the extremes ``names`` and the rest ordinary."""

    def make(name: str, shape: tuple[int, ...]) -> Array:
        rng = np.random.default_rng([zlib.crc32(name.encode()), *shape])
        chosen = rng.choice([EXTREMES[name](dtype) for name in names], shape)
        with np.errstate(all="ignore"):
            return np.where(rng.random(shape) < share, chosen, ordinary(name, shape)).astype(dtype)

    return make


def calls(operation: str) -> list[Case]:
    return cases(where=lambda o: o.name == operation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_neither_warn_nor_raise(operation: str, dtype: str) -> None:
    for case in calls(operation):
        for names in [[name] for name in EXTREMES] + [list(EXTREMES)]:
            arguments = case.arguments(SIZES, extreme(names, dtype_named(dtype)))
            with strict():
                case.run(arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_casts_neither_warn_nor_raise(operation: str, dtype: str) -> None:
    """The first array in the dtype, the others float64, so that all promote, or are cast to the first."""
    for case in calls(operation):
        for names in [["max", "-max", "subnormal", "nan"], ["inf", "-inf", "half the max"]]:
            arguments = case.arguments(SIZES, extreme(names, dtype_named("float64")))
            first = next(name for name, value in arguments.items() if isinstance(value, np.ndarray))
            with np.errstate(all="ignore"):
                arguments[first] = arguments[first].astype(dtype_named(dtype))
            with strict():
                case.run(arguments)


NATIVE = [name for name in IMPLEMENTATIONS if name != "numpy"]
SPECIAL = ["inf", "-inf", "nan", "subnormal"]
#: Decode, in chunks of keys; tiles of rows.
ATTENTION = [Sizes((1, 4), 2, 2, 600, 8, 8), Sizes((1, 2), 1, 20, 300, 8, 20)]


@pytest.mark.single_implementation
@pytest.mark.skipif(not NATIVE, reason="one implementation has nothing to be compared with")
@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", [name for name, o in OPERATIONS.items() if o.computed])
def test_backends_agree_on_special_numbers(operation: str, dtype: str, native: str) -> None:
    """NaN and infinities at the same places, in all arguments; where a sum of products overflows depends on the
    target, see docs/precision.md."""
    # AVX512_BF16 counts subnormal numbers as 0, which times infinity is NaN, in the products d_output value^T.
    apart = dtype == "bfloat16" and operation == "attention_gradients" and not native.endswith(("avx512", "avx2"))
    together = [name for name in SPECIAL if not (apart and name == "subnormal")]
    for case in calls(operation):
        for names in [[name] for name in SPECIAL] + [together]:
            arguments = case.arguments(SIZES, extreme(names, dtype_named(dtype), 0.2))
            both(native, lambda case=case, arguments=arguments: case.run(arguments))


@pytest.mark.single_implementation
@pytest.mark.skipif(not NATIVE, reason="one implementation has nothing to be compared with")
@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("sizes", ATTENTION, ids=["decode", "tiles"])
@pytest.mark.parametrize("names", [["max"], ["-max", "half the max"], ["max", "-max"]], ids=str)
def test_backends_agree_on_large_values(names: list[str], sizes: Sizes, dtype: str, native: str) -> None:
    """Of attention: the same results are finite, and are equal to the largest number times some bound."""
    kind = dtype_named(dtype)
    large = extreme(names, kind, 0.9 if len(names) == 1 else 0.03)

    def make(name: str, shape: tuple[int, ...]) -> Array:
        return large(name, shape) if name == "value" else ordinary(name, shape).astype(kind)

    for case in cases(where=lambda o: o.name in ("flash_attention", "varlen_attention")):
        arguments, results = case.arguments(sizes, make), []
        for implementation in ("numpy", native):
            choose(implementation)
            results.append([x.astype(np.float64) / limits(kind)[1] for x in case.run(arguments)])
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, atol=3e-2 if dtype == "bfloat16" else 2e-4)


def layer(dtype: Any = np.float64, **keywords: Any) -> hw.MultiHeadAttention:
    """A layer whose parameters are extremes of their dtype."""
    made = hw.MultiHeadAttention(12, 2, bias=True, sinks=True, dtype=dtype, rng=0, **keywords)
    make = extreme(["max", "-max", "subnormal", "inf"], np.dtype(dtype), 0.2)
    made.load_state_dict({name: make(name, array.shape) for name, array in made.state_dict().items()})
    return made


def decoded(x: Array) -> Any:
    cache = hw.KVCache(1, 2, 4, 6, dtype=np.promote_types(x.dtype, np.float32), ring=True)
    causal = hw.CausalAttention(12, 2, rng=0, rope=hw.RotaryPositionalEmbedding(6))
    return [causal(x[:, i : i + 2], cache=cache) for i in range(0, x.shape[1], 2)]


def trained(x: Array) -> Any:
    learned = hw.LearnedPositionalEmbedding(9, 12, dtype=np.float32)
    learned.update_embeddings(x, 1e300)
    return learned(x)


def heads(x: Array) -> Array:
    return x.reshape(1, -1, 2, 6).swapaxes(1, 2)


#: Everything public that computes and is no operation, as a function of ``x``, (1, 9, 12).
USES: dict[str, Callable[[Array], Any]] = {
    "MultiHeadAttention": lambda x: layer()(x, need_weights=True),
    "MultiHeadAttention-float32": lambda x: layer(np.float32)(x, need_weights=False),
    "MultiHeadAttention-training": lambda x: layer(dropout=0.5)(x, training=True),
    "CausalAttention-cache": decoded,
    "state_dict": lambda x: [layer(np.float32).state_dict(form) for form in ("headwise", "llama")],
    "multi_head_attention": lambda x: hw.multi_head_attention(x, x, x, 2, 12, rng=0),
    "multi_head_self_attention": lambda x: hw.multi_head_self_attention(x, 2, 12, rng=0),
    "self_attention": lambda x: hw.self_attention(x, 12),
    "cross_attention": lambda x: hw.cross_attention(x, x, 12),
    "attention_score_visualization": lambda x: hw.attention_score_visualization(x[0, :, :9]),
    "SinusoidalPositionalEncoding": lambda x: hw.SinusoidalPositionalEncoding(12, 3, dropout=0.5)(x, training=True),
    "LearnedPositionalEmbedding": trained,
    "RotaryPositionalEmbedding": lambda x: hw.RotaryPositionalEmbedding(6)(heads(x)),
    "RotaryPositionalEmbedding-base": lambda x: hw.RotaryPositionalEmbedding(6, base=1e-300)(heads(x), offset=2**53),
    "rotate_half": lambda x: hw.RotaryPositionalEmbedding(6).rotate_half(heads(x)),
    "ALiBiPositionalBias": lambda x: hw.ALiBiPositionalBias(1)(x[..., :9]),
    "alibi_bias": lambda x: hw.alibi_bias(2000, 2, 2, offset=2**53),
    "positional_encoding": lambda x: [hw.attention.positional_encoding(3, 5, n) for n in (1e-300, 1e300)],
    "permute_rope_weights": lambda x: hw.permute_rope_weights(x[0], 2, to="interleaved"),
    "PackedLinear": lambda x: hw.PackedLinear(x[0].T, x[0, :, 0])(x),
}


@pytest.mark.above_operations
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("use", USES)
def test_layers_neither_warn_nor_raise(use: str, dtype: str) -> None:
    for names in [[name] for name in EXTREMES] + [list(EXTREMES)]:
        x = extreme(names, dtype_named(dtype))("x", (1, 9, 12))
        with strict():
            USES[use](x)


@pytest.mark.single_implementation
@pytest.mark.parametrize("number", [10**400, -(10**400), Fraction(10**400, 3)], ids=["int", "negative", "fraction"])
def test_numbers_beyond_float_are_refused_in_words(number: Any) -> None:
    x = np.ones((1, 1, 2, 4))
    calls: dict[str, Callable[[], Any]] = {
        "scale": lambda: hw.flash_attention(x, x, x, scale=number),
        "softcap": lambda: hw.flash_attention(x, x, x, softcap=number),
        "eps": lambda: hw.layer_normalization([1.0, 2.0], [1.0, 1.0], [0.0, 0.0], eps=number),
        "rate": lambda: hw.dropout(x, number),
        "base": lambda: hw.RotaryPositionalEmbedding(4, base=number),
        "n": lambda: hw.attention.positional_encoding(3, 4, number),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: -?inf, expected a finite number"):
            call()

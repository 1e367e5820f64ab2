"""float16 and bfloat16, of the operations that take them as they are: computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import LAYOUTS, assert_rounded_once, dtype_named, normal

Array = np.ndarray[Any, Any]

SLOPES = [0.5, 0.1, 3.0]


def tables(x: Array) -> tuple[Array, Array]:
    cos, sin = oracle.rope_tables(np.arange(x.shape[-2]), x.shape[-1])
    return cos.astype(x.dtype), sin.astype(x.dtype)


def rotated(x: Array, pairs: list[Array], axis: int) -> Array:
    """Not by complex numbers, as the oracle: they make NaN of an infinite part. Pairs are stacked along ``axis``."""
    (a, b), (cos, sin) = map(oracle.double, pairs), map(oracle.double, tables(x))
    with np.errstate(invalid="ignore"):
        turned = a * cos - b * sin, a * sin + b * cos
    return np.stack(turned, axis).reshape(x.shape)


def parameters(x: Array) -> tuple[Array, Array]:
    return normal(x.shape[-1:], 1).astype(x.dtype), normal(x.shape[-1:], 2).astype(x.dtype)


def alibi(x: Array) -> Array:
    bias = oracle.alibi_bias(np.float32(SLOPES), *x.shape[-2:], offset=3)
    with np.errstate(invalid="ignore"):
        return np.asarray(oracle.double(x) + bias)


@dataclass
class Operation:
    """Of one array (2, 3, n, m), m even; ``atol`` is what float32 may lose of numbers of size 1."""

    run: Callable[..., Array]
    expected: Callable[[Array], Array]
    atol: float


def softmax_like(name: str, axis: int, atol: float) -> Operation:
    function, reference = getattr(hw, name), getattr(oracle, name)
    return Operation(lambda x, **out: function(x, axis, **out), lambda x: reference(x, axis), atol)


OPERATIONS = {
    **{f"softmax-{axis}": softmax_like("softmax", axis, 0) for axis in (0, 2, 3)},
    **{f"log_softmax-{axis}": softmax_like("log_softmax", axis, 2e-6) for axis in (0, 2, 3)},
    **{f"logsumexp-{axis}": softmax_like("logsumexp", axis, 2e-6) for axis in (0, 2, 3)},
    "apply_rope": Operation(
        lambda x, **out: hw.apply_rope(x, *tables(x), **out), lambda x: rotated(x, np.split(x, 2, -1), -2), 2e-6
    ),
    "apply_rope-interleaved": Operation(
        lambda x, **out: hw.apply_rope(x, *tables(x), interleaved=True, **out),
        lambda x: rotated(x, [x[..., 0::2], x[..., 1::2]], -1),
        2e-6,
    ),
    "add_alibi": Operation(lambda x, **out: hw.add_alibi(x, SLOPES, offset=3, **out), alibi, 4e-5),
    "layer_normalization": Operation(
        lambda x, **out: hw.layer_normalization(x, *parameters(x), **out),
        lambda x: oracle.layer_normalization(x, *parameters(x)),
        5e-6,
    ),
}
INTO = [name for name in OPERATIONS if not name.startswith("logsumexp")]
halves = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
operations = pytest.mark.parametrize("name", OPERATIONS)


def bits(x: Array) -> Array:
    return x.view(np.uint16)


@halves
@operations
@pytest.mark.parametrize("m", [2, 6, 8, 14, 16, 18, 30, 32, 34, 62, 64, 66, 130, 300])
def test_rounded_once(name: str, m: int, dtype: str) -> None:
    operation = OPERATIONS[name]
    x = (3 * normal((2, 3, 9, m))).astype(dtype_named(dtype))
    got = operation.run(x)
    assert got.dtype == x.dtype
    assert_rounded_once(got, operation.expected(x), atol=operation.atol)


@halves
@pytest.mark.parametrize("shape", [(5000,), (3, 70_001), (40, 3, 5000)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_long_rows(name: str, shape: tuple[int, ...], dtype: str) -> None:
    x = (3 * normal(shape)).astype(dtype_named(dtype))
    assert_rounded_once(np.asarray(getattr(hw, name)(x)), getattr(oracle, name)(x), atol=2e-6 * (name != "softmax"))


@halves
@pytest.mark.parametrize("name", INTO)
def test_out_and_in_place(name: str, dtype: str) -> None:
    x = normal((2, 3, 9, 34)).astype(dtype_named(dtype))
    expected = OPERATIONS[name].run(x)
    out = np.full_like(x, np.nan)
    assert OPERATIONS[name].run(x, out=out) is out
    np.testing.assert_array_equal(bits(out), bits(expected))
    strided = np.full((2, 3, 9, 68), np.nan, x.dtype)[..., ::2]
    assert OPERATIONS[name].run(x, out=strided) is strided
    np.testing.assert_array_equal(strided, expected)
    assert OPERATIONS[name].run(x, out=x) is x
    np.testing.assert_array_equal(bits(x), bits(expected))


@halves
@operations
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(name: str, layout: str, dtype: str) -> None:
    """The same numbers laid out differently give the same numbers, to the rounding of sums in another order."""
    operation = OPERATIONS[name]
    x = normal((2, 3, 9, 34)).astype(dtype_named(dtype))
    assert_rounded_once(operation.run(LAYOUTS[layout](x)), operation.expected(x), atol=operation.atol)


@halves
@operations
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_not_finite(name: str, odd: float, dtype: str) -> None:
    operation = OPERATIONS[name]
    for where in [(0, 0, 0, 0), (1, 2, 4, 33), (1, 1, 8, 20)]:
        x = normal((2, 3, 9, 34)).astype(dtype_named(dtype))
        x[where] = odd
        with np.errstate(invalid="ignore"):
            expected = operation.expected(x)
        assert_rounded_once(operation.run(x), expected, atol=operation.atol)


@halves
def test_every_number_passes_unchanged(dtype: str) -> None:
    """Slopes of 0 leave scores as they were: subnormal numbers, both zeros and infinities to the bit, NaN as NaN."""
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype_named(dtype))
    with np.errstate(invalid="ignore"):  # of signalling NaN
        number = ~np.isnan(oracle.double(x))
    got = hw.add_alibi(x.reshape(1, 256, 256), [0.0]).reshape(-1)
    np.testing.assert_array_equal(bits(got)[number], bits(x)[number])
    assert np.isnan(oracle.double(got[~number])).all()


def test_subnormal_probabilities() -> None:
    x = -np.linspace(0, 17.5, 200).astype(np.float16).reshape(1, -1)
    for got, expected in [(hw.softmax(x), oracle.softmax(x)), (hw.softmax(x.T, 0), oracle.softmax(x.T, 0))]:
        assert 0 < expected.min() < 2.0**-24
        assert_rounded_once(got, expected)


def test_overflow_is_infinite() -> None:
    """Halfway from the greatest float16, 65504, to 2**16 is 65520; from there on it is infinity."""
    scores = np.full((1, 1, 4), 65504, np.float16)
    got = hw.add_alibi(scores, [-5.25])  # 65504, 65509.25, 65514.5, 65519.75
    np.testing.assert_array_equal(got, scores)
    got = hw.add_alibi(scores, [-8.0])  # 65504, 65512, 65520, 65528
    np.testing.assert_array_equal(got, np.array([[[65504, 65504, np.inf, np.inf]]]))
    x = np.array([[65504, -65504]], np.float16)
    np.testing.assert_array_equal(hw.log_softmax(x), [[0, -np.inf]])
    one = np.ones((1, 1), np.float16)
    np.testing.assert_array_equal(hw.apply_rope(x, one, one), [[np.inf, 0]])
    np.testing.assert_array_equal(hw.layer_normalization(x, abs(x[0]), x[0] * 0.5), [[np.inf, -np.inf]])


@halves
def test_beside_float32_the_result_is_float32(dtype: str) -> None:
    x = normal((1, 3, 9, 34)).astype(dtype_named(dtype))
    cos, sin = (table.astype(np.float32) for table in tables(x))
    got = hw.apply_rope(x, cos, sin)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, oracle.rope(x, cos, sin), rtol=2e-6, atol=2e-6)
    gamma, beta = (parameter.astype(np.float32) for parameter in parameters(x))
    got = hw.layer_normalization(x, gamma, beta)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, oracle.layer_normalization(x, gamma, beta), rtol=4e-6, atol=5e-6)


@halves
@pytest.mark.parametrize("shape", [(9, 34), (2, 9, 34), (2, 3, 9, 34)], ids=str)
def test_rotary_embedding_rotates_by_float32_angles(shape: tuple[int, ...], dtype: str) -> None:
    x = normal(shape).astype(dtype_named(dtype))
    layer = hw.RotaryPositionalEmbedding(34)
    expected = oracle.rope(x, *oracle.rope_tables(np.arange(9), 34))
    assert layer(x).dtype == x.dtype
    assert_rounded_once(layer(x), expected, atol=2e-6)
    assert_rounded_once(layer(LAYOUTS["every-other-column"](x)), expected, atol=2e-6)
    assert_rounded_once(layer(x, positions=np.arange(9)), expected, atol=2e-6)

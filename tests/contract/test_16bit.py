"""float16 and bfloat16 of the operations that read and write them directly: computed in float32 and rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from calls import Arguments, Sizes, arrays_in, cast, changed
from operations import cases
from support import LAYOUTS, assert_rounded_once, dtype_named, laid_out, normal

Array = np.ndarray[Any, Any]

CASES = {str(case): case for case in cases(where=lambda operation: operation.atol_16bit is not None)}
INTO = [name for name, case in CASES.items() if case.operation.out]
SIZES = Sizes((2, 3), 3, 9, 34, 34, 34)


def call(name: str, dtype: str, sizes: Sizes = SIZES, scale: float = 1.0) -> Arguments:
    """The arguments of a case, all arrays in ``dtype``, the first of them times ``scale``."""
    arguments = CASES[name].arguments(sizes)
    first = arrays_in(arguments)[0]
    return cast(arguments | {first: scale * arguments[first]}, dtype_named(dtype))


def check(name: str, arguments: Arguments) -> None:
    """The results are of the dtype of the first array, and rounded once."""
    results, expected = CASES[name].run(arguments), CASES[name].expected(arguments)
    assert expected is not None
    for got, answer in zip(results, expected, strict=True):
        assert got.dtype == arguments[arrays_in(arguments)[0]].dtype.newbyteorder("=")
        assert_rounded_once(got, answer, atol=CASES[name].operation.atol_16bit or 0.0)


def tables(x: Array) -> tuple[Array, Array]:
    cos, sin = oracle.rope_tables(np.arange(x.shape[-2]), x.shape[-1])
    return cos.astype(x.dtype), sin.astype(x.dtype)


def parameters(x: Array) -> tuple[Array, Array]:
    return normal(x.shape[-1:], 1).astype(x.dtype), normal(x.shape[-1:], 2).astype(x.dtype)


both_dtypes = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
operations = pytest.mark.parametrize("name", CASES)


def bits(x: Array) -> Array:
    return x.view(np.uint16)


@both_dtypes
@operations
@pytest.mark.parametrize("m", [2, 6, 8, 14, 16, 18, 30, 32, 34, 62, 64, 66, 130, 300])
def test_rounded_once(name: str, m: int, dtype: str) -> None:
    check(name, call(name, dtype, Sizes((2, 3), 3, 9, m, m, m), scale=3.0))


@both_dtypes
@pytest.mark.parametrize("shape", [(5000,), (3, 70_001), (40, 3, 5000)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_long_rows(name: str, shape: tuple[int, ...], dtype: str) -> None:
    x = (3 * normal(shape)).astype(dtype_named(dtype))
    assert_rounded_once(np.asarray(getattr(hw, name)(x)), getattr(oracle, name)(x), atol=2e-6 * (name != "softmax"))


@both_dtypes
@pytest.mark.parametrize("name", INTO)
def test_out_and_in_place(name: str, dtype: str) -> None:
    arguments = call(name, dtype)
    x = arguments[arrays_in(arguments)[0]]
    (expected,) = CASES[name].run(arguments)
    out = np.full_like(x, np.nan)
    assert CASES[name].run(arguments, out=out)[0] is out
    np.testing.assert_array_equal(bits(out), bits(expected))
    strided = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)[..., ::2]
    assert CASES[name].run(arguments, out=strided)[0] is strided
    np.testing.assert_array_equal(strided, expected)
    assert CASES[name].run(arguments, out=x)[0] is x
    np.testing.assert_array_equal(bits(x), bits(expected))


@both_dtypes
@operations
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(name: str, layout: str, dtype: str) -> None:
    """The same numbers laid out differently give the same numbers, to the rounding of sums in another order."""
    check(name, changed(call(name, dtype), laid_out(layout)))


@both_dtypes
@operations
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_not_finite(name: str, special: float, dtype: str) -> None:
    for where in [(0, 0, 0, 0), (1, 2, 4, 33), (1, 1, 8, 20)]:
        arguments = call(name, dtype)
        arguments[arrays_in(arguments)[0]][where] = special
        check(name, arguments)


@both_dtypes
def test_every_number_passes_unchanged(dtype: str) -> None:
    """Slopes of 0 do not change scores: subnormal numbers, zeros and infinities keep their bits, NaN stays NaN."""
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
    """Numbers from 65520 on, halfway from the max float16, 65504, to 2**16, round to infinity."""
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


@both_dtypes
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


@both_dtypes
@pytest.mark.parametrize("shape", [(9, 34), (2, 9, 34), (2, 3, 9, 34)], ids=str)
def test_rotary_embedding_rotates_by_float32_angles(shape: tuple[int, ...], dtype: str) -> None:
    x = normal(shape).astype(dtype_named(dtype))
    layer = hw.RotaryPositionalEmbedding(34)
    expected = oracle.rope(x, *oracle.rope_tables(np.arange(9), 34))
    assert layer(x).dtype == x.dtype
    assert_rounded_once(layer(x), expected, atol=2e-6)
    assert_rounded_once(layer(LAYOUTS["every-other-column"](x)), expected, atol=2e-6)
    assert_rounded_once(layer(x, positions=np.arange(9)), expected, atol=2e-6)

"""linear and PackedLinear: ``x @ weight + bias`` over any leading axes."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from headwise._runtime import backend as _backend
from implementations import bf16_may_be_forced
from support import LAYOUTS, assert_close, assert_rounded_once, dtype_named, normal

TAILS = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100]


def scaled_error(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, got: np.ndarray) -> float:
    """The largest error in units of the dtype's precision times the sum of the magnitudes that were added."""
    zero = np.zeros(weight.shape[1]) if bias is None else bias
    magnitude = oracle.linear(abs(x), abs(weight), abs(zero))
    error = abs(got - oracle.linear(x, weight, bias))
    return float((error / (np.finfo(got.dtype).eps * np.maximum(magnitude, 1e-30))).max(initial=0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("axis", ["rows", "in", "out"])
@pytest.mark.parametrize("n", TAILS)
def test_size(n: int, axis: str, with_bias: bool, dtype: str) -> None:
    rows, features_in, features_out = ({"rows": 5, "in": 12, "out": 9} | {axis: n}).values()
    x, weight = normal((rows, features_in), 1, dtype), normal((features_in, features_out), 2, dtype)
    bias = normal((features_out,), 3, dtype) if with_bias else None
    got = hw.linear(x, weight, bias)
    assert got.dtype == x.dtype and got.shape == (rows, features_out)
    assert scaled_error(x, weight, bias, got) < 2


@pytest.mark.parametrize(
    "shape",
    [(300, 257, 130), (1, 1000, 384), (5, 700, 1001), (16, 300, 300), (17, 300, 300), (64, 384, 1536), (129, 130, 513)],
    ids=str,
)
def test_larger_than_a_block(shape: tuple[int, int, int]) -> None:
    x, weight = normal(shape[:2], 1), normal(shape[1:], 2)
    wide_x, wide_weight = x.astype(np.float64), weight.astype(np.float64)
    for same_weight in (weight, np.asfortranarray(weight)):
        error = abs(hw.linear(x, same_weight) - wide_x @ wide_weight)
        assert (error / (abs(wide_x) @ abs(wide_weight))).max() < 4 * np.finfo(np.float32).eps


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_deep_sums_use_several_accumulators(rows: int, transposed: bool) -> None:
    """One chain of 4,096 multiply-adds after the bias has an RMS error of 16 eps; several accumulators have 2 to 3."""
    x, weight, bias = normal((rows, 4096), 1), normal((4096, 160), 2) / 64, normal((160,), 3)
    w = np.asfortranarray(weight) if transposed else weight
    expected = x.astype(np.float64) @ weight.astype(np.float64) + bias
    for got in (hw.linear(x, w, bias), hw.PackedLinear(w, bias)(x)):
        assert np.sqrt(np.square(got - expected).mean()) < 5 * np.finfo(np.float32).eps


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)], ids=str)
def test_leading_axes(lead: tuple[int, ...]) -> None:
    x, weight, bias = normal((*lead, 6), 1), normal((6, 5), 2), normal((5,), 3)
    assert_close(hw.linear(x, weight, bias), oracle.linear(x, weight, bias))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str) -> None:
    x, weight, bias = normal((4, 7, 6), 1), normal((6, 5), 2), normal((5,), 3)
    expected = oracle.linear(x, weight, bias)
    assert_close(hw.linear(LAYOUTS[layout](x), weight, bias), expected)
    assert_close(hw.linear(x, LAYOUTS[layout](weight), bias), expected)
    if layout not in ("transposed", "every-other-row"):
        assert_close(hw.linear(x, weight, LAYOUTS[layout](bias)), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype(dtype: str) -> None:
    x, weight, bias = (normal(shape).astype(dtype_named(dtype)) for shape in [(3, 6), (6, 5), (5,)])
    got = hw.linear(x, weight, bias)
    assert got.dtype == x.dtype
    assert_close(got, oracle.linear(x, weight, bias))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(
    "shape",
    [(1, 12, 9), (5, 33, 40), (16, 300, 70), (17, 9, 19), (33, 64, 65), (50, 300, 47), (40, 40, 530)],
    ids=str,
)
def test_16bit_results_are_rounded_once(shape: tuple[int, int, int], transposed: bool, dtype: str) -> None:
    rows, features_in, features_out = shape
    x, weight, bias = (
        normal(n, i).astype(dtype_named(dtype))
        for i, n in enumerate([(rows, features_in), (features_in, features_out), (features_out,)])
    )
    w = np.asfortranarray(weight) if transposed else weight
    for b in (None, bias):
        got = hw.linear(x, w, b)
        assert got.dtype == x.dtype
        assert_rounded_once(got, oracle.linear(x, weight, b), atol=3e-6 * features_in**0.5)
        out = np.empty_like(got)
        assert hw.linear(x, w, b, out=out) is out
        assert out.tobytes() == got.tobytes()
        assert hw.PackedLinear(w, b)(x).tobytes() == got.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16bit_with_float32_gives_float32(dtype: str) -> None:
    x, weight, bias = normal((40, 64)).astype(dtype_named(dtype)), normal((64, 50), 1), normal((50,), 2)
    for got in (hw.linear(x, weight, bias), hw.PackedLinear(weight, bias)(x)):
        assert got.dtype == np.float32
        assert_close(got, oracle.linear(x, weight, bias), factor=20)
    half = weight.astype(x.dtype)
    got = hw.linear(x, half, bias)
    assert got.dtype == np.float32
    assert_close(got, oracle.linear(x, half, bias), factor=20)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 576, 96), (3, 40, 33), (16, 300, 70), (17, 9, 1), (70, 300, 530)], ids=str)
def test_16bit_weights_under_float32(shape: tuple[int, int, int], dtype: str, transposed: bool) -> None:
    """The result is that of the weights in float32: only the weights have been rounded."""
    rows, features_in, features_out = shape
    x, bias = normal((rows, features_in), 1), normal((features_out,), 3)
    weight = normal((features_in, features_out), 2).astype(dtype_named(dtype))
    weight = np.asfortranarray(weight) if transposed else weight
    for b in (None, bias, bias.astype(weight.dtype)):
        got, packed = hw.linear(x, weight, b), hw.PackedLinear(weight, b)
        assert got.dtype == np.float32
        assert_close(got, oracle.linear(x, weight, b), factor=20)
        assert packed(x).tobytes() == got.tobytes()
        out = np.empty_like(got)
        assert packed(x, out=out) is out and out.tobytes() == got.tobytes()
        if _backend.name() == "native":
            assert hw.linear(x, weight.astype(np.float32), b).tobytes() == got.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_packed_16bit_weights_stay_16bit(dtype: str) -> None:
    weight = normal((64, 50), 1).astype(dtype_named(dtype))
    for bias, kept in ((None, weight.dtype), (normal((50,), 2), np.dtype(np.float32))):
        packed = hw.PackedLinear(weight, bias)
        assert packed.dtype == kept
        assert len(pickle.dumps(packed)) < 1.5 * weight.nbytes
        x = normal((5, 64))
        for narrow in (x, x.astype(weight.dtype)):
            assert packed(narrow).tobytes() == hw.linear(narrow, weight, bias).tobytes()
            assert pickle.loads(pickle.dumps(packed))(narrow).tobytes() == packed(narrow).tobytes()
        assert packed(x.astype(float)).dtype == np.float64


def test_16bit_sums_are_accumulated_in_float32() -> None:
    """2048 + 1 rounds to 2048 in float16; products above the max float16 may have a finite sum."""
    x = np.array([[2048, *[1] * 1023], [60000, 60000, -60000, *[0] * 1021]] * 20, np.float16)
    np.testing.assert_array_equal(hw.linear(x, np.ones((1024, 40), np.float16)), [[3072] * 40, [60000] * 40] * 20)
    x[1, 2] = 0
    assert hw.linear(x, np.ones((1024, 40), np.float16))[1, 0] == np.inf


def test_no_input_features_gives_the_bias() -> None:
    nothing, bias = np.zeros((3, 0), np.float32), normal((5,))
    np.testing.assert_array_equal(hw.linear(nothing, np.zeros((0, 5), np.float32), bias), [bias] * 3)
    assert hw.linear(np.ones((3, 4)), np.ones((4, 0))).shape == (3, 0)


def test_nan_stays_in_its_row_and_column() -> None:
    x, weight = normal((20, 33)), normal((33, 20), 1)
    x[4, 7] = np.nan
    weight[3, 11] = np.nan
    expected = np.zeros((20, 20), bool)
    expected[4] = expected[:, 11] = True
    np.testing.assert_array_equal(np.isnan(hw.linear(x, weight)), expected)


@pytest.mark.parametrize("precision", [None, "highest"])
def test_precision_highest_is_the_default(precision: str | None) -> None:
    x, weight = normal((9, 100)), normal((100, 30), 1)
    assert scaled_error(x, weight, None, hw.linear(x, weight, precision=precision)) < 2


@pytest.mark.parametrize(("precision", "lower", "upper"), [("high", 1e-6, 5.5e-6), ("medium", 5e-4, 3e-3)])
@pytest.mark.parametrize("n", [32, 64, 700])
def test_lower_precision(precision: str, lower: float, upper: float, n: int, implementation: str) -> None:
    """The RMS error for numbers of variance 1, divided by the square root of the depth."""
    x, weight = normal((50, n)), normal((n, 90), 1)
    error = hw.linear(x, weight, precision=precision) - oracle.linear(x, weight)
    scaled = np.sqrt(np.square(error).mean() / n)
    assert scaled < upper
    bf16_levels = {"native-avx512_amx": ("high", "medium"), "native-avx512_bf16": ("medium",)}
    if precision in bf16_levels.get(implementation, ()) and (n == 700 or bf16_may_be_forced()):
        assert scaled > lower, "the bf16 split has not run"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38, -3.4e38])
def test_non_finite_and_overflowing_inputs(special: float, precision: str) -> None:
    x, weight = normal((70, 64)), normal((64, 70), 1)
    x[40, 50], weight[20, 33] = special, special
    weight[50, 10] = 0
    got = hw.linear(x, weight, precision=precision)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = oracle.linear(x, weight)
        expected32 = expected.astype(np.float32)
    sure = np.isnan(expected) | np.isinf(expected32) | (abs(expected) < 1e38)
    sure[40, 33] = False
    np.testing.assert_array_equal(np.isnan(got)[sure], np.isnan(expected)[sure])
    np.testing.assert_array_equal(np.isinf(got)[sure], np.isinf(expected32)[sure])
    usual = np.ones(got.shape, bool)
    usual[40] = usual[:, 33] = False
    np.testing.assert_allclose(got[usual], expected[usual], atol=0.3 if precision == "medium" else 1e-3)


def test_out() -> None:
    x, weight, bias = normal((4, 7, 6), 1), normal((6, 5), 2), normal((5,), 3)
    out = np.full((4, 7, 5), np.nan, np.float32)
    assert hw.linear(x, weight, bias, out=out) is out
    assert_close(out, oracle.linear(x, weight, bias))


# --- packed weights ---


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 40, 50), (9, 12, 7), (40, 300, 90), (33, 64, 530)], ids=str)
def test_packed_has_the_bits_of_linear(shape: tuple[int, int, int], dtype: str, precision: str | None) -> None:
    rows, features_in, features_out = shape
    x, weight, bias = (
        normal(n, i).astype(dtype_named(dtype))
        for i, n in enumerate([(2, rows, features_in), (features_in, features_out), (features_out,)])
    )
    for w in (weight, np.asfortranarray(weight)):
        for b in (None, bias):
            packed = hw.PackedLinear(w, b, precision=precision)
            expected = hw.linear(x, w, b, precision=precision)
            got = packed(x)
            assert got.dtype == expected.dtype == packed.dtype and got.shape == expected.shape
            assert got.tobytes() == expected.tobytes()
            assert packed(x).tobytes() == expected.tobytes()
    if precision in (None, "highest"):
        assert_close(got, oracle.linear(x, weight, bias), factor=20 if features_in > 200 else 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_layout(layout: str) -> None:
    x, weight, bias = normal((4, 7, 6), 1), normal((6, 5), 2), normal((5,), 3)
    expected = oracle.linear(x, weight, bias)
    assert_close(hw.PackedLinear(weight, bias)(LAYOUTS[layout](x)), expected)
    assert_close(hw.PackedLinear(LAYOUTS[layout](weight), bias)(x), expected)
    out = np.full((4, 7, 5), np.nan, np.float32)
    assert hw.PackedLinear(weight, bias)(x, out=out) is out
    assert_close(out, expected)


def test_packed_attributes() -> None:
    packed = hw.PackedLinear(np.ones((3, 5), np.float32), np.ones(5))
    assert (packed.in_features, packed.out_features, packed.dtype) == (3, 5, np.float64)
    assert repr(packed) == "PackedLinear(in_features=3, out_features=5, float64)"


@pytest.mark.parametrize("rows", [3, 40])
def test_packed_copies_its_arguments(rows: int) -> None:
    """Later changes of the caller's arrays have no effect."""
    before = hw.config()["target"]
    x, weight, bias = normal((rows, 64), 1), normal((64, 70), 2), normal((70,), 3)
    packed, expected = hw.PackedLinear(weight, bias), hw.linear(x, weight, bias)
    weight[:] = bias[:] = np.nan
    assert packed(x).tobytes() == expected.tobytes()
    for name in hw.list_targets():
        hw.set_target(name)
        assert not np.isnan(packed(x)).any()
    hw.set_target(before)


@pytest.mark.parametrize("rows", [3, 40])
def test_packed_follows_the_target_and_the_backend(rows: int) -> None:
    backend, before = _backend.name(), hw.config()["target"]
    x, weight, bias = normal((rows, 64), 1), normal((64, 700), 2), normal((700,), 3)
    packed = hw.PackedLinear(weight, bias)
    for _ in range(2):
        for name in hw.list_targets():
            hw.set_target(name)
            assert packed(x).tobytes() == hw.linear(x, weight, bias).tobytes(), name
    hw.set_target(before)
    _backend.use("numpy")
    assert packed(x).tobytes() == hw.linear(x, weight, bias).tobytes()
    _backend.use(backend)
    assert packed(x).tobytes() == hw.linear(x, weight, bias).tobytes()


def test_packed_follows_the_default_precision() -> None:
    x, weight = normal((40, 64), 1), normal((64, 70), 2)
    packed = hw.PackedLinear(weight)
    assert packed(x).tobytes() == hw.linear(x, weight).tobytes()
    with hw.precision("medium"):
        assert packed(x).tobytes() == hw.linear(x, weight, precision="medium").tobytes()
    assert packed(x).tobytes() == hw.linear(x, weight).tobytes()


@pytest.mark.parametrize("of_x", ["int8", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("of_weight", ["int64", "float16", "float32", "float64"])
def test_packed_dtypes_promote_as_in_linear(of_x: str, of_weight: str) -> None:
    x, weight = (9 * normal((3, 6), 1)).astype(of_x), (9 * normal((6, 5), 2)).astype(of_weight)
    got, expected = hw.PackedLinear(weight)(x), hw.linear(x, weight)
    assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes()
    out = np.empty_like(expected)
    assert hw.PackedLinear(weight)(x, out=out) is out
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("lead", [(), (4,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (0, 5), (6, 0), (0, 0)], ids=str)
def test_packed_leading_axes_and_empty_arrays(lead: tuple[int, ...], shape: tuple[int, int]) -> None:
    x, weight, bias = normal((*lead, shape[0]), 1), normal(shape, 2), normal(shape[1:], 3)
    np.testing.assert_array_equal(hw.PackedLinear(weight, bias)(x), hw.linear(x, weight, bias))
    np.testing.assert_array_equal(hw.PackedLinear(weight)(x), hw.linear(x, weight))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy"])
def test_packed_copy_and_pickle(way: str, dtype: str) -> None:
    x, weight, bias = (normal(n).astype(dtype) for n in [(40, 64), (64, 70), (70,)])
    ways: dict[str, Any] = {
        "pickle": lambda one: pickle.loads(pickle.dumps(one)), "copy": copy.copy, "deepcopy": copy.deepcopy,
    }  # fmt: skip
    for b in (None, bias):
        packed = hw.PackedLinear(weight, b, precision="high")
        other = ways[way](packed)
        assert other is not packed and other.dtype == packed.dtype
        expected = packed(x).tobytes()
        del packed
        assert other(x).tobytes() == expected


def test_packed_from_many_threads() -> None:
    x, weight = normal((40, 64), 1), normal((64, 700), 2)
    packed, expected = hw.PackedLinear(weight), hw.linear(x, weight).tobytes()
    wrong: list[int] = []

    def caller(number: int) -> None:
        for rows in (40, 3, 40):
            if packed(x[:rows]).tobytes() != expected[: rows * 700 * 4] and rows == 40:
                wrong.append(number)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(60)
    assert not wrong and not any(one.is_alive() for one in callers)

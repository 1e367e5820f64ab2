"""linear: ``x @ weight + bias`` over any leading axes."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
import oracle
from support import LAYOUTS, assert_close, dtype_named, normal

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


def test_no_input_features_is_the_bias() -> None:
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


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_precision_is_still_a_product(precision: str) -> None:
    x, weight = normal((9, 100)), normal((100, 30), 1)
    np.testing.assert_allclose(hw.linear(x, weight, precision=precision), oracle.linear(x, weight), atol=0.2)


def test_out() -> None:
    x, weight, bias = normal((4, 7, 6), 1), normal((6, 5), 2), normal((5,), 3)
    out = np.full((4, 7, 5), np.nan, np.float32)
    assert hw.linear(x, weight, bias, out=out) is out
    assert_close(out, oracle.linear(x, weight, bias))

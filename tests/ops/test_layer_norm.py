"""layer_normalization against the oracle."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
import oracle
from headwise.normalization import layer_normalization
from support import LAYOUTS, assert_close, dtype_named, normal


def test_normalization_module_has_the_same_function() -> None:
    assert layer_normalization is hw.layer_normalization


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [*range(2, 70), 127, 128, 129, 384, 768, 1000])
def test_width(n: int, dtype: str) -> None:
    x, gamma, beta = 2 + 3 * normal((7, n), 1, dtype), normal((n,), 2, dtype), normal((n,), 3, dtype)
    assert_close(hw.layer_normalization(x, gamma, beta), oracle.layer_normalization(x, gamma, beta), factor=2)


def test_one_feature_is_beta() -> None:
    np.testing.assert_array_equal(hw.layer_normalization(normal((5, 1)), [2.0], [0.25]), np.full((5, 1), 0.25))


@pytest.mark.parametrize("axis", range(-4, 4))
def test_axis(axis: int) -> None:
    x = normal((6, 8, 17, 9), dtype=np.float64)
    gamma, beta = normal((x.shape[axis],), 1), normal((x.shape[axis],), 2)
    expected = oracle.layer_normalization(x, gamma, beta, axis=axis)
    assert_close(hw.layer_normalization(x, gamma, beta, axis=axis), expected, factor=10)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1, 10.0])
def test_eps(eps: float) -> None:
    x = normal((5, 33)) * 0.1
    ones, zeros = np.ones(33, np.float32), np.zeros(33, np.float32)
    expected = oracle.layer_normalization(x, ones, zeros, eps)
    assert_close(hw.layer_normalization(x, ones, zeros, eps=eps), expected, factor=2)


@pytest.mark.parametrize("mean", [1e3, -1e4])
def test_variance_survives_a_large_mean(mean: float) -> None:
    """``E[x²] - E[x]²`` in float32 would have no correct digit here. The input is exact in float32."""
    x = (mean + np.round(8 * normal((5, 384))) / 8).astype(np.float32)
    ones, zeros = np.ones(384, np.float32), np.zeros(384, np.float32)
    got = hw.layer_normalization(x, ones, zeros)
    np.testing.assert_allclose(got, oracle.layer_normalization(x, ones, zeros), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 1e18), ("float32", 1e30), ("float32", 3.4e38), ("bfloat16", 3e38), ("float64", 1e308)],
)
@pytest.mark.parametrize("n", [2, 33, 1000])
def test_squares_and_sums_that_overflow(n: int, dtype: str, size: float) -> None:
    """Together with a row without overflow, one that is not finite and one that is constant."""
    x = np.concatenate(
        [normal((3, n), dtype="float64").clip(-1, 1) * size, normal((1, n)), np.full((1, n), 2.0 ** int(np.log2(size)))]
    )
    x = x.astype(dtype_named(dtype))
    x[1, n // 2] = np.inf
    gamma, beta = normal((n,), 1).astype(x.dtype), normal((n,), 2).astype(x.dtype)
    got = hw.layer_normalization(x, gamma, beta)
    usual = [0, 2, 3, 4]
    assert np.isnan(oracle.double(got[1])).all()
    assert_close(got[usual], oracle.layer_normalization(x[usual], gamma, beta), factor=2)


def test_constant_rows_are_beta() -> None:
    beta = normal((16,))
    np.testing.assert_allclose(hw.layer_normalization(np.full((3, 16), 7.0, np.float32), beta, beta), [beta] * 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str) -> None:
    x, gamma, beta = normal((4, 6, 10), 1), normal((10,), 2), normal((10,), 3)
    expected = oracle.layer_normalization(x, gamma, beta)
    assert_close(hw.layer_normalization(LAYOUTS[layout](x), gamma, beta), expected, factor=2)
    if layout not in ("transposed", "every-other-row"):
        gamma, beta = LAYOUTS[layout](gamma), LAYOUTS[layout](beta)
    assert_close(hw.layer_normalization(x, gamma, beta), expected, factor=2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype(dtype: str) -> None:
    x, gamma, beta = (normal(shape).astype(dtype_named(dtype)) for shape in [(3, 40), (40,), (40,)])
    got = hw.layer_normalization(x, gamma, beta)
    assert got.dtype == x.dtype
    assert_close(got, oracle.layer_normalization(x, gamma, beta), factor=1.1)


def test_nan_stays_in_its_row() -> None:
    x = normal((5, 20))
    x[2, 3] = np.nan
    got = hw.layer_normalization(x, np.ones(20), np.zeros(20))
    assert np.isnan(got[2]).all() and np.isfinite(np.delete(got, 2, axis=0)).all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    assert hw.layer_normalization(np.zeros(shape), np.ones(4), np.zeros(4)).shape == shape


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("exponent", [-1, -18, -30, -37, -44, -160, -300, -320, 18, 30, 37, 150, 300])
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-80, 1e-40])
def test_small_and_large_rows(eps: float, exponent: int, dtype: str) -> None:
    """The variance of such rows overflows or underflows in the dtype; the result does not depend on their size."""
    kind = dtype_named(dtype)
    if dtype != "float64" and not (-44 if dtype == "float32" else -37) <= exponent <= 37:
        pytest.skip("beyond the range of the dtype")
    with np.errstate(all="ignore"):
        x = (normal((5, 40), dtype=np.float64) * 10.0**exponent).astype(kind)
    g, b = normal((40,), 1).astype(kind), normal((40,), 2).astype(kind)
    got = hw.layer_normalization(x, g, b, eps=eps)
    expected = oracle.layer_normalization(x, g, b, np.longdouble(eps))
    np.testing.assert_allclose(oracle.double(got), expected, atol=2.0**-6 if dtype == "bfloat16" else 2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("eps", [1e-300, 1e-30, 1e-5])
def test_equal_entries_give_beta(eps: float, size: float, dtype: str) -> None:
    x, b = np.full((3, 40), size, dtype), normal((40,), 2, dtype)
    np.testing.assert_array_equal(hw.layer_normalization(x, np.ones(40, dtype), b, eps=eps), np.stack([b, b, b]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("n", [3, 40, 1000])
def test_without_gamma_or_beta(n: int, dtype: str) -> None:
    x, gamma, beta = (normal(shape).astype(dtype_named(dtype)) for shape in [(3, n), (n,), (n,)])
    assert_close(hw.layer_normalization(x), oracle.layer_normalization(x), factor=2)
    assert_close(hw.layer_normalization(x, gamma), oracle.layer_normalization(x, gamma), factor=2)
    assert_close(hw.layer_normalization(x, beta=beta), oracle.layer_normalization(x, None, beta), factor=2)

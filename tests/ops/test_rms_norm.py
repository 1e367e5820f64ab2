"""rms_norm against the oracle."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
import oracle
from headwise.normalization import rms_norm
from support import LAYOUTS, assert_close, dtype_named, normal


def test_normalization_module_has_the_same_function() -> None:
    assert rms_norm is hw.rms_norm


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 384, 768, 1000])
def test_width(n: int, dtype: str) -> None:
    x, gamma = 2 + 3 * normal((7, n), 1, dtype), normal((n,), 2, dtype)
    assert_close(hw.rms_norm(x, gamma), oracle.rms_norm(x, gamma), factor=2)
    assert_close(hw.rms_norm(x), oracle.rms_norm(x), factor=2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype(dtype: str) -> None:
    x, gamma = (normal(shape).astype(dtype_named(dtype)) for shape in [(3, 40), (40,)])
    got = hw.rms_norm(x, gamma)
    assert got.dtype == x.dtype
    assert_close(got, oracle.rms_norm(x, gamma), factor=1.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str) -> None:
    x, gamma = normal((4, 6, 10), 1), normal((10,), 2)
    expected = oracle.rms_norm(x, gamma)
    assert_close(hw.rms_norm(LAYOUTS[layout](x), gamma), expected, factor=2)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("exponent", [-1, -18, -30, -37, -44, -160, -300, -320, 18, 30, 37, 150, 300])
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-80, 1e-40])
def test_small_and_large_rows(eps: float, exponent: int, dtype: str) -> None:
    """Squares of such rows overflow or underflow in the dtype; the result does not depend on their size."""
    kind = dtype_named(dtype)
    if dtype != "float64" and not (-44 if dtype == "float32" else -37) <= exponent <= 37:
        pytest.skip("beyond the range of the dtype")
    with np.errstate(all="ignore"):
        x = (normal((5, 40), dtype=np.float64) * 10.0**exponent).astype(kind)
    gamma = normal((40,), 1).astype(kind)
    got = hw.rms_norm(x, gamma, eps=eps)
    expected = oracle.rms_norm(x, gamma, np.longdouble(eps))
    np.testing.assert_allclose(oracle.double(got), expected, atol=2.0**-6 if dtype == "bfloat16" else 2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_zeros(dtype: str) -> None:
    zeros = np.zeros((3, 40), dtype)
    np.testing.assert_array_equal(hw.rms_norm(zeros), zeros)
    np.testing.assert_array_equal(hw.rms_norm(zeros, eps=1e-300), zeros)
    assert np.isnan(hw.rms_norm(zeros, eps=0.0)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_nan_and_infinity_stay_in_their_row(dtype: str) -> None:
    """Beside an infinite entry, finite ones are 0, as in PyTorch."""
    x = normal((5, 20)).astype(dtype_named(dtype))
    x[1, 3], x[2, 3] = np.nan, -np.inf
    got = oracle.double(hw.rms_norm(x))
    assert np.isnan(got[1]).all() and np.isnan(got[2, 3])
    assert (np.delete(got[2], 3) == 0).all() and np.isfinite(got[[0, 3, 4]]).all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (3, 0)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    assert hw.rms_norm(np.zeros(shape), np.ones(shape[-1])).shape == shape

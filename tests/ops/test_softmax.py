"""softmax, log_softmax and logsumexp against the oracle, over any axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import LAYOUTS, assert_close, dtype_named, normal

LENGTHS = [*range(1, 70), 100, 127, 128, 129, 255, 256, 257, 1000, 4099]
FUNCTIONS = {
    "softmax": (hw.softmax, oracle.softmax),
    "log_softmax": (hw.log_softmax, oracle.log_softmax),
    "logsumexp": (hw.logsumexp, oracle.logsumexp),
}
both = pytest.mark.parametrize(("function", "reference"), FUNCTIONS.values(), ids=FUNCTIONS)
Function = Callable[..., Any]


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", LENGTHS)
def test_length(function: Function, reference: Function, n: int, dtype: str) -> None:
    x = 3 * normal((3, n), dtype=dtype)
    assert_close(function(x), reference(x))
    assert_close(function(x.T, axis=0), reference(x.T, axis=0))


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(70_001,), (3, 66_000), (20, 8200), (300_000,)], ids=str)
def test_long_rows(function: Function, reference: Function, shape: tuple[int, ...], dtype: str) -> None:
    x = 3 * normal(shape, dtype=dtype)
    assert_close(np.asarray(function(x)), reference(x))
    x[..., 5000] = -np.inf
    x[..., -2] = 60
    assert_close(np.asarray(function(x)), reference(x))


@both
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("axis", range(-4, 4))
def test_axis(function: Function, reference: Function, axis: int, dtype: str) -> None:
    x = normal((3, 5, 17, 9)).astype(dtype_named(dtype))
    got = function(x, axis=axis)
    assert_close(got, reference(x, axis=axis))
    assert got.dtype == x.dtype


@both
@pytest.mark.parametrize("shape", [(4, 1, 6), (1, 33, 40), (2, 100, 3), (5, 7, 1)], ids=str)
def test_middle_axis(function: Function, reference: Function, shape: tuple[int, ...]) -> None:
    x = normal(shape)
    assert_close(function(x, axis=1), reference(x, axis=1))


@both
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", range(3))
def test_layout(function: Function, reference: Function, axis: int, layout: str) -> None:
    x = normal((6, 19, 11))
    assert_close(function(LAYOUTS[layout](x), axis=axis), reference(x, axis=axis))


@pytest.mark.parametrize("axis", range(-3, 3))
@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp_keepdims(axis: int, keepdims: bool) -> None:
    x = normal((3, 4, 5))
    assert_close(np.asarray(hw.logsumexp(x, axis=axis, keepdims=keepdims)), oracle.logsumexp(x, axis, keepdims))


@both
def test_vector_and_default_axis(function: Function, reference: Function) -> None:
    x = normal((37,))
    np.testing.assert_array_equal(function(x), function(x, axis=0))
    assert_close(np.asarray(function(x)), reference(x))


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [3, 8, 33])
@pytest.mark.parametrize("axis", [0, 1])
def test_infinities_and_nan(function: Function, reference: Function, axis: int, n: int, dtype: str) -> None:
    """-inf has weight 0; a row of -inf alone, or with +inf or NaN, follows the formula."""
    x = normal((6, n), dtype=dtype)
    x[1, -1] = -np.inf
    x[2] = -np.inf
    x[3, 0] = np.nan
    x[4, 1] = np.inf
    x[5, :-1] = -np.inf
    x = x if axis == 1 else x.T.copy()
    got, expected = np.asarray(function(x, axis=axis)), reference(x, axis=axis)
    if function is hw.logsumexp:
        assert got[2] == -np.inf and got[4] == np.inf
    else:
        got, expected = np.moveaxis(got, axis, 1), np.moveaxis(expected, axis, 1)
        assert np.isnan(got[2]).all() and np.isnan(got[4]).any()
    assert np.isnan(got[3]).all()
    assert_close(got[[0, 1, 5]], expected[[0, 1, 5]])


@both
@pytest.mark.parametrize("shift", [-1e30, -1e4, 1e4, 1e30, 3e38])
def test_large_logits(function: Function, reference: Function, shift: float) -> None:
    x = (np.float32(shift) + np.array([[0, 1, -2, 8] * 9], np.float32)).astype(np.float32)
    assert_close(function(x), reference(x))


@both
def test_far_apart_logits(function: Function, reference: Function) -> None:
    x = np.array([[1.5e38, -1.5e38, 0, 1], [0, -80, -90, -1e4], [-1e4, -1e4, -1e4, -1e4]], np.float32)
    assert_close(function(x), reference(x))


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_logits(function: Function, reference: Function, dtype: str) -> None:
    x = np.finfo(dtype).smallest_subnormal * np.arange(1, 20, dtype=dtype).reshape(1, -1)
    assert_close(function(x), reference(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_probabilities_have_full_relative_precision(dtype: str) -> None:
    """The relative error is bounded, not the absolute one, for small probabilities as well."""
    depth, rtol = (80, 1e-6) if dtype == "float32" else (700, 3e-15)
    x = -np.linspace(0, depth, 97, dtype=dtype)
    np.testing.assert_allclose(hw.softmax(x), oracle.softmax(x), rtol=rtol)
    np.testing.assert_allclose(hw.log_softmax(x), oracle.log_softmax(x), rtol=rtol, atol=np.finfo(dtype).eps)


@both
@pytest.mark.parametrize("axis", [0, 1])
def test_long_axis(function: Function, reference: Function, axis: int) -> None:
    """One sum of 10**5 terms in float32 would have a relative error of 1e-5."""
    x = normal((100_000, 3) if axis == 0 else (3, 100_000))
    np.testing.assert_allclose(function(x, axis), reference(x, axis), rtol=2e-6, atol=1e-12)


@both
@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16", "bool"])
def test_integers_become_float64(function: Function, reference: Function, dtype: str) -> None:
    x = (10 * normal((3, 7))).astype(dtype)
    got = function(x)
    assert got.dtype == np.float64
    assert_close(got, reference(x.astype(float)))


@both
@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (2, 4, 0)], ids=str)
def test_empty(function: Function, reference: Function, shape: tuple[int, ...]) -> None:
    axis = next(axis for axis, size in enumerate(shape) if size)
    got = function(np.zeros(shape), axis=axis)
    assert got.shape == (shape if function is not hw.logsumexp else shape[:axis] + shape[axis + 1 :])


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_out(name: str, axis: int) -> None:
    function, reference = FUNCTIONS[name]
    x = normal((5, 9, 13))
    out = np.full_like(x, np.nan)
    assert function(x, axis=axis, out=out) is out
    assert_close(out, reference(x, axis=axis))
    expected = reference(x, axis=axis)
    assert function(x, axis=axis, out=x) is x
    assert_close(x, expected)

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
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bits_of_a_row_alone(function: Function, reference: Function, dtype: str) -> None:
    """Short rows have algorithms of their own, and so have rows of one element that follow each other in memory."""
    for n in (*range(1, 20), 33):
        x = (3 * normal((12, n))).astype(dtype_named(dtype))
        x[1, 0], x[2, 0], x[3], x[4, -1] = np.nan, np.inf, -np.inf, -np.inf
        together = function(x)
        assert together.tobytes() == np.stack([function(row) for row in x]).tobytes(), n
        assert together.tobytes() == np.concatenate([function(x[:5]), function(x[5:])]).tobytes(), n


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


SHAPE = (3, 4, 5, 2)
AXES = [None, (), (1,), (0, 1), (-1, 0), (0, 2), (3, 1, 0), (0, 1, 2, 3)]


@both
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_axes(function: Function, reference: Function, axis: tuple[int, ...] | None, dtype: str) -> None:
    x = normal(SHAPE).astype(dtype_named(dtype))
    for laid_out in (x, np.asfortranarray(x), x[::-1, :, ::-1]):
        got = np.asarray(function(laid_out, axis))
        assert got.dtype == x.dtype
        assert_close(got, reference(laid_out, axis))


@pytest.mark.parametrize("function", [hw.softmax, hw.log_softmax])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_out_of_several_axes(function: Function, axis: tuple[int, ...] | None) -> None:
    x = normal(SHAPE)
    expected, out = function(x, axis), np.empty_like(x)
    assert function(x, axis, out=out) is out
    assert function(x, axis, out=x) is x
    assert out.tobytes() == x.tobytes() == expected.tobytes()


@both
def test_a_scalar_has_no_axis_but_all_axes(function: Function, reference: Function) -> None:
    assert function(2.5, axis=None) == reference(2.5, axis=None)
    with pytest.raises(ValueError, match="x: a scalar, expected at least one axis"):
        function(2.5)


@both
def test_refused_axes(function: Function, reference: Function) -> None:
    x = normal(SHAPE)
    with pytest.raises(ValueError, match=r"axis: \(0, -4\), expected each axis once"):
        function(x, (0, -4))
    with pytest.raises(ValueError, match="axis: 4, expected -4 to 3"):
        function(x, (0, 4))
    with pytest.raises(TypeError, match=r"axis: \[0, 1\]"):
        function(x, [0, 1])


WHERE = [
    np.array([True, False]),
    np.array([[1], [0], [1], [1], [0]]),
    np.arange(120).reshape(SHAPE) % 3 > 0,
    np.arange(3).reshape(3, 1, 1, 1) > 0,
    False,
]


@both
@pytest.mark.parametrize("axis", [-1, 0, (0, 2), None], ids=str)
@pytest.mark.parametrize("where", WHERE, ids=lambda where: str(np.shape(where)))
def test_where(function: Function, reference: Function, where: Any, axis: Any) -> None:
    """What stands in masked entries, NaN included, is without influence."""
    x = normal(SHAPE)
    got = np.asarray(function(x, axis, where=where))
    assert_close(got, reference(x, axis, where=np.asarray(where, bool)))
    for special in (np.nan, np.inf, 3e38):
        spoilt = np.where(where, x, np.float32(special))
        assert np.asarray(function(spoilt, axis, where=where)).tobytes() == got.tobytes()


@pytest.mark.parametrize("function", [hw.softmax, hw.log_softmax])
def test_where_in_place(function: Function) -> None:
    x, where = normal((5, 7)), normal((5, 7), 1) > 0
    expected = function(x, where=where)
    assert function(x, where=where, out=x).tobytes() == expected.tobytes()


def test_masked_results() -> None:
    """Masked entries are 0, also in rows that are NaN or keep nothing."""
    x = np.array([[np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0], [-np.inf, 1.0, 2.0], [0.0, 1.0, 2.0]])
    where = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    nan = np.nan
    np.testing.assert_array_equal(hw.softmax(x, where=where), [[nan, nan, 0], [nan, nan, 0], [nan, 0, 0], [0, 0, 0]])
    inf = np.inf
    expected = [[nan, nan, -inf], [nan, nan, -inf], [nan, -inf, -inf], [-inf, -inf, -inf]]
    np.testing.assert_array_equal(hw.log_softmax(x, where=where), expected)
    np.testing.assert_array_equal(hw.logsumexp(x, where=where), [nan, inf, -inf, -inf])


@both
def test_refused_where(function: Function, reference: Function) -> None:
    x = normal((3, 4))
    with pytest.raises(ValueError, match=r"where: shape \(2, 4\), expected one that broadcasts to that of x, \(3, 4\)"):
        function(x, where=np.ones((2, 4), bool))
    with pytest.raises(ValueError, match=r"where: shape \(1, 3, 4\)"):
        function(x, where=np.ones((1, 3, 4), bool))
    with pytest.raises(TypeError, match="where: dtype float64, expected bool"):
        function(x, where=np.ones((3, 4)))
    with pytest.raises(ValueError, match="where: an integer other than 0 and 1"):
        function(x, where=[0, 1, 2, 1])


FACTORS = {
    "scalar": 2.5,
    "row": np.array([1.0, 0.0, 3.0, 0.5, 2.0])[:, None],
    "negative": np.array([1.0, -2.0]),
    "integers": np.array([3, 0]),
    "all": normal(SHAPE, 5),
    "zero": 0.0,
    "large": 1e300,
    "small": 1e-300,
}


@pytest.mark.parametrize("b", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("axis", [-1, 1, (0, 2), None], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_factors(dtype: str, axis: Any, b: Any) -> None:
    x = normal(SHAPE).astype(dtype)
    where = np.arange(4)[:, None, None] != 2
    for keywords in ({}, {"keepdims": True}, {"where": where}):
        got, expected = hw.logsumexp(x, axis, b=b, **keywords), oracle.logsumexp(x, axis, b=b, **keywords)
        assert got.dtype == np.result_type(x, np.asarray(b, None if np.ndim(b) or dtype == "float64" else float))
        assert_close(np.asarray(got), expected)
        for one, other in zip(
            hw.logsumexp(x, axis, b=b, return_sign=True, **keywords),
            oracle.logsumexp(x, axis, b=b, return_sign=True, **keywords),
            strict=True,
        ):
            assert_close(np.asarray(one), other)


def test_factors_of_zero_exclude() -> None:
    x = [np.nan, 1.0, np.inf]
    assert hw.logsumexp(x, b=[0.0, 1.0, 0.0]) == 1.0
    assert hw.logsumexp(x, b=[np.nan, 1.0, 1.0], where=[False, True, False]) == 1.0


def test_factors_beside_distant_entries() -> None:
    """The larger term is the one with the smaller entry: neither overflows or underflows."""
    x, b = [0.0, -800.0, -805.0], [1e-300, 1e300, 1e300]
    assert hw.logsumexp(x, b=b) == pytest.approx(-800.0 + np.log(1e300) + np.log1p(np.exp(-5.0)))


def test_sign_without_factors() -> None:
    x = np.array([[0.0, 1.0], [-np.inf, -np.inf], [np.nan, 0.0]])
    value, sign = hw.logsumexp(x, return_sign=True)
    np.testing.assert_array_equal(sign, [1, 0, np.nan])
    np.testing.assert_array_equal(value, hw.logsumexp(x))


def test_refused_factors() -> None:
    x = normal((3, 4))
    with pytest.raises(ValueError, match=r"b: shape \(3,\), expected one that broadcasts to that of x, \(3, 4\)"):
        hw.logsumexp(x, b=np.ones(3))
    with pytest.raises(TypeError, match="b: dtype complex128"):
        hw.logsumexp(x, b=1j)
    with pytest.raises(TypeError, match="return_sign: str"):
        hw.logsumexp(x, return_sign="yes")

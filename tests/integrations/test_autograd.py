"""headwise.integrations.autograd: every differentiable function as a primitive."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import headwise as hw
from calls import Case
from headwise._ops.gradients import vjp as registry
from integrations.adapted import CASES, by_headwise, drawn, loss, slope
from support import normal

autograd = pytest.importorskip("autograd", reason="the package autograd is not installed")
adapter: Any = pytest.importorskip("headwise.integrations.autograd")
anp: Any = pytest.importorskip("autograd.numpy")

pytestmark = pytest.mark.above_operations

X = normal((2, 3, 8), dtype=np.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case: Case) -> None:
    """By all arguments at once: those of headwise.vjp, and those of central differences."""
    arguments, names = drawn(case)
    function = getattr(adapter, case.operation.name)

    def run(arrays: tuple[Any, ...]) -> Any:
        return loss(function(**{**arguments, **dict(zip(names, arrays, strict=True))}))

    arrays = tuple(arguments[name] for name in names)
    found = autograd.grad(run)(arrays)
    expected = by_headwise(case, arguments, names)
    for name, gradient in zip(names, found, strict=True):
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-12, atol=1e-13)
    directions = [normal(x.shape, 5, np.float64) for x in arrays]
    moved = slope(lambda t: run(tuple(x + t * d for x, d in zip(arrays, directions, strict=True))))
    along = sum((g * d).sum() for g, d in zip(found, directions, strict=True))
    assert abs(moved - along) < 1e-8 * max(1, abs(moved))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes(dtype: Any) -> None:
    x = X.astype(dtype)
    gradient = autograd.grad(lambda q: adapter.flash_attention(q, x, x, is_causal=True).sum())(x)
    assert gradient.dtype == dtype and gradient.shape == x.shape


def test_in_the_middle_of_a_graph() -> None:
    weight = normal((8, 8), 1, np.float64)

    def value(w: Any, attention: Any) -> Any:
        x = anp.tanh(anp.dot(X, w))
        return anp.sum(attention(x, x, x) ** 2)

    def plain(q: Any, k: Any, v: Any) -> Any:
        scores = anp.exp(anp.matmul(q, anp.swapaxes(k, 1, 2)) / np.sqrt(8))
        return anp.matmul(scores / anp.sum(scores, axis=-1, keepdims=True), v)

    found = autograd.grad(value)(weight, adapter.flash_attention)
    np.testing.assert_allclose(found, autograd.grad(value)(weight, plain), rtol=1e-10, atol=1e-12)


def test_lists_of_traced_arrays() -> None:
    q, k, v = normal((3, 6, 8), dtype=np.float64)

    def merged(k: Any) -> Any:
        parts = [adapter.flash_attention(q, k[p], v[p], return_lse=True) for p in (slice(2), slice(2, 6))]
        return adapter.merge_attention([part[0] for part in parts], [part[1] for part in parts])[0].sum()

    expected = autograd.grad(lambda k: adapter.flash_attention(q, k, v).sum())(k)
    np.testing.assert_allclose(autograd.grad(merged)(k), expected, atol=1e-12)


def test_without_traced_arrays() -> None:
    got = adapter.softmax(X)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, hw.softmax(X))


def test_jacobian() -> None:
    x = X[0, 0]
    p = hw.softmax(x)
    np.testing.assert_allclose(autograd.jacobian(adapter.softmax)(x), np.diag(p) - np.outer(p, p), atol=1e-14)


def test_weights_left_out() -> None:
    def value(q: Any) -> Any:
        output, weights = adapter.scaled_dot_product_attention(q, X, X, need_weights=False)
        assert weights is None
        return output.sum()

    assert autograd.grad(value)(X).shape == X.shape


def test_second_derivatives() -> None:
    with pytest.raises(TypeError, match="softmax: second derivatives"):
        autograd.grad(lambda x: autograd.grad(lambda y: adapter.softmax(y)[0])(x)[1])(X[0, 0])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("mask", lambda x: adapter.flash_attention(x, x, x, mask=x[0, :3, :3])),
        ("where", lambda x: adapter.softmax(x, where=x)),
        ("out", lambda x: adapter.softmax(x, out=x)),
    ],
)
def test_arguments_without_gradients(name: str, call: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: traced by autograd, but .* has gradients by"):
        autograd.grad(lambda x: call(x).sum())(X)


def test_errors_of_the_function() -> None:
    with pytest.raises(TypeError, match=r"^causal: not a keyword here, expected is_causal="):
        autograd.grad(lambda x: adapter.flash_attention(x, x, x, causal=True).sum())(X)
    with pytest.raises(ValueError, match=r"^key"):
        autograd.grad(lambda x: adapter.flash_attention(x, x[..., :3], x).sum())(X)


@pytest.mark.single_implementation
def test_names() -> None:
    assert set(adapter.__all__) == {function.__name__ for function in registry._rules}
    for name in adapter.__all__:
        function = getattr(adapter, name)
        assert inspect.signature(function) == inspect.signature(getattr(hw, name))
        assert name in function.__doc__
    with pytest.raises(AttributeError, match="expected one of"):
        _ = adapter.unknown

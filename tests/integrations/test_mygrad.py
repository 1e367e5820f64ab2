"""headwise.integrations.mygrad: every differentiable function as an operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from calls import Case
from headwise._ops.gradients import vjp as registry
from integrations.adapted import CASES, by_headwise, drawn, loss, slope
from support import normal

mg: Any = pytest.importorskip("mygrad", reason="the package mygrad is not installed")
adapter: Any = pytest.importorskip("headwise.integrations.mygrad")

pytestmark = pytest.mark.above_operations

X = normal((2, 3, 8), dtype=np.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case: Case) -> None:
    """By all arguments at once: those of headwise.vjp, and those of central differences."""
    arguments, names = drawn(case)
    function = getattr(adapter, case.operation.name)
    tensors = {name: mg.tensor(arguments[name]) for name in names}
    loss(function(**{**arguments, **tensors})).backward()
    expected = by_headwise(case, arguments, names)
    along = 0.0
    directions = {name: normal(arguments[name].shape, 5, np.float64) for name in names}
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor.grad, expected[name], rtol=1e-12, atol=1e-13)
        along += (tensor.grad * directions[name]).sum()
    moved = slope(lambda t: loss(function(**{**arguments, **{n: arguments[n] + t * directions[n] for n in names}})))
    assert abs(moved - along) < 1e-8 * max(1, abs(moved))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_autograd(case: Case) -> None:
    autograd = pytest.importorskip("autograd", reason="the package autograd is not installed")
    other: Any = pytest.importorskip("headwise.integrations.autograd")
    arguments, names = drawn(case)
    name = names[-1]  # the others are constant
    tensor = mg.tensor(arguments[name])
    loss(getattr(adapter, case.operation.name)(**{**arguments, name: tensor})).backward()
    function = getattr(other, case.operation.name)
    expected = autograd.grad(lambda x: loss(function(**{**arguments, name: x})))(arguments[name])
    np.testing.assert_allclose(tensor.grad, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes(dtype: Any) -> None:
    x = mg.tensor(X.astype(dtype))
    output = adapter.flash_attention(x, x, x, is_causal=True)
    output.sum().backward()
    assert output.dtype == x.grad.dtype == dtype and x.grad.shape == x.shape


def test_in_the_middle_of_a_graph() -> None:
    def gradient(attention: Any) -> Any:
        weight = mg.tensor(normal((8, 8), 1, np.float64))
        x = mg.tanh(mg.matmul(X, weight))
        (attention(x, x, x) ** 2).sum().backward()
        return weight.grad

    def plain(q: Any, k: Any, v: Any) -> Any:
        scores = mg.exp(mg.matmul(q, mg.swapaxes(k, 1, 2)) / np.sqrt(8))
        return mg.matmul(scores / mg.sum(scores, axis=-1, keepdims=True), v)

    np.testing.assert_allclose(gradient(adapter.flash_attention), gradient(plain), rtol=1e-10, atol=1e-12)


def test_lists_of_tensors() -> None:
    q, k, v = normal((3, 6, 8), dtype=np.float64)
    by_parts, whole = mg.tensor(k), mg.tensor(k)
    parts = [adapter.flash_attention(q, by_parts[p], v[p], return_lse=True) for p in (slice(2), slice(2, 6))]
    adapter.merge_attention([part[0] for part in parts], [part[1] for part in parts])[0].sum().backward()
    adapter.flash_attention(q, whole, v).sum().backward()
    np.testing.assert_allclose(by_parts.grad, whole.grad, atol=1e-12)


def test_constants() -> None:
    for x in (X, mg.tensor(X, constant=True)):
        got = adapter.softmax(x)
        assert isinstance(got, mg.Tensor) and got.constant
        np.testing.assert_array_equal(got.data, hw.softmax(X))
    output, weights = adapter.scaled_dot_product_attention(X, X, X, need_weights=False)
    assert output.constant and weights is None


def test_no_autodiff() -> None:
    with mg.no_autodiff:
        got = adapter.softmax(mg.tensor(X))
    assert got.creator is None
    np.testing.assert_array_equal(got.data, hw.softmax(X))


def test_arguments_without_gradients() -> None:
    x = mg.tensor(X)
    with pytest.raises(TypeError, match=r"^mask: traced by mygrad, but .* has gradients by .*as bias="):
        adapter.flash_attention(x, x, x, mask=mg.tensor(X[0, :3, :3]))


def test_errors_of_the_function() -> None:
    x = mg.tensor(X)
    with pytest.raises(ValueError, match=r"^key"):
        adapter.flash_attention(x, x[..., :3], x)


@pytest.mark.single_implementation
def test_names() -> None:
    assert set(adapter.__all__) == {function.__name__ for function in registry._rules}

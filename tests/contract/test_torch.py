"""PyTorch as a second oracle, where it is installed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import LAYOUTS, assert_close, normal

torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")
functional = torch.nn.functional

SHAPES = {
    "square": ((2, 4, 33, 16), (2, 4, 33, 16)),
    "cross": ((2, 4, 17, 16), (2, 4, 50, 16)),
    "short-keys": ((1, 2, 50, 24), (1, 2, 17, 24)),
    "grouped": ((2, 8, 20, 16), (2, 2, 30, 16)),
    "rank-3": ((3, 20, 16), (3, 30, 16)),
    "rank-2": ((20, 16), (30, 16)),
    "long": ((1, 2, 300, 64), (1, 2, 300, 64)),
}


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray, **keywords: Any) -> np.ndarray:
    """PyTorch's result in float64."""
    tensors = [torch.from_numpy(array.astype(np.float64)) for array in (query, key, value)]
    grouped = query.ndim > 3 and query.shape[-3] != key.shape[-3]
    return functional.scaled_dot_product_attention(*tensors, enable_gqa=grouped, **keywords).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape: str, causal: bool, dtype: str) -> None:
    query, key = normal(SHAPES[shape][0], 1, dtype), normal(SHAPES[shape][1], 2, dtype)
    expected = reference(query, key, key, is_causal=causal)
    assert_close(hw.flash_attention(query, key, key, is_causal=causal), expected)
    assert_close(hw.scaled_dot_product_attention(query, key, key, is_causal=causal)[0], expected)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("lead", [(), (4,), (1, 1), (2, 1), (2, 4)], ids=str)
def test_attn_mask(lead: tuple[int, ...], kind: str) -> None:
    query, key = normal((2, 4, 17, 16), 1), normal((2, 4, 50, 16), 2)
    mask = normal((*lead, 17, 50), 3, np.float64)
    mask = mask > 0 if kind == "bool" else mask
    expected = reference(query, key, key, attn_mask=torch.from_numpy(mask))
    assert_close(hw.flash_attention(query, key, key, mask), expected)
    assert_close(hw.scaled_dot_product_attention(query, key, key, mask=mask)[0], expected)


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scale(scale: float) -> None:
    query, key = normal((2, 4, 17, 16), 1), normal((2, 4, 50, 16), 2)
    assert_close(hw.flash_attention(query, key, key, scale=scale), reference(query, key, key, scale=scale), factor=2)


def test_tensors_are_accepted() -> None:
    query, key = (torch.from_numpy(normal(shape, 1)) for shape in ((2, 4, 17, 16), (2, 4, 50, 16)))
    expected = functional.scaled_dot_product_attention(query.double(), key.double(), key.double())
    output = hw.flash_attention(query, key, key)
    assert type(output) is np.ndarray
    assert_close(output, expected.numpy())
    transposed = query.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(hw.flash_attention(transposed, key, key), expected.numpy())


def test_a_tensor_that_needs_gradients_is_refused_by_name() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises((TypeError, ValueError), match=r"^x\b"):
        hw.softmax(x)


@pytest.mark.parametrize("axis", range(-3, 3))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_family(layout: str, axis: int) -> None:
    x = 5 * normal((4, 33, 18))
    tensor = torch.from_numpy(x).double()
    x = LAYOUTS[layout](x)
    assert_close(hw.softmax(x, axis), torch.softmax(tensor, axis).numpy())
    assert_close(hw.log_softmax(x, axis), torch.log_softmax(tensor, axis).numpy())
    assert_close(hw.logsumexp(x, axis), torch.logsumexp(tensor, axis).numpy())


@pytest.mark.parametrize("n", [1, 5, 64, 384])
def test_layer_norm(n: int) -> None:
    x, gamma, beta = normal((3, 7, n), 1), normal((n,), 2), normal((n,), 3)
    tensors = [torch.from_numpy(array).double() for array in (gamma, beta)]
    expected = functional.layer_norm(torch.from_numpy(x).double(), (n,), *tensors, eps=1e-5).numpy()
    assert_close(hw.layer_normalization(x, gamma, beta), expected, factor=2)


@pytest.mark.parametrize("n", [1, 5, 64, 384])
def test_rms_norm(n: int) -> None:
    x, gamma = normal((3, 7, n), 1), normal((n,), 2)
    tensors = [torch.from_numpy(array).double() for array in (x, gamma)]
    assert_close(hw.rms_norm(x, gamma), functional.rms_norm(tensors[0], (n,), tensors[1], 1e-6).numpy(), factor=2)


ACTIVATIONS: dict[str, tuple[Any, Any, Any]] = {
    "gelu": (hw.gelu, hw.gelu_backward, functional.gelu),
    "gelu-tanh": (
        partial(hw.gelu, approximate="tanh"),
        partial(hw.gelu_backward, approximate="tanh"),
        partial(functional.gelu, approximate="tanh"),
    ),
    "silu": (hw.silu, hw.silu_backward, functional.silu),
    "swiglu": (hw.swiglu, hw.swiglu_backward, lambda gate, up: functional.silu(gate) * up),
    "geglu": (hw.geglu, hw.geglu_backward, lambda gate, up: functional.gelu(gate) * up),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_gradients(name: str) -> None:
    forward, backward, of_torch = ACTIVATIONS[name]
    arrays = [3 * normal((7, 50), seed, np.float64) for seed in range(2 if name.endswith("glu") else 1)]
    d_out = normal((7, 50), 3, np.float64)
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    result = of_torch(*tensors)
    assert_close(forward(*arrays), result.detach().numpy())
    expected = torch.autograd.grad(result, tensors, torch.from_numpy(d_out))
    found = backward(d_out, *arrays)
    for got, answer in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert_close(got, answer.numpy(), factor=4)


@pytest.mark.parametrize("n", [3, 64, 384])
def test_gradients_of_normalisations(n: int) -> None:
    x, gamma, beta = normal((5, 7, n), 1, np.float64), normal((n,), 2, np.float64), normal((n,), 3, np.float64)
    d_out = normal(x.shape, 4, np.float64)
    tensors = [torch.from_numpy(array).requires_grad_() for array in (x, gamma, beta)]
    result = functional.layer_norm(tensors[0], (n,), *tensors[1:], eps=1e-5)
    expected = torch.autograd.grad(result, tensors, torch.from_numpy(d_out))
    for got, answer in zip(hw.layer_normalization_backward(d_out, x, gamma), expected, strict=True):
        assert_close(got, answer.numpy(), factor=40)
    result = functional.rms_norm(tensors[0], (n,), tensors[1], 1e-6)
    expected = torch.autograd.grad(result, tensors[:2], torch.from_numpy(d_out))
    for got, answer in zip(hw.rms_norm_backward(d_out, x, gamma), expected, strict=True):
        assert_close(got, answer.numpy(), factor=40)


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_linear(with_bias: bool) -> None:
    """PyTorch stores weights as ``(out, in)``; their transposed view is passed without a copy."""
    x, weight, bias = normal((3, 7, 20), 1), normal((30, 20), 2), normal((30,), 3) if with_bias else None
    tensors = [None if array is None else torch.from_numpy(array).double() for array in (x, weight, bias)]
    assert_close(hw.linear(x, weight.T, bias), functional.linear(*tensors).numpy(), factor=4)

"""headwise.integrations.torch.attention: every keyword of headwise on tensors, with gradients."""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest

import headwise as hw

pytest.importorskip("torch", reason="PyTorch is not installed")
from headwise.integrations.torch import _operator, attention, block_mask  # isort: skip
from integrations.torch_calls import ERRORS, assert_near, attend, tensor, torch, with_gradients  # isort: skip

pytestmark = pytest.mark.above_operations

F64 = torch.float64
QUERY, KEY, VALUE = (2, 4, 9, 8), (2, 2, 12, 8), (2, 2, 12, 6)

#: Keywords without and with gradients.
KEYWORDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "window": ({"window_size": (3, 1), "causal_alignment": "lower_right"}, {}),
    "softcap": ({"softcap": 2.0, "is_causal": True, "scale": 0.7}, {}),
    "mask": ({"mask": torch.arange(12) % 3 > torch.zeros(9, 1)}, {}),
    "padding": ({"key_padding_mask": torch.arange(12) < torch.tensor([[5], [12]])}, {}),
    "key_lengths": ({"key_lengths": torch.tensor([7, 12])}, {}),
    "bias": ({}, {"bias": tensor(4, 1, 12, dtype=F64)}),
    "slopes": ({"is_causal": True}, {"alibi_slopes": tensor(4, dtype=F64).abs()}),
    "sinks": ({"window_size": 2}, {"sinks": tensor(4, dtype=F64)}),
    "relative": ({}, {"relative_bias": tensor(4, 1, 9, dtype=F64)}),
    "relative values": ({}, {"relative_values": tensor(9, 6, dtype=F64)}),
    "dropout": ({"dropout_rate": 0.3, "rng": 5}, {"bias": tensor(9, 12, dtype=F64)}),
    "precision": ({"precision": "highest"}, {}),
}


def as_array(x: Any) -> Any:
    return x.detach().numpy() if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("name", KEYWORDS)
def test_results_are_those_of_headwise(name: str) -> None:
    fixed, differentiable = KEYWORDS[name]
    query, key, value = (tensor(*shape, dtype=F64) for shape in (QUERY, KEY, VALUE))
    given = {name: as_array(x) for name, x in (fixed | differentiable).items()}
    expected, lse = hw.flash_attention(query.numpy(), key.numpy(), value.numpy(), **given, return_lse=True)
    output, own_lse = attention(query, key, value, **fixed, **differentiable, return_lse=True)
    np.testing.assert_array_equal(output.numpy(), expected)
    np.testing.assert_array_equal(own_lse.numpy(), lse)
    np.testing.assert_array_equal(attention(query, key, value, **fixed, **differentiable).numpy(), expected)


@pytest.mark.parametrize("name", KEYWORDS)
def test_gradients(name: str) -> None:
    fixed, differentiable = KEYWORDS[name]
    leaves = [x.clone().requires_grad_() for x in (tensor(1, *s[1:], dtype=F64) for s in (QUERY, KEY, VALUE))]
    leaves += [x.clone().requires_grad_() for x in differentiable.values()]
    fixed = {key: x[-1:] if key in ("key_padding_mask", "key_lengths") else x for key, x in fixed.items()}

    def function(query: Any, key: Any, value: Any, *others: Any) -> Any:
        return attention(query, key, value, **dict(zip(differentiable, others, strict=True)), **fixed, return_lse=True)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "heads-last", "head-dim-first"])
def test_dtypes_and_layouts(layout: str, dtype: Any) -> None:
    shapes = ((2, 4, 9, 8), (2, 4, 12, 8), (2, 4, 12, 8))
    tensors = [tensor(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]
    if layout == "heads-last":
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    if layout == "head-dim-first":
        tensors = [x.mT.contiguous().mT for x in tensors]
    expected, gradients = with_gradients(attend, [x.double() for x in tensors], is_causal=True)
    output = attention(*tensors, is_causal=True)
    assert output.dtype == dtype
    assert_near(output, expected)
    if layout == "heads-last":
        assert output.stride() == tensors[0].stride()
    leaves = [x.detach().requires_grad_() for x in tensors]
    d_output = tensor(*output.shape, seed=9, dtype=dtype)
    for got, gradient in zip(
        torch.autograd.grad(attention(*leaves, is_causal=True), leaves, d_output), gradients, strict=True
    ):
        assert_near(got, gradient, factor=4)


def test_memory_is_shared() -> None:
    x = tensor(1, 2, 3, 4)
    output = attention(x, x, x)
    output.numpy()[:] = 7
    assert bool((output == 7).all())


@pytest.mark.parametrize("wanted", ["query", "bias", "lse"])
def test_gradients_of_some(wanted: str) -> None:
    query, bias = tensor(*QUERY, dtype=F64), tensor(9, 12, dtype=F64)
    key, value = tensor(*KEY, dtype=F64), tensor(*VALUE, dtype=F64)
    leaf = (bias if wanted == "bias" else query).requires_grad_()
    output, lse = attention(query, key, value, bias=bias, return_lse=True)
    (gradient,) = torch.autograd.grad((lse if wanted == "lse" else output).sum(), leaf)
    assert gradient.shape == leaf.shape and bool(gradient.any())


def test_tensors_of_the_call_must_not_change() -> None:
    query = tensor(*QUERY).requires_grad_()
    key, value = tensor(*KEY), tensor(*VALUE)
    output = attention(query, key, value)
    key.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_second_derivatives_are_refused_in_words() -> None:
    query, key, value = (tensor(*shape).requires_grad_() for shape in (QUERY, KEY, VALUE))
    (gradient,) = torch.autograd.grad(attention(query, key, value).sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives of attention"):
        gradient.sum().backward()


@pytest.mark.parametrize("rng", [None, torch.Generator, np.random.default_rng, int])
def test_generators_of_dropout(rng: Any) -> None:
    x = tensor(1, 2, 30, 8)

    def call() -> Any:
        torch.manual_seed(1)
        given = rng if rng is None else rng(1) if rng is not torch.Generator else torch.Generator().manual_seed(1)
        return attention(x, x, x, dropout_rate=0.5, rng=given)

    assert torch.equal(call(), call())
    assert not torch.equal(call(), attention(x, x, x))


@pytest.mark.parametrize("kind", ["near", "documents", "heads", "batch", "all"])
def test_block_masks(kind: str) -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention", reason="PyTorch without flex_attention")
    documents = torch.arange(200) // 70
    lengths = torch.tensor([120, 200])
    mods: dict[str, Any] = {
        "near": lambda b, h, q, k: (q >= k) & (q - k < 40),
        "documents": lambda b, h, q, k: documents[q] == documents[k],
        "heads": lambda b, h, q, k: (q - k).abs() <= 10 * h,
        "batch": lambda b, h, q, k: k < lengths[b],
        "all": lambda b, h, q, k: q.new_ones((), dtype=torch.bool),
    }
    batch, heads = 2 if kind == "batch" else None, 4 if kind == "heads" else None
    mask = flex.create_block_mask(mods[kind], batch, heads, 200, 200, device="cpu")
    dense = flex.create_mask(mods[kind], batch or 1, heads or 1, 200, 200, device="cpu")
    tensors = [tensor(2, 4, 200, 8, seed=seed, dtype=F64) for seed in range(3)]
    expected, gradients = with_gradients(attend, tensors, attn_mask=dense)
    for given in (mask, block_mask(mask)):
        output, found = with_gradients(attention, tensors, given)
        for got, answer in zip((output, *found), (expected, *gradients), strict=True):
            torch.testing.assert_close(got, answer)
    assert block_mask(mask).kept == pytest.approx(dense.double().mean().item())


def test_keywords_are_those_of_flash_attention() -> None:
    names = [name for name in inspect.signature(hw.flash_attention).parameters if name != "out"]
    assert list(inspect.signature(attention).parameters) == names


def test_bad_input() -> None:
    x = tensor(1, 2, 3, 4)
    for call, error, words in (
        (lambda: attention(x.numpy(), x, x), TypeError, "query: ndarray, expected a torch.Tensor"),
        (lambda: attention(x, x.to("meta"), x), TypeError, "key: a tensor on device meta, expected a dense"),
        (lambda: attention(x, x, x.to_sparse()), TypeError, "value: a tensor of layout torch.sparse_coo"),
        (lambda: attention(x, x, x[..., :2, :]), ValueError, "value: shape .* key_len is 2, expected 3"),
        (lambda: attention(x, x, x, out=x), TypeError, "out: not a keyword here"),
        (lambda: attention(x, x, x, sinks=x), ValueError, "sinks: shape"),
        (lambda: attention(x, x, x, attn_mask=x), TypeError, "attn_mask: not a keyword here, expected mask="),
        (lambda: block_mask(x), TypeError, "mask: Tensor, expected a BlockMask"),
        (lambda: attention(x, x, x, dropout_rate=1.0), ValueError, "dropout_rate"),
        (lambda: attention(x, x, x, dropout_rate=0.1, rng="a"), TypeError, "rng: str"),
        (lambda: attention(x, x, x, return_lse="no"), TypeError, "return_lse"),
    ):
        with pytest.raises(error, match=words):
            call()


@pytest.mark.single_implementation
@pytest.mark.parametrize("name", KEYWORDS)
def test_compiled_graphs(name: str) -> None:
    fixed, differentiable = KEYWORDS[name]
    tensors = [tensor(*shape, dtype=F64) for shape in (QUERY, KEY, VALUE)]
    leaves = [x.clone().requires_grad_() for x in (*tensors, *differentiable.values())]

    def function(query: Any, key: Any, value: Any, *others: Any) -> Any:
        return attention(query, key, value, **dict(zip(differentiable, others, strict=True)), **fixed).square().sum()

    expected = torch.autograd.grad(function(*leaves), leaves)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        found = torch.autograd.grad(compiled(*leaves), leaves)
    for got, answer in zip(found, expected, strict=True):
        torch.testing.assert_close(got, answer)


@pytest.mark.single_implementation
def test_the_operator_has_its_schema() -> None:
    tensors = [tensor(*shape).requires_grad_() for shape in (QUERY, KEY, VALUE)]
    others = (None,) * (len(_operator._KINDS) - 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(torch.ops.headwise.attention.default, (*tensors, *others, 0.0, 0))


def test_partial_calls() -> None:
    x = tensor(1, 2, 3, 4)
    torch.testing.assert_close(partial(attention, is_causal=True)(x, x, x), attention(x, x, x, is_causal=True))

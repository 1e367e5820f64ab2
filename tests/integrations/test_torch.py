"""PyTorch's attention on CPU by headwise: enable, disable and enabled."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from functools import partial
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
from headwise.integrations.torch import disable, enable, enabled, is_enabled  # isort: skip
from integrations.torch_calls import ERRORS, assert_near, attend, counted, tensor, torch, with_gradients  # isort: skip

pytestmark = pytest.mark.above_operations

F32 = torch.float32
KEEP = torch.tensor([[True, False, True], [True, True, False]]).repeat(10, 11)[:17]
QUERY, KEY = (2, 4, 17, 16), (2, 4, 33, 16)

#: Shapes of query, key and value, and keywords.
CALLS: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "plain": ((QUERY, KEY, KEY), {}),
    "causal": ((QUERY, KEY, KEY), {"is_causal": True}),
    "scale": ((QUERY, KEY, KEY), {"scale": -0.7}),
    "more-queries": ((KEY, QUERY, QUERY), {"is_causal": True}),
    "grouped": ((QUERY, (2, 2, 33, 16), (2, 2, 33, 16)), {"enable_gqa": True}),
    "one-kv-head": ((QUERY, (2, 1, 33, 16), (2, 1, 33, 16)), {}),
    "bool-mask": ((QUERY, KEY, KEY), {"attn_mask": KEEP}),
    "bool-mask-4": ((QUERY, KEY, KEY), {"attn_mask": KEEP[None, None].expand(2, 1, 17, 33)}),
    "bool-mask-3": ((QUERY, KEY, KEY), {"attn_mask": KEEP[None]}),
    "grouped-bool-mask": ((QUERY, (2, 2, 33, 16), (2, 2, 33, 16)), {"enable_gqa": True, "attn_mask": KEEP}),
    "additive-mask": ((QUERY, KEY, KEY), {"attn_mask": tensor(17, 33)}),
    "additive-mask-4": ((QUERY, KEY, KEY), {"attn_mask": tensor(1, 4, 1, 33)}),
    "strided-mask": ((QUERY, KEY, KEY), {"attn_mask": tensor(33, 17).T}),
    "value-dim": ((QUERY, KEY, (2, 4, 33, 24)), {}),
    "three-axes": (((3, 17, 16), (3, 33, 16), (3, 33, 16)), {"is_causal": True}),
    "three-axes-mask": (((17, 17, 16), (17, 33, 16), (17, 33, 16)), {"attn_mask": KEEP}),
    "two-axes": (((17, 16), (33, 16), (33, 24)), {"attn_mask": KEEP}),
    "five-axes": (((2, 3, 4, 17, 16), (2, 3, 2, 33, 16), (2, 3, 2, 33, 16)), {"enable_gqa": True, "attn_mask": KEEP}),
    "one-feature": (((2, 4, 17, 1), (2, 4, 33, 1), (2, 4, 33, 1)), {}),
}


def with_mask(keywords: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The keywords with an additive mask in ``dtype``."""
    mask = keywords.get("attn_mask")
    return keywords if mask is None or mask.dtype == torch.bool else keywords | {"attn_mask": mask.to(dtype)}


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients(name: str, dtype: Any) -> None:
    shapes, keywords = CALLS[name]
    tensors = [tensor(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]
    # What fewer heads than those of the query mean, some versions of PyTorch say only where the heads are repeated.
    expected, gradients = with_gradients(attend, [x.double() for x in tensors], **with_mask(keywords, torch.float64))
    with enabled(), counted() as calls:
        output, found = with_gradients(attend, tensors, **with_mask(keywords, dtype))
        with torch.inference_mode():
            again = attend(*tensors, **with_mask(keywords, dtype))
    assert calls == [2]
    assert output.dtype == dtype
    assert_near(output, expected)
    assert_near(again, expected)
    for got, gradient in zip(found, gradients, strict=True):
        assert got.dtype == dtype
        assert_near(got, gradient, factor=4)


@pytest.mark.parametrize("layout", ["contiguous", "heads-last", "batch-inside", "broadcast"])
def test_layouts_are_those_of_pytorch(layout: str) -> None:
    """Compiled graphs rely on them."""
    x = {
        "contiguous": tensor(2, 4, 5, 8),
        "heads-last": tensor(2, 5, 4, 8).transpose(1, 2),
        "batch-inside": tensor(4, 2, 5, 8).transpose(0, 1),
        "broadcast": tensor(1, 4, 5, 8).expand(2, 4, 5, 8),
    }[layout]
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    expected, lse = operator(x, x, x)
    d_output = tensor(*x.shape, seed=1)
    arguments = (d_output, x, x, x, expected, lse, 0.0, False)
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*arguments)
    with enabled():
        output, own_lse = operator(x, x, x)
        own = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*arguments)
        assert attend(x, x, x).stride() == expected.stride()
    for got, answer in zip((output, own_lse, *own), (expected, lse, *gradients), strict=True):
        torch.testing.assert_close(got, answer, rtol=1e-4, atol=1e-5)
        assert got.stride() == answer.stride()


@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_strides_in_every_axis(mask: str | None) -> None:
    tensors = [tensor(2, 4, 16, 17, seed=seed).mT for seed in range(3)]
    given = {"attn_mask": None if mask is None else tensor(17, 17) if mask == "float" else tensor(17, 17) > 0}
    expected, gradients = with_gradients(attend, [x.double() for x in tensors], **with_mask(given, torch.float64))
    with enabled(), counted() as calls:
        output, found = with_gradients(attend, tensors, **given)
        assert_near(attend(*tensors, **given), expected)
    assert calls == [2]
    for got, answer in zip((output, *found), (expected, *gradients), strict=True):
        assert_near(got, answer, factor=4)


def test_gradients_of_the_mask() -> None:
    query, key, value, mask = tensor(*QUERY), tensor(*KEY), tensor(*KEY, seed=1), tensor(1, 4, 1, 33)
    expected, gradients = with_gradients(attend, [x.double() for x in (query, key, value, mask)])
    with enabled(), counted() as calls:
        output, found = with_gradients(attend, [query, key, value, mask])
    assert calls == [1]
    assert_near(output, expected)
    for got, gradient in zip(found, gradients, strict=True):
        assert_near(got, gradient, factor=4)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(grouped: bool, masked: bool) -> None:
    query = tensor(1, 4, 3, 5, dtype=torch.float64).requires_grad_()
    key, value = (tensor(1, 2 if grouped else 4, 4, 5, seed=s, dtype=torch.float64).requires_grad_() for s in (1, 2))
    mask = tensor(3, 4, dtype=torch.float64).requires_grad_() if masked else None
    with enabled():
        function = partial(attend, enable_gqa=grouped)
        inputs = (query, key, value) if mask is None else (query, key, value, mask)
        assert torch.autograd.gradcheck(function, inputs)


def test_a_row_that_keeps_nothing_is_0() -> None:
    keep = torch.tensor([[True, True], [False, False]])
    tensors = [tensor(1, 2, 2, 8, seed=seed) for seed in range(3)]
    tensors[2][:, :, 1] = float("inf")
    keep[0, 1] = False
    with enabled():
        output, gradients = with_gradients(attend, tensors, attn_mask=keep)
        assert torch.equal(attend(*tensors, attn_mask=keep), output)
    torch.testing.assert_close(output[:, :, 0], tensors[2][:, :, 0])
    assert not output[:, :, 1].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_dropout() -> None:
    query, key = tensor(*QUERY), tensor(*KEY)
    value = torch.eye(33).expand(2, 4, 33, 33)
    weights = attend(query, key, value)
    with enabled(), counted() as calls:
        outputs = []
        for _ in range(2):
            torch.manual_seed(3)
            outputs.append(attend(query, key, value, dropout_p=0.25))
        assert torch.equal(*outputs)
        assert not torch.equal(outputs[0], attend(query, key, value, dropout_p=0.25))
        dropped = outputs[0] == 0
        assert 0.2 < dropped.float().mean() < 0.3
        torch.testing.assert_close(outputs[0][~dropped], (weights / 0.75)[~dropped])

        def repeated(*tensors: Any) -> Any:
            torch.manual_seed(4)
            return attend(*tensors, dropout_p=0.25)

        assert torch.autograd.gradcheck(
            repeated, [tensor(1, 2, 3, 4, seed=seed, dtype=torch.float64).requires_grad_() for seed in range(3)]
        )
    assert calls[0] > 3


#: Calls that PyTorch computes, refuses or broadcasts by itself, and whether its fused operator, ours, does some of it.
LEFT: dict[str, Any] = {
    "no-keys": lambda x: attend(x, x[:, :, :0], x[:, :, :0]),
    "no-queries": lambda x: attend(x[:, :, :0], x, x),
    "no-batch": lambda x: attend(x[:0], x[:0], x[:0]),
    "batch-broadcast": lambda x: attend(x[:1], x, x),
    "complex": lambda x: attend(x + 0j, x + 0j, x + 0j),
    "dtypes": lambda x: attend(x, x.double(), x),
    "width": lambda x: attend(x, x[..., :3], x),
    "mask-shape": lambda x: attend(x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool)),
    "mask-of-one-axis": lambda x: attend(x, x, x, attn_mask=torch.ones(5, dtype=torch.bool)),
    "mask-dtype": lambda x: attend(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.float64)),
    "one-axis": lambda x: attend(x[0, 0, 0], x[0, 0, 0], x[0, 0, 0]),
    "meta": lambda x: attend(x.to("meta"), x.to("meta"), x.to("meta")),
    "nested": lambda x: attend(*[torch.nested.nested_tensor([x[0], x[1, :, :3]])] * 3).to_padded_tensor(0.0),
    "second-derivative": lambda x: torch.autograd.functional.hessian(
        lambda y: attend(y, x, x).sum(), x[:1, :1], vectorize=False
    ),
    "jvp": lambda x: torch.func.jvp(lambda y: attend(y, x, x, attn_mask=x[0, 0, :, :5]), (x,), (x,))[1],
}


def outcome(call: Any, x: Any) -> Any:
    try:
        return call(x)
    except Exception as error:
        return type(error), str(error).partition("\n")[0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*Casting complex values")
@pytest.mark.parametrize("name", [name for name in LEFT if name != "second-derivative"])
def test_other_calls_are_those_of_pytorch(name: str) -> None:
    x = tensor(2, 2, 5, 8)
    expected = outcome(LEFT[name], x)
    with enabled():
        got = outcome(LEFT[name], x)
    if isinstance(expected, torch.Tensor) and not expected.is_meta:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    elif isinstance(expected, torch.Tensor):
        assert got.is_meta and got.shape == expected.shape
    else:
        assert got == expected


def test_fused_attention_switched_off_is_pytorchs() -> None:
    x = tensor(2, 2, 5, 8, dtype=torch.float64).requires_grad_()
    with enabled(), counted() as calls:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            attend(x, x, x)
            assert torch.autograd.gradgradcheck(attend, (x, x, x))
        assert calls == [0]


def test_second_derivatives_are_refused_in_words() -> None:
    x = tensor(1, 2, 3, 4).requires_grad_()
    with enabled():
        (gradient,) = torch.autograd.grad(attend(x, x, x, dropout_p=0.1).sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"no second derivatives.*SDPBackend\.MATH"):
            gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transformations() -> None:
    x = tensor(3, 2, 4, 5, 8, dtype=torch.float64)

    def loss(x: Any) -> Any:
        return attend(x, x, x, is_causal=True).square().sum()

    expected, gradient = torch.func.vmap(attend)(x, x, x), torch.func.grad(loss)(x[0])
    with enabled(), counted() as calls:
        assert_near(torch.func.vmap(attend)(x, x, x), expected)
        assert_near(torch.func.grad(loss)(x[0]), gradient)
    assert calls[0] > 1


def test_autocast() -> None:
    x = tensor(2, 2, 5, 8)
    with enabled(), counted() as calls, torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(x, x, x).dtype == torch.bfloat16
    assert calls == [1]


@pytest.mark.parametrize("training", [False, True])
def test_multi_head_attention(training: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(32, 4, batch_first=True).train(training)
    x = tensor(2, 7, 32)
    padding = torch.arange(7) > torch.tensor([[4], [6]])
    expected = layer(x, x, x, need_weights=False, key_padding_mask=padding)[0]
    with enabled(), counted() as calls, torch.inference_mode(not training):
        output = layer(x, x, x, need_weights=False, key_padding_mask=padding)[0]
    assert calls == [1]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval", "causal"])
def test_transformer_encoder_layer(mode: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).train(mode == "train")
    x = tensor(2, 7, 32)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7) if mode == "causal" else None
    with torch.inference_mode(mode != "train"):
        expected = layer(x, src_mask=mask, is_causal=mask is not None)
        with enabled(), counted() as calls:
            output = layer(x, src_mask=mask, is_causal=mask is not None)
            assert not torch.backends.mha.get_fastpath_enabled()
    assert calls == [1]
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_switching() -> None:
    x = tensor(1, 2, 3, 8)

    def ran() -> bool:
        with counted() as calls:
            attend(x, x, x)
        return calls == [1]

    assert not is_enabled() and not ran()
    enable()
    try:
        assert is_enabled() and ran()
        enable()
        with enabled():
            assert ran()
            disable()
            assert ran()  # to the end of the block
        assert not is_enabled() and not ran()
        disable()
        enable()
        with enabled():
            pass
        assert ran()
    finally:
        disable()
    assert not ran() and torch.backends.mha.get_fastpath_enabled()


def test_an_error_restores_the_state() -> None:
    with pytest.raises(RuntimeError, match=r"size|shape|match"), enabled():
        attend(tensor(1, 2, 3, 8), tensor(1, 2, 3, 7), tensor(1, 2, 3, 8))
    assert not is_enabled()
    with pytest.raises(KeyboardInterrupt), enabled(), enabled():
        raise KeyboardInterrupt
    assert not is_enabled() and torch.backends.mha.get_fastpath_enabled()


def test_the_choice_of_the_fast_path_is_kept() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with enabled():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.single_implementation
@pytest.mark.skipif(not hasattr(torch.library, "get_kernel"), reason="PyTorch before 2.9 frees kernels in use")
def test_threads_may_switch_while_others_compute() -> None:
    tensors = [tensor(1, 2, 5, 8, seed=seed) for seed in range(3)]
    expected = attend(*tensors)
    stop, wrong = threading.Event(), []

    def compute() -> None:
        while not stop.is_set():
            try:
                torch.testing.assert_close(attend(*tensors), expected, rtol=1e-5, atol=1e-5)
            except BaseException as error:
                wrong.append(error)
                return

    def switch() -> None:
        for i in range(200):
            if i % 2:
                enable()
                disable()
            else:
                with enabled():
                    attend(*tensors)

    threads = [threading.Thread(target=compute) for _ in range(2)]
    switches = [threading.Thread(target=switch) for _ in range(2)]
    for thread in threads + switches:
        thread.start()
    for thread in switches:
        thread.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and not is_enabled()


@pytest.mark.parametrize("gradient", [False, True])
def test_compiled_graphs(gradient: bool) -> None:
    """A graph holds PyTorch's own operator: it runs on headwise while that is enabled, whenever it was compiled."""
    tensors = [tensor(2, 5, 4, 8, seed=seed).transpose(1, 2).requires_grad_(gradient) for seed in range(3)]

    def function(*tensors: Any) -> Any:
        return attend(*tensors, is_causal=True) * 2

    expected, gradients = with_gradients(function, [x.double() for x in tensors]) if gradient else (None, [])
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for first in (True, False):
            torch._dynamo.reset()
            if not first:
                compiled(*tensors)
            with enabled(), counted() as calls:
                output = compiled(*tensors)
                if gradient:
                    found = torch.autograd.grad(output, tensors, tensor(2, 4, 5, 8, seed=9))
                    for got, answer in zip(found, gradients, strict=True):
                        assert_near(got, answer, factor=4)
            assert calls == [1]
            with counted() as calls:
                torch.testing.assert_close(compiled(*tensors), output, rtol=1e-5, atol=1e-5)
            assert calls == [0]
    if gradient:
        assert_near(output, expected)


@pytest.mark.single_implementation
def test_eager_calls_between_graphs_are_not_traced() -> None:
    def function(x: Any) -> Any:
        total = x
        for _ in range(2):  # a function with a loop around a break runs eagerly as a whole
            try:
                torch._dynamo.graph_break()
                total = total + attend(x[0], x[0], x[0])
            finally:
                str(total)
        return total

    x = tensor(1, 2, 5, 8)
    with enabled(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.testing.assert_close(torch.compile(function, backend="aot_eager")(x), function(x))
        breaks = " ".join(torch._dynamo.utils.counters["graph_break"])
    if hasattr(torch._C._dynamo.eval_frame, "_FrameExecStrategy"):
        assert "decompose" not in breaks and "ndarray" not in breaks


@pytest.mark.slow
@pytest.mark.single_implementation
def test_graphs_of_inductor() -> None:
    """Its graphs check the layouts of every result."""
    code = """
import torch
from headwise.integrations.torch import enabled
attend = torch.nn.functional.scaled_dot_product_attention
layer = torch.nn.TransformerEncoderLayer(64, 4, 64, dropout=0.0, batch_first=True)
x = torch.randn(2, 9, 64, requires_grad=True)
expected = layer(x)
expected.square().sum().backward()
gradient, x.grad = x.grad, None
with enabled():
    output = torch.compile(layer, fullgraph=True)(x)
    output.square().sum().backward()
torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(x.grad, gradient, rtol=1e-3, atol=1e-4)
print("done")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]


@pytest.mark.single_implementation
def test_no_warning_while_enabling() -> None:
    code = "from headwise.integrations.torch import enable; enable()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr

"""Gradients of linear attention against central differences of the oracle, in every dtype, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import dtype_named, normal

Array = np.ndarray[Any, Any]

CASES: dict[str, dict[str, Any]] = {
    "square": {"is_causal": False},
    "plain": {"is_causal": True, "feature_map": None, "scale": 0.5},
    "elu": {"is_causal": True, "chunk": 3},
    "gated": {"rule": "gated", "feature_map": None, "scale": 0.5, "decay": (2, 2, 9), "chunk": 4},
    "gated-features": {"rule": "gated", "feature_map": None, "decay": (2, 2, 9, 6)},
    "gated-elu": {"rule": "gated", "decay": (2, 1, 9, 6), "chunk": 5},
    "retention": {"rule": "gated", "feature_map": None, "decay": (2,)},
    "number": {"rule": "gated", "decay": ()},
    "delta": {"rule": "delta", "feature_map": None, "beta": (2, 2, 9), "chunk": 4},
    "delta-elu": {"rule": "delta", "beta": (2,), "chunk": 5},
    "gated-delta": {"rule": "gated_delta", "feature_map": None, "scale": 0.5, "decay": (2, 2, 9), "beta": (2, 1, 9)},
    "gated-delta-features": {
        "rule": "gated_delta",
        "feature_map": None,
        "decay": (2, 2, 9, 6),
        "beta": (),
        "chunk": 4,
    },
}
NAMES = ("query", "key", "value", "decay", "beta", "state")
every = pytest.mark.parametrize("name", CASES)


def call(name: str, state: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    options = dict(CASES[name])
    arguments = {
        "query": rng.standard_normal((2, 4, 9, 6)),
        "key": rng.standard_normal((2, 2, 9, 6)),
        "value": rng.standard_normal((2, 2, 9, 5)),
    }
    if "decay" in options:
        options["decay"] = 0.3 + 0.7 * rng.random(options["decay"])
    if "beta" in options:
        options["beta"] = 0.1 + 0.8 * rng.random(options["beta"])
        arguments["key"] /= 3  # keys of about length 1
    if state:
        arguments["state"] = rng.random((2, 2, 6, 5 + ("feature_map" not in options)))
    return arguments | options


@every
@pytest.mark.parametrize("state", [False, True])
def test_central_differences(name: str, state: bool) -> None:
    arguments = call(name, state)
    wrt = tuple(n for n in NAMES if n in arguments)
    results, pullback = hw.vjp(hw.linear_attention, **arguments, wrt=wrt)
    rng = np.random.default_rng(1)
    d = [rng.standard_normal(y.shape) for y in results]
    for n, gradient in zip(wrt, pullback(*d), strict=True):
        assert gradient.shape == np.shape(arguments[n]) and gradient.dtype == np.float64
        for _ in range(2):
            direction = rng.standard_normal(gradient.shape)

            def loss(step: float, n: str = n, direction: Array = direction) -> Any:
                moved = {**arguments, n: oracle.wide(arguments[n]) + np.longdouble(step) * direction}
                return sum((y * b).sum() for y, b in zip(oracle.linear_attention(**moved), d, strict=True))

            near, far = loss(1e-4) - loss(-1e-4), loss(2e-4) - loss(-2e-4)
            expected = float((8 * near - far) / 12e-4)
            assert abs(expected - (gradient * direction).sum()) < 1e-9 * max(1, abs(expected))


@every
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(name: str, dtype: str) -> None:
    """Gradients equal those in float64 of the same rounded numbers; one result has no gradient."""
    kind = dtype_named(dtype)
    arguments = {n: x.astype(kind) if isinstance(x, np.ndarray) and x.ndim else x for n, x in call(name).items()}
    precise = {n: oracle.double(x) if isinstance(x, np.ndarray) else x for n, x in arguments.items()}
    wrt = tuple(n for n in NAMES if n in arguments and np.ndim(arguments[n]))
    (output, _), pullback = hw.vjp(hw.linear_attention, **arguments, wrt=wrt)
    _, exact = hw.vjp(hw.linear_attention, **precise, wrt=wrt)
    d = np.random.default_rng(2).standard_normal(output.shape).astype(kind)
    tolerance = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 4e-2}[dtype]
    for n, got, expected in zip(wrt, pullback(d), exact(oracle.double(d)), strict=True):
        assert got.dtype == arguments[n].dtype
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(oracle.double(got), expected, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("by_feature", [False, True])
def test_chunks_against_pytorch(by_feature: bool) -> None:
    """150 tokens of the gated delta rule, three chunks, against PyTorch's gradients of the recurrence."""
    torch = pytest.importorskip("torch", reason="PyTorch computes the expected gradients")
    rng, heads, tokens, width = np.random.default_rng(0), (2, 2), 150, 16
    arguments = {
        "query": rng.standard_normal((2, 4, tokens, width)),
        "key": rng.standard_normal((*heads, tokens, width)) / 4,
        "value": rng.standard_normal((*heads, tokens, 12)),
        "decay": np.exp(-0.2 * rng.random((*heads, tokens, width if by_feature else 1))),
        "beta": rng.random((*heads, tokens)),
        "state": rng.standard_normal((*heads, width, 12)),
    }
    t = {name: torch.tensor(x, requires_grad=True) for name, x in arguments.items()}
    state, rows = t["state"], []
    for i in range(tokens):
        k = t["key"][:, :, i, :, None]
        state = state * t["decay"][:, :, i, :, None]
        u = t["beta"][:, :, i, None, None] * (t["value"][:, :, i, None] - k.mT @ state)
        state = state + k * u
        rows.append(t["query"][:, :, i, None] @ state.repeat_interleave(2, dim=1))
    expected = torch.cat(rows, dim=2), state
    options: dict[str, Any] = {"feature_map": None, "rule": "gated_delta", "wrt": tuple(arguments)}
    results, pullback = hw.vjp(hw.linear_attention, **arguments, **options)
    d = [rng.standard_normal(y.shape) for y in results]
    sum((y * torch.tensor(b)).sum() for y, b in zip(expected, d, strict=True)).backward()
    for result, y in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, y.detach().numpy(), atol=1e-12)
    for name, gradient in zip(arguments, pullback(*d), strict=True):
        grad = t[name].grad.numpy()
        np.testing.assert_allclose(gradient, grad, atol=1e-12 * np.abs(grad).max())


@pytest.mark.parametrize("rule", ["gated", "gated_delta"])
@pytest.mark.parametrize("by_feature", [False, True])
def test_small_decays(rule: str, by_feature: bool) -> None:
    """Outputs are linear in a decay, so that a difference of any size has the slope."""
    q, k, v = (normal((1, 2, 150, 4), seed, np.float64) / 2 for seed in range(3))
    rates = {"beta": np.full((1, 2, 150), 0.5)} if rule == "gated_delta" else {}
    decay = np.full((1, 2, 150, 4) if by_feature else (1, 2, 150), 0.9)
    small = {20: 1e-8, 64: 1e-20, 65: 1e-30, 128: 1e-300}
    for token, factor in small.items():
        decay[:, :, token] = factor
    options: dict[str, Any] = {"rule": rule, "feature_map": None, **rates}
    d_output = normal((1, 2, 150, 4), 4, np.float64)
    _, pullback = hw.vjp(hw.linear_attention, q, k, v, decay=decay, wrt=("decay",), **options)
    (gradient,) = pullback(d_output)
    for token in (0, 19, 21, 66, 149, *small):
        where = (0, 1, token, *[2] * by_feature)
        losses = []
        for factor in (0.5, 1.0):
            changed = decay.copy()
            changed[where] = factor
            losses.append((d_output * hw.linear_attention(q, k, v, decay=changed, **options)[0]).sum())
        np.testing.assert_allclose(gradient[where], 2 * (losses[1] - losses[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["plain", "gated-features", "gated-delta"])
def test_nan_of_later_tokens_reaches_no_gradient_by_earlier_queries(name: str) -> None:
    arguments = call(name)
    expected = hw.vjp(hw.linear_attention, **arguments, wrt=("query",))[1](np.ones((2, 4, 9, 5))).d_query
    for n in ("key", "value"):
        arguments[n][:, :, 7] = np.nan
    got = hw.vjp(hw.linear_attention, **arguments, wrt=("query",))[1](np.ones((2, 4, 9, 5))).d_query
    np.testing.assert_allclose(got[:, :, :7], expected[:, :, :7], rtol=1e-12)
    assert np.isnan(got[:, :, 7:]).all()


def test_what_has_no_gradient_is_refused() -> None:
    q = np.ones((1, 1, 3, 2))
    with pytest.raises(TypeError, match=r"^feature_map: .*vjp does not differentiate functions"):
        hw.vjp(hw.linear_attention, q, q, q, feature_map=np.exp)
    _, pullback = hw.vjp(hw.linear_attention, q, q, q)
    with pytest.raises(ValueError, match=r"^d_state: shape"):
        pullback(None, np.ones((1, 1, 2, 2)))

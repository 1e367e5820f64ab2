"""Linear attention beyond the table of operations: rates, states, chunks, feature maps, NaN, and ONNX's cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from operations import unit_features
from support import assert_close, dtype_named, normal

Array = np.ndarray[Any, Any]
RULES = ["linear", "gated", "delta", "gated_delta"]
every_rule = pytest.mark.parametrize("rule", RULES)


def call(rule: str, tokens: int, *, dtype: str = "float64", features: int = 1, seed: int = 0) -> dict[str, Any]:
    """Arguments of a call with 4 heads on 2 key heads: keys of length 1, rates for each token, and a state."""
    rng = np.random.default_rng(seed)
    kind = dtype_named(dtype)
    arguments: dict[str, Any] = {
        "query": rng.standard_normal((2, 4, tokens, 12)),
        "key": unit_features(rng.standard_normal((2, 2, tokens, 12))),
        "value": rng.standard_normal((2, 2, tokens, 10)),
        "state": rng.standard_normal((2, 2, 12, 10)),
    }
    if "gated" in rule:
        arguments["decay"] = 1 - 0.9 * rng.random((2, 2, tokens, features)) ** 2
    if "delta" in rule:
        arguments["beta"] = rng.random((2, 2, tokens))
    cast = {name: value.astype(kind) for name, value in arguments.items()}
    return cast | {"rule": rule, "is_causal": True, "feature_map": None, "scale": 0.3}


def tokens_of(arguments: dict[str, Any], part: slice) -> dict[str, Any]:
    """The call with some of its tokens."""
    rates = {name: value[:, :, part] for name, value in arguments.items() if name not in ("state", "rule")
             and isinstance(value, np.ndarray)}  # fmt: skip
    return arguments | rates


@every_rule
@pytest.mark.parametrize("features", [1, 12])
@pytest.mark.parametrize("tokens", [1, 2, 17, 64, 65, 200])
def test_lengths(tokens: int, features: int, rule: str) -> None:
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        arguments = call(rule, tokens, dtype=dtype, features=features)
        output, state = hw.linear_attention(**arguments)
        expected, last = oracle.linear_attention(**arguments)
        assert output.dtype == dtype_named(dtype) and state.dtype == ("float64" if dtype == "float64" else "float32")
        assert_close(output, expected, 4)
        assert_close(state, last, 4)


@every_rule
@pytest.mark.parametrize("chunk", [1, 3, 16, 100, 10**9])
def test_chunks_change_rounding_only(chunk: int, rule: str) -> None:
    arguments = call(rule, 150, features=12)
    for got, expected in zip(
        hw.linear_attention(**arguments, chunk=chunk), oracle.linear_attention(**arguments), strict=True
    ):
        assert_close(got, expected, 4)


@every_rule
@pytest.mark.parametrize("feature_map", [None, "elu"])
def test_two_calls_equal_one(feature_map: str | None, rule: str) -> None:
    arguments = call(rule, 90, dtype="float32") | {"feature_map": feature_map}
    if feature_map:
        arguments["key"] = arguments["key"] - 2
        arguments["normalize"] = "delta" not in rule  # whose weights may cancel
    del arguments["state"]
    whole, last = hw.linear_attention(**arguments)
    for cut in (1, 37, 64):
        first, state = hw.linear_attention(**tokens_of(arguments, slice(0, cut)))
        second, state = hw.linear_attention(**tokens_of(arguments, slice(cut, None)), state=state)
        assert_close(np.concatenate([first, second], axis=2), whole.astype(np.float64), 4)
        assert_close(state, last.astype(np.float64), 4)


def test_state_is_not_changed() -> None:
    arguments = call("gated_delta", 20)
    before = arguments["state"].copy()
    hw.linear_attention(**arguments)
    assert np.array_equal(arguments["state"], before)


@every_rule
def test_ranks(rule: str) -> None:
    """Arrays without an axis of heads, and with more axes before it."""
    arguments = call(rule, 40)
    flat = {
        name: value[:, 0] if isinstance(value, np.ndarray) and name != "beta" else value
        for name, value in arguments.items()
    }
    if "beta" in arguments:
        flat["beta"] = arguments["beta"][:, 0]
    for lift in (lambda x: x, lambda x: x[0]):
        some = {name: lift(x) if isinstance(x, np.ndarray) else x for name, x in flat.items()}
        for got, expected in zip(hw.linear_attention(**some), oracle.linear_attention(**some), strict=True):
            assert_close(got, expected, 4)
    deep = {name: x[:, None] if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    for got, expected in zip(hw.linear_attention(**deep), hw.linear_attention(**arguments), strict=True):
        assert np.array_equal(got[:, 0], expected)


@pytest.mark.parametrize(
    "rate", [0.5, [0.5, 0.25], np.full((2, 1, 30), 0.5), np.full((1, 2, 1), 0.5), np.full((2, 2, 30, 1), 0.5)],
    ids=["number", "heads", "tokens", "one-token", "full"],
)  # fmt: skip
def test_shapes_of_rates(rate: Any) -> None:
    full = np.broadcast_to(np.reshape(rate, (1, 2, 1) if isinstance(rate, list) else np.shape(rate)[:3]), (2, 2, 30))
    arguments = call("gated_delta", 30)
    expected = hw.linear_attention(**arguments | {"decay": full, "beta": full})
    for got, wanted in zip(hw.linear_attention(**arguments | {"decay": rate, "beta": rate}), expected, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.0001, np.nan, np.inf])
def test_decays_outside_are_refused(bad: float) -> None:
    arguments = call("gated", 5)
    arguments["decay"][1, 0, 3] = bad
    with pytest.raises(ValueError, match=r"^decay: .* expected factors in \(0, 1\]"):
        hw.linear_attention(**arguments)
    for shape in ((2, 2, 6), (3,), (2, 2, 5, 11), (5,)):
        with pytest.raises(ValueError, match=r"^decay: shape"):
            hw.linear_attention(**arguments | {"decay": np.full(shape, 0.5)})


@pytest.mark.parametrize("features", [1, 12])
def test_tiny_decays(features: int) -> None:
    """A decay forgets all that was before; products of many underflow to 0."""
    arguments = call("gated_delta", 130, features=features)
    arguments["decay"] = np.where(np.arange(130)[:, None] % 10 == 3, 1e-300, arguments["decay"] * 0 + 1e-3)
    for got, expected in zip(hw.linear_attention(**arguments), oracle.linear_attention(**arguments), strict=True):
        assert_close(got, expected, 4)


@every_rule
@pytest.mark.parametrize("name", ["query", "key", "value", "beta"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_no_earlier_token(bad: float, name: str, rule: str) -> None:
    arguments = call(rule, 100, dtype="float32")
    if name not in arguments:
        return
    expected, _ = hw.linear_attention(**arguments)
    arguments[name][0, 0, 77] = bad
    output, state = hw.linear_attention(**arguments)
    assert_close(output[:, :, :77], expected[:, :, :77].astype(np.float64), 4)
    assert_close(output[1], expected[1].astype(np.float64), 4)
    assert not np.isfinite(output[0, 0, 77]).all()
    assert np.isfinite(state[1]).all()


def test_sums_that_overflow_reach_no_earlier_token() -> None:
    q, k, v = np.ones((3, 1, 1, 10, 2), np.float32)
    k[0, 0, 5:] = 1e30
    v[0, 0, 5:] = 1e30
    output, _ = hw.linear_attention(q, k, v, feature_map=None, is_causal=True)
    assert np.array_equal(output[0, 0, :5, 0], 2.0 * np.arange(1, 6)) and np.isinf(output[0, 0, 5:]).all()


def test_normalized_outputs_are_means() -> None:
    q, k = normal((2, 1, 2, 9, 8))
    v = np.full((1, 2, 9, 3), 7.0, np.float32)
    for is_causal in (False, True):
        output, state = hw.linear_attention(q, k, v, is_causal=is_causal, scale=0.1)
        np.testing.assert_allclose(output, 7, rtol=1e-6)
        np.testing.assert_allclose(state[..., 3] * 7, state[..., 0], rtol=1e-6)
    zero = np.full((1, 1, 3, 4), -np.inf)
    assert not hw.linear_attention(zero, zero, np.ones((1, 1, 3, 2)))[0].any()


def test_without_causality_equals_the_square() -> None:
    q, k, v = normal((1, 4, 7, 8)), normal((1, 2, 130, 8), 1), normal((1, 2, 130, 5), 2)
    phi = lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))  # noqa: E731
    weights = phi(q) @ phi(k.repeat(2, axis=1)).swapaxes(2, 3)
    expected = weights @ v.repeat(2, axis=1) / weights.sum(axis=-1, keepdims=True)
    assert_close(hw.linear_attention(q, k, v)[0], expected.astype(np.float64), 4)


def test_no_tokens() -> None:
    q = np.zeros((1, 2, 0, 4))
    output, state = hw.linear_attention(q, q, q, is_causal=True)
    assert output.shape == (1, 2, 0, 4) and not state.any() and state.shape == (1, 2, 4, 5)
    state += 3
    assert np.array_equal(hw.linear_attention(q, q, q, state=state)[1], state)
    output, _ = hw.linear_attention(np.ones((1, 2, 3, 4)), q, q, state=state)
    assert output.shape == (1, 2, 3, 4) and (output == 1).all()


def test_performer_features() -> None:
    features = hw.performer_features(16, 40, rng=3)
    w = features.projection
    assert w.shape == (16, 40) and not w.flags.writeable
    for block in (w[:, :16], w[:, 16:32], w[:, 32:]):
        squares = block.T @ block
        assert np.abs(squares - np.diag(np.diagonal(squares))).max() < 1e-12 * squares.max()
    x = normal((3, 5, 16))
    scaled = x / 2
    expected = np.exp(scaled @ w - (scaled**2).sum(-1, keepdims=True) / 2) / np.sqrt(40)
    assert features(x).dtype == np.float32
    np.testing.assert_allclose(features(x), expected, rtol=1e-5)
    assert np.array_equal(w, hw.performer_features(16, 40, rng=3).projection)
    with pytest.raises(ValueError, match=r"^x: shape"):
        features(x[..., :15])


@pytest.mark.parametrize("is_causal", [False, True])
def test_performer_attention_approximates_softmax_attention(is_causal: bool) -> None:
    q, k, v = 0.5 * normal((3, 1, 2, 50, 16)).astype(np.float64)
    exact = hw.flash_attention(q, k, v, is_causal=is_causal)
    errors = [
        np.mean([
            np.square(hw.linear_attention(
                q, k, v, feature_map=hw.performer_features(16, count, rng=seed), is_causal=is_causal
            )[0] - exact).mean()
            for seed in range(5)
        ])
        for count in (16, 256, 4096)
    ]  # fmt: skip
    assert errors[0] > 4 * errors[1] > 16 * errors[2], errors


@pytest.mark.single_implementation
def test_onnx() -> None:
    """The node cases of ONNX's LinearAttention, of which there are 14 in opset 27."""
    node_cases = pytest.importorskip("onnx.backend.test.case.node", reason="ONNX has cases of LinearAttention")
    module = pytest.importorskip(
        "onnx.backend.test.case.node.linear_attention", reason="an onnx with opset 27 has LinearAttention"
    )
    assert module.LinearAttention  # whose cases are in the list since it is imported
    cases = [case for case in node_cases._NodeTestCases if case.name.startswith("test_linear_attention")]
    cases = [case for case in cases if "expanded" not in case.name]
    assert len(cases) >= 14, [case.name for case in cases]
    for case in cases:
        node = case.model.graph.node[0]
        options = {a.name: a.s.decode() if a.type == 3 else a.f if a.type == 1 else a.i for a in node.attribute}
        inputs, wanted = case.data_sets[0]
        named = dict(zip([name for name in node.input if name], inputs, strict=True))
        given = [None if name == "" else named[name] for name in node.input] + [None] * 6
        query, key, value, state, decay, beta = given[:6]
        heads, kv_heads = options["q_num_heads"], options["kv_num_heads"]

        def split(x: Array, heads: int) -> Array:
            return x.reshape((*x.shape[:2], heads, -1)).swapaxes(1, 2)

        features = query.shape[-1] // heads
        rates: dict[str, Any] = {}
        if decay is not None:
            rates["decay"] = np.exp(split(decay.astype(np.float32), kv_heads))
        if beta is not None:
            rates["beta"] = beta.swapaxes(1, 2)
        output, last = hw.linear_attention(
            split(query, heads), split(key, kv_heads), split(value, kv_heads), feature_map=None, is_causal=True,
            scale=options.get("scale") or features**-0.5, rule=options.get("update_rule", "gated_delta"), state=state,
            **rates,
        )  # fmt: skip
        packed = output.swapaxes(1, 2).reshape(query.shape[0], query.shape[1], -1)
        tolerance = 2e-5 if query.dtype == np.float32 else 4e-3
        for got, expected in zip((packed, last), wanted, strict=False):
            np.testing.assert_allclose(
                oracle.double(got), oracle.double(expected), rtol=tolerance, atol=tolerance, err_msg=case.name
            )

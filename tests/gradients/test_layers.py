"""``vjp`` of the layers, against central differences of their forward pass in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

pytestmark = pytest.mark.above_operations

X = normal((2, 5, 12), 1, np.float64)
Y = normal((2, 7, 12), 2, np.float64)
Z = normal((2, 7, 10), 3, np.float64)
ROPE = {"rope": hw.RotaryPositionalEmbedding(4)}
SCALED = {"rope": hw.RotaryPositionalEmbedding(4, scaling={
    "original_max_position_embeddings": 2, "llama_4_scaling_beta": 0.5})}  # fmt: skip

#: The constructor's keywords, the inputs and the keywords of the call.
CALLS: dict[str, tuple[dict[str, Any], tuple[np.ndarray, ...], dict[str, Any]]] = {
    "self": ({}, (X,), {}),
    "biases": ({"bias": True}, (X,), {}),
    "some-biases": ({"bias": "qo"}, (X,), {}),
    "grouped": ({"num_kv_heads": 1, "bias": True}, (X,), {}),
    "head_dim": ({"head_dim": 6}, (X,), {}),
    "rope": (ROPE, (X,), {"is_causal": True}),
    "rope-positions": (ROPE, (X,), {"positions": [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]}),
    "query-scale": (SCALED, (X,), {}),
    "qk_norm-head": ({"qk_norm": "head", **ROPE}, (X,), {}),
    "qk_norm-full": ({"qk_norm": "full", "num_kv_heads": 1}, (X, Y), {}),
    "sinks": ({"sinks": True}, (X,), {}),
    "t5": ({"relative": {"num_buckets": 6, "max_distance": 4, "bidirectional": True}, "scale": 1.0}, (X,), {}),
    "t5-grouped": (
        {"relative": {"num_buckets": 4, "max_distance": 3, "bidirectional": False}, "num_kv_heads": 1, "sinks": True},
        (X,),
        {"is_causal": True},
    ),
    "shaw": ({"relative": hw.RelativePositionalEncoding(4, 2, rng=3), "bias": True}, (X,), {}),
    "shaw-rope": (
        {
            "relative": hw.RelativePositionalEncoding(6, 3, rng=3),
            "num_kv_heads": 1,
            "qk_norm": "head",
            "scale": 0.3,
            "rope": hw.RotaryPositionalEmbedding(6),
        },
        (X, Y),
        {"causal_alignment": "lower_right", "is_causal": True},
    ),
    "shaw-one-sequence": ({"relative": hw.RelativePositionalEncoding(4, 9, rng=3)}, (X[0], Y[0]), {"softcap": 2.0}),
    "cross": ({}, (X, Y), {}),
    "three": ({"vdim": 10}, (X, Y, Z), {"key_padding_mask": [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]}),
    "same-three": ({}, (X, X, X), {}),
    "alibi-window-softcap": ({"alibi": True, "window_size": 2, "softcap": 3.0}, (X,), {}),
    "one-sequence": ({"bias": True}, (X[0], Y[0]), {"return_lse": True}),
    "dropout": ({"dropout": 0.4}, (X,), {"training": True, "rng": 5}),
    "lse": ({"sinks": True}, (X, Y), {"return_lse": True, "need_weights": False}),
    "key_lengths": ({}, (X, Y), {"key_lengths": [3, 0]}),
}
PARAMETERS = ("W_q", "W_k", "W_v", "W_o", "b_q", "b_k", "b_v", "b_o", "sinks", "q_norm", "k_norm",
              "relative_table", "relative_embeddings")  # fmt: skip


def check(
    function: Callable[[np.ndarray], Any], at: np.ndarray, gradient: np.ndarray, d: list[Any], tolerance: float = 1e-8
) -> None:
    """``gradient`` in two directions against central differences of ``function``, whose results ``d`` multiplies."""
    rng = np.random.default_rng(3)
    assert gradient.shape == at.shape and gradient.dtype == at.dtype
    for _ in range(2):
        direction = rng.standard_normal(at.shape)

        def loss(step: float, direction: np.ndarray = direction) -> float:
            results = function(at + step * direction)
            results = results if isinstance(results, tuple) else (results,)
            return sum(float(np.where(np.isfinite(y), y * w, 0).sum()) for y, w in zip(results, d, strict=True)
                       if y is not None)  # fmt: skip

        h = 2e-4
        expected = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        assert abs(expected - (gradient * direction).sum()) < tolerance * max(1.0, abs(expected))


def layer_of(keywords: dict[str, Any], cls: type = hw.MultiHeadAttention) -> Any:
    layer = cls(12, 2 if "num_kv_heads" in keywords or "head_dim" in keywords else 3, rng=0, **keywords)
    rng = np.random.default_rng(4)
    for name in PARAMETERS[4:]:
        if getattr(layer, name, None) is not None:  # zeros and ones would hide errors
            setattr(layer, name, 1 + 0.3 * rng.standard_normal(getattr(layer, name).shape))
    return layer


@pytest.mark.parametrize("name", CALLS)
def test_attention(name: str) -> None:
    keywords, inputs, options = CALLS[name]
    layer = layer_of(keywords)
    *results, pullback = layer.vjp(*inputs, **options)
    expected = layer(*inputs, **options)
    for result, same in zip(results, expected, strict=True):
        assert (result is None) == (same is None) and (result is None or np.array_equal(result, same))
    rng = np.random.default_rng(2)
    d = [None if y is None else rng.standard_normal(y.shape) for y in results]
    grads = pullback(*d)
    assert grads.inputs._fields == ("d_query", "d_key", "d_value")[: len(inputs)]
    for i, gradient in enumerate(grads.inputs):
        check(lambda x, i=i: layer(*inputs[:i], x, *inputs[i + 1 :], **options), inputs[i], gradient, d)
    assert set(grads.parameters) == set(layer.state_dict())
    for parameter, gradient in grads.parameters.items():

        def changed(x: np.ndarray, parameter: str = parameter) -> Any:
            other = layer_of(keywords)
            setattr(other, parameter, x)
            return other(*inputs, **options)

        check(changed, getattr(layer, parameter), gradient, d)


#: The constructor's keywords, the inputs ``x`` and ``state``, and the keywords of the call.
LINEAR: dict[str, tuple[dict[str, Any], tuple[np.ndarray, ...], dict[str, Any]]] = {
    "elu": ({}, (X,), {}),
    "both-directions": ({"is_causal": False, "bias": True}, (X,), {}),
    "grouped-state": ({"num_kv_heads": 1, "bias": "qo"}, (X, 2 + normal((2, 1, 6, 7), 9, np.float64)), {}),
    "bare-state": ({"feature_map": None, "bias": True}, (X, normal((2, 3, 4, 4), 9, np.float64)), {}),
    "retnet": ({"rule": "gated", "feature_map": None, "scale": 0.5}, (X,), {}),
    "decays": (
        {"rule": "gated", "feature_map": None},
        (X,),
        {"decay": np.linspace(0.7, 1, 30).reshape(2, 3, 5), "wrt": ("x", "decay")},
    ),
    "rates": (
        {"rule": "gated_delta", "feature_map": None, "scale": 0.5, "decay": [0.7, 0.8, 0.9]},
        (X / 4,),
        {"beta": np.linspace(0.1, 0.9, 30).reshape(2, 3, 5), "wrt": ("x", "beta")},
    ),
    "learned": (
        {"rule": "gated_delta", "feature_map": None, "scale": 0.5, "decay": "learned", "beta": "learned"},
        (X / 4, normal((2, 3, 4, 4), 9, np.float64)),
        {},
    ),
    "learned-decay": ({"rule": "gated", "decay": "learned", "num_kv_heads": 1}, (X[0],), {}),
    "one-sequence": ({"head_dim": 5}, (X[0], 2 + normal((2, 5, 6), 9, np.float64)), {}),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention(name: str) -> None:
    keywords, inputs, options = LINEAR[name]
    layer = layer_of(keywords, hw.LinearAttention)
    tolerance = 1e-8 if "feature_map" in keywords else 1e-5  # the second derivative of elu jumps at 0
    options = options.copy()
    wrt = {"wrt": options.pop("wrt")} if "wrt" in options else {}
    *results, pullback = layer.vjp(*inputs, **options, **wrt)
    for result, same in zip(results, layer(*inputs, **options), strict=True):
        assert np.array_equal(result, same)
    d = [normal(y.shape, 2, np.float64) for y in results]
    grads = pullback(*d)
    assert grads.inputs._fields == tuple(f"d_{n}" for n in wrt.get("wrt", ("x", "state")[: len(inputs)]))
    for i, gradient in enumerate(grads.inputs[: len(inputs)]):
        check(lambda x, i=i: layer(*inputs[:i], x, *inputs[i + 1 :], **options), inputs[i], gradient, d, tolerance)
    if wrt:
        rate = wrt["wrt"][1]
        below = options[rate] * 0.98
        by_rate = layer.vjp(*inputs, **{rate: below}, **wrt)[2](*d).inputs[1]
        check(lambda x: layer(*inputs, **{rate: x}), below, by_rate, d, tolerance)
    assert set(grads.parameters) == set(layer.state_dict())
    for parameter, gradient in grads.parameters.items():

        def changed(x: np.ndarray, parameter: str = parameter) -> Any:
            other = layer_of(keywords, hw.LinearAttention)
            setattr(other, parameter, x)
            return other(*inputs, **options)

        check(changed, getattr(layer, parameter), gradient, d, tolerance)
    only_state = pullback(None, d[1])
    assert not only_state.parameters["W_q"].any() and not only_state.parameters["W_o"].any()


def test_linear_attention_without_gradients() -> None:
    with pytest.raises(TypeError, match=r"^feature_map: "):
        hw.LinearAttention(12, 3, feature_map=np.exp).vjp(X)
    with pytest.raises(ValueError, match=r"^wrt: 'decay', which is not given"):
        hw.LinearAttention(12, 3, rule="gated").vjp(X, wrt=("decay",))
    *_, pullback = hw.LinearAttention(12, 3).vjp(X)
    with pytest.raises(TypeError, match=r"^pullback: no gradient"):
        pullback()


@pytest.mark.parametrize("relative", ["t5", "shaw"])
def test_a_given_relative_bias_takes_the_place_of_the_learned_one(relative: str) -> None:
    layer, plain = layer_of(CALLS[relative][0]), layer_of({**CALLS[relative][0], "relative": None})
    bias = normal((3, 1, 5), 5, np.float64)
    *results, pullback = layer.vjp(X, relative_bias=bias, wrt=("query", "relative_bias"))
    *expected, other = plain.vjp(X, relative_bias=bias, wrt=("query", "relative_bias"))
    for got, wanted in zip(results, expected, strict=True):
        assert np.array_equal(got, wanted)
    got, wanted = pullback(X), other(X)
    assert np.array_equal(got.inputs.d_relative_bias, wanted.inputs.d_relative_bias)
    name = "relative_table" if relative == "t5" else "relative_embeddings"
    assert not got.parameters[name].any() and np.array_equal(got.parameters["W_q"], wanted.parameters["W_q"])
    with pytest.raises(ValueError, match=r"^wrt: 'relative_bias', which is not given"):
        layer.vjp(X, wrt=("relative_bias",))


def test_bias_and_slopes_by_keyword() -> None:
    layer, bias, slopes = layer_of({}), normal((2, 5, 5), 5, np.float64), np.array([0.1, 0.2, 0.3])
    *results, pullback = layer.vjp(X, bias=bias, alibi_slopes=slopes, wrt=("bias", "alibi_slopes"))
    d = [normal(y.shape, 6, np.float64) for y in results]
    by_bias, by_slopes = pullback(*d).inputs
    check(lambda b: layer(X, bias=b, alibi_slopes=slopes), bias, by_bias, d)
    check(lambda s: layer(X, bias=bias, alibi_slopes=s), slopes, by_slopes, d)


ENCODINGS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "sinusoidal": (hw.SinusoidalPositionalEncoding(12), (X,), {"offset": 3}),
    "sinusoidal-dropout": (hw.SinusoidalPositionalEncoding(12, dropout=0.4), (X,), {"training": True, "rng": 5}),
    "learned": (hw.LearnedPositionalEmbedding(9, 12, rng=0), (X,), {}),
    "learned-positions": (hw.LearnedPositionalEmbedding(9, 12, rng=0), (X,), {"positions": [3, 1, 4, 1, 5]}),
    "learned-offset": (hw.LearnedPositionalEmbedding(9, 12, rng=0), (X[0],), {"offset": 2}),
    "rotary": (hw.RotaryPositionalEmbedding(12, rotary_dim=8, interleaved=True), (X,), {"positions": [7, 1, 2, 3, 3]}),
    "alibi": (hw.ALiBiPositionalBias(5), (normal((2, 5, 3, 4), 1, np.float64),), {"offset": 1}),
    "relative": (hw.RelativePositionalEncoding(12, 3, rng=0), (9,), {}),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings(name: str) -> None:
    layer, (x,), options = ENCODINGS[name]
    output, pullback = layer.vjp(x, **options)
    assert np.array_equal(output, layer(x, **options))
    d = normal(output.shape, 7, np.float64)
    grads = pullback(d)
    for gradient in grads.inputs:
        check(lambda x: layer(x, **options), x, gradient, [d])
    assert list(grads.parameters) == (["embeddings"] if hasattr(layer, "embeddings") else [])
    for gradient in grads.parameters.values():
        before = layer.embeddings.copy()

        def changed(embeddings: np.ndarray) -> Any:
            layer.embeddings = embeddings
            return layer(x, **options)

        check(changed, before, gradient, [d])
        layer.embeddings = before


@pytest.mark.parametrize("options", [{}, {"bias": normal((5, 1), 1, np.float64), "dropout_rate": 0.3, "rng": 1}])
def test_attention_without_projections(options: dict[str, Any]) -> None:
    more = {"wrt": ("x", "bias")} if "bias" in options else {}
    results, pullback = hw.vjp(hw.self_attention, X, 12, **options, **more)
    d = [normal(y.shape, 8, np.float64) for y in results]
    check(lambda x: hw.self_attention(x, 12, **options), X, pullback(*d).d_x, d)
    if more:
        check(lambda b: hw.self_attention(X, 12, **{**options, "bias": b}), options["bias"], pullback(*d).d_bias, d)
    results, pullback = hw.vjp(hw.cross_attention, X, Y, 12, is_causal=True)
    d = [normal(y.shape, 9, np.float64) for y in results]
    by_query, by_context = pullback(*d)
    check(lambda x: hw.cross_attention(x, Y, 12, is_causal=True), X, by_query, d)
    check(lambda y: hw.cross_attention(X, y, 12, is_causal=True), Y, by_context, d)


@pytest.mark.parametrize(
    "options", [{"is_causal": True}, {"bias": normal((5, 5), 1, np.float64)}, {"dropout_rate": 0.3}]
)
def test_functions_of_heads(options: dict[str, Any]) -> None:
    """Multi-head attention by given projections, whose gradients are a dict, and of one sequence to itself."""
    params = {f"W_{c}": normal((12, 12), 10 + n, np.float64) for n, c in enumerate("qkvo")}
    keywords: dict[str, Any] = {"num_heads": 3, "d_model": 12, "params": params, "rng": 1, **options}
    names = ("query", "key", "value", "params", *(("bias",) if "bias" in options else ()))
    inputs: dict[str, Any] = dict(zip(names, (X, Y[:, :5], 2 * X), strict=False))
    results, pullback = hw.vjp(hw.multi_head_attention, **inputs, **keywords, wrt=names)
    d = [normal(y.shape, 8, np.float64) for y in results]
    gradients = pullback(*d)
    for name, x in inputs.items():

        def moved(x: np.ndarray, name: str = name) -> Any:
            return hw.multi_head_attention(**{**inputs, name: x}, **keywords)

        check(moved, x, getattr(gradients, f"d_{name}"), d)
    assert list(gradients.d_params) == list(params)
    for name, weight in params.items():

        def changed(w: np.ndarray, name: str = name) -> Any:
            return hw.multi_head_attention(**inputs, **{**keywords, "params": {**params, name: w}})

        check(changed, weight, gradients.d_params[name], d)
    if "bias" in options:
        bias, others = options["bias"], {name: x for name, x in keywords.items() if name != "bias"}
        check(lambda b: hw.multi_head_attention(**inputs, **others, bias=b), bias, gradients.d_bias, d)
    results, pullback = hw.vjp(hw.multi_head_self_attention, X, wrt=("params", "x"), **keywords)
    d_params, d_x = pullback(*d)
    check(lambda x: hw.multi_head_self_attention(x, **keywords), X, d_x, d)
    check(
        lambda w: hw.multi_head_self_attention(X, **{**keywords, "params": {**params, "W_k": w}}),
        params["W_k"], d_params["W_k"], d,
    )  # fmt: skip


def test_functions_of_heads_by_a_layer() -> None:
    layer = hw.CausalAttention(12, 3, rng=0)
    *results, by_layer = layer.vjp(X)
    output, pullback = hw.vjp(hw.multi_head_self_attention, X, 3, 12, params=layer)
    assert np.array_equal(output[0], results[0])
    assert np.array_equal(pullback(output[0]).d_x, by_layer(output[0]).inputs.d_query)
    with pytest.raises(TypeError, match="wrt: 'params', which is a layer"):
        hw.vjp(hw.multi_head_attention, X, X, X, 3, 12, params=layer, wrt=("params",))
    with pytest.raises(ValueError, match="wrt: 'params', which is not given"):
        hw.vjp(hw.multi_head_attention, X, X, X, 3, 12, wrt=("params",))


def test_dtypes_of_inputs_and_parameters() -> None:
    """Gradients have the dtypes of their arrays, whatever the computation's."""
    layer = hw.CausalAttention(12, 3, rng=0)
    *_, pullback = layer.vjp(X)
    precise = pullback(2 * X)
    for dtype, tolerance in ((np.float32, 1e-5), (np.float16, 1e-2)):
        *_, pullback = layer.vjp(X.astype(dtype))
        grads = pullback((2 * X).astype(dtype))
        assert grads.inputs.d_query.dtype == dtype
        np.testing.assert_allclose(grads.inputs.d_query, precise.inputs.d_query, atol=tolerance, rtol=tolerance)
        for name, gradient in grads.parameters.items():
            assert gradient.dtype == np.float64
            np.testing.assert_allclose(gradient, precise.parameters[name], atol=tolerance * 10, rtol=tolerance)


def test_nothing_is_stored_on_a_layer() -> None:
    layer = layer_of({"qk_norm": "head", **ROPE})
    before = set(vars(layer))
    *_, pullback = layer.vjp(X)
    pullback(X)
    assert set(vars(layer)) == before
    first = pullback(X)
    assert all(np.array_equal(a, b) for a, b in zip(first.inputs, pullback(X).inputs, strict=True))


def test_errors() -> None:
    layer = layer_of({"sinks": True})
    *_, pullback = layer.vjp(X)
    with pytest.raises(ValueError, match=r"^d_output: shape \(2, 5\), expected that of output, \(2, 5, 12\)"):
        pullback(np.ones((2, 5)))
    with pytest.raises(TypeError, match=r"^pullback: no gradient"):
        pullback(None)
    with pytest.raises(TypeError, match=r"^pullback: 3 gradients, expected at most 2"):
        pullback(X, None, None)
    for wrt, message in ((("W_q",), "expected some of query"), (("bias",), "not given"), ((), "at least one"),
                         (("sinks",), "not given"), (("query", "query"), "each name once")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^wrt: .*{message}"):
            layer.vjp(X, wrt=wrt)
    with pytest.raises(TypeError, match=r"^out: given to vjp"):
        layer.vjp(X, out=np.empty_like(X))
    with pytest.raises(TypeError, match=r"^cache: not a keyword here"):
        layer.vjp(X, cache=None)
    with pytest.raises(TypeError, match=r"^function: a layer, expected its method: layer.vjp"):
        hw.vjp(layer, X)

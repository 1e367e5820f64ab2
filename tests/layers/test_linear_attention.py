"""``LinearAttention``: projections around ``linear_attention``, and states from call to call."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import headwise as hw

pytestmark = pytest.mark.above_operations

DECAYS = np.linspace(0.8, 1.0, 2 * 2 * 7).reshape(2, 2, 7)
RATES = np.linspace(0.1, 0.9, 2 * 2 * 7).reshape(2, 2, 7)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)


def doubled(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.exp(x), np.exp(-x)], axis=-1)


#: The constructor's keywords, and the rates of a call, whose last axis counts tokens.
LAYERS: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {
    "elu": ({}, {}),
    "grouped-biases": ({"num_kv_heads": 2, "bias": True, "head_dim": 5}, {}),
    "function": ({"feature_map": doubled}, {}),
    "bare": ({"feature_map": None, "scale": 0.5}, {}),
    "retnet": ({"rule": "gated", "feature_map": None}, {}),
    "gated": ({"rule": "gated", "decay": 0.9}, {}),
    "gated-by-token": ({"rule": "gated", "num_kv_heads": 2}, {"decay": DECAYS}),
    "learned": (
        {
            "rule": "gated_delta",
            "feature_map": unit,
            "normalize": False,
            "num_kv_heads": 2,
            "decay": "learned",
            "beta": "learned",
        },
        {},
    ),
    "delta": ({"rule": "delta", "feature_map": unit, "normalize": False, "beta": [0.1, 0.2, 0.3, 0.4]}, {}),
    "gated_delta": (
        {"rule": "gated_delta", "feature_map": unit, "normalize": False, "num_kv_heads": 2},
        {"decay": DECAYS, "beta": RATES},
    ),
}


def layer_of(name: str, **more: Any) -> hw.LinearAttention:
    layer = hw.LinearAttention(24, 4, **{"rng": 0, **LAYERS[name][0], **more})
    rng = np.random.default_rng(5)
    for parameter in ("b_q", "b_k", "b_v", "b_o", "W_decay", "b_decay", "W_beta", "b_beta"):
        if getattr(layer, parameter) is not None:
            setattr(layer, parameter, rng.standard_normal(getattr(layer, parameter).shape))
    return layer


def tokens(rates: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
    return {name: rate[..., part] for name, rate in rates.items()}


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 7, 24))


def by_hand(layer: Any, x: np.ndarray, **keywords: Any) -> tuple[np.ndarray, np.ndarray]:
    def heads(letter: str, count: int) -> np.ndarray:
        b = getattr(layer, "b_" + letter)
        projected = x @ getattr(layer, "W_" + letter) + (0.0 if b is None else b)
        return np.stack(np.split(projected, count, axis=-1), axis=1)

    q, k, v = heads("q", layer.num_heads), heads("k", layer.num_kv_heads), heads("v", layer.num_kv_heads)
    output, state = hw.linear_attention(q, k, v, **keywords)
    joined = np.concatenate(np.moveaxis(output, 1, 0), axis=-1)
    return joined @ layer.W_o + (0.0 if layer.b_o is None else layer.b_o), state


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_function_between_projections(name: str, x: np.ndarray) -> None:
    keywords, rates = LAYERS[name]
    layer = layer_of(name)
    options = {n: k for n, k in keywords.items() if n not in ("num_kv_heads", "head_dim", "bias")}
    if name == "retnet":
        options["decay"] = 1 - 2.0 ** -np.arange(5, 9)
    if name == "learned":
        for rate in ("decay", "beta"):
            z = x @ getattr(layer, f"W_{rate}") + getattr(layer, f"b_{rate}")
            options[rate] = (1 / (1 + np.exp(-z))).swapaxes(1, 2)
    expected = by_hand(copy.deepcopy(layer), x, is_causal=True, **{**options, **rates})
    for _ in range(3):  # joined, then packed
        for got, wanted in zip(layer(x, **rates), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("sizes", [[1] * 7, [4, 3], [5, 0, 2]])
@pytest.mark.parametrize("name", LAYERS)
def test_a_state_continues_a_sequence(name: str, sizes: list[int], x: np.ndarray) -> None:
    layer, rates = layer_of(name), LAYERS[name][1]
    whole, last = layer(x, **rates)
    state, outputs, start = layer.make_state(2, dtype=np.float64), [], 0
    for size in sizes:
        part, before = slice(start, start + size), state.copy()
        output, after = layer(x[:, part], state, **tokens(rates, part))
        np.testing.assert_array_equal(state, before)
        outputs.append(output)
        state, start = after, start + size
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=1e-12)
    np.testing.assert_allclose(state, last, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_one_sequence_without_an_axis(name: str, x: np.ndarray) -> None:
    layer, rates = layer_of(name), LAYERS[name][1]
    whole, last = layer(x, **rates)
    first, state = layer(x[1, :3], **tokens({n: r[1] for n, r in rates.items()}, slice(3)))
    second, state = layer(x[1, 3:], state, **tokens({n: r[1] for n, r in rates.items()}, slice(3, 7)))
    np.testing.assert_allclose(np.concatenate([first, second]), whole[1], atol=1e-12)
    np.testing.assert_allclose(state, last[1], atol=1e-12)


def test_causality_and_both_directions(x: np.ndarray) -> None:
    layer = layer_of("elu")
    changed = x.copy()
    changed[:, 4:] = np.nan
    np.testing.assert_allclose(layer(changed)[0][:, :4], layer(x)[0][:, :4], atol=1e-12)
    both = layer_of("elu", is_causal=False)
    np.testing.assert_allclose(both(x)[0], by_hand(both, x)[0], atol=1e-12)
    np.testing.assert_allclose(both(x[:, ::-1])[0][:, ::-1], both(x)[0], atol=1e-12)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_learned_rates_of_tokens_that_are_not_finite(number: float, x: np.ndarray) -> None:
    layer = hw.LinearAttention(
        x.shape[2], 2, rule="gated_delta", feature_map=None, decay="learned", beta="learned", rng=0
    )
    changed = x.copy()
    changed[:, 4:] = number
    output, state = layer(changed)
    np.testing.assert_allclose(output[:, :4], layer(x)[0][:, :4], atol=1e-12)
    assert not np.isfinite(output[:, 4:]).any() and not np.isfinite(state).any()


@pytest.mark.parametrize("name", LAYERS)
def test_dtypes(name: str, x: np.ndarray) -> None:
    rates = LAYERS[name][1]
    expected, expected_state = layer_of(name)(x, **rates)
    bfloat16 = pytest.importorskip("ml_dtypes", reason="bfloat16 is a type of ml_dtypes").bfloat16
    for dtype, tolerance in ((np.float32, 1e-5), (np.float16, 1e-2), (bfloat16, 1e-1)):
        for parameters in (np.float64, np.float32):
            output, state = layer_of(name, dtype=parameters)(x.astype(dtype), **rates)
            assert output.dtype == dtype and state.dtype == np.float32
            np.testing.assert_allclose(output.astype(float), expected, atol=tolerance * 4, rtol=tolerance)
            np.testing.assert_allclose(state, expected_state, atol=tolerance * 4, rtol=tolerance)
    exact, _ = layer_of(name)(np.rint(x).astype(np.int64), **rates)
    np.testing.assert_array_equal(exact, layer_of(name)(np.rint(x), **rates)[0])


@pytest.mark.parametrize("form", ["headwise", "torch", "llama", "bert", "gpt2"])
def test_state_dicts(form: str, x: np.ndarray) -> None:
    layer = layer_of("elu", bias=True)
    other = layer_of("elu", bias=True, rng=7)
    other.load_state_dict(layer.state_dict(form, prefix="attn."), prefix="attn.")
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)
    np.testing.assert_array_equal(other(x)[0], layer(x)[0])
    with pytest.raises(ValueError, match="sinks"):
        other.load_state_dict({**layer.state_dict(), "sinks": np.zeros(4)})


def test_learned_rates(x: np.ndarray) -> None:
    """They begin as the decays of RetNet and rates of 1 / 2, are stored, and those of a call replace them."""
    options: dict[str, Any] = {"rule": "gated_delta", "feature_map": unit, "normalize": False}
    layer = hw.LinearAttention(24, 4, **options, decay="learned", beta="learned", rng=0)
    fixed = hw.LinearAttention(24, 4, **options, beta=0.5, rng=0)
    np.testing.assert_allclose(layer(x)[0], fixed(x)[0], atol=1e-12)
    layer = layer_of("learned")
    stored = layer.state_dict()
    assert stored["W_decay"].shape == (24, 2) and stored["b_beta"].shape == (2,)
    other = layer_of("learned", rng=7)
    other.load_state_dict(stored)
    np.testing.assert_array_equal(other(x)[0], layer(x)[0])
    with pytest.raises(ValueError, match=r"W_decay: extra .*the layer has none \(decay='learned'\)"):
        layer_of("delta").load_state_dict(stored)
    with pytest.raises(ValueError, match=r"'llama' has no W_decay, .*; 'headwise' has them"):
        layer.state_dict("llama")
    assert not np.allclose(layer(x, beta=1.0)[0], layer(x)[0])
    layer.b_decay -= 1000  # decays underflow
    assert np.isfinite(layer(x.astype(np.float32))[0]).all()


def test_copies_and_pickles(x: np.ndarray) -> None:
    layer = layer_of("gated")
    expected, _ = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(other(x)[0], expected)


def test_states_of_reordered_sequences(x: np.ndarray) -> None:
    layer = layer_of("retnet")
    _, state = layer(x[:, :6])
    output, _ = layer(x[[1, 1, 0], 6:], state[[1, 1, 0]])
    np.testing.assert_allclose(output, layer(x)[0][[1, 1, 0], 6:], atol=1e-12)


@pytest.mark.parametrize(
    ("error", "message", "keywords"),
    [
        (ValueError, "^d_model: 24, expected a number divisible by num_heads = 5", {"num_heads": 5}),
        (ValueError, "^num_kv_heads: 3, expected .* divisible", {"num_kv_heads": 3}),
        (ValueError, "^head_dim", {"head_dim": 0}),
        (ValueError, "^feature_map: 'relu', expected 'elu', None or a function", {"feature_map": "relu"}),
        (TypeError, "^feature_map", {"feature_map": 1}),
        (ValueError, "^rule: 'mamba', expected one of linear, gated", {"rule": "mamba"}),
        (TypeError, "^rule", {"rule": 1}),
        (ValueError, "^decay: given with rule 'linear', expected None, or rule 'gated' or 'gated_delta'", {"decay": 1}),
        (ValueError, "^beta: given with rule 'gated'", {"rule": "gated", "beta": 1}),
        (ValueError, r"^decay: 1.5, expected factors in \(0, 1\]", {"rule": "gated", "decay": 1.5}),
        (ValueError, r"^decay: shape \(2,\), expected \(\) or", {"rule": "gated", "decay": [0.5, 0.5]}),
        (ValueError, "^decay: 'retnet', expected 'learned', a number or", {"rule": "gated", "decay": "retnet"}),
        (ValueError, "^beta: given with rule 'gated'", {"rule": "gated", "beta": "learned"}),
        (TypeError, "^is_causal", {"is_causal": "yes"}),
        (TypeError, "^normalize", {"normalize": 0.5}),
        (TypeError, "^scale", {"scale": "1"}),
        (ValueError, "^bias", {"bias": "xyz"}),
        (TypeError, "^dtype", {"dtype": int}),
        (TypeError, "^num_key_value_heads: not a keyword here, expected num_kv_heads=", {"num_key_value_heads": 2}),
    ],
)
def test_bad_construction(error: type[Exception], message: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        hw.LinearAttention(24, **{"num_heads": 4, **keywords})


@pytest.mark.parametrize(
    ("error", "message", "name", "arguments"),
    [
        (ValueError, r"^x: shape \(2, 7, 23\), expected \(batch, seq, 24\) or", "elu", (np.ones((2, 7, 23)),)),
        (ValueError, r"^x: shape \(24,\)", "elu", (np.ones(24),)),
        (TypeError, "^x: dtype", "elu", (np.ones((7, 24), complex),)),
        (ValueError, r"^state: shape \(2, 4, 6, 6\), expected \(2, 4, 6, 7\)", "elu", (..., np.ones((2, 4, 6, 6)))),
        (ValueError, r"^state: shape \(1, 4, 6, 7\), expected \(2, 4, 6, 7\)", "elu", (..., np.ones((1, 4, 6, 7)))),
        (
            ValueError,
            r"^state: shape \(2, 6, 7\), expected \(batch, 4, features, 7\)",
            "elu",
            (..., np.ones((2, 6, 7))),
        ),
        (ValueError, "^decay: given with rule 'linear'", "elu", (..., None, 0.5)),
        (ValueError, r"^decay: 0.0, expected factors in \(0, 1\]", "gated", (..., None, 0.0)),
        (ValueError, "^decay: shape", "gated", (..., None, np.ones((2, 4, 6)))),
        (ValueError, "^beta: None with rule 'gated_delta'", "gated_delta", (..., None, 0.5)),
    ],
)
def test_bad_calls(error: type[Exception], message: str, name: str, arguments: Any, x: np.ndarray) -> None:
    layer = layer_of(name)
    x_or_given, *rest = arguments
    names = ("state", "decay")
    keywords = dict(zip(names, rest, strict=False))
    for call in (layer, layer.vjp):
        if call is layer or name in ("elu", "gated"):
            with pytest.raises(error, match=message):
                call(x if x_or_given is ... else x_or_given, **keywords)


def test_bad_states() -> None:
    layer = layer_of("elu")
    with pytest.raises(ValueError, match=r"^state: shape \(2, 4, 6, 7\), expected \(4, features, 7\) beside x"):
        layer(np.ones((7, 24)), np.ones((2, 4, 6, 7)))
    with pytest.raises(ValueError, match=r"^batch_size"):
        layer.make_state(0)
    with pytest.raises(TypeError, match=r"^dtype: float16, expected float32 or float64"):
        layer.make_state(1, dtype=np.float16)
    with pytest.raises(TypeError, match=r"^dtype"):
        layer.make_state(1, dtype="float31")
    assert layer_of("function").make_state(3).shape == (3, 4, 12, 7)

"""An interrupted call leaves a layer as it was, or as the whole call would have, and no wrong number in its caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from interruptions import interrupted_calls

pytestmark = pytest.mark.above_operations

X = np.random.default_rng(0).standard_normal((2, 5, 12))
OTHER = hw.MultiHeadAttention(12, 3, bias=True, rng=1).state_dict()


def attention() -> hw.MultiHeadAttention:
    return hw.MultiHeadAttention(12, 3, bias=True, rng=0)


def attention_called_once() -> hw.MultiHeadAttention:
    """The next call packs the weights."""
    layer = attention()
    layer(X)
    return layer


def test_interrupted_load_state_dict_loads_all_or_nothing() -> None:
    before = attention()(X)[0]
    whole = attention()
    whole.load_state_dict(OTHER)
    after = whole(X)[0]
    for layer, interrupted in interrupted_calls(attention, lambda layer: layer.load_state_dict(OTHER)):
        got = layer(X)[0]
        assert np.array_equal(got, after) or (interrupted and np.array_equal(got, before))


#: What makes a layer, and a call that fills the layer's caches: casts, packed weights, tables that grow.
CACHED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "first call": (attention, lambda layer: layer(X)),
    "second call": (attention_called_once, lambda layer: layer(X)),
    "second call in float32": (attention_called_once, lambda layer: layer(X.astype(np.float32))),
    "rope": (lambda: hw.RotaryPositionalEmbedding(12, max_len=4), lambda layer: layer(X, offset=9)),
    "dynamic rope": (
        lambda: hw.RotaryPositionalEmbedding(
            12, max_len=4, scaling={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=8
        ),
        lambda layer: layer(X, offset=9),
    ),
    "sinusoidal": (lambda: hw.SinusoidalPositionalEncoding(12, max_len=4), lambda layer: layer(X)),
    "packed linear": (lambda: hw.PackedLinear(X[0].T), lambda layer: layer(X)),
    "relative": (lambda: hw.RelativePositionalEncoding(12, 3, rng=0), lambda layer: layer(7)),
}


def first(result: Any) -> np.ndarray:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", CACHED)
def test_results_after_an_interruption(name: str) -> None:
    make, call = CACHED[name]
    expected = [first(call(layer)) for layer in [make()] for _ in range(3)]
    errors = np.geterr()
    for layer, _ in interrupted_calls(make, call):
        assert np.geterr() == errors
        for result in expected:
            assert np.array_equal(first(call(layer)), result)

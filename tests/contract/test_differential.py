"""The same call on NumPy and on the native core: equal results, to the bound of their dtype, or the same error.

The long profile compares every instruction set in thousands of calls, the others the best one in a few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, note
from hypothesis import strategies as st

import headwise as hw
import strategies
from comparison import both
from implementations import IMPLEMENTATIONS, PROFILE
from operations import OPERATIONS
from strategies import ARBITRARY, Call, calls, numbers

NATIVE = [name for name in IMPLEMENTATIONS if name != "numpy"]
pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.skipif(not NATIVE, reason="one implementation has nothing to be compared with"),
    pytest.mark.parametrize("native", NATIVE if PROFILE == "long" else NATIVE[:1]),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # raised by NumPy if a result overflows or is NaN
]


CALLS: dict[str, tuple[Callable[..., Any], st.SearchStrategy[Call]]] = {
    name: (operation.function, calls(operation)) for name, operation in OPERATIONS.items()
} | {
    "alibi_slopes": (hw.alibi_slopes, st.fixed_dictionaries({"num_heads": st.integers(-1, 70)})),
    "alibi_bias": (
        hw.alibi_bias,
        st.fixed_dictionaries({name: st.integers(-1, 20) for name in ("num_heads", "query_len", "key_len")}),
    ),
    "rope_parameters": (hw.rope_parameters, strategies.ROPE_PARAMETERS),
}


@pytest.mark.parametrize("name", CALLS)
@given(st.data())
def test_valid_calls_agree(native: str, name: str, data: st.DataObject) -> None:
    function, strategy = CALLS[name]
    arguments = data.draw(strategy)
    both(native, lambda: function(**arguments), arguments)


MASKED = np.where(np.arange(50) % 3 == 0, -np.inf, 0.0)[None]
#: Keywords whose results once differed between backends.
FOUND: dict[str, dict[str, Any]] = {
    "sink of +inf": {"sinks": [np.inf]},
    "NaN where another bias masks": {"mask": MASKED, "bias": np.where(MASKED < 0, np.nan, 0.0)},
    "+inf where another bias masks": {"bias": MASKED, "mask": np.where(MASKED < 0, np.inf, 0.0)},
    "slope of NaN where all keys are masked": {"bias": np.full((1, 50), -np.inf), "alibi_slopes": [np.nan]},
}


@pytest.mark.parametrize("found", FOUND)
@pytest.mark.parametrize("queries", [3, 20])
def test_former_differences_agree(native: str, found: str, queries: int) -> None:
    query, keys = np.ones((1, 1, queries, 8), np.float32), np.ones((1, 1, 50, 8), np.float32)
    both(native, lambda: hw.scaled_dot_product_attention(query, keys, keys, return_lse=True, **FOUND[found]))


@pytest.mark.parametrize("name", CALLS)
@given(st.data())
def test_invalid_calls_agree(native: str, name: str, data: st.DataObject) -> None:
    """One argument is replaced by an arbitrary object, or by an array that lacks an axis or an entry."""
    function, strategy = CALLS[name]
    arguments = data.draw(strategy)
    place = data.draw(st.sampled_from(list(arguments)))
    old = arguments[place]
    spoilt = [ARBITRARY]
    if isinstance(old, np.ndarray) and old.ndim and old.shape[0]:
        spoilt += [st.just(old[0]), st.just(old[..., :-1]), st.just(old[None]), st.just(old[1:])]
    arguments[place] = data.draw(st.one_of(spoilt))
    assume(place != "rng" or arguments[place] is not None)  # valid, and without a seed
    note(f"{name}, {place}: {arguments[place]!r}")
    both(native, lambda: function(**arguments), arguments)


LAYER_INPUTS = st.tuples(st.integers(1, 2), st.integers(1, 12), st.sampled_from([12, 24, 24, 24, 7]))


@pytest.mark.parametrize("layer", [hw.MultiHeadAttention, hw.CausalAttention])
@given(keywords=strategies.LAYERS, shape=LAYER_INPUTS, data=st.data())
def test_layers_agree(
    native: str, layer: Any, keywords: dict[str, Any], shape: tuple[int, ...], data: st.DataObject
) -> None:
    x = data.draw(numbers(shape, data.draw(st.sampled_from(["float32", "float64"]))))
    more = data.draw(
        st.fixed_dictionaries({}, optional={"training": st.booleans(), "mask": st.just(np.eye(shape[1]) > -1)})
    )

    def call() -> Any:
        made = layer(**keywords)
        other = layer(**keywords)
        other.load_state_dict(made.state_dict())
        return made(x, rng=1, **more), other(x, rng=1, **more), made.state_dict()

    both(native, call, keywords)


@given(
    shape=LAYER_INPUTS,
    rule=st.sampled_from(["linear", "gated", "delta", "gated_delta"]),
    keywords=st.fixed_dictionaries(
        {"num_heads": st.sampled_from([2, 4])},
        optional={
            "num_kv_heads": st.sampled_from([1, 2, 3]),
            "decay": st.sampled_from([0.5, 1.0, 2.0]),
            "beta": st.sampled_from([0.01, 0.1]),
            "feature_map": st.sampled_from([None, "elu", "relu"]),
            "is_causal": st.booleans(),
            "bias": st.booleans(),
        },
    ),
    data=st.data(),
)
def test_linear_attention_layers_agree(
    native: str, shape: tuple[int, ...], rule: str, keywords: dict[str, Any], data: st.DataObject
) -> None:
    x = data.draw(numbers(shape, data.draw(st.sampled_from(["float32", "float64"]))))

    def call() -> Any:
        layer = hw.LinearAttention(24, rule=rule, rng=1, **keywords)
        first, state = layer(x)
        return first, state, layer(x, state)

    both(native, call, keywords)


@given(shape=LAYER_INPUTS, start=st.integers(0, 30), rate=st.sampled_from([0.0, 0.5, 1.0, 2.0]), data=st.data())
def test_positional_layers_agree(
    native: str, shape: tuple[int, ...], start: int, rate: float, data: st.DataObject
) -> None:
    x = data.draw(numbers(shape, data.draw(strategies.DTYPES)))
    width = data.draw(st.sampled_from([shape[2], 12]))
    for call in (
        lambda: hw.SinusoidalPositionalEncoding(width, 40, rate)(x, training=True, rng=2),
        lambda: hw.LearnedPositionalEmbedding(10, width, rng=3)(x),
        lambda: hw.RotaryPositionalEmbedding(width, 40)(x, offset=start),
        lambda: hw.RelativePositionalEncoding(width, 5, rng=4)(shape[1]),
        lambda: hw.ALiBiPositionalBias(2, 20)(np.zeros((2, shape[1], shape[1]), x.dtype), offset=start),
        lambda: hw.dropout(x, rate, rng=start),
        lambda: hw.permute_rope_weights(x[0], 2, to="halves"),
        lambda: hw.create_causal_mask(start - 1),
        lambda: hw.create_padding_mask(x[..., 0].astype(int)),
        lambda: hw.multi_head_self_attention(x, 2, width, rng=start),
        lambda: hw.self_attention(x, width, rng=start),
        lambda: hw.cross_attention(x, x[:, :1], width, rng=start),
    ):
        both(native, call)


@given(name=st.sampled_from(["highest", "high", "medium"]) | ARBITRARY, call=calls(OPERATIONS["linear"]))
@example(name="low", call={"x": np.ones((2, 3)), "weight": np.ones((3, 2))})
def test_precision_agrees(native: str, name: Any, call: Call) -> None:
    def run() -> Any:
        with hw.precision(name):
            return hw.get_precision(), hw.linear(**(call | {"precision": None}))

    both(native, run, {"precision": name})

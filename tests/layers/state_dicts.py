"""Shapes and parameters of attention layers, for the tests of state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from headwise._nn.state_dict import FORMATS, read_state_dict
from support import dtype_named, normal

Arrays = dict[str, np.ndarray]

Shapes = dict[str, tuple[int, ...]]

D_MODEL, HEADS = 16, 4


def layer_shapes(
    d_model: int = D_MODEL,
    heads: int = HEADS,
    kv_heads: int | None = None,
    kdim: int | None = None,
    vdim: int | None = None,
    *,
    bias: bool = False,
    sinks: bool = False,
) -> Shapes:
    """The shapes of the parameters of a layer with these arguments."""
    inner = d_model // heads * (kv_heads or heads)
    shapes = {
        "W_q": (d_model, d_model),
        "W_k": (kdim or d_model, inner),
        "W_v": (vdim or d_model, inner),
        "W_o": (d_model, d_model),
    }
    if bias:
        shapes |= {"b_q": (d_model,), "b_k": (inner,), "b_v": (inner,), "b_o": (d_model,)}
    return shapes | ({"sinks": (heads,)} if sinks else {})


def draw(shapes: Shapes, dtype: str = "float32") -> Arrays:
    return {name: normal(shape, seed).astype(dtype_named(dtype)) for seed, (name, shape) in enumerate(shapes.items())}


def assert_same_bits(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        got = actual[name]
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape) == (array.dtype, array.shape), name
        assert got.flags.c_contiguous and got.flags.writeable and got.flags.owndata, name
        assert got.tobytes() == array.tobytes(), name


def message(state: Any, shapes: Shapes, **keywords: Any) -> str:
    """The message of the ValueError."""
    with pytest.raises(ValueError, match=r"^state: ") as refusal:
        read_state_dict(state, shapes, **keywords)
    return str(refusal.value)


@st.composite
def layers(draw_: st.DrawFn) -> tuple[Shapes, list[str]]:
    """A layer, and the formats that can express all its parameters."""
    heads = draw_(st.integers(1, 6))
    kv_heads = draw_(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    width = st.integers(1, 24)
    bias, sinks, kdim, vdim = draw_(st.booleans()), draw_(st.booleans()), draw_(width | st.none()), draw_(width)
    vdim = vdim if draw_(st.booleans()) else None
    shapes = layer_shapes(heads * draw_(st.integers(1, 5)), heads, kv_heads, kdim, vdim, bias=bias, sinks=sinks)
    return shapes, ["headwise", "llama"] if sinks or kv_heads != heads else list(FORMATS)

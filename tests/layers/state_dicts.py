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
    norm: str | None = None,
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
    if norm is not None:
        shapes |= {"q_norm": (d_model,), "k_norm": (inner,)}
        if norm == "head":
            shapes |= dict.fromkeys(("q_norm", "k_norm"), (d_model // heads,))
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


#: Formats that hold the maps to query, key and value in one entry.
JOINT = ("gpt2", "neox", "bloom", "falcon", "phi3", "mpt", "modernbert", "timm")
#: Formats of layers with fewer key and value heads.
GROUPED = ("headwise", "llama", "out_proj", "falcon", "t5", "phi3", "mpt")


def able(form: str, shapes: Shapes) -> bool:
    """Whether a format can hold all parameters of a layer whose heads are as wide together as the layer."""
    grouped = shapes["W_q"][1] != shapes["W_k"][1] or shapes["W_k"][1] != shapes["W_v"][1]
    return (
        (form in GROUPED or not grouped)
        and (form in ("headwise", "llama") or "sinks" not in shapes)
        and (form in ("headwise", "llama", "timm") or "q_norm" not in shapes)
        and (form != "t5" or "b_q" not in shapes)
        and (form not in JOINT or len({shapes[f"W_{letter}"][0] for letter in "qkv"}) == 1)
    )


@st.composite
def layers(draw_: st.DrawFn) -> tuple[Shapes, int, list[str]]:
    """A layer, its number of key and value heads, and the formats that can express all its parameters."""
    heads = draw_(st.integers(1, 6))
    kv_heads = draw_(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    width = st.integers(1, 24)
    bias, sinks, kdim, vdim = draw_(st.booleans()), draw_(st.booleans()), draw_(width | st.none()), draw_(width)
    vdim = vdim if draw_(st.booleans()) else None
    norm = draw_(st.sampled_from([None, "head", "full"]))
    d_model = heads * draw_(st.integers(1, 5))
    shapes = layer_shapes(d_model, heads, kv_heads, kdim, vdim, bias=bias, sinks=sinks, norm=norm)
    return shapes, kv_heads, [form for form in FORMATS if able(form, shapes)]

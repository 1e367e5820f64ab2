"""Hypothesis strategies: arrays, some with NaN, infinities or zeros; calls that fit them; and arbitrary objects."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import headwise as hw
from calls import Case as OperationCase
from calls import Operation, Sizes
from operations import OPTIONS

Call = dict[str, Any]  # arguments by name
SIZES = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 130]))
DTYPES = st.sampled_from(["float32", "float64", "float16"])
SEEDS = st.integers(0, 2**32 - 1)
PRECISIONS = st.sampled_from([None, "highest", "high", "medium"])

ARBITRARY_ARRAYS = hnp.arrays(
    st.sampled_from(["f4", "f8", "i4", "?", "c8", "O"]),
    hnp.array_shapes(min_dims=0, max_dims=5, max_side=4),
    elements=st.just(1),
)
#: Arbitrary objects.
ARBITRARY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=3),
    st.tuples(st.integers(), st.integers()),
    ARBITRARY_ARRAYS,
)


@st.composite
def numbers(draw: st.DrawFn, shape: tuple[int, ...], dtype: str = "float32", *, special: bool = True) -> np.ndarray:
    """Normal numbers, in one case of four with a few NaN, infinities or zeros, in one of several layouts."""
    array = np.random.default_rng(draw(SEEDS)).standard_normal(shape).astype(dtype)
    if special and array.size and draw(st.integers(0, 3)) == 3:
        places = draw(st.lists(st.integers(0, array.size - 1), min_size=1, max_size=3))
        for place in places:
            array.flat[place] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7, 60000.0]))
    layout = draw(st.integers(0, 4))
    if layout == 1:
        array = np.asfortranarray(array)
    if layout == 2:
        array = array[::-1] if array.ndim else array
    if layout == 3:
        array = array.astype(array.dtype.newbyteorder("S"))
    return array


@st.composite
def sizes(draw: st.DrawFn, operation: Operation) -> Sizes:
    """Sizes that fit an operation, with up to two leading axes and grouped heads."""
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    leads = [(), (kv_heads * group,), (draw(st.integers(1, 2)), kv_heads * group)]
    lead = draw(st.sampled_from([lead for lead in leads if len(lead) >= len(operation.lead)]))
    head_dim = 2 * draw(st.integers(1, 65)) if operation.pairs else draw(SIZES)
    return Sizes(lead, kv_heads, draw(SIZES), draw(SIZES), head_dim, draw(st.integers(0, 40) | SIZES))


@st.composite
def calls(draw: st.DrawFn, operation: Operation) -> Call:
    """Arguments of an operation, some with NaN, infinities or zeros, and any of its options."""
    drawn, dtype = draw(sizes(operation)), draw(DTYPES)
    variant = "" if operation.short else draw(st.sampled_from(list(operation.variants)))
    arguments = OperationCase(operation, variant).arguments(drawn, lambda name, shape: draw(numbers(shape, dtype)))
    options = draw(st.sets(st.sampled_from(sorted(operation.draws)), max_size=5)) if operation.draws else ()
    for name in sorted(options):
        arguments[name] = draw(operation.draws[name](st, partial(numbers, dtype="float64"), drawn))
        if name in OPTIONS and operation.short:
            arguments |= OPTIONS[name].needs
    if "sinks" in options and 0 in np.diff(arguments.get("cu_seqlens_k", [0, 1])):
        # A NaN sink of a sequence without keys makes NaN in the native core, 0 in the NumPy backend.
        arguments["sinks"] = np.nan_to_num(arguments["sinks"])
    return arguments


ROPE_SCALINGS = st.none() | st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope", "other"])},
    optional={
        "factor": st.floats(0.5, 40),
        "original_max_position_embeddings": st.integers(1, 5000),
        "low_freq_factor": st.floats(0.5, 2),
        "high_freq_factor": st.floats(2, 8),
        "beta_fast": st.floats(1, 50),
        "beta_slow": st.floats(0.1, 2),
        "attention_factor": st.floats(0.1, 2),
        "short_factor": st.lists(st.floats(1, 2), min_size=4, max_size=4),
        "long_factor": st.lists(st.floats(1, 2), min_size=4, max_size=4),
    },
)
ROPE_PARAMETERS = st.fixed_dictionaries(
    {"dim": st.sampled_from([8, 2, 64, 7]), "scaling": ROPE_SCALINGS},
    optional={"seq_len": st.integers(0, 9000), "max_position_embeddings": st.integers(1, 5000)},
)

LAYERS = st.fixed_dictionaries(
    {"d_model": st.sampled_from([12, 24]), "num_heads": st.sampled_from([2, 4]), "rng": st.just(5)},
    optional={
        "dropout": st.sampled_from([0.0, 0.5]),
        "bias": st.booleans(),
        "num_kv_heads": st.sampled_from([1, 2, 3]),
        "alibi": st.booleans(),
        "sinks": st.booleans(),
        "window_size": st.integers(0, 9),
        "softcap": st.floats(1, 50),
        "precision": PRECISIONS,
        "dtype": st.sampled_from(["float32", "float64", "float16", "int8"]),
        "relative": st.sampled_from(
            [
                hw.RelativePositionalEncoding(6, 3, rng=2),
                {"num_buckets": 6, "max_distance": 7, "bidirectional": True},
                np.linspace(-1, 1, 9).reshape(1, 1, 9),
            ]
        ),
        "rope": st.builds(lambda interleaved: hw.RotaryPositionalEmbedding(6, interleaved=interleaved), st.booleans()),
    },
)

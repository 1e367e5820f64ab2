"""What hypothesis draws calls from: arrays with odd numbers in them, keywords that fit them, and things that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import headwise as hw

Call = tuple[list[Any], dict[str, Any]]
SIZES = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 130]))
DTYPES = st.sampled_from(["float32", "float64", "float16"])
SEEDS = st.integers(0, 2**32 - 1)
PRECISIONS = st.sampled_from([None, "highest", "high", "medium"])

ODD_ARRAYS = hnp.arrays(
    st.sampled_from(["f4", "f8", "i4", "?", "c8", "O"]),
    hnp.array_shapes(min_dims=0, max_dims=5, max_side=4),
    elements=st.just(1),
)
#: Anything at all.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=3),
    st.tuples(st.integers(), st.integers()),
    ODD_ARRAYS,
)


@st.composite
def numbers(draw: st.DrawFn, shape: tuple[int, ...], dtype: str = "float32", *, odd: bool = True) -> np.ndarray:
    """Normal numbers, one time in four with a few that are not, in one of several layouts."""
    array = np.random.default_rng(draw(SEEDS)).standard_normal(shape).astype(dtype)
    if odd and array.size and draw(st.integers(0, 3)) == 3:
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
def attention_keywords(draw: st.DrawFn, scores: tuple[int, ...], *, packed: bool = False) -> dict[str, Any]:
    """Keywords that fit scores of the shape (..., heads, query_len, key_len)."""
    heads = scores[-3] if len(scores) > 2 else 1

    def extra() -> np.ndarray:
        shape = tuple(
            size if draw(st.booleans()) else 1 for size in scores[len(scores) - draw(st.integers(2, len(scores))) :]
        )
        return draw(numbers(shape, "float64", odd=False))

    makers: dict[str, Any] = {
        "is_causal": st.booleans,
        "causal_alignment": lambda: st.sampled_from(["upper_left", "lower_right"]),
        "scale": lambda: st.floats(-1, 1),
        "window_size": lambda: st.integers(-1, 70) | st.tuples(st.integers(-1, 70), st.integers(-1, 70)),
        "softcap": lambda: st.floats(0.1, 50),
        "alibi_slopes": lambda: numbers((heads,), "float64"),
        "sinks": lambda: numbers((heads,), "float64"),
        "return_lse": st.booleans,
        "precision": lambda: PRECISIONS,
    }
    if not packed:
        makers |= {
            "mask": lambda: st.just(extra() > draw(st.sampled_from([-3.0, -0.5, 1.0]))) | st.just(extra()),
            "bias": lambda: st.just(np.where(extra() > 1, draw(st.sampled_from([-np.inf, np.inf, np.nan, 2.0])), 0.5)),
            "key_padding_mask": lambda: st.just(draw(numbers((scores[0], scores[-1]), odd=False)) > -1),
            "dropout_rate": lambda: st.floats(0, 0.9),
        }  # fmt: skip
    chosen = draw(st.sets(st.sampled_from(sorted(makers)), max_size=5))
    keywords = {name: draw(makers[name]()) for name in sorted(chosen)}
    return keywords | ({"rng": 3} if "dropout_rate" in keywords else {})


@st.composite
def attention_calls(draw: st.DrawFn) -> Call:
    """Query, key and value of four axes, with shared heads, and keywords."""
    batch, kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    query_len, key_len, dim, value_dim = draw(SIZES), draw(SIZES), draw(st.integers(1, 40)), draw(st.integers(0, 40))
    dtype = draw(DTYPES)
    shapes = (
        (batch, kv_heads * group, query_len, dim),
        (batch, kv_heads, key_len, dim),
        (batch, kv_heads, key_len, value_dim),
    )
    keywords = draw(attention_keywords((batch, kv_heads * group, query_len, key_len)))
    return [draw(numbers(shape, dtype)) for shape in shapes], keywords


@st.composite
def varlen_calls(draw: st.DrawFn) -> Call:
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    key_lengths = draw(st.none() | st.lists(st.integers(0, 30), min_size=len(lengths), max_size=len(lengths)))
    kv_heads, group, dim, dtype = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 40)),
        draw(DTYPES),
    )
    ends = np.cumsum([0, *lengths])
    key_ends = ends if key_lengths is None else np.cumsum([0, *key_lengths])
    arrays = [
        draw(numbers((ends[-1], kv_heads * group, dim), dtype)),
        draw(numbers((key_ends[-1], kv_heads, dim), dtype)),
        draw(numbers((key_ends[-1], kv_heads, draw(st.integers(1, 20))), dtype)),
    ]
    keywords = draw(attention_keywords((kv_heads * group, 1, 1), packed=True))
    return [*arrays, ends, *([] if key_lengths is None else [key_ends])], keywords


@st.composite
def softmax_calls(draw: st.DrawFn) -> Call:
    x = draw(numbers(draw(hnp.array_shapes(max_dims=4, max_side=40)), draw(DTYPES)))
    return [x, draw(st.integers(-x.ndim, x.ndim - 1))], {}


@st.composite
def layer_norm_calls(draw: st.DrawFn) -> Call:
    shape = draw(hnp.array_shapes(max_dims=3, max_side=70))
    axis, dtype = draw(st.integers(-len(shape), len(shape) - 1)), draw(DTYPES)
    arrays = [draw(numbers(shape, dtype)), *(draw(numbers((shape[axis],), "float32", odd=False)) for _ in range(2))]
    return arrays, {"axis": axis, "eps": draw(st.sampled_from([1e-5, 1e-3, 1.0]))}


@st.composite
def linear_calls(draw: st.DrawFn) -> Call:
    rows, depth, columns, dtype = draw(SIZES), draw(SIZES), draw(SIZES), draw(DTYPES)
    bias = draw(st.none() | numbers((columns,), dtype))
    return [draw(numbers((rows, depth), dtype)), draw(numbers((depth, columns), dtype)), bias], {
        "precision": draw(PRECISIONS)
    }


@st.composite
def rope_calls(draw: st.DrawFn) -> Call:
    lead, seq, pairs, dtype = draw(hnp.array_shapes(max_dims=2, max_side=3)), draw(SIZES), draw(SIZES), draw(DTYPES)
    angles = [draw(numbers((seq, pairs))) for _ in range(2)]
    return [draw(numbers((*lead, seq, 2 * pairs), dtype)), *angles], {"interleaved": draw(st.booleans())}


@st.composite
def alibi_calls(draw: st.DrawFn) -> Call:
    heads, rows, keys = draw(st.integers(1, 5)), draw(SIZES), draw(SIZES)
    slopes = draw(st.none() | numbers((heads,), "float64"))
    return [draw(numbers((2, heads, rows, keys), draw(DTYPES))), slopes], {"offset": draw(st.integers(-50, 500))}


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
ROPE_PARAMETERS = st.tuples(
    st.tuples(st.sampled_from([8, 2, 64, 7])).map(list),
    st.fixed_dictionaries(
        {"scaling": ROPE_SCALINGS},
        optional={"seq_len": st.integers(0, 9000), "max_position_embeddings": st.integers(1, 5000)},
    ),
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
        "rope": st.builds(lambda interleaved: hw.RotaryPositionalEmbedding(6, interleaved=interleaved), st.booleans()),
    },
)

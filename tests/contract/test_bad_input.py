"""Errors of all functions: their type, the argument that they name, and that nothing was written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from calls import Case, arrays_in, cast
from operations import OPERATIONS, OPTIONS, cases, packed_linear
from support import dtype_named, normal

pytestmark = pytest.mark.above_operations

SENTINEL = -12345.0


def array(*shape: int) -> np.ndarray:
    return normal(shape, dtype=np.float64)


def good(case: Case) -> dict[str, Any]:
    """Arguments of float64, and ``out`` as the shape of an array, where the operation has it."""
    arguments = cast(case.arguments(case.operation.small), np.float64)
    return arguments | ({"out": case.run(arguments)[0].shape} if case.operation.out else {})


#: A valid call, by keyword, for each function; the tables below replace one argument, or two, of it.
GOOD: dict[Callable[..., Any], dict[str, Any]] = {
    operation.function: good(Case(operation, "")) for operation in OPERATIONS.values()
} | {
    hw.alibi_slopes: {"num_heads": 4},
    hw.alibi_bias: {"num_heads": 4, "query_len": 3},
    hw.PackedLinear: {"weight": array(4, 5), "bias": array(5)},
    hw.performer_features: {"dim": 8, "num_features": 6},
    hw.set_num_threads: {"n": 1},
}
BAD_DTYPES: dict[str, Any] = {
    "complex64": np.complex64(1) * np.ones(1),
    "complex128": np.ones(1, complex),
    "object": np.array([None]),
    "string": np.array(["a"]),
    "bytes": np.array([b"a"]),
    "datetime64": np.array(["2020-01-01"], "M8[D]"),
    "timedelta64": np.array([1], "m8[s]"),
    "structured": np.zeros(1, [("a", float)]),
}
if np.dtype(np.longdouble).itemsize > 8:
    BAD_DTYPES["longdouble"] = np.ones(1, np.longdouble)


def refuse(function: Callable[..., Any], error: type[Exception], names: str, **changes: Any) -> None:
    """``function`` raises ``error``, whose message has each of ``names``, and does not write into ``out``."""
    arguments = GOOD[function] | changes
    if isinstance(arguments.get("out"), tuple):
        arguments["out"] = np.full(arguments["out"], SENTINEL)
    with pytest.raises(error) as refusal:
        function(**arguments)
    assert type(refusal.value) is error
    for name in names.split():
        assert re.search(rf"\b{name}\b", str(refusal.value)), f"{refusal.value!r} does not name {name}"
    if isinstance(arguments.get("out"), np.ndarray) and "out" not in changes:
        assert (arguments["out"] == SENTINEL).all()


@pytest.mark.parametrize("function", GOOD, ids=lambda function: function.__name__)
def test_unchanged_calls_work(function: Callable[..., Any]) -> None:
    arguments = GOOD[function].copy()
    if "out" in arguments:
        arguments["out"] = np.full(arguments["out"], SENTINEL)
    function(**arguments)
    if "out" in arguments:
        assert (arguments["out"] != SENTINEL).all()


SDPA = hw.scaled_dot_product_attention
ATTENTION_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "query-scalar": ("query", {"query": np.float64(1)}),
    "query-vector": ("query", {"query": array(8)}),
    "all-vectors": ("query", {"query": array(8), "key": array(8), "value": array(8)}),
    "key-rank": ("key", {"key": array(2, 7, 8)}),
    "value-rank": ("value", {"value": array(7, 6)}),
    "key-rank-higher": ("key", {"key": array(1, 2, 2, 7, 8)}),
    "query-rank-lower": ("key query", {"query": array(5, 8)}),
    "head-dim": ("key query head_dim", {"key": array(2, 2, 7, 9)}),
    "head-dim-one": ("key query head_dim", {"key": array(2, 2, 7, 1)}),
    "head-dim-zero": ("query head_dim", {"query": np.ones((2, 4, 5, 0)), "key": np.ones((2, 2, 7, 0))}),
    "value-length": ("value key", {"value": array(2, 2, 8, 6)}),
    "value-length-one": ("value key", {"value": array(2, 2, 1, 6)}),
    "batch-key": ("key query", {"key": array(3, 2, 7, 8), "value": array(3, 2, 7, 6)}),
    "batch-value": ("value", {"value": array(3, 2, 7, 6)}),
    "batch-not-broadcast": ("key query", {"key": array(1, 2, 7, 8), "value": array(1, 2, 7, 6)}),
    "batch-zero": ("key query", {"key": array(0, 2, 7, 8), "value": array(0, 2, 7, 6)}),
    "heads-of-value": ("value key", {"value": array(2, 4, 7, 6)}),
    "heads": ("key query divisible", {"key": array(2, 3, 7, 8), "value": array(2, 3, 7, 6)}),
    "more-key-heads": ("key query divisible", {"key": array(2, 8, 7, 8), "value": array(2, 8, 7, 6)}),
    "no-key-heads": ("key query divisible", {"key": array(2, 0, 7, 8), "value": array(2, 0, 7, 6)}),
    "mask-rows": ("mask", {"mask": np.ones((4, 7), bool)}),
    "mask-columns": ("mask", {"mask": np.ones((5, 6), bool)}),
    "mask-batch": ("mask", {"mask": np.ones((3, 7), bool)}),
    "mask-transposed": ("mask", {"mask": np.ones((7, 5), bool)}),
    "mask-scalar": ("mask", {"mask": np.bool_(True)}),
    "mask-heads": ("mask", {"mask": np.ones((2, 5, 7), bool)}),
    "mask-kv-heads": ("mask", {"mask": np.ones((2, 2, 5, 7), bool)}),
    "mask-4d-batch": ("mask", {"mask": np.ones((3, 4, 5, 7), bool)}),
    "mask-rank": ("mask", {"mask": np.ones((1, 2, 4, 5, 7), bool)}),
    "mask-empty": ("mask", {"mask": np.ones((0, 7), bool)}),
    "float-mask": ("mask", {"mask": array(4, 7)}),
    "bias-columns": ("bias", {"bias": array(5, 6)}),
    "bias-heads": ("bias", {"bias": array(3, 5, 7)}),
    "bias-rank": ("bias", {"bias": array(1, 2, 4, 5, 7)}),
    "padding-length": ("key_padding_mask", {"key_padding_mask": np.ones((2, 6), bool)}),
    "padding-batch": ("key_padding_mask", {"key_padding_mask": np.ones((3, 7), bool)}),
    "padding-rank": ("key_padding_mask", {"key_padding_mask": np.ones((2, 5, 7), bool)}),
    "padding-queries": ("key_padding_mask", {"key_padding_mask": np.ones((5, 7), bool)}),
    "slopes-kv-heads": ("alibi_slopes", {"alibi_slopes": array(2)}),
    "slopes-one": ("alibi_slopes", {"alibi_slopes": array(1)}),
    "slopes-scalar": ("alibi_slopes", {"alibi_slopes": 0.5}),
    "slopes-rank": ("alibi_slopes", {"alibi_slopes": array(4, 1)}),
    "sinks-kv-heads": ("sinks", {"sinks": array(2)}),
    "sinks-rank": ("sinks", {"sinks": array(1, 4)}),
    "made-padding-mask": ("mask", {"mask": hw.create_padding_mask(np.ones((3, 7), int))}),
    "made-causal-mask": ("mask", {"mask": hw.create_causal_mask(5)}),
    "made-causal-mask-like-padding": (
        "mask",
        {
            "query": array(7, 2, 5, 8),
            "key": array(7, 2, 7, 8),
            "value": array(7, 2, 7, 6),
            "mask": hw.create_causal_mask(7),
        },
    ),
}
both = pytest.mark.parametrize("function", [hw.scaled_dot_product_attention, hw.flash_attention], ids=["sdpa", "flash"])


@both
@pytest.mark.parametrize("case", ATTENTION_SHAPES)
def test_bad_attention_shapes(function: Callable[..., Any], case: str) -> None:
    names, changes = ATTENTION_SHAPES[case]
    refuse(function, ValueError, names, **changes)


ATTENTION_VALUES = [(error, name, value) for name, option in OPTIONS.items() for error, value in option.refused]


@both
@pytest.mark.parametrize(("error", "name", "value"), ATTENTION_VALUES, ids=lambda value: str(value)[:20])
def test_bad_attention_values(function: Callable[..., Any], error: type[Exception], name: str, value: Any) -> None:
    refuse(function, error, name, **{name: value})


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, np.nan, np.inf])
def test_dropout_outside_its_range(rate: float) -> None:
    refuse(SDPA, ValueError, "dropout", dropout=rate)
    refuse(hw.dropout, ValueError, "rate", rate=rate)
    refuse(hw.dropout, ValueError, "rate", rate=rate, training=False)


@pytest.mark.parametrize("rate", ["0.1", None, True, [0.1], 1j])
def test_dropout_of_a_wrong_type(rate: Any) -> None:
    refuse(SDPA, TypeError, "dropout", dropout=rate)
    refuse(hw.dropout, TypeError, "rate", rate=rate)


def test_dropout_by_both_names() -> None:
    refuse(SDPA, TypeError, "dropout_rate dropout", dropout=0.1, dropout_rate=0.1)


def array_arguments() -> dict[str, tuple[Callable[..., Any], tuple[int, ...]]]:
    """Each argument that takes an array, of any variant of an operation: its function, and its shape in a good call."""
    found = {
        "PackedLinear weight": (hw.PackedLinear, (4, 5)),
        "PackedLinear bias": (hw.PackedLinear, (5,)),
        "varlen_attention cu_seqlens_q": (hw.varlen_attention, (5,)),
        "varlen_attention cu_seqlens_k": (hw.varlen_attention, (5,)),
    }
    for case in cases():
        arguments = case.arguments(case.operation.small)
        for name in arrays_in(arguments):
            found[f"{case.operation.name} {name}"] = case.operation.function, arguments[name].shape
    return found


ARRAYS = array_arguments()


@pytest.mark.parametrize("which", ARRAYS)
@pytest.mark.parametrize("dtype", BAD_DTYPES)
def test_unsupported_dtypes(which: str, dtype: str) -> None:
    function, shape = ARRAYS[which]
    name = which.rsplit(maxsplit=1)[-1]
    bad = np.broadcast_to(BAD_DTYPES[dtype], shape)
    refuse(function, TypeError, f"{name} {'dtype' if dtype != 'structured' else ''}", **{name: bad})


@pytest.mark.parametrize("which", ARRAYS)
@pytest.mark.parametrize("value", [object(), "text", {1: 2}, {"a"}], ids=["object", "str", "dict", "set"])
def test_values_that_are_not_arrays(which: str, value: Any) -> None:
    function, _ = ARRAYS[which]
    name = which.rsplit(maxsplit=1)[-1]
    refuse(function, TypeError, name, **{name: value})


@pytest.mark.parametrize("which", ARRAYS)
def test_ragged_list(which: str) -> None:
    function, _ = ARRAYS[which]
    name = which.rsplit(maxsplit=1)[-1]
    refuse(function, ValueError, name, **{name: [[1.0, 2.0], [3.0]]})


@pytest.mark.parametrize("which", ARRAYS)
def test_masked_arrays_are_refused(which: str) -> None:
    """NumPy's masked arrays would lose their mask silently."""
    function, shape = ARRAYS[which]
    name = which.rsplit(maxsplit=1)[-1]
    refuse(function, TypeError, name, **{name: np.ma.masked_less(normal(shape), 0)})


OTHERS: list[tuple[Callable[..., Any], type[Exception], str, dict[str, Any]]] = [
    *(
        (function, error, names, changes)
        for function in (hw.softmax, hw.log_softmax, hw.logsumexp)
        for error, names, changes in [
            (ValueError, "axis", {"axis": 2}),
            (ValueError, "axis", {"axis": -3}),
            (TypeError, "axis", {"axis": 1.0}),
            (TypeError, "axis", {"axis": (0, 1.0)}),
            (ValueError, "axis", {"axis": (0, 0)}),
            (TypeError, "axis", {"axis": True}),
            (ValueError, "x", {"x": np.float64(1)}),
            (ValueError, "x", {"x": 3}),
        ]
    ),
    (hw.logsumexp, TypeError, "keepdims", {"keepdims": "no"}),
    (hw.apply_rope, ValueError, "x even", {"x": array(2, 5, 7), "cos": array(5, 3), "sin": array(5, 3)}),
    (hw.apply_rope, ValueError, "x even", {"x": array(2, 5, 1), "cos": array(5, 0), "sin": array(5, 0)}),
    (hw.apply_rope, ValueError, "x", {"x": np.float64(1)}),
    (hw.apply_rope, ValueError, "cos", {"cos": array(5, 8)}),
    (hw.apply_rope, ValueError, "cos", {"cos": array(6, 4)}),
    (hw.apply_rope, ValueError, "sin", {"sin": array(5, 3)}),
    (hw.apply_rope, ValueError, "sin", {"sin": array(3, 5, 4)}),
    (hw.apply_rope, ValueError, "sin", {"sin": array(1, 2, 5, 4)}),
    (hw.apply_rope, ValueError, "cos", {"x": array(1, 8)}),
    (hw.apply_rope, TypeError, "interleaved", {"interleaved": "yes"}),
    *(
        (function, error, "num_heads", {"num_heads": heads})
        for function in (hw.alibi_slopes, hw.alibi_bias)
        for error, heads in [
            (ValueError, 0), (ValueError, -1), (TypeError, 2.0), (TypeError, "8"), (TypeError, None), (TypeError, True)
        ]
    ),
    (hw.alibi_bias, ValueError, "query_len", {"query_len": 0}),
    (hw.alibi_bias, ValueError, "query_len", {"query_len": -3}),
    (hw.alibi_bias, TypeError, "query_len", {"query_len": 2.5}),
    (hw.alibi_bias, ValueError, "key_len", {"key_len": -1}),
    (hw.alibi_bias, TypeError, "key_len", {"key_len": "7"}),
    (hw.alibi_bias, TypeError, "offset", {"offset": 0.5}),
    (hw.add_alibi, ValueError, "scores", {"scores": array(5, 6)}),
    (hw.add_alibi, ValueError, "scores", {"scores": np.float64(0)}),
    (hw.add_alibi, ValueError, "slopes", {"slopes": array(3)}),
    (hw.add_alibi, ValueError, "slopes", {"slopes": array(1)}),
    (hw.add_alibi, ValueError, "slopes", {"slopes": array(4, 1)}),
    (hw.add_alibi, TypeError, "offset", {"offset": 1.0}),
    (hw.linear_attention, ValueError, "rule", {"rule": "softmax"}),
    (hw.linear_attention, TypeError, "rule", {"rule": None}),
    (hw.linear_attention, ValueError, "decay gated", {"decay": 0.5}),
    (hw.linear_attention, ValueError, "beta delta", {"beta": 0.5}),
    (hw.linear_attention, ValueError, "decay None", {"rule": "gated"}),
    (hw.linear_attention, ValueError, "beta None", {"rule": "delta"}),
    (hw.linear_attention, ValueError, "key query_len", {"is_causal": True}),
    (hw.linear_attention, ValueError, "feature_map", {"feature_map": "relu"}),
    (hw.linear_attention, TypeError, "feature_map", {"feature_map": 1}),
    (hw.linear_attention, ValueError, "feature_map", {"feature_map": np.sum}),
    (hw.linear_attention, TypeError, "feature_map", {"feature_map": lambda x: None}),
    (hw.linear_attention, TypeError, "normalize", {"normalize": "yes"}),
    (hw.linear_attention, ValueError, "scale", {"scale": np.nan}),
    (hw.linear_attention, ValueError, "chunk", {"chunk": 0}),
    (hw.linear_attention, TypeError, "chunk", {"chunk": 1.5}),
    (hw.linear_attention, ValueError, "state", {"state": array(2, 2, 8, 6)}),
    (hw.linear_attention, TypeError, "state", {"state": np.zeros((2, 2, 8, 7), complex)}),
    (hw.performer_features, ValueError, "dim", {"dim": 0}),
    (hw.performer_features, TypeError, "num_features", {"num_features": 1.5}),
    (hw.performer_features, TypeError, "rng", {"rng": "seed"}),
    (hw.linear, ValueError, "x", {"x": np.float64(1)}),
    (hw.linear, ValueError, "weight x in_features", {"weight": array(5, 5)}),
    (hw.linear, ValueError, "weight", {"weight": array(4)}),
    (hw.linear, ValueError, "weight", {"weight": array(1, 4, 5)}),
    (hw.linear, ValueError, "weight x", {"weight": array(1, 5)}),
    (hw.linear, ValueError, "bias", {"bias": array(4)}),
    (hw.linear, ValueError, "bias", {"bias": array(1)}),
    (hw.linear, ValueError, "bias", {"bias": array(1, 5)}),
    (hw.linear, ValueError, "bias", {"bias": np.float64(1)}),
    (hw.linear, ValueError, "precision", {"precision": "fast"}),
    (hw.linear, TypeError, "precision", {"precision": 32}),
    (hw.PackedLinear, ValueError, "weight in_features", {"weight": array(4)}),
    (hw.PackedLinear, ValueError, "weight in_features", {"weight": array(1, 4, 5)}),
    (hw.PackedLinear, ValueError, "bias 5", {"bias": array(4)}),
    (hw.PackedLinear, ValueError, "bias", {"bias": array(1, 5)}),
    (hw.PackedLinear, ValueError, "precision", {"precision": "fast"}),
    (hw.PackedLinear, TypeError, "precision", {"precision": 32}),
    (packed_linear, ValueError, "x scalar", {"x": np.float64(1)}),
    (packed_linear, ValueError, "x 4", {"x": array(3, 5)}),
    (packed_linear, ValueError, "x 4", {"x": array(4, 1)}),
    (hw.dropout, TypeError, "training", {"training": "no"}),
    (hw.dropout, TypeError, "rng", {"rng": "seed"}),
    (hw.dropout, ValueError, "rng", {"rng": -1}),
    (hw.layer_normalization, ValueError, "x", {"x": np.float64(1)}),
    (hw.layer_normalization, ValueError, "gamma", {"gamma": array(3)}),
    (hw.layer_normalization, ValueError, "gamma", {"gamma": array(1)}),
    (hw.layer_normalization, ValueError, "gamma", {"gamma": array(3, 4)}),
    (hw.layer_normalization, ValueError, "beta", {"beta": array(5)}),
    (hw.layer_normalization, ValueError, "beta", {"beta": 0.0}),
    (hw.layer_normalization, ValueError, "gamma", {"axis": 0}),
    (hw.layer_normalization, ValueError, "axis", {"axis": 2}),
    (hw.layer_normalization, TypeError, "axis", {"axis": 0.0}),
    (hw.layer_normalization, ValueError, "eps", {"eps": -1e-5}),
    (hw.layer_normalization, ValueError, "eps", {"eps": np.nan}),
    (hw.layer_normalization, ValueError, "eps", {"eps": np.inf}),
    (hw.layer_normalization, TypeError, "eps", {"eps": "small"}),
    (hw.rms_norm, ValueError, "x", {"x": np.float64(1)}),
    (hw.rms_norm, ValueError, "gamma", {"gamma": array(3)}),
    (hw.rms_norm, ValueError, "gamma", {"gamma": 1.0}),
    (hw.rms_norm, ValueError, "eps", {"eps": -1e-5}),
    (hw.rms_norm, TypeError, "eps", {"eps": None}),
    (hw.gelu, ValueError, "approximate", {"approximate": "erf"}),
    (hw.gelu, TypeError, "approximate", {"approximate": None}),
    (hw.gelu, TypeError, "approximate", {"approximate": True}),
    (hw.geglu, ValueError, "approximate", {"approximate": ""}),
    (hw.geglu, ValueError, "up gate", {"up": array(1, 4)}),
    (hw.swiglu, ValueError, "up gate", {"up": array(4)}),
    (hw.swiglu, ValueError, "up gate", {"up": 1.0}),
    (hw.swiglu, ValueError, "up gate", {"gate": 1.0}),
    (hw.set_num_threads, ValueError, "n", {"n": 0}),
    (hw.set_num_threads, ValueError, "n", {"n": -2}),
    (hw.set_num_threads, TypeError, "n", {"n": 2.0}),
    (hw.set_num_threads, TypeError, "n", {"n": "2"}),
    (hw.set_num_threads, TypeError, "n", {"n": True}),
    (hw.set_num_threads, TypeError, "n", {"n": None}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "error", "names", "changes"),
    OTHERS,
    ids=[f"{function.__name__}-{names}-{number}" for number, (function, _, names, _) in enumerate(OTHERS)],
)
def test_bad_arguments_of_other_functions(
    function: Callable[..., Any], error: type[Exception], names: str, changes: dict[str, Any]
) -> None:
    refuse(function, error, names, **changes)


@pytest.mark.parametrize("name", ["avx1024", "", "AVX2 ", "none"])
def test_unknown_target(name: str) -> None:
    before = hw.config()["target"]
    with pytest.raises(ValueError, match="target"):
        hw.set_target(name)
    assert hw.config()["target"] == before


def test_target_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"target|name"):
        hw.set_target(2)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_bfloat16_is_the_only_ml_dtypes_type(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="narrow dtypes need the package ml_dtypes")
    x = np.ones((2, 4)).astype(getattr(ml_dtypes, name))
    if name == "bfloat16":
        assert hw.softmax(x).dtype == dtype_named("bfloat16")
        return
    with pytest.raises(TypeError, match=r"\bx\b"):
        hw.softmax(x)


@pytest.mark.parametrize("positional", [5, 6])
def test_keywords_only(positional: int) -> None:
    x = array(2, 3, 4)
    with pytest.raises(TypeError):
        hw.flash_attention(*[x, x, x, None, None, None][:positional])
    with pytest.raises(TypeError, match="windowsize"):
        hw.flash_attention(x, x, x, windowsize=3)


def test_after_an_error_the_next_call_is_right() -> None:
    x = array(2, 3, 4)
    expected = hw.flash_attention(x, x, x)
    with pytest.raises(ValueError, match="mask"):
        hw.flash_attention(x, x, x, np.ones((7, 7)))
    np.testing.assert_array_equal(hw.flash_attention(x, x, x), expected)

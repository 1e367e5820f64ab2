"""Attention over packed sequences against the oracle, one sequence at a time, and against separate calls."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headwise as hw
import oracle
from headwise._base.attention_spec import AttentionSpec, PackedSequences
from headwise._runtime import backend as _backend
from support import LAYOUTS, assert_close, bf16_split_atol, dtype_named, normal, read_only, spaced

Array = np.ndarray


def sums(lengths: tuple[int, ...]) -> Array:
    return np.cumsum([0, *lengths])


def heads_first(x: Array) -> Array:
    """(1, heads, rows, dim) of packed rows."""
    return x.swapaxes(0, 1)[None]


@dataclass(eq=False)
class Packed:
    """One call, and the oracle's answer to it, which all implementations share."""

    queries: tuple[int, ...]
    keys: tuple[int, ...] = ()  # as many as queries
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 8
    value_dim: int = 8
    keywords: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    @cached_property
    def arrays(self) -> list[Array]:
        rows, keys = sum(self.queries), sum(self.keys or self.queries)
        shapes = (rows, self.heads, self.head_dim), (keys, self.kv_heads, self.head_dim), (keys, self.kv_heads)
        dtype = dtype_named(self.dtype)
        query, key = (normal(shape, seed).astype(dtype) for seed, shape in enumerate(shapes[:2]))
        return [read_only(x) for x in (query, key, normal((*shapes[2], self.value_dim), 2).astype(dtype))]

    @cached_property
    def starts(self) -> list[Array]:
        return [sums(self.queries)] + ([sums(self.keys)] if self.keys else [])

    def sequences(self, arrays: list[Array]) -> list[list[Array]]:
        """Query, key and value of each, (1, heads, rows, dim)."""
        queries, keys = self.starts[0], self.starts[-1]
        ranges = zip(pairwise(queries.tolist()), pairwise(keys.tolist()), strict=True)
        return [[heads_first(x[slice(*r)]) for x, r in zip(arrays, (q, k, k), strict=True)] for q, k in ranges]

    @cached_property
    def expected(self) -> tuple[Array, Array]:
        answers = [oracle.attention(*one, **self.keywords) for one in self.sequences(self.arrays)]
        outputs = [answer.output[0].swapaxes(0, 1) for answer in answers]
        return np.concatenate(outputs), np.concatenate([answer.lse[0] for answer in answers], axis=-1)

    def run(self, arrays: list[Array] | None = None, **keywords: Any) -> Any:
        return hw.varlen_attention(*(arrays or self.arrays), *self.starts, **self.keywords, **keywords)

    def check(self, arrays: list[Array] | None = None) -> None:
        output, lse = self.run(arrays, return_lse=True)
        more = bf16_split_atol(output.dtype.name)
        assert output.dtype == self.arrays[0].dtype
        assert lse.dtype == (np.float64 if output.dtype == np.float64 else np.float32)
        assert_close(output, self.expected[0], 4, more)
        assert_close(lse, self.expected[1], 4, more)
        assert self.run(arrays).tobytes() == output.tobytes()


SLOPES, SINKS = normal((4,), 8), normal((4,), 9)
LENGTHS = (5, 0, 33, 1, 130, 17, 2)
KEYS = (9, 4, 20, 300, 130, 0, 3)
GROUPED: dict[str, Any] = {"heads": 4, "kv_heads": 2}
CASES: dict[str, Packed] = {
    "self": Packed(LENGTHS),
    "one": Packed((40,)),
    "keys": Packed(LENGTHS, KEYS),
    "decoding": Packed((1,) * 6, (1, 700, 40, 0, 513, 256), **GROUPED),
    "decoding-some": Packed((1, 70, 2, 4), (600, 70, 2, 40), **GROUPED),
    "empty-ends": Packed((0, 0, 5, 0), (3, 0, 7, 0)),
    "no-queries": Packed((0, 0), (3, 2)),
    "no-keys": Packed((3, 20), (0, 0)),
    "no-keys-sinks": Packed((3, 20), (0, 0), 4, 4, keywords={"sinks": SINKS}),
    "no-heads": Packed((3, 4), heads=0, kv_heads=0),
    "no-values": Packed((3, 40), value_dim=0),
    "grouped": Packed(LENGTHS, KEYS, 6, 2, 16, 24),
    "one-key-head": Packed((3, 50, 2), (3, 50, 70), 8, 1),
    "one-feature": Packed(LENGTHS, KEYS, head_dim=1, value_dim=1),
    "odd-widths": Packed(LENGTHS, KEYS, head_dim=67, value_dim=35),
    "causal": Packed(LENGTHS, KEYS, keywords={"is_causal": True}),
    "causal-lower-right": Packed(LENGTHS, KEYS, keywords={"is_causal": True, "causal_alignment": "lower_right"}),
    "window": Packed(LENGTHS, KEYS, keywords={"window_size": (20, 3)}),
    "window-lower-right": Packed(LENGTHS, KEYS, keywords={"window_size": 9, "causal_alignment": "lower_right"}),
    "scale": Packed(LENGTHS, KEYS, keywords={"scale": 0.3}),
    "softcap": Packed(LENGTHS, KEYS, keywords={"softcap": 2.0}),
    "alibi": Packed(LENGTHS, KEYS, 4, 4, keywords={"alibi_slopes": hw.alibi_slopes(4)}),
    "sinks": Packed(LENGTHS, KEYS, **GROUPED, keywords={"sinks": SINKS}),
    "everything": Packed(
        LENGTHS, KEYS, **GROUPED, head_dim=12, keywords={
            "is_causal": True, "causal_alignment": "lower_right", "window_size": (40, -1), "softcap": 3.0,
            "alibi_slopes": SLOPES, "sinks": SINKS, "scale": 0.5,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_oracle(name: str) -> None:
    CASES[name].check()


def test_no_sequences() -> None:
    empty = np.ones((0, 2, 8), np.float32)
    output, lse = hw.varlen_attention(empty, empty, empty, [0], return_lse=True)
    assert output.shape == (0, 2, 8) and lse.shape == (2, 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["self", "decoding-some", "everything", "no-keys"])
def test_dtypes(name: str, dtype: str) -> None:
    case = CASES[name]
    Packed(
        case.queries, case.keys, case.heads, case.kv_heads, case.head_dim, case.value_dim, case.keywords, dtype
    ).check()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["grouped", "decoding-some"])
def test_layouts(name: str, layout: str) -> None:
    case = CASES[name]
    case.check([LAYOUTS[layout](x) for x in case.arrays])


def test_mixed_dtypes_promote() -> None:
    case = CASES["self"]
    query, key, value = case.arrays
    assert case.run([query.astype(np.float64), key, value]).dtype == np.float64
    assert_close(case.run([query.astype(np.float64), key, value]), case.expected[0])
    assert hw.varlen_attention(*[np.ones((3, 1, 2), int)] * 3, [0, 3]).dtype == np.float64


SHORT = {"is_causal": True, "causal_alignment": "lower_right", "sinks": normal((6,), 5)}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["grouped", "decoding", "decoding-some", "everything", "float16", "long", "short"])
def test_bits_of_each_sequence_are_those_of_a_separate_call(name: str, threads: int) -> None:
    """The matmul backend and the length of the key splits depend on each sequence alone, however short."""
    hw.set_num_threads(threads)
    more = {
        "float16": Packed(LENGTHS, KEYS, 6, 2, 16, 24, dtype="float16"),
        "long": Packed((2, 600, 40, 1), (900, 600, 40, 2500), keywords={"is_causal": True}),
        "short": Packed((1, 0, 2, 1, 3) * 60, (1, 2, 0, 3, 3) * 60, 6, 2, keywords=SHORT),
    }
    case = CASES.get(name) or more[name]
    for arrays in (case.arrays, [LAYOUTS["reversed"](x) for x in case.arrays]):
        output, lse = case.run(arrays, return_lse=True)
        alone = [hw.flash_attention(*one, **case.keywords, return_lse=True) for one in case.sequences(arrays)]
        assert output.tobytes() == np.concatenate([one[0].swapaxes(0, 1) for one, _ in alone]).tobytes()
        assert lse.tobytes() == np.concatenate([one[0] for _, one in alone], axis=-1).tobytes()


@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 90)), max_size=6),
    group=st.integers(1, 3),
    causal=st.booleans(),
    alignment=st.sampled_from(["upper_left", "lower_right"]),
    window=st.none() | st.tuples(st.integers(-1, 50), st.integers(-1, 50)),
)
def test_any_partition(
    lengths: list[tuple[int, int]], group: int, causal: bool, alignment: str, window: tuple[int, int] | None
) -> None:
    queries, keys = (tuple(one[i] for one in lengths) for i in range(2))
    keywords = {"is_causal": causal, "causal_alignment": alignment, "window_size": window}
    case = Packed(queries, keys, 2 * group, 2, keywords=keywords)
    output, lse = case.run(return_lse=True)
    assert len(output) == lse.shape[1] == sum(queries)
    for rows, rows_lse, one in zip(
        np.split(output, case.starts[0][1:-1]), np.split(lse, case.starts[0][1:-1], axis=1),
        case.sequences(case.arrays), strict=False,
    ):  # fmt: skip
        alone, alone_lse = hw.flash_attention(*one, **keywords, return_lse=True)
        assert rows.tobytes() == alone[0].swapaxes(0, 1).tobytes() and rows_lse.tobytes() == alone_lse[0].tobytes()


def test_sequences_are_independent() -> None:
    case = CASES["grouped"]
    query, key, value = (x.copy() for x in case.arrays)
    before = case.run()
    for poisoned in range(len(case.queries)):
        other = [x.copy() for x in (query, key, value)]
        q, k = (slice(*starts[poisoned : poisoned + 2]) for starts in case.starts)
        other[0][q], other[1][k], other[2][k] = np.nan, np.inf, np.nan
        after = case.run(other)
        keep = np.ones(len(query), bool)
        keep[q] = False
        assert after[keep].tobytes() == before[keep].tobytes()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", ">i4"])
def test_starts_of_any_integer_dtype(dtype: str) -> None:
    x = normal((100, 2, 8))
    starts = np.array([0, 0, 40, 100], dtype)
    expected = hw.varlen_attention(x, x, x, [0, 0, 40, 100])
    for given_as in (starts, spaced(starts, 0), tuple(starts.tolist())):
        assert hw.varlen_attention(x, x, x, given_as).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(hw.varlen_attention(x[:0], x[:0], x[:0], np.broadcast_to(starts[:1], 4)), x[:0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_out(dtype: str) -> None:
    case = Packed((3, 0, 20), (4, 2, 20), dtype=dtype)
    expected = case.run()
    for layout in ("contiguous", "fortran", "reversed", "heads-inside", "every-other-row", "every-other-column"):
        out = LAYOUTS[layout](np.full_like(expected, -1))
        assert case.run(out=out) is out
        assert_close(out, oracle.double(expected), 4)
    larger = np.full((30, 5, 12), 7, expected.dtype)
    part = larger[4:27, 1:3, 2:10]
    assert case.run(out=part) is part and part.tobytes() == expected.tobytes()
    part[...] = 7
    assert (larger == 7).all(), "written beside out"


X = normal((9, 4, 8), dtype=np.float64)
STARTS = np.array([0, 4, 4, 9])
BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "query-rank": (ValueError, "query three", {"query": X[0]}),
    "key-rank": (ValueError, "key three", {"key": X[None]}),
    "value-rank": (ValueError, "value three", {"value": X[:, 0]}),
    "query-type": (TypeError, "query", {"query": object()}),
    "query-none": (TypeError, "query", {"query": None}),
    "key-dtype": (TypeError, "key dtype", {"key": X.astype(complex)}),
    "head-dim": (ValueError, "key query head_dim", {"key": X[:, :, :7]}),
    "head-dim-zero": (ValueError, "query head_dim", {"query": X[:, :, :0], "key": X[:, :, :0]}),
    "heads": (ValueError, "key query divisible", {"key": X[:, :3], "value": X[:, :3]}),
    "no-heads": (ValueError, "key query divisible", {"key": X[:, :0], "value": X[:, :0]}),
    "value-rows": (ValueError, "value key", {"value": X[:8]}),
    "value-heads": (ValueError, "value key", {"value": X[:, :2]}),
    "starts-none": (TypeError, "cu_seqlens_q None", {"cu_seqlens_q": None}),
    "starts-floats": (TypeError, "cu_seqlens_q dtype float64 integers", {"cu_seqlens_q": STARTS.astype(float)}),
    "starts-bool": (TypeError, "cu_seqlens_q dtype bool integers", {"cu_seqlens_q": STARTS > 0}),
    "starts-scalar": (ValueError, "cu_seqlens_q shape sequences", {"cu_seqlens_q": 9}),
    "starts-rank": (ValueError, "cu_seqlens_q shape sequences", {"cu_seqlens_q": STARTS[None]}),
    "starts-empty": (ValueError, "cu_seqlens_q shape sequences", {"cu_seqlens_q": []}),
    "starts-lengths": (ValueError, "cu_seqlens_q starts 4 0", {"cu_seqlens_q": [4, 5]}),
    "starts-negative": (ValueError, "cu_seqlens_q starts -1 0", {"cu_seqlens_q": [-1, 9]}),
    "starts-decrease": (ValueError, "cu_seqlens_q 3 5 index 2", {"cu_seqlens_q": [0, 5, 3, 9]}),
    "starts-unsigned": (
        ValueError, "cu_seqlens_q 18446744073709551615 9", {"cu_seqlens_q": np.array([0, 2**64 - 1, 3, 9], np.uint64)},
    ),
    "starts-short": (ValueError, "cu_seqlens_q ends 8 9 query", {"cu_seqlens_q": [0, 8]}),
    "starts-long": (ValueError, "cu_seqlens_q ends 10 9 query", {"cu_seqlens_q": [0, 10]}),
    "starts-huge": (ValueError, "cu_seqlens_q ends 9", {"cu_seqlens_q": np.array([0, 2**64 - 1], np.uint64)}),
    "keys-missing": (ValueError, "cu_seqlens_k None 7 9", {"key": X[:7], "value": X[:7]}),
    "keys-floats": (TypeError, "cu_seqlens_k dtype float64", {"cu_seqlens_k": STARTS.astype(float)}),
    "keys-rank": (ValueError, "cu_seqlens_k shape", {"cu_seqlens_k": STARTS[None]}),
    "keys-start": (ValueError, "cu_seqlens_k starts", {"cu_seqlens_k": [1, 2, 3, 9]}),
    "keys-decrease": (ValueError, "cu_seqlens_k index", {"cu_seqlens_k": [0, 5, 3, 9]}),
    "keys-end": (ValueError, "cu_seqlens_k ends 8 9 key", {"cu_seqlens_k": [0, 1, 2, 8]}),
    "keys-count": (ValueError, "cu_seqlens_k 2 sequences 3 cu_seqlens_q", {"cu_seqlens_k": [0, 4, 9]}),
    "causal": (TypeError, "is_causal", {"is_causal": "yes"}),
    "alignment": (ValueError, "causal_alignment", {"causal_alignment": "left"}),
    "alignment-type": (TypeError, "causal_alignment", {"causal_alignment": 1}),
    "scale": (ValueError, "scale", {"scale": np.nan}),
    "window": (ValueError, "window_size", {"window_size": -2}),
    "softcap": (ValueError, "softcap", {"softcap": 0.0}),
    "slopes": (ValueError, "alibi_slopes", {"alibi_slopes": SLOPES[:3]}),
    "sinks": (ValueError, "sinks", {"sinks": SINKS[:, None]}),
    "lse": (TypeError, "return_lse", {"return_lse": "no"}),
    "precision": (ValueError, "precision", {"precision": "fast"}),
    "out-type": (TypeError, "out", {"out": [0]}),
    "out-shape": (ValueError, "out shape", {"out": np.zeros((4, 9, 8))}),
    "out-dtype": (TypeError, "out dtype", {"out": np.zeros(X.shape, np.float32)}),
    "out-read-only": (ValueError, "out read", {"out": read_only(X)}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    error, words, changes = BAD[name]
    out = np.full(X.shape, -12345.0)
    arguments = {"query": X, "key": X, "value": X, "cu_seqlens_q": STARTS, "out": out} | changes
    with pytest.raises(error) as refusal:
        hw.varlen_attention(**arguments)
    assert type(refusal.value) is error
    for word in words.split():
        assert re.search(rf"(?<!\w){re.escape(word)}\b", str(refusal.value)), f"{refusal.value!r} does not say {word}"
    assert (out == -12345.0).all()


def test_out_must_not_overlap_an_input() -> None:
    for name in ("query", "key", "value"):
        arrays = {"query": X, "key": X, "value": X} | {name: X.copy()}
        with pytest.raises(ValueError, match=rf"out: .*{name}"):
            hw.varlen_attention(**arrays, cu_seqlens_q=STARTS, out=arrays[name])
    memory = np.zeros(16)
    starts = memory[:2].view(np.int64)
    starts[1] = 2
    with pytest.raises(ValueError, match=r"out: .*cu_seqlens_q"):
        hw.varlen_attention(*[np.ones((2, 1, 8))] * 3, starts, out=memory.reshape(2, 1, 8))


def test_keywords_only() -> None:
    with pytest.raises(TypeError):
        hw.varlen_attention(X, X, X, STARTS, STARTS, True)


# The cache calls the backend with ranges anywhere in the arrays, and an offset for each.


def ragged(
    arrays: list[Array], output: Array, lse: Array | None, *vectors: list[int], scale: float = 1.0, right: int = -1
) -> None:
    sequences = PackedSequences(*(np.array(vector, np.int64) for vector in vectors))
    query, key, value = arrays
    _backend.current().attention_varlen(query, key, value, output, lse, sequences, AttentionSpec(scale, right=right))


def test_ranges_with_gaps_and_offsets() -> None:
    """The second sequence has no keys; rows between the ranges are not written, NaN between the keys not read."""
    query, key, value = normal((4, 30, 8)), normal((2, 500, 8), 1), normal((2, 500, 8), 2)
    query_starts, query_lengths = [20, 0, 3, 5], [10, 1, 2, 12]
    key_starts, key_lengths, offsets = [100, 7, 130, 0], [20, 0, 300, 90], [10, 0, 200, 40]
    used = np.concatenate([np.arange(start, start + n) for start, n in zip(key_starts, key_lengths, strict=True)])
    for x in (key, value):
        x[:, np.setdiff1d(np.arange(500), used)] = np.nan
    output, lse = np.full((4, 30, 8), 7, np.float32), np.full((30, 4), 7, np.float32).T
    vectors = query_starts, query_lengths, key_starts, key_lengths, offsets
    ragged([query, key, value], output, lse, *vectors, right=0, scale=0.5)
    owned = np.zeros(30, bool)
    for start, rows, first, _, offset in zip(*vectors, strict=True):
        r, seen = slice(start, start + rows), slice(first, first + (offset + rows if offset else 0))
        owned[r] = True
        one = [query[None, :, r], key[None, :, seen], value[None, :, seen]]
        expected = oracle.attention(*one, is_causal=True, causal_alignment="lower_right", scale=0.5)
        assert_close(output[:, r], expected.output[0], 4)
        assert_close(lse[:, r], expected.lse[0], 4)
    assert (output[:, ~owned] == 7).all() and (lse[:, ~owned] == 7).all() and not owned.all()


def test_the_core_refuses_ranges_outside_the_arrays() -> None:
    """Direct calls with ranges outside the arrays, or with inconsistent shapes, read no memory outside the arrays."""
    if _backend.name() != "native":
        pytest.skip("the NumPy backend slices, which cannot leave an array")
    query, key = normal((4, 10, 8)), normal((2, 10, 8))
    good: list[Any] = [[0, 5], [5, 5], [0, 5], [5, 5], [0, 0]]
    ragged([query, key, key], query.copy(), None, *good)
    for vector, value in [(0, -1), (0, 11), (1, 6), (1, -1), (2, -1), (2, 2**62), (3, 2**63 - 1), (3, 6), (3, -5)]:
        bad = [list(one) for one in good]
        bad[vector][1] = value
        with pytest.raises(ValueError, match="query_starts" if vector < 2 else "key_starts"):
            ragged([query, key, key], query.copy(), None, *bad)
    for vector in range(1, 5):
        with pytest.raises(ValueError, match="expected 2 contiguous values"):
            ragged([query, key, key], query.copy(), None, *(v[:1] if i == vector else v for i, v in enumerate(good)))
    for arrays, output in [
        ([query, key[:, :, :7], key], query),
        ([query, key, key[:, :9]], query),
        ([query, key, key[:1]], query),
        ([query[:3], key, key], query[:3]),
        ([query, key[:0], key[:0]], query),
        ([query, key, key], query[:, :9]),
        ([query, key, key], query[:, :, :7]),
    ]:
        with pytest.raises(ValueError, match=r"^(key|value|output): "):
            ragged(arrays, output.copy(), None, *good)
    with pytest.raises(ValueError, match="lse"):
        ragged([query, key, key], query.copy(), np.empty((4, 9), np.float32), *good)
    with pytest.raises(TypeError, match=r"^key: dtype"):
        ragged([query, key.astype(np.float64), key], query.copy(), None, *good)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("sink", [np.nan, np.inf, -np.inf, 0.5])
def test_a_sink_without_keys_is_one_whose_keys_are_masked(sink: float, rows: int) -> None:
    x, none, sinks = normal((1, 1, rows, 8)), np.empty((1, 1, 0, 8), np.float32), [sink]
    masked = hw.flash_attention(x, x, x, mask=np.zeros((rows, rows), bool), sinks=sinks, return_lse=True)
    without = hw.flash_attention(x, none, none, sinks=sinks, return_lse=True)
    query, key = normal((2 * rows, 1, 8)), normal((5, 1, 8))
    packed = hw.varlen_attention(query, key, key, [0, rows, 2 * rows], [0, 0, 5], sinks=sinks, return_lse=True)
    for expected, one, other in zip(masked, without, (packed[0][:rows], packed[1][:, :rows]), strict=True):
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other.ravel(), expected.ravel())

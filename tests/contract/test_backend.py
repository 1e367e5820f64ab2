"""Backends receive arrays in the normal form that ``Backend`` documents, whatever the input.

The NumPy backend accepts other arrays, and most processors read unaligned numbers without an error, so results alone
do not show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import headwise as hw
from calls import Case, Sizes, changed
from headwise._base.attention_spec import AttentionSpec, PackedSequences
from headwise._base.attention_statistics import AttentionStatistics
from headwise._base.linear_attention_spec import LinearAttentionSpec
from headwise._runtime import backend as _backend
from operations import cases
from support import LAYOUTS, dtype_named, laid_out, normal

pytestmark = pytest.mark.single_implementation


def contiguous_last(array: np.ndarray) -> bool:
    return array.shape[-1] <= 1 or array.strides[-1] == array.itemsize


def one_or_full(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    return array.ndim == len(shape) and all(n in (1, full) for n, full in zip(array.shape, shape, strict=True))


def check(arrays: list[np.ndarray], dtype: np.dtype[Any]) -> None:
    for array in arrays:
        assert type(array) is np.ndarray
        assert array.dtype in (np.dtype(bool), dtype) and array.dtype.isnative
        assert array.flags.aligned
        assert all(stride % array.itemsize == 0 for stride in array.strides)


def flat(fields: Any) -> Iterator[Any]:
    """The entries of tuples within tuples."""
    for field in fields:
        if isinstance(field, tuple):
            yield from flat(field)
        else:
            yield field


# Operations that read and write 16-bit dtypes.
OF_16BIT = (
    "softmax", "log_softmax", "logsumexp", "attention", "attention_backward", "attention_varlen",
    "attention_varlen_backward", "apply_rope",
    "add_alibi", "linear", "linear_attention",
    "pack_linear", "layer_normalization", "rms_norm", "activation", "activation_backward",
    "layer_normalization_backward", "rms_norm_backward",
)  # fmt: skip

# Operations with 16-bit weights, keys or values under float32.
NARROW = ("linear", "attention", "attention_statistics")


class Contract:
    """A backend that checks its arguments and calls another backend."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.calls = 0
        self.dtypes: set[str] = set()
        self.biases: set[str] = set()  # dtypes of attention's
        self.narrow = 0  # 16-bit weights of linear, keys and values of attention, under float32

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.endswith(("_threads", "_target", "_targets")):
            return getattr(self.backend, name)

        def passed_on(*arguments: Any) -> Any:
            self.calls += 1
            arrays = [x for x in flat(arguments) if isinstance(x, np.ndarray) and x.dtype.kind not in "iu"]
            dtype = arrays[0].dtype
            self.dtypes.add(dtype.name)
            if name in OF_16BIT and dtype.itemsize == 2:
                default = [0, 1, 2, 3] if name.startswith("attention") else [0, -1]
                every = list(range(len(arrays)))
                some = {"linear": [0, 1, -1], "pack_linear": [0], "layer_normalization": every, "rms_norm": every}
                some |= {"activation": every, "activation_backward": every}
                some |= {"linear_attention": [0, 1, 2, -2]}
                some |= dict.fromkeys(
                    ("layer_normalization_backward", "rms_norm_backward"), every[: len(arguments) - 4]
                )
                check([arrays[i] for i in some.get(name, default)], dtype)
                check([x for x in arrays if x.dtype != dtype], np.dtype(np.float32))
            else:
                assert dtype in (np.float32, np.float64)
                narrow = [x for x in arrays if name in NARROW and x.dtype.itemsize == 2]
                self.narrow += len(narrow)
                assert not narrow or dtype == np.float32
                check([x for x in arrays if x.dtype.itemsize > 2 or not narrow], dtype)
            getattr(type(self), f"check_{name}")(self, *arguments)
            return getattr(self.backend, name)(*arguments)

        return passed_on

    def check_softmax(self, x: np.ndarray, out: np.ndarray) -> None:
        assert x.ndim == 3 and x.shape == out.shape and out.flags.c_contiguous
        assert contiguous_last(x if x.shape[2] > 1 else x[:, :, 0])

    check_log_softmax = check_softmax

    def check_logsumexp(self, x: np.ndarray, out: np.ndarray) -> None:
        assert x.ndim == 3 and out.shape == (x.shape[0], x.shape[2]) and out.flags.c_contiguous
        assert contiguous_last(x if x.shape[2] > 1 else x[:, :, 0])

    def check_attention(
        self, query: Any, key: Any, value: Any, output: Any, weights: Any, lse: Any, spec: AttentionSpec
    ) -> None:
        batch, heads, query_len, head_dim = query.shape
        scores = (batch, heads, query_len, key.shape[2])
        assert key.shape[::3] == (batch, head_dim) and heads % key.shape[1] == 0
        assert value.shape[:3] == key.shape[:3] and output.shape == (*scores[:3], value.shape[3])
        assert all(map(contiguous_last, (query, key, value, output)))
        assert weights is None or (weights.shape == scores and weights.flags.c_contiguous)
        assert lse is None or (lse.shape == scores[:3] and lse.flags.c_contiguous)
        keeps = (*spec.keep, *(() if spec.dropout_keep is None else (spec.dropout_keep,)))
        for mask in (*keeps, *spec.bias):
            assert one_or_full(mask, scores) and contiguous_last(mask)
        wide = np.float32 if query.itemsize == 2 else query.dtype
        assert all(mask.dtype == bool for mask in keeps)
        assert weights is None or weights.dtype == query.dtype
        assert all(one.dtype in (wide, query.dtype) for one in spec.bias)
        self.biases.update(one.dtype.name for one in spec.bias)
        assert lse is None or lse.dtype == wide
        self.check_spec(spec, heads, wide)
        self.check_relative_bias(spec.relative_bias, scores[:3], wide)

    def check_relative_bias(self, bias: Any, rows: tuple[int, ...], wide: Any) -> None:
        if bias is not None:
            assert one_or_full(bias, (*rows, bias.shape[3])) and bias.shape[3] % 2 == 1
            assert contiguous_last(bias) and bias.dtype == wide

    def check_attention_backward(  # noqa: PLR0913, PLR0917
        self, d_output: Any, query: Any, key: Any, value: Any, output: Any, lse: Any, d_lse: Any, d_weights: Any,
        d_query: Any, d_key: Any, d_value: Any, d_bias: Any, d_alibi_slopes: Any, d_sinks: Any, d_relative_bias: Any,
        spec: AttentionSpec,
    ) -> None:  # fmt: skip
        self.check_attention(query, key, value, output, d_weights, lse, spec)
        scores, wide = (*query.shape[:3], key.shape[2]), np.float32 if query.itemsize == 2 else query.dtype
        for gradient, like in ((d_output, output), (d_query, query), (d_key, key), (d_value, value)):
            if gradient is not None:
                assert gradient.shape == like.shape and gradient.dtype == query.dtype and contiguous_last(gradient)
        assert d_lse is None or (d_lse.shape == lse.shape and d_lse.dtype == wide and d_lse.flags.c_contiguous)
        assert len(d_bias) == len(spec.bias)
        for gradient, bias in zip(d_bias, spec.bias, strict=True):
            if gradient is not None:
                assert gradient.shape == bias.shape and gradient.dtype == wide and gradient.flags.c_contiguous
                assert one_or_full(gradient, scores)
        if d_relative_bias is not None:
            assert d_relative_bias.shape == spec.relative_bias.shape and d_relative_bias.flags.c_contiguous
            assert d_relative_bias.dtype == wide
        for gradient in (d_alibi_slopes, d_sinks):
            assert gradient is None or (gradient.shape == scores[1:2] and gradient.dtype == wide)

    def check_attention_varlen(
        self, query: Any, key: Any, value: Any, output: Any, lse: Any, sequences: PackedSequences, spec: AttentionSpec
    ) -> None:
        heads, rows, head_dim = query.shape
        assert key.shape[2] == head_dim and heads % key.shape[0] == 0
        assert value.shape[:2] == key.shape[:2] and output.shape == (heads, rows, value.shape[2])
        assert all(map(contiguous_last, (query, key, value, output)))
        wide = np.float32 if query.itemsize == 2 else query.dtype
        assert lse is None or (lse.shape == (heads, rows) and lse.dtype == wide)
        assert type(sequences) is PackedSequences
        for vector in sequences:
            assert vector.dtype == np.int64 and vector.dtype.isnative and vector.shape == sequences.offsets.shape
            assert vector.flags.c_contiguous and vector.flags.aligned
        for starts, lengths, size in (
            (sequences.query_starts, sequences.query_lengths, rows),
            (sequences.key_starts, sequences.key_lengths, key.shape[1]),
        ):
            assert (starts >= 0).all() and (lengths >= 0).all() and (starts + lengths <= size).all()
        assert spec.keep == spec.bias == () and spec.dropout_keep is None
        self.check_spec(spec, heads, wide)
        self.check_relative_bias(spec.relative_bias, (1, heads, rows), wide)

    def check_attention_varlen_backward(  # noqa: PLR0913, PLR0917
        self, d_output: Any, query: Any, key: Any, value: Any, output: Any, lse: Any, d_lse: Any,
        d_query: Any, d_key: Any, d_value: Any, d_alibi_slopes: Any, d_sinks: Any, sequences: PackedSequences,
        spec: AttentionSpec,
    ) -> None:  # fmt: skip
        self.check_attention_varlen(query, key, value, output, lse, sequences, spec)
        for gradient, like in ((d_output, output), (d_query, query), (d_key, key), (d_value, value)):
            if gradient is not None:
                assert gradient.shape == like.shape and gradient.dtype == query.dtype and contiguous_last(gradient)
        for sums in (lse, d_lse):
            assert sums is None or (sums.shape == lse.shape and sums.dtype == lse.dtype and sums.flags.c_contiguous)
        for gradient in (d_alibi_slopes, d_sinks):
            if gradient is not None:
                assert gradient.shape == (len(sequences.offsets), len(query)) and gradient.dtype == lse.dtype
                assert gradient.flags.c_contiguous

    def check_spec(self, spec: AttentionSpec, heads: int, wide: Any) -> None:
        assert type(spec) is AttentionSpec and type(spec.keep) is type(spec.bias) is tuple
        for one in (spec.alibi_slopes, spec.sinks):
            assert one is None or (one.shape == (heads,) and one.dtype == wide and one.flags.c_contiguous)
        assert all(type(number) is float for number in (spec.scale, spec.softcap, spec.dropout_scale))
        assert all(type(number) is int for number in (spec.left, spec.right, spec.offset))
        assert spec.precision in ("highest", "high", "medium")

    def check_apply_rope(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray, _: bool) -> None:
        assert x.ndim == 4 and x.shape == out.shape
        half = x.shape[-1] // 2
        assert cos.shape[-1] == sin.shape[-1] == half and one_or_full(cos, (*x.shape[:-1], half))
        assert one_or_full(sin, (*x.shape[:-1], half))
        assert all(map(contiguous_last, (x, cos, sin, out)))

    def check_add_alibi(self, scores: np.ndarray, slopes: np.ndarray, offset: int, out: np.ndarray) -> None:
        assert scores.ndim == 4 and scores.shape == out.shape and slopes.shape == scores.shape[1:2]
        assert isinstance(offset, int) and slopes.flags.c_contiguous
        assert contiguous_last(scores) and contiguous_last(out)

    def check_linear(self, x: np.ndarray, weight: np.ndarray, bias: Any, out: np.ndarray, precision: str) -> None:
        assert x.ndim == weight.ndim == out.ndim == 2 and out.flags.c_contiguous and contiguous_last(x)
        assert weight.itemsize in weight.strides and precision in ("highest", "high", "medium")
        assert bias is None or (bias.shape == weight.shape[1:] and bias.flags.c_contiguous)

    def check_linear_attention(  # noqa: PLR0913, PLR0917
        self, query: Any, key: Any, value: Any, decay: Any, beta: Any, state: Any, output: Any, new_state: Any,
        spec: LinearAttentionSpec,
    ) -> None:  # fmt: skip
        assert type(spec) is LinearAttentionSpec and type(spec.scale) is float and type(spec.chunk) is int
        batch, heads, query_len, features = query.shape
        assert key.shape[::3] == (batch, features) and heads % key.shape[1] == 0
        assert value.shape[:3] == key.shape[:3] and output.shape == (batch, heads, query_len, value.shape[3])
        assert spec.is_causal or (decay is None and beta is None)
        assert not spec.is_causal or query_len == key.shape[2]
        assert all(map(contiguous_last, (query, key, value, output)))
        assert decay is None or one_or_full(decay, key.shape)
        assert beta is None or one_or_full(beta, key.shape[:3])
        assert new_state.shape == (*key.shape[:2], features, value.shape[3] + spec.normalize)
        assert output.flags.c_contiguous and new_state.flags.c_contiguous
        assert state is None or (state.shape == new_state.shape and contiguous_last(state))

    def check_attention_statistics(
        self, query: Any, key: Any, results: AttentionStatistics, block_size: tuple[int, int], spec: AttentionSpec
    ) -> None:
        assert type(results) is AttentionStatistics and all(type(size) is int for size in block_size)
        (batch, heads, query_len, head_dim), key_len = query.shape, key.shape[2]
        assert key.shape[::3] == (batch, head_dim) and heads % key.shape[1] == 0 and query_len * key_len > 0
        assert all(map(contiguous_last, (query, key)))
        written = [x for x in flat(results) if x is not None]
        assert all(x.flags.c_contiguous and x.shape[:2] == (batch, heads) and not x.any() for x in written)
        assert all(x.dtype in (query.dtype, np.int64) for x in written)
        self.check_spec(spec, heads, query.dtype)

    def check_pack_linear(self, weight: np.ndarray, bias: Any, precision: str) -> None:
        assert weight.ndim == 2 and weight.itemsize in weight.strides and precision in ("highest", "high", "medium")
        assert bias is None or (bias.shape == weight.shape[1:] and bias.flags.c_contiguous)

    def check_layer_normalization(self, x: Any, gamma: Any, beta: Any, eps: float, out: Any) -> None:
        assert x.ndim == 2 and x.shape == out.shape and contiguous_last(x) and out.flags.c_contiguous
        for parameter in (gamma, beta):
            assert parameter is None or (parameter.shape == x.shape[1:] and parameter.flags.c_contiguous)
        assert isinstance(eps, float)

    def check_rms_norm(self, x: Any, gamma: Any, eps: float, out: Any) -> None:
        assert contiguous_last(out)
        self.check_layer_normalization(x, gamma, None, eps, np.ascontiguousarray(out))

    def check_layer_normalization_backward(
        self, d_out: Any, x: Any, gamma: Any, eps: float, d_x: Any, d_gamma: Any, d_beta: Any
    ) -> None:
        wide = np.float32 if x.itemsize == 2 else x.dtype
        assert d_out.shape == x.shape and contiguous_last(d_out)
        self.check_layer_normalization(x, gamma, None, eps, d_x)
        for total in (d_gamma, d_beta):
            assert total.shape == x.shape[1:] and total.flags.c_contiguous and total.dtype == wide

    def check_rms_norm_backward(self, d_out: Any, x: Any, gamma: Any, eps: float, d_x: Any, d_gamma: Any) -> None:
        self.check_layer_normalization_backward(d_out, x, gamma, eps, d_x, d_gamma, d_gamma)

    def check_activation(self, x: Any, up: Any, out: Any, function: str) -> None:
        self.check_activation_backward(x, x, up, out, up, function)

    def check_activation_backward(self, d_out: Any, x: Any, up: Any, d_x: Any, d_up: Any, function: str) -> None:
        assert function in ("gelu", "gelu_tanh", "silu") and (up is None) == (d_up is None)
        for array in (d_out, x, up, d_x, d_up):
            assert array is None or (array.ndim == 2 and array.shape == x.shape and contiguous_last(array))


@pytest.fixture
def contract() -> Iterator[Contract]:
    before, contract = _backend.name(), Contract(_backend.current())
    _backend.use(contract)  # type: ignore[arg-type]
    yield contract
    _backend.use(before)


SIZES = Sizes((2, 3), 3, 9, 9, 12, 12)
X, MASK, ANGLES = normal((2, 3, 9, 12)), normal((2, 3, 9, 9), 1), normal((9, 6), 3)
STARTS = np.array([[0, 7], [2, 7], [3, 7]], ">i4")[:, 0]
Lay = Callable[[np.ndarray], np.ndarray]


def call(case: Case) -> Callable[[Lay], Any]:
    return lambda lay: case.run(changed(case.arguments(SIZES), lay))


def call_into(case: Case) -> Callable[[Lay], Any]:
    """A call whose ``out`` is laid out, instead of its inputs."""
    arguments = case.arguments(SIZES)
    return lambda lay: case.run(arguments, out=lay(np.zeros_like(case.run(arguments)[0])))


# Calls with a score_mod go to the NumPy backend, whichever is chosen.
COMPUTED = [case for case in cases() if case.operation.computed and case.variant != "score_mod"]
CALLS: dict[str, Callable[[Lay], Any]] = {str(case): call(case) for case in COMPUTED} | {
    "attention-dropout-bias": lambda lay: hw.scaled_dot_product_attention(
        lay(X), lay(X), lay(X), None, 0.5, bias=lay(MASK), rng=0
    ),
    "attention-rank-3": lambda lay: hw.flash_attention(lay(X[0]), lay(X[0]), lay(X[0]), lay(MASK[0] > 0)),
    "attention-rank-5": lambda lay: hw.flash_attention(lay(X[None]), lay(X[None]), lay(X[None]), bias=lay(MASK[None])),
    "attention-broadcast": lambda lay: hw.flash_attention(
        *[np.broadcast_to(lay(X[:1]), X.shape)] * 3, np.broadcast_to(lay(MASK[:, :, :, :1] > 0), MASK.shape),
        bias=np.broadcast_to(lay(MASK[:, :1]), MASK.shape),
    ),
    "varlen-strided-starts": lambda lay: hw.varlen_attention(lay(X[0]), lay(X[0]), lay(X[0]), STARTS, return_lse=True),
    "apply_rope-rank-5": lambda lay: hw.apply_rope(lay(X[None]), lay(ANGLES[:, :1]), np.float32(0)),
    "layer_normalization-axis-0": lambda lay: hw.layer_normalization(lay(X), *[lay(MASK[0, 0])[:2, 0]] * 2, axis=0),
    "layer_normalization-axis-1": lambda lay: hw.layer_normalization(lay(X), *[lay(MASK[0, 0])[:3, 0]] * 2, axis=1),
}  # fmt: skip
CALLS_INTO = {f"{case}-out": call_into(case) for case in COMPUTED if case.operation.out}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_backend_gets_arrays_in_normal_form(contract: Contract, name: str, layout: str) -> None:
    CALLS[name](laid_out(layout))
    assert contract.calls > 0


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("unaligned", "byte-swapped", "read-only")])
@pytest.mark.parametrize("name", CALLS_INTO)
def test_backend_gets_out_in_normal_form(contract: Contract, name: str, layout: str) -> None:
    """The other layouts are refused as ``out=``, see test_arrays.py."""
    CALLS_INTO[name](laid_out(layout))
    assert contract.calls > 0


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint16"])
@pytest.mark.parametrize("name", CALLS)
def test_backend_gets_one_floating_dtype(contract: Contract, name: str, dtype: str) -> None:
    CALLS[name](lambda x: x.astype(dtype) if x.dtype != bool else x)
    assert contract.calls > 0


WIDENED = (
    "apply_rope-rank-5",
    "delta",
    "attention_statistics",
    "relative_values",
    "flash_attention-all",
    "varlen_attention-all",
    "product_attention-all",
    "gradients-all",
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in CALLS if not any(part in name for part in WIDENED)])
def test_backend_gets_16bit_arrays_as_they_are(contract: Contract, name: str, dtype: str) -> None:
    CALLS[name](lambda x: x if x.dtype == bool else x.astype(dtype_named(dtype)))
    assert contract.dtypes == {dtype}
    assert contract.biases <= {dtype}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_are_those_of_float32_weights(contract: Contract, dtype: str) -> None:
    """Queries are float32, so that weights are; keys are 16-bit as they are."""
    CALLS["attention_statistics-all"](lambda x: x if x.dtype == bool else x.astype(dtype_named(dtype)))
    assert contract.dtypes == {"float32"} and contract.calls == contract.narrow == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_backend_gets_16bit_weights_under_float32(contract: Contract, dtype: str) -> None:
    weight = normal((12, 5)).astype(dtype_named(dtype))
    for one in (weight, weight.astype(">f2") if dtype == "float16" else weight, weight[:, ::2]):
        hw.linear(X, one)
    layer = hw.MultiHeadAttention(12, 3, dtype=dtype_named(dtype), rng=0)
    for _ in range(3):  # the parameters are given, then packed
        layer(X[0])
    assert contract.narrow == 3 + 2
    assert contract.dtypes == {"float32", dtype}  # pack_linear has the weights first

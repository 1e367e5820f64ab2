"""Inputs and ``out=`` of every memory layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from calls import Case, Sizes, arrays_in, changed, numbers
from operations import OPTIONS, cases
from support import LAYOUTS, AttentionCase, assert_close, check_attention, normal, read_only, spaced, unaligned

# Attention on every layout

CASE = AttentionCase((2, 3, 9, 12), (2, 3, 17, 12), 10)
SCORES = Sizes((2, 3), 3, 9, 17, 12, 10)
EXTRAS = {name: option.value(SCORES, numbers) for name, option in OPTIONS.items()}
EXTRAS = {name: value for name, value in EXTRAS.items() if isinstance(value, np.ndarray)}
EXPECTED = oracle.attention(*CASE.arrays, **EXTRAS)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("which", ["query", "key", "value", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_layout(layout: str, which: str, dtype: str) -> None:
    case = AttentionCase(CASE.query, CASE.key, CASE.value_dim, {"is_causal": True}, dtype)
    arrays = dict(zip(("query", "key", "value"), case.arrays, strict=True))
    for name in arrays if which == "all" else [which]:
        arrays[name] = LAYOUTS[layout](arrays[name])
    check_attention(list(arrays.values()), case.keywords, case.expected)


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_masks_and_biases(layout: str, name: str) -> None:
    if EXTRAS[name].ndim == 1 and layout in ("transposed", "every-other-row"):
        pytest.skip("one axis has no such layout")
    if EXTRAS[name].dtype == bool and layout == "byte-swapped":
        pytest.skip("a byte has no order")
    check_attention(CASE.arrays, EXTRAS | {name: LAYOUTS[layout](EXTRAS[name])}, EXPECTED)


@pytest.mark.parametrize("axis", range(4))
def test_attention_of_broadcast_views(axis: int) -> None:
    """Stride 0 along each axis of query, key and value together."""
    arrays = []
    for array in AttentionCase((2, 3, 9, 12), (2, 3, 17, 12), 12).arrays:
        one = array.take([0], axis)
        arrays.append(np.broadcast_to(one, array.shape))
        assert arrays[-1].strides[axis] == 0
    check_attention(arrays, {}, oracle.attention(*arrays))


def test_attention_of_one_array_as_query_key_and_value() -> None:
    packed = normal((2, 9, 3, 3, 12))  # (batch, seq, query/key/value, heads, head_dim): a joint projection
    arrays = [packed[:, :, which].swapaxes(1, 2) for which in range(3)]
    check_attention(arrays, {}, oracle.attention(*arrays))
    same = packed[:, :, 0].swapaxes(1, 2)
    check_attention([same] * 3, {"is_causal": True}, oracle.attention(same, same, same, is_causal=True))


@pytest.mark.parametrize("keep", [False, True], ids=["bias", "mask"])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (3,), (0, 1), (2, 3), (0, 1, 2), (0, 1, 2, 3)], ids=str)
def test_masks_that_are_broadcast_views(axes: tuple[int, ...], keep: bool) -> None:
    small = normal(tuple(1 if axis in axes else size for axis, size in enumerate((2, 3, 9, 17))))
    extra = np.broadcast_to(small > -0.5 if keep else small, (2, 3, 9, 17))
    keywords = {"mask" if keep else "bias": extra}
    check_attention(CASE.arrays, keywords, oracle.attention(*CASE.arrays, **keywords))


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    check_attention([torch.from_numpy(array.copy()) for array in CASE.arrays], {}, oracle.attention(*CASE.arrays))
    assert type(hw.softmax(torch.ones(3, 4))) is np.ndarray


# out=, for every operation that has it

X = normal((2, 3, 9, 12))
SIZES = Sizes((2, 3), 3, 9, 12, 12, 12)  # of a result (2, 3, 9, 12), or (9, 3, 12) of varlen_attention
WITH_OUT = {str(case): case for case in cases(short=True, where=lambda operation: operation.out)}
IN_PLACE = [name for name, case in WITH_OUT.items() if case.operation.in_place]
NOT_IN_PLACE = [name for name, case in WITH_OUT.items() if not case.operation.in_place]


def call(name: str, x: np.ndarray | None = None, out: Any = None) -> Any:
    """The first result of a case, with ``x`` in place of its first array."""
    case = WITH_OUT[name]
    arguments = case.arguments(SIZES)
    if x is not None:
        arguments[arrays_in(arguments)[0]] = x
    return case.run(arguments, out=out)[0]


def first_array(name: str) -> np.ndarray:
    """The first array of a case, which has the shape of the result."""
    arguments = WITH_OUT[name].arguments(SIZES)
    return arguments[arrays_in(arguments)[0]]


def part(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(1, 1 + size) for size in shape)


def swapped(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """An array with ``axis`` swapped with the axis before it in memory."""
    shape = (*shape[: axis - 1], shape[axis], shape[axis - 1], *(shape[axis + 1 :] if axis < -1 else ()))
    return np.empty(shape, np.float32).swapaxes(axis, axis - 1)


OUTS: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
    "contiguous": lambda shape: np.empty(shape, np.float32),
    "fortran": lambda shape: np.empty(shape, np.float32, "F"),
    "reversed": lambda shape: np.empty(shape, np.float32)[(slice(None, None, -1),) * len(shape)],
    "heads-inside": lambda shape: swapped(shape, -2),
    "transposed": lambda shape: swapped(shape, -1),
    "every-other-row": lambda shape: spaced(np.zeros(shape, np.float32), -2),
    "every-other-column": lambda shape: spaced(np.zeros(shape, np.float32), -1),
    "part-of-larger": lambda shape: np.empty([size + 3 for size in shape], np.float32)[part(shape)],
}
operation = pytest.mark.parametrize("name", WITH_OUT)
SENTINEL = np.float32(-12345)


@operation
@pytest.mark.parametrize("kind", OUTS)
def test_out_of_any_layout(name: str, kind: str) -> None:
    expected = call(name)
    out = OUTS[kind](expected.shape)
    out[...] = np.nan
    assert call(name, out=out) is out
    assert_close(out, expected.astype(np.float64))


@operation
def test_out_writes_nothing_beside_it(name: str) -> None:
    out = OUTS["part-of-larger"](call(name).shape)
    whole = out.base
    assert whole is not None
    covered = np.zeros(whole.shape, bool)
    covered[part(out.shape)] = True
    whole[...] = SENTINEL
    call(name, out=out)
    assert (whole[~covered] == SENTINEL).all()
    assert (whole[covered] != SENTINEL).all()


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("kind", OUTS)
def test_out_is_the_input(name: str, kind: str) -> None:
    expected, x = call(name), first_array(name)
    place = OUTS[kind](x.shape)
    place[...] = x
    assert call(name, place, out=place) is place
    assert_close(place, expected.astype(np.float64))
    place[...] = x
    alias = place[...]
    call(name, place, out=alias)
    assert_close(place, expected.astype(np.float64))


@pytest.mark.parametrize("name", NOT_IN_PLACE)
def test_out_must_not_be_the_input(name: str) -> None:
    x = first_array(name).copy()
    with pytest.raises(ValueError, match=r"\bout\b"):
        call(name, x, out=x)
    np.testing.assert_array_equal(x, first_array(name))


@operation
def test_out_must_not_overlap(name: str) -> None:
    shape, size = first_array(name).shape, first_array(name).size
    memory = normal((size + 12,))
    before = memory.copy()
    for shift in (1, 12):
        with pytest.raises(ValueError, match=r"\bout\b"):
            call(name, memory[:size].reshape(shape), out=memory[shift : size + shift].reshape(shape))
    with pytest.raises(ValueError, match=r"\bout\b"):
        call(name, memory[:size].reshape(shape), out=memory[:size].reshape(shape)[..., ::-1, :])
    np.testing.assert_array_equal(memory, before)


@operation
def test_out_beside_the_input_in_one_array(name: str) -> None:
    """Interleaved views whose bounds overlap, but which share no entry, are accepted."""
    before, expected = first_array(name), call(name)
    memory = np.zeros((*before.shape[:-2], 2 * before.shape[-2], before.shape[-1]), np.float32)
    x, out = memory[..., ::2, :], memory[..., 1::2, :]
    x[...] = before
    call(name, x, out=out)
    assert_close(out, expected.astype(np.float64))
    np.testing.assert_array_equal(x, before)


BAD_OUTS: dict[str, tuple[type[Exception], Callable[[np.ndarray], Any]]] = {
    "shape": (ValueError, lambda x: np.empty((*x.shape[:-1], x.shape[-1] + 1), np.float32)),
    "rank": (ValueError, lambda x: np.empty((1, *x.shape), np.float32)),
    "broadcastable": (ValueError, lambda x: np.empty((*x.shape[:-2], 1, x.shape[-1]), np.float32)),
    "dtype": (TypeError, lambda x: np.empty(x.shape, np.float64)),
    "integer": (TypeError, lambda x: np.empty(x.shape, np.int32)),
    "byte-swapped": (TypeError, lambda x: np.empty(x.shape, np.dtype("f4").newbyteorder("S"))),
    "list": (TypeError, lambda x: x.tolist()),
    "string": (TypeError, lambda x: "out"),
    "read-only": (ValueError, read_only),
    "overlaps-itself": (
        ValueError,
        lambda x: np.lib.stride_tricks.as_strided(
            np.empty(999, np.float32), x.shape, (0, 36, 4, 4)[-x.ndim :], writeable=True
        ),
    ),
    "unaligned": (ValueError, unaligned),
}


@operation
@pytest.mark.parametrize("kind", BAD_OUTS)
def test_bad_out(name: str, kind: str) -> None:
    error, make = BAD_OUTS[kind]
    out = make(call(name))
    before = np.array(out, copy=True)
    with pytest.raises(error, match=r"\bout\b"):
        call(name, out=out)
    np.testing.assert_array_equal(np.array(out), before)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64"])
def test_out_of_other_dtypes(dtype: str) -> None:
    x = (3 * X).astype(dtype)
    expected = hw.softmax(x)
    out = np.empty(X.shape, expected.dtype)
    assert hw.softmax(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    if dtype != "int64":
        assert hw.softmax(x, out=x) is x
        np.testing.assert_array_equal(x, expected)


def test_out_of_attention_may_be_heads_of_one_array() -> None:
    """A layer joins its heads so: the output is written into a view of ``(batch, seq, heads * d)``."""
    joined = np.full((2, 9, 36), np.nan, np.float32)
    hw.scaled_dot_product_attention(*CASE.arrays[:2], CASE.arrays[1], out=joined.reshape(2, 9, 3, 12).swapaxes(1, 2))
    expected = oracle.attention(*CASE.arrays[:2], CASE.arrays[1]).output
    assert_close(joined, expected.swapaxes(1, 2).reshape(2, 9, 36))


def test_out_with_dropout() -> None:
    out = np.empty(X.shape, X.dtype)
    got = hw.scaled_dot_product_attention(X, X, X, dropout=0.5, rng=0, out=out)[0]
    assert got is out
    np.testing.assert_array_equal(out, hw.scaled_dot_product_attention(X, X, X, dropout=0.5, rng=0)[0])


@pytest.mark.parametrize("case", cases(), ids=str)
def test_nothing_is_written_into_inputs(case: Case) -> None:
    arguments = case.arguments(SIZES)
    before = changed(arguments, np.copy)
    results = case.run(arguments)
    for name in arrays_in(arguments):
        np.testing.assert_array_equal(arguments[name], before[name])
        assert not any(np.may_share_memory(result, arguments[name]) for result in results)
    assert all(result.flags.writeable for result in results)

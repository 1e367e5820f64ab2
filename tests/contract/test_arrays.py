"""Memory of every kind: layouts in, ``out=`` of every kind, empty arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import LAYOUTS, Case, assert_close, check_attention, normal, read_only, spaced, unaligned

# Attention on every layout

CASE = Case((2, 3, 9, 12), (2, 3, 17, 12), 10)
EXTRAS: dict[str, Any] = {
    "mask": normal((2, 3, 9, 17)) > -0.5,
    "bias": normal((2, 3, 9, 17)),
    "key_padding_mask": normal((2, 17)) > -0.5,
    "alibi_slopes": np.array([0.5, 0.25, 0.1]),
    "sinks": np.array([0.5, 0.25, 0.1]),
}
EXPECTED = oracle.attention(*CASE.arrays, **EXTRAS)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("which", ["query", "key", "value", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_layout(layout: str, which: str, dtype: str) -> None:
    case = Case(CASE.query, CASE.key, CASE.value_dim, {"is_causal": True}, dtype)
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
    """Stride 0 along any axis, the last included, of query, key and value together."""
    arrays = []
    for array in Case((2, 3, 9, 12), (2, 3, 17, 12), 12).arrays:
        one = array.take([0], axis)
        arrays.append(np.broadcast_to(one, array.shape))
        assert arrays[-1].strides[axis] == 0
    check_attention(arrays, {}, oracle.attention(*arrays))


def test_attention_of_one_array_as_query_key_and_value() -> None:
    packed = normal((2, 9, 3, 3, 12))  # (batch, seq, query/key/value, heads, head_dim), as one projection makes it
    arrays = [packed[:, :, which].swapaxes(1, 2) for which in range(3)]
    check_attention(arrays, {}, oracle.attention(*arrays))
    same = packed[:, :, 0].swapaxes(1, 2)
    check_attention([same] * 3, {"is_causal": True}, oracle.attention(same, same, same, is_causal=True))


@pytest.mark.parametrize("keep", [False, True], ids=["bias", "mask"])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (3,), (0, 1), (2, 3), (0, 1, 2), (0, 1, 2, 3)], ids=str)
def test_masks_of_broadcast_views(axes: tuple[int, ...], keep: bool) -> None:
    small = normal(tuple(1 if axis in axes else size for axis, size in enumerate((2, 3, 9, 17))))
    extra = np.broadcast_to(small > -0.5 if keep else small, (2, 3, 9, 17))
    keywords = {"mask" if keep else "bias": extra}
    check_attention(CASE.arrays, keywords, oracle.attention(*CASE.arrays, **keywords))


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    check_attention([torch.from_numpy(array.copy()) for array in CASE.arrays], {}, oracle.attention(*CASE.arrays))
    assert type(hw.softmax(torch.ones(3, 4))) is np.ndarray


# out=, for every operation that has it

ROPE = np.cos(normal((9, 6), 7)), np.sin(normal((9, 6), 7))
X = normal((2, 3, 9, 12))
WEIGHT, GAMMA = normal((12, 12), 8), normal((12,), 9)
WITH_OUT: dict[str, Callable[..., Any]] = {
    "softmax": lambda x, out=None: hw.softmax(x, out=out),
    "softmax-axis": lambda x, out=None: hw.softmax(x, axis=1, out=out),
    "log_softmax": lambda x, out=None: hw.log_softmax(x, out=out),
    "log_softmax-axis": lambda x, out=None: hw.log_softmax(x, axis=0, out=out),
    "apply_rope": lambda x, out=None: hw.apply_rope(x, *ROPE, out=out),
    "apply_rope-interleaved": lambda x, out=None: hw.apply_rope(x, *ROPE, interleaved=True, out=out),
    "add_alibi": lambda x, out=None: hw.add_alibi(x, out=out),
    "layer_normalization": lambda x, out=None: hw.layer_normalization(x, GAMMA, GAMMA, out=out),
    "layer_normalization-axis": lambda x, out=None: hw.layer_normalization(x, GAMMA[:3], GAMMA[:3], axis=1, out=out),
    "linear": lambda x, out=None: hw.linear(x, WEIGHT, out=out),
    "attention": lambda x, out=None: hw.scaled_dot_product_attention(x, X, X, out=out)[0],
    "flash_attention": lambda x, out=None: hw.flash_attention(x, X, X, out=out),
    "flash_attention-dropped": lambda x, out=None: hw.flash_attention(x, X, X, is_causal=True, window_size=3, out=out),
}
IN_PLACE = [name for name in WITH_OUT if not name.startswith(("linear", "attention", "flash_attention"))]
OUTS: dict[str, Callable[[], np.ndarray]] = {
    "contiguous": lambda: np.empty(X.shape, X.dtype),
    "fortran": lambda: np.empty(X.shape, X.dtype, "F"),
    "reversed": lambda: np.empty(X.shape, X.dtype)[::-1, ::-1, ::-1, ::-1],
    "heads-inside": lambda: np.empty((2, 9, 3, 12), X.dtype).swapaxes(1, 2),
    "transposed": lambda: np.empty((2, 3, 12, 9), X.dtype).swapaxes(2, 3),
    "every-other-row": lambda: spaced(X, -2),
    "every-other-column": lambda: spaced(X, -1),
    "part-of-larger": lambda: np.empty((4, 5, 11, 15), X.dtype)[1:3, 1:4, 1:10, 2:14],
}
operation = pytest.mark.parametrize("name", WITH_OUT)
SENTINEL = np.float32(-12345)


@operation
@pytest.mark.parametrize("kind", OUTS)
def test_out_of_any_layout(name: str, kind: str) -> None:
    expected = WITH_OUT[name](X)
    out = OUTS[kind]()
    out[...] = np.nan
    got = WITH_OUT[name](X, out=out)
    assert got is out
    assert_close(out, expected.astype(np.float64))


def bounds(view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The array a view was cut from, and which of its entries the view covers."""
    covered = np.zeros(view.base.shape, bool)
    covered[1:3, 1:4, 1:10, 2:14] = True
    return view.base, covered


@operation
def test_out_writes_nothing_beside_it(name: str) -> None:
    out = OUTS["part-of-larger"]()
    whole, covered = bounds(out)
    whole[...] = SENTINEL
    WITH_OUT[name](X, out=out)
    assert (whole[~covered] == SENTINEL).all()
    assert (whole[covered] != SENTINEL).all()


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("kind", OUTS)
def test_out_is_the_input(name: str, kind: str) -> None:
    expected = WITH_OUT[name](X)
    x = OUTS[kind]()
    x[...] = X
    assert WITH_OUT[name](x, out=x) is x
    assert_close(x, expected.astype(np.float64))
    x[...] = X
    alias = x[...]
    WITH_OUT[name](x, out=alias)
    assert_close(x, expected.astype(np.float64))


@pytest.mark.parametrize("name", ["linear", "attention", "flash_attention"])
def test_out_must_not_be_the_input(name: str) -> None:
    x = X.copy()
    with pytest.raises(ValueError, match=r"\bout\b"):
        WITH_OUT[name](x, out=x)
    np.testing.assert_array_equal(x, X)


@operation
def test_out_must_not_overlap(name: str) -> None:
    memory = normal((X.size + 12,))
    before = memory.copy()
    for shift in (1, 12):
        with pytest.raises(ValueError, match=r"\bout\b"):
            WITH_OUT[name](memory[: X.size].reshape(X.shape), out=memory[shift : X.size + shift].reshape(X.shape))
    with pytest.raises(ValueError, match=r"\bout\b"):
        WITH_OUT[name](memory[: X.size].reshape(X.shape), out=memory[: X.size].reshape(X.shape)[:, :, ::-1])
    np.testing.assert_array_equal(memory, before)


@operation
def test_out_beside_the_input_in_one_array(name: str) -> None:
    """Interleaved memory whose bounds overlap, but not one entry of which is shared, is fine."""
    memory = np.zeros((*X.shape[:2], 2 * X.shape[2], X.shape[3]), np.float32)
    x, out = memory[:, :, ::2], memory[:, :, 1::2]
    x[...] = X
    WITH_OUT[name](x, out=out)
    assert_close(out, WITH_OUT[name](X).astype(np.float64))
    np.testing.assert_array_equal(x, X)


BAD_OUTS: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "shape": (ValueError, lambda: np.empty((2, 3, 9, 13), np.float32)),
    "rank": (ValueError, lambda: np.empty((1, 2, 3, 9, 12), np.float32)),
    "broadcastable": (ValueError, lambda: np.empty((2, 3, 1, 12), np.float32)),
    "dtype": (TypeError, lambda: np.empty(X.shape, np.float64)),
    "integer": (TypeError, lambda: np.empty(X.shape, np.int32)),
    "byte-swapped": (TypeError, lambda: np.empty(X.shape, np.dtype("f4").newbyteorder("S"))),
    "list": (TypeError, lambda: X.tolist()),
    "string": (TypeError, lambda: "out"),
    "read-only": (ValueError, lambda: read_only(X)),
    "overlaps-itself": (
        ValueError,
        lambda: np.lib.stride_tricks.as_strided(np.empty(999, np.float32), X.shape, (0, 36, 4, 4), writeable=True),
    ),
    "unaligned": (ValueError, lambda: unaligned(X)),
}


@operation
@pytest.mark.parametrize("kind", BAD_OUTS)
def test_out_is_checked(name: str, kind: str) -> None:
    error, make = BAD_OUTS[kind]
    out = make()
    before = np.array(out, copy=True)
    with pytest.raises(error, match=r"\bout\b"):
        WITH_OUT[name](X, out=out)
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
    """The way a layer joins its heads: the output is written where ``(batch, seq, heads * d)`` needs it."""
    joined = np.full((2, 9, 36), np.nan, np.float32)
    hw.scaled_dot_product_attention(*CASE.arrays[:2], CASE.arrays[1], out=joined.reshape(2, 9, 3, 12).swapaxes(1, 2))
    expected = oracle.attention(*CASE.arrays[:2], CASE.arrays[1]).output
    assert_close(joined, expected.swapaxes(1, 2).reshape(2, 9, 36))


def test_out_with_dropout() -> None:
    out = np.empty(X.shape, X.dtype)
    got = hw.scaled_dot_product_attention(X, X, X, dropout=0.5, rng=0, out=out)[0]
    assert got is out
    np.testing.assert_array_equal(out, hw.scaled_dot_product_attention(X, X, X, dropout=0.5, rng=0)[0])


@pytest.mark.parametrize("name", WITH_OUT)
def test_nothing_is_written_into_inputs(name: str) -> None:
    x = X.copy()
    got = WITH_OUT[name](x)
    np.testing.assert_array_equal(x, X)
    assert got.flags.writeable and not np.may_share_memory(got, x)

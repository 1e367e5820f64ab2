"""A backend is handed arrays in the normal form that ``Backend`` promises, from any input.

The NumPy backend would take much more, and most processors read unaligned numbers without complaint, so results alone
do not show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from headwise._runtime import backend as _backend
from support import LAYOUTS, dtype_named, normal

pytestmark = pytest.mark.single_implementation


def contiguous_last(array: np.ndarray) -> bool:
    return array.shape[-1] == 1 or array.strides[-1] == array.itemsize


def one_or_full(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    return array.ndim == len(shape) and all(n in (1, full) for n, full in zip(array.shape, shape, strict=True))


def check(arrays: list[np.ndarray], dtype: np.dtype[Any]) -> None:
    for array in arrays:
        assert type(array) is np.ndarray
        assert array.dtype in (np.dtype(bool), dtype) and array.dtype.isnative
        assert array.flags.aligned
        assert all(stride % array.itemsize == 0 for stride in array.strides)


# Operations that read and write halves.
OF_HALVES = (
    "softmax", "log_softmax", "logsumexp", "attention", "attention_varlen", "apply_rope", "add_alibi", "linear",
    "pack_linear", "layer_normalization",
)  # fmt: skip


class Contract:
    """Stands before a backend and checks what passes."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.calls = 0
        self.dtypes: set[str] = set()
        self.biases: set[str] = set()  # dtypes of attention's

    def __getattr__(self, name: str) -> Callable[..., None]:
        def passed_on(*arguments: Any) -> Any:
            self.calls += 1
            lists = [x if isinstance(x, (list, tuple)) else [x] for x in arguments]
            arrays = [x for items in lists for x in items if isinstance(x, np.ndarray) and x.dtype != np.int64]
            dtype = arrays[0].dtype
            self.dtypes.add(dtype.name)
            if name in OF_HALVES and dtype.itemsize == 2:
                default = [0, 1, 2, 3] if name.startswith("attention") else [0, -1]
                some = {"linear": [0, 1, -1], "pack_linear": [0], "layer_normalization": [0, 1, 2, 3]}
                check([arrays[i] for i in some.get(name, default)], dtype)
                check([x for x in arrays if x.dtype != dtype], np.dtype(np.float32))
            else:
                assert dtype in (np.float32, np.float64)
                check(arrays, dtype)
            getattr(self, f"check_{name}")(*arguments)
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
        self, query: Any, key: Any, value: Any, output: Any, weights: Any, lse: Any, *rest: Any
    ) -> None:
        keep, bias, drop, slopes, sinks = rest[:5]
        batch, heads, query_len, head_dim = query.shape
        scores = (batch, heads, query_len, key.shape[2])
        assert key.shape[::3] == (batch, head_dim) and heads % key.shape[1] == 0
        assert value.shape[:3] == key.shape[:3] and output.shape == (*scores[:3], value.shape[3])
        assert all(map(contiguous_last, (query, key, value, output)))
        assert weights is None or (weights.shape == scores and weights.flags.c_contiguous)
        assert lse is None or (lse.shape == scores[:3] and lse.flags.c_contiguous)
        for mask in (*keep, *bias, *(() if drop is None else (drop,))):
            assert one_or_full(mask, scores) and contiguous_last(mask)
        wide = np.float32 if query.itemsize == 2 else query.dtype
        assert all(mask.dtype == bool for mask in (*keep, *(() if drop is None else (drop,))))
        assert weights is None or weights.dtype == query.dtype
        assert all(one.dtype in (wide, query.dtype) for one in bias)
        self.biases.update(one.dtype.name for one in bias)
        assert lse is None or lse.dtype == wide
        for one in (slopes, sinks):
            assert one is None or (one.shape == (heads,) and one.dtype == wide and one.flags.c_contiguous)

    def check_attention_varlen(self, query: Any, key: Any, value: Any, output: Any, lse: Any, *rest: Any) -> None:
        *vectors, slopes, sinks, _, _, left, right, precision = rest
        heads, rows, head_dim = query.shape
        assert key.shape[2] == head_dim and heads % key.shape[0] == 0
        assert value.shape[:2] == key.shape[:2] and output.shape == (heads, rows, value.shape[2])
        assert all(map(contiguous_last, (query, key, value, output)))
        wide = np.float32 if query.itemsize == 2 else query.dtype
        assert lse is None or (lse.shape == (heads, rows) and lse.dtype == wide)
        for one in (slopes, sinks):
            assert one is None or (one.shape == (heads,) and one.dtype == wide and one.flags.c_contiguous)
        assert len(vectors) == 5
        for vector in vectors:
            assert vector.dtype == np.int64 and vector.dtype.isnative and vector.shape == vectors[0].shape
            assert vector.flags.c_contiguous and vector.flags.aligned
        for starts, lengths, size in ((*vectors[:2], rows), (*vectors[2:4], key.shape[1])):
            assert (starts >= 0).all() and (lengths >= 0).all() and (starts + lengths <= size).all()
        assert isinstance(left, int) and isinstance(right, int) and precision in ("highest", "high", "medium")

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

    def check_pack_linear(self, weight: np.ndarray, bias: Any, precision: str) -> None:
        assert weight.ndim == 2 and weight.itemsize in weight.strides and precision in ("highest", "high", "medium")
        assert bias is None or (bias.shape == weight.shape[1:] and bias.flags.c_contiguous)

    def check_layer_normalization(self, x: Any, gamma: Any, beta: Any, eps: float, out: Any) -> None:
        assert x.ndim == 2 and x.shape == out.shape and contiguous_last(x) and out.flags.c_contiguous
        assert gamma.shape == beta.shape == x.shape[1:] and gamma.flags.c_contiguous and beta.flags.c_contiguous
        assert isinstance(eps, float)


@pytest.fixture
def contract(monkeypatch: pytest.MonkeyPatch) -> Contract:
    contract = Contract(_backend.current())
    monkeypatch.setattr(_backend, "current", lambda: contract)
    return contract


X = normal((2, 3, 9, 12))
MASK, WEIGHT, ANGLES = normal((2, 3, 9, 9), 1), normal((12, 10), 2), normal((9, 6), 3)
STARTS = np.array([[0, 7], [2, 7], [3, 7]], ">i4")[:, 0]
OPERATIONS: dict[str, Callable[[Callable[[np.ndarray], np.ndarray]], Any]] = {
    "softmax": lambda lay: [hw.softmax(lay(X), axis) for axis in range(4)],
    "softmax-out": lambda lay: [hw.softmax(X, axis, out=lay(X * 0)) for axis in range(4)],
    "log_softmax": lambda lay: [hw.log_softmax(lay(X), axis) for axis in range(4)],
    "logsumexp": lambda lay: [hw.logsumexp(lay(X), axis) for axis in range(4)],
    "attention": lambda lay: hw.scaled_dot_product_attention(
        lay(X), lay(X), lay(X), lay(MASK > 0), bias=lay(MASK), key_padding_mask=lay(MASK[:, 0, 0] > 0), return_lse=True,
        alibi_slopes=lay(MASK[0])[:, 0, 0], sinks=lay(MASK[0])[:, 0, 0],
    ),
    "attention-dropout": lambda lay: hw.scaled_dot_product_attention(lay(X), lay(X), lay(X), lay(MASK), 0.5, rng=0),
    "attention-out": lambda lay: hw.flash_attention(X, X, X, out=lay(X * 0)),
    "attention-rank-3": lambda lay: hw.flash_attention(lay(X[0]), lay(X[0]), lay(X[0]), lay(MASK[0] > 0)),
    "attention-rank-5": lambda lay: hw.flash_attention(lay(X[None]), lay(X[None]), lay(X[None]), lay(MASK[None])),
    "attention-broadcast": lambda lay: hw.flash_attention(
        *[np.broadcast_to(lay(X[:1]), X.shape)] * 3, np.broadcast_to(lay(MASK[:, :, :, :1] > 0), MASK.shape),
        bias=np.broadcast_to(lay(MASK[:, :1]), MASK.shape),
    ),
    "varlen": lambda lay: hw.varlen_attention(
        lay(X[0]), lay(X[0]), lay(X[0]), STARTS, alibi_slopes=lay(MASK[0, 0])[:, 0], sinks=lay(MASK[0, 0])[:, 0],
        return_lse=True,
    ),
    "varlen-out": lambda lay: hw.varlen_attention(X[0], X[0], X[0], [0, 2, 3], out=lay(X[0] * 0)),
    "apply_rope": lambda lay: hw.apply_rope(lay(X), lay(ANGLES), lay(ANGLES)),
    "apply_rope-out": lambda lay: hw.apply_rope(X, ANGLES, ANGLES, out=lay(X * 0)),
    "apply_rope-rank-5": lambda lay: hw.apply_rope(lay(X[None]), lay(ANGLES[:, :1]), np.float32(0)),
    "add_alibi": lambda lay: hw.add_alibi(lay(X), lay(MASK[0])[:, 0, 0]),
    "add_alibi-out": lambda lay: hw.add_alibi(X, out=lay(X * 0)),
    "linear": lambda lay: hw.linear(lay(X), lay(WEIGHT), lay(WEIGHT)[0]),
    "linear-out": lambda lay: hw.linear(X, WEIGHT[:, :1].repeat(12, 1), out=lay(X * 0)),
    "pack_linear": lambda lay: hw.PackedLinear(lay(WEIGHT), lay(WEIGHT)[0])(lay(X)),
    "layer_normalization": lambda lay: [
        hw.layer_normalization(lay(X), *[lay(WEIGHT[: X.shape[axis]])[:, 0]] * 2, axis=axis) for axis in range(4)
    ],
    "layer_normalization-out": lambda lay: hw.layer_normalization(X, WEIGHT[:, 0], WEIGHT[:, 1], out=lay(X * 0)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_backend_gets_what_it_was_promised(contract: Contract, name: str, layout: str) -> None:
    if name.endswith("-out") and layout in ("unaligned", "byte-swapped", "read-only"):
        pytest.skip("refused as out=, see test_arrays.py")
    OPERATIONS[name](LAYOUTS[layout])
    assert contract.calls > 0


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint16"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if not name.endswith("-out")])
def test_backend_gets_one_floating_dtype(contract: Contract, name: str, dtype: str) -> None:
    OPERATIONS[name](lambda x: x.astype(dtype) if x.dtype != bool else x)
    assert contract.calls > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if not name.endswith(("-out", "rope-rank-5"))])
def test_backend_gets_halves_as_they_are(contract: Contract, name: str, dtype: str) -> None:
    OPERATIONS[name](lambda x: x.astype(dtype_named(dtype)))
    assert contract.dtypes == {dtype}
    assert contract.biases <= {dtype}

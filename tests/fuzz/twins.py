"""Twins: the same object on two backends."""

from __future__ import annotations

import copy
import pickle
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (registers the name "bfloat16")
import numpy as np
from hypothesis import strategies as st

import headwise as hw
from comparison import BF16_SPLIT_BOUNDS, assert_same, outcome
from implementations import PRESENT, choose
from strategies import ARBITRARY

Array = np.ndarray
#: Examples, calls and errors so far.
COUNTS: Counter[str] = Counter()
#: Messages begin with the name of an argument.
NAMED = re.compile(r"[a-zA-Z_][\w.]*(\[.*\])?: ", re.DOTALL)
NATIVE = [name for name in PRESENT if name != "numpy"]
TARGETS = st.sampled_from(NATIVE or ["numpy"])
SEEDS = st.integers(0, 2**16)
DTYPES = st.sampled_from(["float32", "float64", "float16", "bfloat16"])
DUPLICATES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda x, protocol=protocol: pickle.loads(pickle.dumps(x, protocol)) for protocol in (2, 5)),
]


def run(call: Callable[[], Any]) -> Any:
    """The outcome of a call, whose error is of a documented type."""
    result = outcome(call)
    COUNTS["calls"] += 1
    COUNTS["errors"] += isinstance(result, Exception)
    if isinstance(result, MemoryError):
        return MemoryError()  # its message may depend on the backend
    if isinstance(result, Exception):
        assert type(result) in (ValueError, TypeError), f"{result!r} is of no documented type"
        assert NAMED.match(str(result)), f"{result!r} names no argument"
    return result


class Twins:
    """An object for NumPy and its twin for a native target, on which each call must have the same outcome."""

    def __init__(self, native: str, make: Callable[[], Any]) -> None:
        COUNTS["examples"] += 1
        self.native = native
        self.numpy: Any = None
        self.other: Any = None
        self.error = None
        choose("numpy")
        self.numpy = run(make)
        choose(native)
        self.other = run(make)
        if isinstance(self.numpy, Exception) or isinstance(self.other, Exception):
            assert_same(self.other, self.numpy)
            self.error = self.numpy

    def call(self, function: Callable[[Any], Any], precision: Any = None) -> Any:
        """The outcome of ``function`` on the object of the native target, which is that on its twin."""
        bound = BF16_SPLIT_BOUNDS.get(self.native, {}).get(precision, 0.0) if isinstance(precision, str) else 0.0
        choose("numpy")
        expected = run(lambda: function(self.numpy))
        choose(self.native)
        result = run(lambda: function(self.other))
        assert_same(result, expected, bound)
        return result

    def replace(self, function: Callable[[Any], Any]) -> None:
        """Puts ``function`` of each object in its place."""
        choose("numpy")
        self.numpy = function(self.numpy)
        choose(self.native)
        self.other = function(self.other)

    @classmethod
    def paired(cls, *twins: Twins) -> Twins:
        """The objects of several twins as tuples."""
        pair = copy.copy(twins[0])
        pair.numpy, pair.other = tuple(one.numpy for one in twins), tuple(one.other for one in twins)
        return pair

    def duplicate(self) -> Twins:
        other = copy.copy(self)
        other.replace(copy.deepcopy)
        return other


def rows(shape: tuple[int, ...], seed: int, dtype: str = "float32") -> Array:
    """Normal numbers, in a layout that depends on the seed."""
    array = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)
    layout = seed % 5
    if layout == 1:
        array = np.asfortranarray(array)
    if layout == 2 and array.ndim:
        array = np.ascontiguousarray(array[::-1])[::-1]
    if layout == 3 and dtype != "bfloat16":
        array = array.astype(array.dtype.newbyteorder("S"))
    if layout == 4:
        array.flags.writeable = False
    return array


@np.errstate(all="ignore")
def cast(array: Array, dtype: str) -> Array:
    real = array.real if array.dtype.kind == "c" else array
    return real.astype("f8").astype(dtype)


def spoilt(old: Any, *, huge: bool = True) -> st.SearchStrategy[Any]:
    """Arbitrary objects, and of an array such as lack an axis or an entry or have another dtype, or with ``huge`` a
    view of 2^40 entries."""
    ways = [ARBITRARY]
    if isinstance(old, np.ndarray) and old.ndim and old.shape[0]:
        ways += [st.just(old[0]), st.just(old[..., :-1]), st.just(old[None]), st.just(old[1:])]
        ways += [st.sampled_from(["f2", "f4", "f8", "i8", "?", "c16"]).map(lambda dtype: cast(old, dtype))]
        ways += [st.just(np.broadcast_to(old[:1], (2**40, *old.shape[1:])))] * huge
    return st.one_of(ways)


def set_threads(count: int) -> None:
    hw.set_num_threads(count)

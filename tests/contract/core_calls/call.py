"""Arguments of a call as the core expects them, or spoilt."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from contract.core_calls.memory import MAX_BYTES, Slot

FLOATS = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
BOOL, INT8, UINT8, INT64 = np.dtype(bool), np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int64)
OTHERS = [np.dtype(t) for t in (np.uint8, np.int32, np.complex64, ">f4", "V2", object, "M8[s]", "f4,i4")]


class Call:
    """Draws the arguments of one call."""

    def __init__(self, seed: tuple[int, int], slots: list[Slot]) -> None:
        self.rng = np.random.default_rng(seed)
        self.slots = slots
        self.arrays: list[tuple[np.ndarray[Any, Any], Slot]] = []
        #: How likely each argument is to be spoilt; a quarter of the calls have none that is.
        self.spoil = self.rng.choice([0.0, 0.05, 0.15, 0.4])

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def spoilt(self) -> bool:
        return self.chance(self.spoil)

    def size(self) -> int:
        return int(self.rng.choice([0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65]))

    def pick(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def array(self, dtype: np.dtype[Any], *shape: int, optional: bool = False) -> Any:
        """An array as the core expects it, or a spoilt one."""
        if optional and self.chance(0.5):
            return None
        if not self.spoilt():
            return self.place(dtype, list(shape))
        kind = self.rng.integers(12)
        sizes = list(shape)
        if kind == 0:
            return self.pick(None, 3, "x", [[1.0]], object(), np.float32(1), b"1234")
        if kind == 1:
            return self.place(self.pick(*FLOATS, BOOL, INT64, *OTHERS), sizes)
        if kind == 2 and sizes:
            sizes.pop(self.rng.integers(len(sizes)))
        elif kind == 3:
            sizes.insert(self.rng.integers(len(sizes) + 1), self.size())
        elif kind == 4 and sizes:
            self.rng.shuffle(sizes)
        elif kind in (5, 6, 7) and sizes:
            axis = self.rng.integers(len(sizes))
            sizes[axis] = max(0, self.pick(0, 1, sizes[axis] - 1, sizes[axis] + 1, 2 * sizes[axis], self.size()))
        return self.place(dtype, sizes, kind)

    def place(self, dtype: np.dtype[Any], shape: list[int], kind: int = -1) -> np.ndarray[Any, Any]:
        """An array of random numbers in a slot of its own, at one of its ends."""
        if dtype.hasobject:
            return np.full(shape, None, dtype)
        strides = self.strides(dtype.itemsize, shape, kind) if math.prod(shape) else None
        reach = [] if strides is None else [s * (size - 1) for s, size in zip(strides, shape, strict=True)]
        before = -sum(r for r in reach if r < 0)
        extent = 0 if strides is None else before + sum(r for r in reach if r > 0) + dtype.itemsize
        if extent > MAX_BYTES - 8:
            return self.place(dtype, [min(size, 2) for size in shape], kind)
        slot = self.slots[len(self.arrays)]
        shift = int(self.rng.integers(1, 8)) if kind == 7 else 0  # not aligned
        start = shift if self.chance(0.3) else MAX_BYTES - extent - shift
        slot.used = slot.bytes[max(0, start - 256) : start + extent + 256]
        slot.used[:] = self.rng.integers(0, 256, slot.used.size, np.uint8)
        array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, slot.bytes, start + before, strides)
        if dtype == BOOL:
            array[...] = self.rng.random(shape) < 0.8
        elif dtype in FLOATS and self.chance(0.9):  # else any bits, NaN among them
            array[...] = self.rng.standard_normal(shape)
        if kind == 0:
            array.flags.writeable = False
        self.arrays.append((array, slot))
        return array

    def strides(self, itemsize: int, shape: list[int], kind: int) -> list[int]:
        order = self.rng.permutation(len(shape)) if kind == 8 else np.arange(len(shape))
        strides = [0] * len(shape)
        step = itemsize * (2 if kind == 9 else 1)
        for axis in reversed(order):
            strides[axis] = step
            step *= shape[axis] + (int(self.rng.integers(3)) if kind == 8 or self.chance(0.1) else 0)
        if kind == 10:
            for axis in range(len(shape)):
                if self.chance(0.5):
                    strides[axis] = self.pick(0, 0, -strides[axis], itemsize, strides[axis] // 2)
        elif kind == 11 and strides:
            strides[-1] = self.pick(0, -strides[-1], 2 * strides[-1])
        return strides

    def integers(self, numbers: np.ndarray[Any, Any]) -> Any:
        """An int64 array of ``numbers``, of which one may be far away."""
        array = self.array(INT64, len(numbers))
        if isinstance(array, np.ndarray) and array.shape == numbers.shape and array.dtype == INT64:
            writeable, array.flags.writeable = array.flags.writeable, True
            array[...] = numbers
            if array.size and self.spoilt():
                array[self.rng.integers(len(array))] = self.pick(-1, 70, 2**40, 2**63 - 1, -(2**63))
            array.flags.writeable = writeable
        return array

    def number(self, value: float) -> Any:
        if not self.spoilt():
            return value
        return self.pick(0.0, -1.0, 1e-40, 1e300, math.inf, math.nan, None, "1", 2**70, 1j)

    def integer(self, value: int) -> Any:
        if not self.spoilt():
            return value
        return self.pick(0, -1, -2, 2**31, 2**62, 2**63 - 1, -(2**63), 2**63, None, "1", 1.5, True)

    def precision(self) -> Any:
        return (
            self.pick("", "lowest", None, b"high", "\0", 3) if self.spoilt() else self.pick("highest", "high", "medium")
        )

    def tuple(self, *fields: Any) -> Any:
        if not self.spoilt():
            return fields
        return self.pick(None, [*fields], fields[:-1], (*fields, None), fields[::-1], (), dict(enumerate(fields)))

    def float_type(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """A dtype, and that of its accumulator."""
        dtype = self.pick(*FLOATS)
        return dtype, FLOATS[0] if dtype.itemsize == 2 else dtype

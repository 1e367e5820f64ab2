"""Random calls of the native core, most of them wrong.

``PYTHONPATH=tests python -m contract.core_calls FIRST COUNT [NAME...]``. The core must answer each with a result or an
exception of :data:`ALLOWED`, whatever the shapes, dtypes and strides of its arguments, and write to no memory but the
entries of its outputs. Each array ends, or begins, at a page without access.

Each call is named on standard output before it is made, so the last line names a call that ends the process; with
``NUMBER 1 NAME show`` its arguments are printed. Calls take turns on the instruction sets.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from contract.core_calls.call import Call
from contract.core_calls.functions import FUNCTIONS, OUTPUTS, call_packed_linear, core
from contract.core_calls.memory import Slot

ALLOWED = (TypeError, ValueError, MemoryError)


def describe(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return f"{argument.dtype}{argument.shape} strides {argument.strides}" + " unaligned" * (
            not argument.flags.aligned
        )
    return tuple(map(describe, argument)) if isinstance(argument, tuple) else argument


def run(name: str, first: int, count: int, *, show: bool = False) -> None:
    generate = FUNCTIONS[name]
    function = call_packed_linear if name == "PackedLinear" else getattr(core(), name)
    slots = [Slot() for _ in range(40)]
    targets = core().list_targets()
    results = 0
    for number in range(first, first + count):
        os.write(1, f"{name} {number}\n".encode())
        core().set_target(targets[number % len(targets)])
        call = Call((list(FUNCTIONS).index(name), number), slots)
        arguments = generate(call)
        if show:
            os.write(1, "".join(f"{describe(a)}\n" for a in arguments).encode())
        outputs = [a for i in OUTPUTS.get(name, (-1,)) for a in _arrays(arguments[i])]
        before = [slot.used.copy() for _, slot in call.arrays]
        with np.errstate(all="ignore"):
            try:
                function(*arguments)
            except ALLOWED as error:
                if show:
                    os.write(1, f"{error!r}\n".encode())
            else:
                results += 1
        for (array, slot), content in zip(call.arrays, before, strict=True):
            if any(array is output for output in outputs) and array.flags.writeable:
                array[...] = np.ndarray(array.shape, array.dtype, content, offset_of(array, slot), array.strides)
            assert np.array_equal(slot.used, content), f"wrote outside its outputs: {describe(array)}"
    os.write(1, f"results: {name} {results}\n".encode())


def _arrays(argument: Any) -> list[Any]:
    return list(argument) if isinstance(argument, (tuple, list)) else [argument]


def offset_of(array: np.ndarray[Any, Any], slot: Slot) -> int:
    return int(array.__array_interface__["data"][0] - slot.used.__array_interface__["data"][0])


if __name__ == "__main__":
    for chosen in sys.argv[3:] or FUNCTIONS:
        if chosen != "show":
            run(chosen, int(sys.argv[1]), int(sys.argv[2]), show="show" in sys.argv)

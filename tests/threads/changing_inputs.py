"""Calls whose arguments another process, or another thread, changes: ``python changing_inputs.py ROUNDS NAME...``.

Runs in a process of its own. Everything that a call is given lies in memory shared with a process that rewrites it
during the call, between bytes that must not change; so does ``out``. A call may return torn values or refuse them in
the words of its own arguments.
"""

from __future__ import annotations

import inspect
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import headwise as hw
from calls import Case, Sizes, arrays_in
from operations import OPERATIONS, cases

Array = np.ndarray[Any, Any]
GUARD = 4096
SIZES = Sizes((1, 4), 2, 9, 17, 12, 10)
REFUSALS = (ValueError, TypeError, MemoryError)

#: The arguments of each public function and method that can lie in memory of the caller: all those that are arrays. The
#: functions of tests/operations, with all their array arguments, come from its table.
#:
#: - varlen_attention: cu_seqlens_q, cu_seqlens_k decide addresses: copied, checked, used.
#: - RotaryPositionalEmbedding, SinusoidalPositionalEncoding, LearnedPositionalEmbedding, rope_tables, layers: positions
#:   decide the row of a table: copied, checked, used.
#: - KVCache: lengths, length and indices decide rows: read once into Python's integers, checked, used.
#: - Shapes and strides of arrays, out= included: read once by the native core, checked against each other, used.
#: - All other arrays hold values only: they may tear, and are never part of an address.


def position_calls() -> dict[str, tuple[Array, Callable[[Array], Any], str]]:
    """For each name: an array of integers, a call that takes it, and the name of the argument."""
    x = np.ones((2, 1, 6, 8), np.float32)
    rotary, sinusoidal = hw.RotaryPositionalEmbedding(8, max_len=16), hw.SinusoidalPositionalEncoding(8, max_len=16)
    learned, layer = hw.LearnedPositionalEmbedding(16, 8, rng=0), hw.MultiHeadAttention(8, 1, rope=rotary, rng=0)
    frequencies, _ = hw.rope_parameters(8)
    cache = hw.KVCache(2, 1, capacity=16, head_dim=8)

    def restart() -> None:
        cache.reset()
        cache.append(x, x)

    def appended(lengths: Array) -> None:
        cache.reset()
        cache.append(x, x, lengths=lengths)

    def attended(lengths: Array) -> None:
        restart()
        cache.attend(x, lengths=lengths)

    def decoded(lengths: Array) -> None:
        cache.reset()
        layer(x[:, 0], cache=cache, lengths=lengths)

    def truncated(length: Array) -> None:
        restart()
        cache.truncate(length)

    def reordered(indices: Array) -> None:
        restart()
        cache.reorder(indices)

    six, two = np.arange(6), np.array([3, 6])
    return {
        "rotary": (six, lambda p: rotary(x, p), "positions"),
        "rotary-batch": (np.array([six, six + 3]), lambda p: rotary(x, p), "positions"),
        "rotary-one": (six[:1], lambda p: rotary(x[:, :, :1], p), "positions"),
        "sinusoidal": (six, lambda p: sinusoidal(x[:, 0], p), "positions"),
        "sinusoidal-rows": (six, sinusoidal.get_encoding, "positions"),
        "learned": (six, lambda p: learned(x[:, 0], p), "positions"),
        "layer": (six, lambda p: layer(x[:, 0], positions=p), "positions"),
        "rope-tables": (six, lambda p: hw.rope_tables(p, frequencies), "positions"),
        "cache-append": (two, appended, "lengths"),
        "cache-attend": (two, attended, "lengths"),
        "cache-layer": (two, decoded, "lengths"),
        "cache-truncate": (two, truncated, "length"),
        "cache-reorder": (np.array([1, 0]), reordered, "indices"),
    }


class Memory:
    """Shared memory, in which each array lies between bytes that must not change."""

    def __init__(self, size: int) -> None:
        self.bytes = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        self.guards: list[slice] = []
        self.used = 0

    def copy(self, x: Array) -> Array:
        start = -(-(self.used + GUARD) // 64) * 64
        self.guards += [slice(start - GUARD, start), slice(start + x.nbytes, start + x.nbytes + GUARD)]
        self.used = start + x.nbytes + GUARD
        for guard in self.guards[-2:]:
            self.bytes[guard] = 0xA5
        shared: Array = np.ndarray(x.shape, x.dtype, self.bytes, start)
        shared[...] = x
        return shared

    def check(self) -> None:
        assert all((self.bytes[guard] == 0xA5).all() for guard in self.guards), "memory beside an array was written"


def versions(x: Array) -> list[Array]:
    """The content of an argument, and contents that do not belong there."""
    rng = np.random.default_rng(0)
    if x.dtype.kind in "iu":
        hostile = [-1, 1 << 40, np.iinfo(np.int64).max, np.iinfo(np.int64).min, 7, 10**6]
        return [np.where(rng.random(x.shape) < 0.5, x, number).astype(x.dtype) for number in hostile]
    raw = rng.integers(0, 256, (3, x.nbytes), np.uint8)
    return [np.ndarray(x.shape, x.dtype, content.tobytes()) for content in raw]


@contextmanager
def rewritten(shared: Array) -> Iterator[None]:
    """While another process alternates between the content of ``shared`` and others."""
    good = shared.copy()
    contents = [content for bad in versions(good) for content in (bad, good)]
    writer = os.fork()
    if writer == 0:
        signal.alarm(600)
        raw, copies = shared.view(np.uint8) if shared.ndim else shared, [c.view(np.uint8) for c in contents]
        parent = os.getppid()
        while os.getppid() == parent:
            for content in copies:
                np.copyto(raw, content)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        shared[...] = good


def race(shared: Array, call: Callable[[], Any], rounds: int, names: set[str]) -> tuple[int, int]:
    """The numbers of calls that returned and that were refused, in words that begin with one of ``names``."""
    returned = refused = 0
    with rewritten(shared), np.errstate(all="ignore"):
        time.sleep(0.002)
        for _ in range(rounds):
            try:
                call()
                returned += 1
            except REFUSALS as error:
                refused += 1
                if not isinstance(error, MemoryError) and str(error).split(":")[0] not in names:
                    raise AssertionError(f"an error that does not begin with one of {names}") from error
    return returned, refused


def case_named(name: str) -> Case:
    return next(case for case in cases() if str(case) == name)


def race_operation(name: str, rounds: int, dtype: Any) -> None:
    case = case_named(name)
    arguments = case.arguments(SIZES)
    for key in ("cu_seqlens_q", "cu_seqlens_k"):
        if key in arguments:
            arguments[key] = np.array(arguments[key], np.int64)
    names = {*inspect.signature(case.operation.function).parameters, "out"}
    for argument in arrays_in(arguments):
        memory = Memory(1 << 20)
        value = arguments[argument]
        shared = memory.copy(np.ascontiguousarray(value.astype(dtype) if value.dtype == np.float32 else value))
        given = {k: v.astype(dtype) if getattr(v, "dtype", None) == np.float32 else v for k, v in arguments.items()}
        given[argument] = shared
        more = {}
        if case.operation.out:
            more["out"] = memory.copy(case.run(given)[0])
        counts = race(shared, lambda given=given, more=more: case.run(given, **more), rounds, names)
        memory.check()
        print(name, argument, *counts, flush=True)


def race_positions(name: str, rounds: int) -> None:
    content, call, argument = position_calls()[name]
    memory = Memory(1 << 16)
    shared = memory.copy(content.astype(np.int64))
    call(shared)
    counts = race(shared, lambda: call(shared), rounds, {argument})
    memory.check()
    print(name, argument, *counts, flush=True)


def race_layouts(name: str, rounds: int) -> None:
    """A thread gives the arrays of a call other shapes, strides and flags in place while they are read and written."""
    operation = OPERATIONS[name]
    case = Case(operation, "")
    arguments = case.arguments(SIZES)
    if "cu_seqlens_q" in arguments:
        arguments |= {key: np.array(arguments[key]) for key in ("cu_seqlens_q", "cu_seqlens_k")}
    memory = Memory(1 << 20)
    given = {k: memory.copy(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    more = {"out": memory.copy(case.run(given)[0])} if operation.out else {}
    arrays = [a for a in (*given.values(), *more.values()) if isinstance(a, np.ndarray)]
    shapes = [a.shape for a in arrays]
    ended = threading.Event()

    def change() -> None:
        rng = np.random.default_rng(0)
        while not ended.is_set():
            # Python switches threads at the end of a loop's body, so each body leaves one array changed or restored.
            i = int(rng.integers(len(arrays)))
            array, shape = arrays[i], shapes[i]
            changed = rng.random() < 0.3
            array.shape = (array.size,) if changed and rng.random() < 0.5 else shape[::-1] if changed else shape
            array.flags.writeable = bool(rng.random() < 0.9)

    returned = refused = 0
    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        with np.errstate(all="ignore"):
            for _ in range(rounds):
                try:
                    case.run(given, **more)
                    returned += 1
                except (*REFUSALS, IndexError):
                    refused += 1
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)
    memory.check()
    print(name, "layouts", returned, refused, flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        kind, _, rest = chosen.partition(":")
        if kind == "positions":
            race_positions(rest, int(sys.argv[1]))
        elif kind == "layouts":
            race_layouts(rest, int(sys.argv[1]))
        else:
            race_operation(rest, int(sys.argv[1]), np.dtype(kind))

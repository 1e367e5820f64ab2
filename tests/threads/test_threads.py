"""Threads: the same bits from any number of them, calls from many at once, and a fork in between."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from calls import Arguments, Case, Sizes, cast
from implementations import native_present
from operations import cases
from processes import run_native
from support import Array, assert_close, normal

QUERY, KEY, VALUE = normal((1, 4, 130, 16), 1), normal((1, 2, 600, 16), 2), normal((1, 2, 600, 24), 3)
ROWS, WEIGHT = normal((48, 960)), normal((960, 1500), 5)
PACKED_ROWS = [normal((9000, heads, 16), seed) for seed, heads in enumerate((4, 2, 2))]
LONG_STARTS = [0, 3, 6000, 6000, 9000]


def from_table() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls of every operation that are large enough to be shared out, which test_the_work_is_shared_out checks: each
    variant in float32, and the plain call of each named size in each dtype."""
    for case in cases(short=True):
        for size, sizes in case.operation.parallel.items():
            for dtype in ("float32", "float16", "float64"):
                if case.variant == "" or (size, dtype) == ("", "float32"):
                    name = "-".join([str(case), *filter(None, [size, dtype.removeprefix("float32")])])
                    yield name, call_of(case, sizes, dtype)


def call_of(case: Case, sizes: Sizes, dtype: str) -> Callable[[], Any]:
    """The call, whose arguments are drawn the first time: those of all calls take five seconds and 1 GB."""

    @cache
    def arguments() -> Arguments:
        return cast(case.arguments(sizes), dtype)

    return lambda: case.run(arguments())


WORK: dict[str, Callable[[], Any]] = dict(from_table()) | {
    "flash-causal-float64": lambda: hw.flash_attention(*float64(QUERY, KEY, VALUE), is_causal=True),
    "flash-causal-float16": lambda: hw.flash_attention(*float16(QUERY, KEY, VALUE), is_causal=True, return_lse=True),
    "varlen-one-row-each": lambda: hw.varlen_attention(PACKED_ROWS[0][:4], *PACKED_ROWS[1:], np.arange(5), LONG_STARTS),
    "varlen-few-and-many-rows": lambda: hw.varlen_attention(
        PACKED_ROWS[0][:151], *PACKED_ROWS[1:], [0, 2, 150, 150, 151], LONG_STARTS
    ),
    "dropout": lambda: hw.scaled_dot_product_attention(QUERY, KEY, VALUE, dropout=0.3, rng=0),
    "linear-few-rows-transposed": lambda: hw.linear(ROWS[:9], normal((1500, 960), 5).T),
    "linear-high": lambda: hw.linear(normal((480, 96)), normal((96, 1100), 5), normal((1100,), 6), precision="high"),
    "linear-packing": lambda: hw.PackedLinear(WEIGHT)(ROWS[:2]),
}


def float16(*arrays: Array) -> list[Array]:
    return [array.astype(np.float16) for array in arrays]


def float64(*arrays: Array) -> list[Array]:
    return [array.astype(np.float64) for array in arrays]


def assert_same_bits(one: Any, other: Any) -> None:
    for first, second in zip(*(x if isinstance(x, tuple) else (x,) for x in (one, other)), strict=True):
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("name", WORK)
def test_same_bits_for_any_number_of_threads(name: str) -> None:
    hw.set_num_threads(1)
    alone = WORK[name]()
    for threads in (2, 3, 4, 8):
        hw.set_num_threads(threads)
        assert hw.get_num_threads() == threads
        assert_same_bits(WORK[name](), alone)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_called_from_many_threads_at_once(threads: int) -> None:
    hw.set_num_threads(threads)
    expected = {name: work() for name, work in WORK.items()}
    barrier, problems = threading.Barrier(4), []

    def caller(number: int) -> None:
        try:
            barrier.wait(timeout=60)
            names = list(WORK)
            first = len(names) // 4 * number
            for name in names[first:] + names[:first]:
                assert_same_bits(WORK[name](), expected[name])
        except BaseException as problem:
            problems.append(problem)

    callers = [threading.Thread(target=caller, args=(number,), daemon=True) for number in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(timeout=300)
    assert not any(one.is_alive() for one in callers), "a caller hangs"
    assert not problems, problems


def test_errors_from_many_threads_at_once() -> None:
    barrier, refusals = threading.Barrier(8), []

    def caller() -> None:
        barrier.wait(timeout=60)
        for _ in range(50):
            try:
                hw.flash_attention(QUERY, KEY, VALUE[:, :, 1:])
            except ValueError as refusal:
                refusals.append(str(refusal))

    callers = [threading.Thread(target=caller, daemon=True) for _ in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(timeout=60)
    assert len(refusals) == 400 and len(set(refusals)) == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, if another test has loaded it
def test_fork_after_a_parallel_call() -> None:
    """libgomp hangs in a child that forks after a parallel region; with headwise the child and the parent compute."""
    hw.set_num_threads(4)
    before = {name: work() for name, work in WORK.items()}
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        for name, work in WORK.items():
            assert_same_bits(work(), before[name])
        sender.send("right")

    process = context.Process(target=child)
    process.start()
    try:
        sender.close()  # the child has its own; if the child ends without sending, the wait ends, too
        assert receiver.poll(300), "the child hangs"
        assert receiver.recv() == "right"
        process.join(30)
        assert process.exitcode == 0
    finally:
        if process.is_alive():
            process.kill()
    for name, work in WORK.items():
        assert_same_bits(work(), before[name])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not native_present(), reason="headwise has no native core here (headwise._core)")
@pytest.mark.single_implementation
def test_the_work_is_shared_out() -> None:
    """A child starts threads for each call; without threads the same bits would prove nothing."""
    serial = run_native("""
        hw.set_num_threads(1)
        from threads import test_threads
        hw.set_num_threads(4)
        def starts_none(name):
            before = tasks()
            test_threads.WORK[name]()
            return len(tasks() - before) < 2
        print([name for name in test_threads.WORK if wait(fork(lambda: starts_none(name)))])
    """)
    assert serial == "[]\n"


def test_number_of_threads_is_per_process() -> None:
    hw.set_num_threads(3)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(hw.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [3] and hw.config()["threads"] == 3


def test_more_threads_than_work() -> None:
    hw.set_num_threads(64)
    query = normal((1, 1, 3, 8))
    assert_close(hw.flash_attention(query, query, query), oracle.attention(query, query, query).output)
    assert_close(hw.softmax(query), oracle.softmax(query))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.single_implementation
def test_import_starts_no_thread_and_changes_no_environment() -> None:
    code = """
import os, numpy, random
numpy.ones((300, 300)) @ numpy.ones((300, 300))
environment, threads = dict(os.environ), len(os.listdir('/proc/self/task'))
state, python_state = numpy.random.get_state()[1].tobytes(), random.getstate()
settings = numpy.geterr(), numpy.get_printoptions()
import headwise
assert dict(os.environ) == environment
assert len(os.listdir('/proc/self/task')) == threads
assert numpy.random.get_state()[1].tobytes() == state and random.getstate() == python_state
assert (numpy.geterr(), numpy.get_printoptions()) == settings
tiny = numpy.float32(1e-40)
headwise.softmax(numpy.ones((64, 64), numpy.float32))
assert tiny / numpy.float32(2) > 0, "denormals are flushed"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

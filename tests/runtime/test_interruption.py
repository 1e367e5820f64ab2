"""Signals that arrive during long calls: the exception of a handler comes soon, and a handler that returns changes
nothing."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest

import headwise as hw
from calls import Case
from implementations import PROFILE
from operations import cases

pytestmark = [
    pytest.mark.above_operations,
    pytest.mark.skipif(sys.platform == "win32", reason="signal.setitimer is for Unix"),
]

ROUNDS = {"default": 6, "ci": 40}.get(PROFILE, 1000)

#: Seconds from a signal to its exception; bench/interruption.py measures about 0.06. A busy machine may take longer.
GENEROUS = 5.0


class Stop(Exception):  # noqa: N818 (as KeyboardInterrupt)
    pass


Handler = Callable[[Callable[[], None]], None]


@pytest.fixture
def on_signal() -> Iterator[Handler]:
    """Sets what a handler of SIGALRM does; no timer runs after the test. The garbage collector is off: Python ignores
    exceptions in its callbacks, such as JAX's."""
    before = signal.getsignal(signal.SIGALRM)
    gc.disable()

    def use(action: Callable[[], None]) -> None:
        def handler(_: int, __: FrameType | None) -> None:
            action()

        signal.signal(signal.SIGALRM, handler)

    yield use
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.enable()
    signal.signal(signal.SIGALRM, before)


def stop() -> None:
    raise Stop


def repeated(shape: tuple[int, ...]) -> np.ndarray:
    """Many rows in the memory of one."""
    return np.broadcast_to(np.linspace(-1, 1, shape[-1], dtype=np.float32), shape)


def many_tokens() -> Any:
    x = repeated((1, 8, 1 << 17, 64))
    return hw.flash_attention(x, x, x)


def many_sequences() -> Any:
    x, starts = repeated((1 << 19, 8, 64)), np.arange(0, (1 << 19) + 1, 1 << 16)
    return hw.varlen_attention(x, x, x, starts, starts)


def extension() -> Any:
    x = repeated((1, 8, 1 << 16, 64))
    return hw.KVCache(1, 8, 1 << 16, 64).extend(x, x, x)


def product() -> Any:
    return hw.linear(repeated((1 << 17, 4096)), np.ones((4096, 4096), np.float32))


def long_decode() -> Any:
    x = repeated((1, 1, 1 << 33, 64))
    return hw.flash_attention(x[:, :, :8], x, x)


def long_gemv() -> Any:
    return hw.linear(repeated((8, 1 << 22)), repeated((1 << 22, 1 << 16)))


#: Calls that take at least 10 s on a fast machine; those of NumPy take its memory only in part before the signal.
LONG = (many_tokens, many_sequences, extension, product)
#: NumPy would copy the repeated rows.
LONG_NATIVE = (long_decode, long_gemv)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("call", [*LONG, *LONG_NATIVE], ids=lambda call: call.__name__)
def test_a_long_call_is_left(call: Callable[[], Any], threads: int, implementation: str, on_signal: Handler) -> None:
    if implementation == "numpy" and (call in LONG_NATIVE or threads > 1):
        return
    hw.set_num_threads(threads)
    on_signal(stop)
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(Stop):
        call()
    assert time.perf_counter() - start < 0.2 + GENEROUS


def test_keyboard_interrupt_is_the_default(on_signal: Handler) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, shells have it ignored
    on_signal(lambda: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            many_tokens()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_returns_changes_nothing(
    rng: np.random.Generator, implementation: str, on_signal: Handler
) -> None:
    x = rng.standard_normal((1, 4, 300 if implementation == "numpy" else 2000, 64), np.float32)
    inner = rng.standard_normal((100, 64), np.float32)
    expected, inner_expected = hw.flash_attention(x, x, x), hw.linear(inner, inner.T)
    handled = []

    def compute() -> None:
        handled.append(hw.linear(inner, inner.T))
        if len(handled) < 20:
            signal.setitimer(signal.ITIMER_REAL, 0.01)

    on_signal(compute)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    calls = 0
    while calls < 3 or not handled:
        assert np.array_equal(hw.flash_attention(x, x, x), expected)
        calls += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert all(np.array_equal(result, inner_expected) for result in handled)


def test_a_thread_that_holds_the_gil_delays_no_signal_for_long(on_signal: Handler) -> None:
    done = threading.Event()

    def run_bytecode() -> None:
        while not done.is_set():
            sum(range(1000))

    other = threading.Thread(target=run_bytecode)
    other.start()
    on_signal(stop)
    start = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Stop):
            many_tokens()
    finally:
        done.set()
        other.join()
    assert time.perf_counter() - start < 0.2 + GENEROUS


def test_calls_of_other_threads_go_on(rng: np.random.Generator, on_signal: Handler) -> None:
    """Python runs handlers on the main thread only, and its exception ends the main thread's call."""
    x = rng.standard_normal((1, 4, 200, 64), np.float32)
    expected = hw.flash_attention(x, x, x)
    results: list[np.ndarray] = []
    other = threading.Thread(target=lambda: results.extend(hw.flash_attention(x, x, x) for _ in range(5)))
    on_signal(stop)
    other.start()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(Stop):
        many_tokens()
    other.join()
    assert len(results) == 5
    assert all(np.array_equal(result, expected) for result in results)


@pytest.mark.parametrize(
    "case", [case for case in cases(short=True, where=lambda o: "" in o.parallel) if case.variant == ""], ids=str
)
def test_signals_at_random_moments(case: Case, rng: np.random.Generator, on_signal: Handler) -> None:
    """The next call has the same bits, whatever an interrupted one has left behind."""
    arguments = case.arguments(case.operation.parallel[""])
    expected = [result.tobytes() for result in case.run(arguments)]
    on_signal(stop)
    interrupted = 0
    for _ in range(ROUNDS):
        try:
            # Again after a second, if Python has ignored the exception, as it does in callbacks of weak references.
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 3e-2), 1)
            while True:
                case.run(arguments)
        except Stop:
            signal.setitimer(signal.ITIMER_REAL, 0)
            interrupted += 1
        assert [result.tobytes() for result in case.run(arguments)] == expected
    assert interrupted == ROUNDS

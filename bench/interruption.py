"""How long an interrupted call goes on: from the signal to the exception that its handler raises, as for Ctrl-C.

    python bench/interruption.py
    HEADWISE_TARGET=scalar python bench/interruption.py linear softmax
    HEADWISE_BACKEND=numpy python bench/interruption.py --signals 5

Each case is called again and again until a timer's signal arrives, at a random moment. A row gives the duration of a
call that is not interrupted (with --duration) and the longest of the delays, in seconds.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import headwise as hw

Call = Callable[[], Any]


class Interrupted(Exception):  # noqa: N818 (as KeyboardInterrupt)
    pass


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def attention() -> Call:
    x = normal(1, 8, 32768, 64)
    return lambda: hw.flash_attention(x, x, x)


def attention_weights() -> Call:
    x = normal(1, 2, 8192, 64)
    return lambda: hw.scaled_dot_product_attention(x, x, x)


def decode() -> Call:
    key = normal(1, 1, 1 << 20, 64)
    return lambda: hw.flash_attention(key[:, :, :8], key, key)


def few_queries() -> Call:
    key = normal(1, 1, 1 << 20, 64)
    return lambda: hw.flash_attention(key[:, :, :48], key, key)


def varlen() -> Call:
    x, starts = normal(65536, 8, 64), np.arange(0, 65537, 8192)
    return lambda: hw.varlen_attention(x, x, x, starts, starts)


def cache_extend() -> Call:
    x = normal(1, 8, 16384, 64)

    def call() -> None:
        hw.KVCache(1, 8, 16384, 64).extend(x, x, x)

    return call


def linear() -> Call:
    x = normal(8192, 8192)
    return lambda: hw.linear(x, x)


def gemv() -> Call:
    x, weight = normal(8, 8192), normal(8192, 16384)
    return lambda: hw.linear(x, weight)


def packing() -> Call:
    weight = normal(8192, 16384)
    return lambda: hw.PackedLinear(weight)


def softmax_rows() -> Call:
    x = normal(1 << 16, 1024)
    return lambda: hw.softmax(x, out=x)


def softmax_row() -> Call:
    x = normal(1 << 26)
    return lambda: hw.softmax(x, out=x)


def softmax_columns() -> Call:
    x = normal(1 << 20, 64)
    return lambda: hw.softmax(x, axis=0, out=x)


def layer_normalization() -> Call:
    x, ones = normal(1 << 16, 1024), np.ones(1024, np.float32)
    return lambda: hw.layer_normalization(x, ones, ones, out=x)


def rope() -> Call:
    x, angles = normal(1, 64, 16384, 64), normal(16384, 32)
    return lambda: hw.apply_rope(x, angles, angles, out=x)


def alibi() -> Call:
    scores = normal(1, 16, 2048, 2048)
    return lambda: hw.add_alibi(scores, out=scores)


CASES = (
    attention, attention_weights, decode, few_queries, varlen, cache_extend, linear, gemv, packing,
    softmax_rows, softmax_row, softmax_columns, layer_normalization, rope, alibi,
)  # fmt: skip


def raise_interrupted(*_: object) -> None:
    raise Interrupted


def delay(call: Call, before: float) -> float:
    """Seconds from a signal that arrives after ``before`` seconds to its exception."""
    due = time.perf_counter() + before
    try:
        signal.setitimer(signal.ITIMER_REAL, before)
        while True:
            call()
    except Interrupted:
        return time.perf_counter() - due


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(map(name, CASES))
    parser.add_argument("cases", nargs="*", help=f"parts of names, by default all of {known}")
    parser.add_argument("--signals", type=int, default=3, help="for each case")
    parser.add_argument("--duration", action="store_true", help="also measure a whole call, which may take minutes")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, raise_interrupted)
    rng = np.random.default_rng(0)
    config = hw.config()
    print(f"headwise {config['version']}, {config['target'] or 'NumPy'}, {hw.get_num_threads()} threads")
    print("| case | call | longest delay |\n| --- | ---: | ---: |")
    for case in CASES:
        if args.cases and not any(part in name(case) for part in args.cases):
            continue
        call, duration = case(), ""
        if args.duration:
            start = time.perf_counter()
            call()
            duration = f"{time.perf_counter() - start:.2f}"
        longest = max(delay(call, rng.uniform(0.1, 0.5)) for _ in range(args.signals))
        print(f"| {name(case)} | {duration} | {longest:.3f} |", flush=True)


def name(case: Callable[[], Call]) -> str:
    return case.__name__.replace("_", " ")


if __name__ == "__main__":
    main()

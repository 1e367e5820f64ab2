"""Looks for cliffs: prints every call that takes more than three times as long as its neighbour.

    python bench/sweep.py                 # about ten minutes; --operations softmax,linear, --target avx2, --factor 2

Every operation of the table tests/operations is timed over a grid of sizes, dtypes, layouts, options and values. The
neighbours of a call are the next smaller and larger size, by time for a unit of work; the same call in float32, with
contiguous arrays, without the option, and with ordinary values; and the same call on the NumPy backend, of which it may
not take longer at all. Calls below 20 microseconds are left out: they are mostly overhead.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the NumPy backend on one thread, as the core
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import numpy as np

import headwise as hw
from calls import Case, Sizes, cast, changed, numbers
from headwise._runtime import backend
from operations import OPERATIONS
from support import LAYOUTS, dtype_named

Array = np.ndarray[Any, Any]
Families = dict[str, list[Sizes]]

_SAMPLE = 0.002  # seconds of calls in a sample
_SAMPLES = 5
_LEAST = 20e-6  # seconds

_DTYPES = ("float64", "float16", "bfloat16")
_LAYOUTS = ("fortran", "heads-inside", "every-other-row", "every-other-column", "unaligned", "byte-swapped")
_WIDTHS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 100, 255, 1000, 4096, 4097, 16384)


def _scattered(special: float) -> Callable[[Array], Array]:
    """``special`` in 1 % of the entries."""

    def scatter(x: Array) -> Array:
        if x.dtype.kind in "biu":
            return x
        return np.where(np.random.default_rng(0).random(x.shape) < 0.01, special, x).astype(x.dtype)

    return scatter


_VALUES: dict[str, Callable[[Array], Array]] = {
    "nan": _scattered(math.nan),
    "inf": _scattered(math.inf),
    "zero": lambda x: np.zeros_like(x),
    "subnormal": lambda x: x if x.dtype.kind in "biu" else x * np.finfo(x.dtype).tiny,
    "large": lambda x: x if x.dtype.kind in "biu" else x * 100,
}


class Point(NamedTuple):
    """A call of the grid."""

    operation: str
    family: str
    size: int  # index in the family
    dtype: str = "float32"
    layout: str = "contiguous"
    variant: str = ""
    values: str = "normal"


def families(operation: str) -> Families:
    """Sizes of calls of one operation, next to each other where they are neighbours."""
    if operation in ("linear", "packed_linear"):
        rows = [Sizes((), 1, r, 1, *2 * [math.isqrt(2**24 // r)]) for r in (1, 2, 4, 8, 9, 16, 17, 32, 64, 256, 4096)]
        return {
            "rows": rows,
            "in_features": [Sizes((), 1, 512, 1, n, 256) for n in (1, 2, 4, 8, 16, 17, 32, 64, 256)],
            "out_features": [Sizes((), 1, 512, 1, 256, n) for n in (1, 2, 4, 8, 16, 17, 32, 64, 256)],
        }
    if "attention" in operation:
        few = (1, 2, 4, 6, 8, 9, 12, 16, 17, 24, 32, 64, 128, 256, 512)
        dims = (1, 2, 4, 8, 16, 17, 32, 64, 80, 128, 256)
        found = {
            "queries": [Sizes((1, 4), 4, n, 2**17 // n, 64, 64) for n in few],
            "head_dim": [Sizes((1, 4), 4, 256, 256, n, n) for n in dims],
            "grouped": [Sizes((1, 8), heads, 4, 2048, 64, 64) for heads in (8, 4, 2, 1)],
        }
        if operation != "varlen_attention":
            found["batch"] = [Sizes((2**12 // n, 1), 1, n, n, 8, 8) for n in (1, 2, 4, 8, 16, 32, 64)]
        return found
    widths = [w for w in _WIDTHS if operation != "apply_rope" or w % 2 == 0]
    return {"width": [Sizes((8,), 8, max(1, 2**14 // w), w, w, w) for w in widths]}


def work(operation: str, s: Sizes) -> float:
    """Units of work of a call. A row costs as much as some more keys, or columns."""
    lead = math.prod(s.lead)
    if operation in ("linear", "packed_linear"):
        return (s.queries + 4) * (s.head_dim + 16) * (s.value_dim + 16)
    if "attention" in operation:
        heads = s.heads if operation == "varlen_attention" else lead
        rows = heads * (s.queries + s.keys)
        return heads * s.queries * s.keys * (s.head_dim + s.value_dim + 64) + 4096 * rows
    return lead * s.queries * (s.head_dim + 16)


def points(operation: str) -> Iterator[Point]:
    """Every size in every dtype; every layout, option and set of values at two sizes."""
    variants = OPERATIONS[operation].variants
    for family, sizes in families(operation).items():
        for i in range(len(sizes)):
            point = Point(operation, family, i)
            yield point
            yield from (point._replace(dtype=dtype) for dtype in _DTYPES)
            # Axes are sizes in another direction.
            yield from (
                point._replace(variant=v, dtype=d) for v in variants if "axis" in v for d in ("float32", "float16")
            )
            if i in (len(sizes) // 3, len(sizes) - 1):
                yield from (point._replace(layout=layout) for layout in _LAYOUTS)
                yield from (point._replace(variant=v) for v in variants if v and "axis" not in v)
                yield from (point._replace(values=values) for values in _VALUES)


def prepare(point: Point) -> Callable[[], Any]:
    """The call."""
    case = Case(OPERATIONS[point.operation], point.variant)
    arguments = cast(
        case.arguments(families(point.operation)[point.family][point.size], numbers), dtype_named(point.dtype)
    )
    if point.values != "normal":
        arguments = changed(arguments, _VALUES[point.values])
    if point.layout != "contiguous":
        arguments = changed(arguments, lambda x: LAYOUTS[point.layout](x) if x.ndim > 1 else x)
    return lambda: case.run(arguments)


def seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """The least time of a call in a few samples."""
    call()
    start = clock()
    call()
    count = max(1, math.ceil(_SAMPLE / max(1e-7, clock() - start)))
    samples = []
    for _ in range(_SAMPLES):
        start = clock()
        for _ in range(count):
            call()
        samples.append((clock() - start) / count)
    return min(samples)


def neighbours(point: Point) -> Iterator[tuple[Point, str]]:
    if point.dtype != "float32":
        yield point._replace(dtype="float32"), "in float32"
    if point.layout != "contiguous":
        yield point._replace(layout="contiguous"), "with contiguous arrays"
    if point.variant and "axis" not in point.variant:
        yield point._replace(variant=""), f"without {point.variant}"
    if point.values != "normal":
        yield point._replace(values="normal"), "with ordinary values"
    if point.layout == "contiguous" and point.values == "normal":
        yield point._replace(size=point.size - 1), "at the size before"
        yield point._replace(size=point.size + 1), "at the next size"


def describe(point: Point) -> str:
    s = families(point.operation)[point.family][point.size]
    shape = f"x {s.rows}"
    if "linear" in point.operation:
        shape = f"x {s.rows} weight {(s.head_dim, s.value_dim)}"
    elif "attention" in point.operation:
        shape = f"query {s.rows} key {(*s.kv_lead, s.keys, s.head_dim)}"
    options = [point.dtype, point.layout, point.variant, point.values]
    return " ".join([point.operation, shape, *(o for o in options if o not in ("", "contiguous", "normal"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="names, separated by commas")
    parser.add_argument("--factor", type=float, default=3.0, help="of the time of a neighbour (default: 3)")
    parser.add_argument("--target", help="instruction set")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    hw.set_num_threads(args.threads)
    backends = [hw.config()["backend"]]
    if backends == ["native"]:
        backends.append("numpy")
        if args.target:
            hw.set_target(args.target)
    # The processor's time of this thread: another program on the machine changes little.
    clock = time.thread_time if args.threads == 1 else time.perf_counter

    found = count = 0
    for operation in args.operations.split(","):
        times: dict[str, dict[Point, float]] = {name: {} for name in backends}
        for point in dict.fromkeys(points(operation)):
            call = prepare(point)
            for name in backends:
                backend.use(name)
                times[name][point] = seconds(call, clock)
            backend.use(backends[0])
        for name in backends:
            for point, slowdown, than in slow(times, name, args.factor):
                print(
                    f"{name}: {describe(point)}: {times[name][point] * 1e3:.3f} ms, {slowdown:.1f} times {than}",
                    flush=True,
                )
                found += 1
            count += len(times[name])
    print(f"{found} of {count} calls are slow")


def slow(times: dict[str, dict[Point, float]], name: str, factor: float) -> Iterator[tuple[Point, float, str]]:
    """The points that are slow beside a neighbour, with the largest slowdown, and beside which."""
    for point, time_of_point in times[name].items():
        if time_of_point < _LEAST:
            continue
        sizes = families(point.operation)[point.family]
        worst, than = factor, ""
        for neighbour, words in neighbours(point):
            if neighbour in times[name]:
                units = work(point.operation, sizes[point.size]) / work(point.operation, sizes[neighbour.size])
                slowdown = time_of_point / (times[name][neighbour] * units)
                if slowdown > worst:
                    worst, than = slowdown, words
        if than:
            yield point, worst, than
        elif name == "native" and time_of_point > 1.1 * times["numpy"][point]:
            yield point, time_of_point / times["numpy"][point], "on the NumPy backend"


if __name__ == "__main__":
    main()

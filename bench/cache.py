"""Time of a decoding step with `headwise.KVCache`, and with concatenated arrays, as a Markdown table; and of attention
to caches that store keys and values in 16 or 8 bits beside float32 queries, or the errors of such caches.

python bench/cache.py
python bench/cache.py --storage --lengths 32768 --head-dim 128 --threads 2
python bench/cache.py --errors --lengths 64,1000,4000 --head-dim 128 --seeds 100
python bench/cache.py --lengths 1024,8192 --heads 32 --kv-heads 32 --head-dim 128 --dtype float16 --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from compare import positive

import headwise
from comparison import environment

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]

_ROUNDS = 15
_SAMPLE = 2e-3  # seconds; a sample consists of as many calls as take this long together


def main() -> None:
    args = make_parser().parse_args()
    if args.threads:
        headwise.set_num_threads(args.threads)
    facts = environment.describe([], [], headwise.get_num_threads())
    print(f"{facts.cpu}; {facts.system}; headwise {headwise.__version__}, {facts.target}, {facts.threads} threads.")
    if args.storage or args.errors:
        (print_storage if args.storage else print_errors)(args)
        return
    shape = f"{args.heads} heads, {args.kv_heads} key/value heads, head_dim {args.head_dim}"
    print(f"{shape}, {args.dtype}; microseconds per token.\n")
    for warning in environment.warnings(facts):
        print(warning)
    print("| tokens before | append | append to a ring | extend | extend of a ring | np.concatenate and attention |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for length in args.lengths:
        times = time_rounds(steps(args, length))
        print(f"| {length} |", " | ".join(f"{seconds * 1e6:.1f}" for seconds in times), "|")


def print_storage(args: argparse.Namespace) -> None:
    """Decode attention, one query, to float32 caches and to those in fewer bits, with the ratio of the times."""
    shape = f"{args.heads} heads, {args.kv_heads} key/value heads, head_dim {args.head_dim}"
    print(f"{shape}, one float32 query; milliseconds, and float32's divided by them (medians).\n")
    dtypes = {"float32": np.float32, **storage_dtypes()}
    print("| tokens |", " | ".join(dtypes), "|\n| ---: |", "---: |" * len(dtypes))
    for length in args.lengths:
        rng = np.random.default_rng(0)
        query = rng.standard_normal((1, args.heads, 1, args.head_dim), dtype=np.float32)
        rows = rng.standard_normal((2, 1, args.kv_heads, length, args.head_dim), dtype=np.float32)
        caches = [headwise.KVCache(1, args.kv_heads, length, args.head_dim, dtype=dtype) for dtype in dtypes.values()]
        for cache in caches:
            cache.append(*rows)
        times = time_rounds([partial(cache.attend, query) for cache in caches])
        cells = (f"{seconds * 1e3:.2f} ({times[0] / seconds:.2f})" for seconds in times)
        print(f"| {length} |", " | ".join(cells), "|")


def print_errors(args: argparse.Namespace) -> None:
    """Errors of attention to caches in fewer bits, against float64, relative to the largest output of the seed."""
    print(f"{args.heads} heads, {args.kv_heads} key/value heads, head_dim {args.head_dim}, {args.seeds} seeds, unit")
    print("variance: median and maximum of the largest error, and of the root mean square, in %.\n")
    dtypes = storage_dtypes()
    print("| tokens |", " | ".join(dtypes), "|\n| ---: |", "---: |" * len(dtypes))
    for length in args.lengths:
        errors: dict[str, list[tuple[float, float]]] = {name: [] for name in dtypes}
        for seed in range(args.seeds):
            rng = np.random.default_rng(seed)
            query = rng.standard_normal((1, args.heads, 1, args.head_dim), dtype=np.float32)
            rows = rng.standard_normal((2, 1, args.kv_heads, length, args.head_dim), dtype=np.float32)
            exact = headwise.flash_attention(*(a.astype(np.float64) for a in (query, *rows)))
            for name, dtype in dtypes.items():
                cache = headwise.KVCache(1, args.kv_heads, length, args.head_dim, dtype=dtype)
                cache.append(*rows)
                error = (cache.attend(query) - exact) / np.abs(exact).max()
                errors[name].append((np.abs(error).max(), np.sqrt(np.square(error).mean())))
        cells = []
        for pairs in errors.values():
            largest, square = zip(*((100 * a, 100 * b) for a, b in pairs), strict=True)
            shown = (statistics.median(largest), max(largest), statistics.median(square), max(square))
            cells.append("{:.2f}, {:.2f}; {:.3f}, {:.3f}".format(*shown))
        print(f"| {length} |", " | ".join(cells), "|")


def storage_dtypes() -> dict[str, Any]:
    dtypes: dict[str, Any] = {"float16": np.float16, "int8": "int8"}
    try:
        import ml_dtypes  # optional

        dtypes["bfloat16"] = ml_dtypes.bfloat16
    except ModuleNotFoundError:
        print("bfloat16: left out, it needs the package ml_dtypes\n")
    return dtypes


def steps(args: argparse.Namespace, length: int) -> list[Callable[[], object]]:
    """One call per column, each beginning with ``length`` tokens; the ring is full and discards a token per call."""
    rng = np.random.default_rng(0)

    def normal(heads: int, rows: int) -> Array:
        return rng.standard_normal((1, heads, rows, args.head_dim), dtype=np.float32).astype(args.dtype)

    keys, values = normal(args.kv_heads, length), normal(args.kv_heads, length)
    query, key, value = normal(args.heads, 1), normal(args.kv_heads, 1), normal(args.kv_heads, 1)
    cache, ring = (
        headwise.KVCache(1, args.kv_heads, capacity, args.head_dim, dtype=args.dtype, ring=capacity == length)
        for capacity in (2 * length, length)
    )
    for one in (cache, ring):
        one.append(keys, values)

    def append() -> None:
        cache.append(key, value)
        cache.truncate(length)

    def append_to_ring() -> None:
        ring.append(key, value)

    def extend() -> None:
        cache.extend(query, key, value)
        cache.truncate(length)

    def extend_ring() -> None:
        ring.extend(query, key, value)

    def concatenate() -> Array:
        all_keys, all_values = np.concatenate([keys, key], axis=2), np.concatenate([values, value], axis=2)
        output: Array = headwise.flash_attention(query, all_keys, all_values)
        return output

    return [append, append_to_ring, extend, extend_ring, concatenate]


def time_rounds(calls: list[Callable[[], object]]) -> list[float]:
    """Median seconds per call. Rounds are interleaved, so that a machine that slows down affects all calls."""
    counts = [max(1, round(_SAMPLE / measure(call, 1))) for call in calls]  # the first measurement includes warming up
    counts = [max(1, round(_SAMPLE / measure(call, count))) for call, count in zip(calls, counts, strict=True)]
    rounds = [[measure(call, count) for call, count in zip(calls, counts, strict=True)] for _ in range(_ROUNDS)]
    return [statistics.median(samples) for samples in zip(*rounds, strict=True)]


def measure(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=sizes, default=[512, 4096, 32768], help="tokens in the cache before the step")
    parser.add_argument("--heads", type=positive, default=32, help="query heads (%(default)s)")
    parser.add_argument("--kv-heads", type=positive, default=8, help="key and value heads (%(default)s)")
    parser.add_argument("--head-dim", type=positive, default=64, help="%(default)s")
    parser.add_argument("--dtype", choices=("float32", "float64", "float16"), default="float32", help="%(default)s")
    parser.add_argument("--storage", action="store_true", help="attention to caches of fewer bits instead of steps")
    parser.add_argument("--errors", action="store_true", help="errors of such caches instead of times")
    parser.add_argument("--seeds", type=positive, default=100, help="for --errors (%(default)s)")
    parser.add_argument("--threads", type=positive, help="default: the number that headwise chooses")
    return parser


def sizes(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


if __name__ == "__main__":
    main()

"""Causal attention over a sequence in files, on Ray, on Spark, or on a pool of threads or processes.

    pip install headwise ray        # or pyspark, with Java 17
    python examples/attention_on_schedulers.py ray
    python examples/attention_on_schedulers.py spark --tokens 65536 --chunk 8192

prints the time and the largest difference to one call of ``headwise.flash_attention``. A scheduler whose package is
not installed is left out, with the reason.

All schedulers run the same two functions. ``part`` computes the attention of one chunk of queries to one chunk of keys,
which it reads from memory-mapped files that all machines see, and returns its output and its log-sum-exp. ``merge``
combines two parts of the same queries: it is associative, so any reduction does (Rabe and Staats, "Self-attention Does
Not Need O(n^2) Memory", 2021, section 2). With equal chunks of queries and keys, a causal mask leaves whole chunks of
keys before those of the queries, and the chunk of the queries itself; chunks of keys behind it are no tasks.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial, reduce
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import headwise as hw

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array]  # output and log-sum-exp
Pair = tuple[int, int]  # the numbers of a chunk of queries and of a chunk of keys


class Sequence(NamedTuple):
    """Files query.npy, key.npy and value.npy of (heads, tokens, dim), in chunks of tokens."""

    folder: Path
    tokens: int
    chunk: int

    def read(self, name: str, n: int) -> Array:
        """Chunk ``n`` of a file; no other chunk is read."""
        array: Array = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return array[:, n * self.chunk : (n + 1) * self.chunk]

    def pairs(self) -> Iterator[Pair]:
        """The pairs of chunks of which some query sees some key."""
        for i in range(-(-self.tokens // self.chunk)):
            yield from ((i, j) for j in range(i + 1))


def part(sequence: Sequence, pair: Pair) -> Part:
    """The attention of chunk ``i`` of the queries to chunk ``j`` of the keys."""
    i, j = pair
    arrays = sequence.read("query", i), sequence.read("key", j), sequence.read("value", j)
    output, lse = hw.flash_attention(*arrays, is_causal=i == j, return_lse=True)
    return output, lse


def merge(a: Part, b: Part) -> Part:
    """The attention to the keys of both parts."""
    return hw.merge_attention((a[0], b[0]), (a[1], b[1]))


def on_pool(pool: Executor, sequence: Sequence) -> dict[int, Part]:
    pairs = list(sequence.pairs())
    results: dict[int, list[Part]] = {}
    for (i, _), found in zip(pairs, pool.map(partial(part, sequence), pairs), strict=True):
        results.setdefault(i, []).append(found)
    return {i: reduce(merge, parts) for i, parts in results.items()}


def on_threads(sequence: Sequence) -> dict[int, Part]:
    with ThreadPoolExecutor(2) as pool:
        return on_pool(pool, sequence)


def on_processes(sequence: Sequence) -> dict[int, Part]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return on_pool(pool, sequence)


def on_ray(sequence: Sequence) -> dict[int, Part]:
    """Parts stay in Ray's object store until they are merged, on the workers."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        remote_part, remote_merge = ray.remote(part), ray.remote(merge)
        merged: dict[int, Any] = {}
        for i, j in sequence.pairs():
            found = remote_part.remote(sequence, (i, j))
            merged[i] = remote_merge.remote(merged[i], found) if i in merged else found
        return dict(zip(merged, ray.get(list(merged.values())), strict=True))
    finally:
        ray.shutdown()


def on_spark(sequence: Sequence) -> dict[int, Part]:
    """Parts are values of the key ``i``, which Spark reduces, first within each partition."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers have the packages of this process
    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        pairs = session.sparkContext.parallelize(list(sequence.pairs()))
        return dict(pairs.map(lambda pair: (pair[0], part(sequence, pair))).reduceByKey(merge).collect())
    finally:
        session.stop()


# The function, and the package that it needs.
SCHEDULERS: dict[str, tuple[Callable[[Sequence], dict[int, Part]], str | None]] = {
    "threads": (on_threads, None),
    "processes": (on_processes, None),
    "ray": (on_ray, "ray"),
    "spark": (on_spark, "pyspark"),
}


def write_files(folder: Path, heads: int, tokens: int, dim: int) -> None:
    for seed, name in enumerate(("query", "key", "value")):
        array = np.random.default_rng(seed).standard_normal((heads, tokens, dim), dtype=np.float32)
        np.save(folder / f"{name}.npy", array)


def largest_difference(sequence: Sequence, results: dict[int, Part]) -> float:
    """The largest difference to one call with the whole sequence in memory."""
    arrays = (np.load(sequence.folder / f"{name}.npy") for name in ("query", "key", "value"))
    expected = hw.flash_attention(*arrays, is_causal=True)
    found = np.concatenate([results[i][0] for i in sorted(results)], axis=1)
    return float(np.abs(found - expected).max())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scheduler", choices=list(SCHEDULERS))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--chunk", type=int, default=2048)
    chosen = parser.parse_args(arguments)
    run, package = SCHEDULERS[chosen.scheduler]
    if package is not None and importlib.util.find_spec(package) is None:
        print(f"{chosen.scheduler}: left out, the package {package} is not installed: pip install {package}")
        return
    with tempfile.TemporaryDirectory() as folder:
        sequence = Sequence(Path(folder), chosen.tokens, chosen.chunk)
        write_files(sequence.folder, 4, chosen.tokens, 64)
        start = time.perf_counter()
        results = run(sequence)
        seconds = time.perf_counter() - start
        difference = largest_difference(sequence, results)
    parts = len(list(sequence.pairs()))
    print(
        f"{chosen.scheduler}: {parts} parts of {chosen.chunk} queries and keys in {seconds:.1f} s, "
        f"largest difference to one call {difference:.1e}"
    )


if __name__ == "__main__":
    main()

"""Attention over Dask arrays: each function beside one call of headwise, and a million keys in files.

python bench/chunked.py             both
python bench/chunked.py --keys N    the second with N keys
python bench/chunked.py --chunks 4  the first with 4 chunks of keys
python bench/chunked.py --processor-time   on one thread; for a machine that does other work
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dask
import dask.array as da
import numpy as np

import headwise as hw
import headwise.integrations.dask as hw_dask

CHUNK, DIM = 8192, 64


def compare(
    title: str, one: Callable[[], object], several: Callable[[], object], rounds: int, clock: Callable[[], float]
) -> None:
    """The medians of one call and of tasks of one worker, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, taken in zip((one, several), times, strict=True):
            start = clock()
            function()
            taken.append(clock() - start)
    a, b = map(statistics.median, times)
    print(f"| {title} | {a:.3f} s | {b:.3f} s | {a / b:.2f} |")


def overhead(chunks: int, rounds: int, clock: Callable[[], float]) -> None:
    """Queries of one chunk and keys of several, in tasks of one worker, and in one call."""
    rng = np.random.default_rng(0)
    query, d_output = rng.standard_normal((2, CHUNK, DIM), dtype=np.float32)
    key, value = rng.standard_normal((2, chunks * CHUNK, DIM), dtype=np.float32)
    arrays = query, key, value
    lazy = tuple(da.from_array(a, chunks=(CHUNK, DIM)) for a in arrays)
    results = hw.flash_attention(*arrays, return_lse=True)
    lazy_results = hw_dask.flash_attention(*lazy, return_lse=True)
    which = {"which": ("key_mass", "entropy")}
    packed, lazy_packed = ([a[:, None] for a in some] for some in (arrays, lazy))
    starts = [0, CHUNK // 2, CHUNK], [0, 5 * CHUNK // 2, chunks * CHUNK]
    work: dict[str, tuple[Callable[[], object], tuple[object, ...]]] = {
        "flash_attention": (lambda: hw.flash_attention(*arrays), lazy_results[:1]),
        "flash_attention_backward": (
            lambda: hw.flash_attention_backward(d_output, *arrays, *results),
            hw_dask.flash_attention_backward(d_output, *lazy, *results),
        ),
        "varlen_attention": (
            lambda: hw.varlen_attention(*packed, *starts), (hw_dask.varlen_attention(*lazy_packed, *starts),)
        ),
        "attention_statistics": (
            lambda: hw.attention_statistics(query, key, **which),
            hw_dask.attention_statistics(*lazy[:2], **which)[:2],
        ),
    }  # fmt: skip
    print(f"{CHUNK} queries, {chunks} x {CHUNK} keys, float32, {DIM} features\n")
    print("| function | one call | Dask, one worker | one call / Dask |\n| --- | --- | --- | --- |")
    for title, (one, collections) in work.items():
        compare(title, one, lambda collections=collections: dask.compute(*collections, num_workers=1), rounds, clock)


def long(keys: int, window: int = 4096) -> None:
    """As many queries as keys, causal, in a window, from memory-mapped files to one."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = []
        for seed, name in enumerate(("query", "key", "value")):
            file = np.lib.format.open_memmap(Path(folder) / name, "w+", np.float32, (keys, DIM))
            rng = np.random.default_rng(seed)
            for start in range(0, keys, CHUNK):
                file[start : start + CHUNK] = rng.standard_normal((min(CHUNK, keys - start), DIM), dtype=np.float32)
            file.flush()
            arrays.append(da.from_array(np.load(Path(folder) / name, mmap_mode="r"), chunks=(CHUNK, DIM)))
        output = np.lib.format.open_memmap(Path(folder) / "output", "w+", np.float32, (keys, DIM))
        start = time.perf_counter()
        da.store(hw_dask.flash_attention(*arrays, is_causal=True, window_size=(window, 0)), output)
        seconds = time.perf_counter() - start
        tail = [np.asarray(a[-2 * window :]) for a in arrays]
        expected = hw.flash_attention(*tail, is_causal=True, window_size=(window, 0))[-window:]
        worst = float(np.abs(output[-window:] - expected).max())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{keys} queries and keys, causal, window {window}: {seconds:.1f} s, peak memory {peak:.2f} GiB, "
        f"largest difference of the last rows to one call {worst:.1e}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=None, help="only the million keys in files, this number of them")
    parser.add_argument("--chunks", type=int, default=16, help="chunks of keys of the functions beside one call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--processor-time", action="store_true", help="of one thread, for a machine that does other work"
    )
    chosen = parser.parse_args()
    print(f"headwise {hw.__version__} ({hw.config()['target']}), dask {dask.__version__}, {os.cpu_count()} processors")
    if chosen.processor_time:
        hw.set_num_threads(1)
    if chosen.keys is None:
        overhead(chosen.chunks, chosen.rounds, time.process_time if chosen.processor_time else time.perf_counter)
    long(chosen.keys or 1_000_000)

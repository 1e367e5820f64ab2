"""Attention over Dask arrays: beside one call of headwise, and over a million keys in files.

python bench/chunked.py             both
python bench/chunked.py --keys N    the second with N keys
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np

import headwise as hw
from headwise.integrations.dask import flash_attention

CHUNK, DIM = 8192, 64


def overhead(chunks: int = 16, rounds: int = 5) -> None:
    """Queries of one chunk and keys of several, in tasks of one worker, and in one call."""
    rng = np.random.default_rng(0)
    query = rng.standard_normal((CHUNK, DIM), dtype=np.float32)
    key, value = rng.standard_normal((2, chunks * CHUNK, DIM), dtype=np.float32)
    lazy = flash_attention(*(da.from_array(a, chunks=(CHUNK, DIM)) for a in (query, key, value)))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, taken in zip(
            (lambda: hw.flash_attention(query, key, value), lambda: lazy.compute(num_workers=1)), times, strict=True
        ):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    one, several = map(statistics.median, times)
    print(f"{CHUNK} queries, {chunks} x {CHUNK} keys: one call {one:.3f} s, Dask {several:.3f} s, {one / several:.2f}")


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
        da.store(flash_attention(*arrays, is_causal=True, window_size=(window, 0)), output)
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
    parser.add_argument("--keys", type=int, default=None)
    chosen = parser.parse_args()
    print(f"headwise {hw.__version__} ({hw.config()['target']}), dask {dask.__version__}, {os.cpu_count()} processors")
    if chosen.keys is None:
        overhead()
    long(chosen.keys or 1_000_000)

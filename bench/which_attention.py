"""Error and time of sparse and linear attention beside dense attention, over lengths: the tables of which_attention.md.

    python bench/which_attention.py                       # measures 1,024 to 32,768 tokens, a few minutes
    python bench/which_attention.py --lengths 1024,4096   # some of them
    python bench/which_attention.py --write               # puts the tables into docs/which_attention.md
    OPENBLAS_NUM_THREADS=1 python bench/which_attention.py --processor-time --threads 1   # on a busy machine

Causal attention of 8 heads of 64 in float32. Calls take turns in one process; times are medians. An error is the root
mean square of the difference from dense attention, divided by that of its output, for three kinds of input:

- even: independent normal queries and keys of half size. Every query spreads its weight over all keys.
- local: weights fall with the distance, over some 20 tokens, and the first four keys draw a fifth of them.
- topics: segments of 64 tokens have a topic, and queries look for the segments of one topic, wherever they are.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import headwise as hw

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]

PAGE = Path(__file__).parents[1] / "docs" / "which_attention.md"
BEGIN, END = "<!-- tables of bench/which_attention.py -->", "<!-- end of the tables -->"
HEADS, DIM, WINDOW, GLOBAL, BLOCK, TOP, FEATURES = 8, 64, 512, 64, 128, 8, 256


class Input(NamedTuple):
    query: Array
    key: Array
    value: Array


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def even(n: int) -> Input:
    query, key, value = normal(np.random.default_rng(0), 3, 1, HEADS, n, DIM)
    return Input(query / 2, key / 2, value)


def local(n: int) -> Input:
    """Random Fourier features of positions: their products are about exp(-(distance / 50)^2 / 2)."""
    rng = np.random.default_rng(1)
    angles = np.arange(n)[:, np.newaxis] * rng.normal(0, 1 / 50, DIM // 2 - 1)
    positions = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query, key = np.zeros((2, 1, HEADS, n, DIM), np.float32)
    for x in (query, key):
        x[..., 2:] = 1.5 * positions + 0.5 * normal(rng, 1, HEADS, n, DIM - 2)
    query[..., 0], key[..., :4, 0] = 8, 8  # the first four keys
    return Input(query, key, normal(rng, 1, HEADS, n, DIM))


def topics(n: int) -> Input:
    rng, segments = np.random.default_rng(2), n // 64
    centres = normal(rng, HEADS, 16, DIM) * 1.2
    own, wanted = rng.integers(0, 16, (2, segments)).repeat(64, axis=1)
    query = centres[np.newaxis, :, wanted] + 0.5 * normal(rng, 1, HEADS, n, DIM)
    key = centres[np.newaxis, :, own] + 0.5 * normal(rng, 1, HEADS, n, DIM)
    return Input(query, key, normal(rng, 1, HEADS, n, DIM))


INPUTS = {"even": even, "local": local, "topics": topics}


def dense(q: Array, k: Array, v: Array) -> Array:
    return hw.flash_attention(q, k, v, is_causal=True)


def window(q: Array, k: Array, v: Array) -> Array:
    return hw.flash_attention(q, k, v, window_size=(WINDOW - 1, 0), is_causal=True)


@functools.lru_cache(maxsize=1)
def mask_of(n: int) -> hw.BlockMask:
    """Once for all calls of a length."""
    near = hw.BlockMask.window((WINDOW - 1, 0), n, n) | hw.BlockMask.global_tokens(GLOBAL, n, n)
    return near & hw.BlockMask.causal(n, n)


def block_mask(q: Array, k: Array, v: Array) -> Array:
    return hw.flash_attention(q, k, v, mask_of(q.shape[2]))


def top_blocks(q: Array, k: Array, v: Array) -> Array:
    """Proxy (products of the means of blocks) and mask are part of the call. A block of queries keeps its own keys."""
    n, blocks = q.shape[2], q.shape[2] // BLOCK
    means = [x.reshape(*x.shape[:2], blocks, BLOCK, DIM).mean(axis=3) for x in (q, k)]
    scores = means[0] @ means[1].swapaxes(2, 3)
    scores[..., np.triu(np.ones((blocks, blocks), bool), 1)] = -np.inf
    scores[..., np.eye(blocks, dtype=bool)] = np.inf
    mask = hw.BlockMask.top_k_blocks(scores, min(TOP, blocks), n, n, block_size=BLOCK)
    return hw.flash_attention(q, k, v, mask, is_causal=True)


def elu(q: Array, k: Array, v: Array) -> Array:
    return hw.linear_attention(q, k, v, is_causal=True)[0]


@functools.cache
def features() -> Any:
    return hw.performer_features(DIM, FEATURES, rng=0)


def performer(q: Array, k: Array, v: Array) -> Array:
    return hw.linear_attention(q, k, v, feature_map=features(), is_causal=True)[0]


METHODS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "dense": dense,
    f"window {WINDOW}": window,
    f"window + {GLOBAL} global": block_mask,
    f"top {TOP} blocks of {BLOCK}": top_blocks,
    "linear, elu + 1": elu,
    f"Performer, {FEATURES} features": performer,
}


def times_of(given: Input, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Medians in milliseconds."""
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(rounds):
        for name, call in METHODS.items():
            start = clock()
            call(*given)
            found[name].append(clock() - start)
    return {name: 1e3 * statistics.median(times) for name, times in found.items()}


def errors_of(given: Input) -> dict[str, float]:
    exact = dense(*given)
    size = float(np.sqrt(np.mean(np.square(exact, dtype=np.float64))))
    found = {}
    for name, call in METHODS.items():
        off = call(*given) - exact
        found[name] = float(np.sqrt(np.mean(np.square(off, dtype=np.float64)))) / size
    return found


def row(first: str, cells: list[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


def table(head: str, rows: dict[int, list[str]], names: list[str]) -> list[str]:
    lines = [row(head, names), row("---", ["---:"] * len(names))]
    return [*lines, *(row(f"{n:,}", cells) for n, cells in rows.items()), ""]


def measure(lengths: list[int], rounds: int, clock: Callable[[], float]) -> str:
    names = list(METHODS)
    times: dict[int, list[str]] = {}
    errors: dict[str, dict[int, list[str]]] = {kind: {} for kind in INPUTS}
    for n in lengths:
        given = local(n)
        errors_of(given)  # a first call of each
        found = times_of(given, max(3, rounds * 4096 // max(n, 4096)), clock)
        times[n] = [f"{ms:.3g}" if ms < 100 else f"{ms:,.0f}" for ms in found.values()]
        for kind, make in INPUTS.items():
            errors[kind][n] = [f"{error:.2g}" for error in list(errors_of(make(n)).values())[1:]]
        print(n, times[n], {kind: rows[n] for kind, rows in errors.items()}, flush=True)
    count = hw.get_num_threads()
    threads = f"{count} thread{'s' * (count > 1)}"
    machine = f"{hw.config()['target']}, {threads}, load {os.getloadavg()[0]:.1f} at the end"
    lines = [f"headwise {hw.__version__}, {machine}."]
    lines += [
        "",
        f"Milliseconds{' of processor time' if clock is time.process_time else ''}:",
        "",
        *table("tokens", times, names),
    ]
    for kind, rows in errors.items():
        lines += [f"Errors, {kind}:", "", *table("tokens", rows, names[1:])]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768")
    parser.add_argument("--rounds", type=int, default=9, help="up to 4,096 tokens; fewer above, at least 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="into docs/which_attention.md")
    parser.add_argument("--processor-time", action="store_true", help="of all threads of the process")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    hw.set_num_threads(options.threads)
    text = measure([int(n) for n in options.lengths.split(",")], options.rounds, clock)
    print(text)
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()

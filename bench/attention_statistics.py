"""Times of attention_statistics, beside flash_attention of the same queries and keys.

    python bench/attention_statistics.py                       # two threads, float32
    python bench/attention_statistics.py --lengths 8192 --rounds 9 --target avx2

All of a length's calls take turns in one process; times are medians. A ratio is a call's time by that of
flash_attention, which multiplies with the values as well.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from comparison.in_turn import medians

import headwise as hw

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADS, _DIM = 8, 64
_DEFAULTS = ("key_mass", "entropy", "max_weight", "top_k", "block_mass")
_WHICH = {
    "key mass": ("key_mass",),
    "mass, entropy": ("key_mass", "entropy"),
    "top 8 keys": ("top_k",),
    "block mass": ("block_mass",),
    "all five": _DEFAULTS,
}


def measure(length: int, rounds: int, is_causal: bool) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, _HEADS, length, _DIM), dtype=np.float32)
    output = np.empty_like(q)
    calls: dict[str, Callable[[], Any]] = {
        "attention": lambda: hw.flash_attention(q, k, v, is_causal=is_causal, out=output)
    }
    for name, which in _WHICH.items():
        calls[name] = lambda which=which: hw.attention_statistics(q, k, which=which, is_causal=is_causal)
    times = {name: 1e3 * seconds for name, seconds in medians(calls, rounds).items()}
    line = f"{length:7} {'causal' if is_causal else 'all':>7} {times['attention']:10.1f}"
    for name in _WHICH:
        line += f" {times[name]:9.1f} {times[name] / times['attention']:5.2f}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,4096,8192", help="queries and keys; 1024,4096,8192 by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", help="an instruction set of headwise")
    options = parser.parse_args()
    hw.set_num_threads(options.threads)
    if options.target:
        hw.set_target(options.target)
    print(f"headwise {hw.__version__}, {hw.config()['target']}, {options.threads} threads", end=", ")
    print(f"load {os.getloadavg()[0]:.1f}")
    print(f"1 x {_HEADS} heads x length x {_DIM}, float32, milliseconds, and ratios to attention\n")
    print(f"{'length':>7} {'keys':>7} {'attention':>10}" + "".join(f" {name:>15}" for name in _WHICH))
    for length in map(int, options.lengths.split(",")):
        for is_causal in (False, True):
            measure(length, options.rounds, is_causal)


if __name__ == "__main__":
    main()

"""Times of attention with block masks, beside dense attention of headwise and PyTorch with a dense mask.

    python bench/block_masks.py                          # all cases, two threads, float32
    python bench/block_masks.py --cases causal,documents --rounds 9 --threads 1

All of a case's calls take turns in one process; times are medians. `share` is that of the blocks that are kept, beside
those that the dense call of headwise computes. `gain` is that call's time by the time with the block mask, and `ideal`
the gain times the share: 1 if time is proportional to the blocks. PyTorch gets the mask as an array of bool. The
outputs of both are compared: one that differs is named, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import headwise as hw

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADS, _DIM = 8, 64


class Case(NamedTuple):
    name: str
    length: int
    build: Callable[[int], hw.BlockMask]
    causal: bool = False  # the dense call is causal
    torch: bool = False


def causal_window(n: int) -> hw.BlockMask:
    return hw.BlockMask.from_mod(lambda b, h, q, k: (k <= q) & ((q - k < 512) | (k < 64)), n, n)


def longformer(n: int) -> hw.BlockMask:
    return hw.BlockMask.window(256, n, n) | hw.BlockMask.global_tokens(64, n, n)


def bigbird(n: int) -> hw.BlockMask:
    blocks = -(-n // 128)
    random = np.random.default_rng(0).random((blocks, blocks))
    near = hw.BlockMask.from_mod(lambda b, h, q, k: abs(q // 128 - k // 128) <= 1, n, n)
    return near | hw.BlockMask.top_k_blocks(random, 3, n, n) | hw.BlockMask.global_tokens(128, n, n)


def dilated(n: int) -> hw.BlockMask:
    return hw.BlockMask.window(1024, n, n) & hw.BlockMask.strided(4, n, n)


def documents(n: int) -> hw.BlockMask:
    return hw.BlockMask.documents(np.repeat(np.arange(16), n // 16))


def prefix_lm(n: int) -> hw.BlockMask:
    return hw.BlockMask.prefix_lm(n // 4, n, n)


def neighbourhood(n: int) -> hw.BlockMask:
    """Of pixels at a distance of up to 7 in rows and columns, of an image of 128 columns."""
    return hw.BlockMask.from_mod(
        lambda b, h, q, k: (abs(q // 128 - k // 128) <= 7) & (abs(q % 128 - k % 128) <= 7), n, n
    )


def top_k(n: int) -> hw.BlockMask:
    blocks = -(-n // 128)
    scores = np.random.default_rng(0).random((1, _HEADS, blocks, blocks))
    return hw.BlockMask.top_k_blocks(scores, max(1, blocks // 8), n, n)


CASES = (
    Case("causal window 512 + 64 global", 16384, causal_window, causal=True),
    Case("documents, 16", 8192, documents, torch=True),
    Case("Longformer, window 256 + 64 global", 8192, longformer, torch=True),
    Case("BigBird, 3 + 3 random + 1 global blocks", 8192, bigbird, torch=True),
    Case("dilated window, every 4th of 1,024", 8192, dilated, torch=True),
    Case("prefix-LM, a quarter", 8192, prefix_lm, torch=True),
    Case("2-D neighbourhood, 15 x 15 of 64 x 128", 8192, neighbourhood, torch=True),
    Case("top-k blocks, 1 of 8, by head", 8192, top_k, torch=True),
)


def median_times(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(seen) for name, seen in times.items()}


def measure(case: Case, rounds: int, backward: bool) -> bool:
    n = case.length
    rng = np.random.default_rng(0)
    q, k, v, d = rng.standard_normal((4, 1, _HEADS, n, _DIM), dtype=np.float32)
    mask = case.build(n)
    calls: dict[str, Callable[[], Any]] = {
        "blocks": lambda: hw.flash_attention(q, k, v, mask),
        "dense": lambda: hw.flash_attention(q, k, v, is_causal=case.causal),
        "build": lambda: case.build(n),
    }
    close = True
    if case.torch:
        torch = _torch()
        tensors = [torch.from_numpy(x) for x in (q, k, v)]
        dense_mask = torch.from_numpy(mask.to_dense())
        calls["torch"] = lambda: torch.nn.functional.scaled_dot_product_attention(*tensors, dense_mask)
        close = np.allclose(calls["blocks"](), calls["torch"]().numpy(), atol=1e-5)
    if backward:
        output, lse = hw.flash_attention(q, k, v, mask, return_lse=True)
        dense_output, dense_lse = hw.flash_attention(q, k, v, is_causal=case.causal, return_lse=True)
        calls["backward"] = lambda: hw.flash_attention_backward(d, q, k, v, output, lse, mask=mask)
        calls["dense backward"] = lambda: hw.flash_attention_backward(
            d, q, k, v, dense_output, dense_lse, is_causal=case.causal
        )
    times = median_times(calls, rounds)
    share = mask.kept_blocks / (hw.BlockMask.causal(n, n).kept_blocks if case.causal else 1)
    gain = times["dense"] / times["blocks"]
    line = f"{case.name:42} {n:6} {100 * share:6.1f} % {times['blocks']:8.1f} {times['dense']:8.1f} {gain:6.1f}"
    line += f" {gain * share:6.2f} {times['build']:7.1f} {times['build'] / times['blocks']:6.3f}"
    line += f" {times['torch']:8.1f} {times['torch'] / times['blocks']:6.1f}" if case.torch else f" {'':15}"
    if backward:
        back = times["dense backward"] / times["backward"]
        line += f" {times['backward']:8.1f} {times['dense backward']:8.1f} {back:6.1f} {back * share:6.2f}"
    print(line + ("" if close else "  differs from PyTorch"), flush=True)
    return close


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        sys.exit("bench/block_masks.py: install torch, or name cases without it: --cases causal")
    torch.set_num_threads(hw.get_num_threads())
    return torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="comma-separated words of the cases' names; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backward", action="store_true", help="the backward pass as well")
    options = parser.parse_args()
    hw.set_num_threads(options.threads)
    print(f"headwise {hw.__version__}, {hw.config()['target']}, {options.threads} threads", end=", ")
    print(f"load {os.getloadavg()[0]:.1f}")
    print(f"1 x {_HEADS} heads x length x {_DIM}, float32, milliseconds\n")
    head = f"{'mask':42} {'length':>6} {'share':>8} {'blocks':>8} {'dense':>8} {'gain':>6} {'ideal':>6}"
    head += f" {'build':>7} {'/ call':>6} {'PyTorch':>8} {'ratio':>6}"
    print(head + (f" {'backward':>8} {'dense':>8} {'gain':>6} {'ideal':>6}" if options.backward else ""))
    words = [word for word in options.cases.lower().split(",") if word]
    chosen = [case for case in CASES if not words or any(word in case.name.lower() for word in words)]
    close = [measure(case, options.rounds, options.backward) for case in chosen]
    sys.exit(0 if all(close) else 1)


if __name__ == "__main__":
    main()

"""Time of attention with a relative bias, beside attention without one and PyTorch with the same bias as an array.

    python bench/relative_bias.py                     # 4 x 8 heads x 1,024 x 64, two threads, float32
    python bench/relative_bias.py --no-torch --rounds 31

`table` has one row of 2 M + 1 numbers for each head, as T5's; `rows` one for each query, as Shaw's. `dense` is the same
bias as an array of query_len x key_len, given to headwise's `bias=`. `values` has relative values, a vector for each
distance, and no bias. All calls take turns in one process; times are medians in milliseconds. `speed` is the time
without a bias by that of the call: 0.9 means that the bias costs a tenth. `PyTorch` is the time of its
`scaled_dot_product_attention` with the dense bias, which is made beforehand, by that of the call. Outputs are compared
first; one that differs is named, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from comparison.in_turn import medians

import headwise as hw

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {"4,8,1024,64": (4, 8, 1024, 64), "1,8,4096,64": (1, 8, 4096, 64)}
REACH = 128


def dense_bias(table: Any, length: int) -> Any:
    distances = np.arange(length) - np.arange(length)[:, np.newaxis]
    return np.ascontiguousarray(table[:, 0, distances.clip(-REACH, REACH) + REACH])


def measure(name: str, rounds: int, causal: bool, torch: Any) -> bool:
    rng = np.random.default_rng(0)
    shape = batch, heads, length, dim = SHAPES[name]
    q, k, v = rng.standard_normal((3, *shape), dtype=np.float32)
    table = rng.standard_normal((heads, 1, 2 * REACH + 1), dtype=np.float32)
    values = rng.standard_normal((2 * REACH + 1, dim), dtype=np.float32)
    rows = np.ascontiguousarray(np.broadcast_to(table, (heads, length, 2 * REACH + 1)))
    dense = dense_bias(table, length)

    def attention(**options: Any) -> Callable[[], Any]:
        return lambda: hw.flash_attention(q, k, v, is_causal=causal, **options)

    calls = {
        "none": attention(),
        "table": attention(relative_bias=table),
        "rows": attention(relative_bias=rows),
        "dense": attention(bias=dense),
        "values": attention(relative_values=values),
    }
    if torch is not None:
        tensors = [torch.from_numpy(x) for x in (q, k, v)]
        hidden = np.triu(np.full((length, length), -np.inf, np.float32), 1) if causal else np.float32(0)
        bias = torch.from_numpy(dense + hidden)[None].expand(batch, -1, -1, -1)
        calls["torch"] = lambda: torch.nn.functional.scaled_dot_product_attention(*tensors, bias).numpy()
    expected = calls["dense"]()
    close = {name: np.allclose(calls[name](), expected, atol=1e-5) for name in ("table", "rows", *list(calls)[5:])}
    times = {name: 1e3 * seconds for name, seconds in medians(calls, rounds).items()}
    print(f"\n{name}{', causal' if causal else ''}")
    for call, ms in times.items():
        ratio = f" {times['torch'] / ms:8.2f}" if torch is not None else ""
        print(f"{call:8} {ms:8.2f} {times['none'] / ms:6.2f}{ratio}{'' if close.get(call, True) else '  differs'}")
    return all(close.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4,8,1024,64", help=f"semicolon-separated, of {'; '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    hw.set_num_threads(options.threads)
    torch = None
    if not options.no_torch:
        try:
            import torch
        except ImportError:
            sys.exit("bench/relative_bias.py: install torch, or give --no-torch")
        torch.set_num_threads(options.threads)
    print(
        f"headwise {hw.__version__}, {hw.config()['target']}, {options.threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'bias':8} {'ms':>8} {'speed':>6}{'' if torch is None else '  PyTorch'}")
    names = [name.strip() for name in options.shapes.split(";")]
    close = [measure(name, options.rounds, causal, torch) for name in names for causal in (False, True)]
    sys.exit(0 if all(close) else 1)


if __name__ == "__main__":
    main()

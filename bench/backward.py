"""Times of attention's gradients with headwise and with PyTorch: the backward pass, and forward and backward together.

    python bench/backward.py                       # all cases, two threads, float32
    python bench/backward.py --cases causal,bias --rounds 9 --threads 1

Both libraries take turns in one process; times are medians. The ratio is PyTorch's time by headwise's. A gradient that
differs from PyTorch's by more than the tolerance is named, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import headwise as hw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Case(NamedTuple):
    name: str
    shape: tuple[int, int, int, int]  # batch, heads, length, head_dim
    causal: bool = False
    bias: bool = False  # learned, (batch, heads, length, length)
    dropout: float = 0.0
    window: int = 0  # keys that a query sees, its own included; 0: all
    dtype: str = "float32"


_SHAPES = ((1, 8, 1024, 64), (4, 8, 512, 64), (1, 16, 1024, 128), (1, 1, 4096, 64))
CASES = (
    *(
        Case(",".join(map(str, shape)) + (" causal" if causal else ""), shape, causal)
        for shape in _SHAPES
        for causal in (False, True)
    ),
    Case("1,8,1024,64 learned bias", (1, 8, 1024, 64), bias=True),
    Case("1,8,1024,64 dropout 0.1", (1, 8, 1024, 64), dropout=0.1),
    Case("1,8,8192,64 causal window 256", (1, 8, 8192, 64), causal=True, window=256),
    Case("1,8,1024,64 bfloat16", (1, 8, 1024, 64), dtype="bfloat16"),
)
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


class Headwise:
    """The operator with headwise."""

    def __init__(self, case: Case, arrays: Sequence[torch.Tensor]) -> None:
        self.arrays = [_as_numpy(x) for x in arrays]
        self.keywords: dict[str, Any] = {"is_causal": case.causal}
        if case.window:
            self.keywords["window_size"] = (case.window - 1, 0)
        if case.dropout:
            self.keywords |= {"dropout_rate": case.dropout, "rng": 0}
        self.wrt = ("query", "key", "value") + (("bias",) if case.bias else ())

    def forward(self) -> None:
        _, *rows = self.arrays[:4]
        bias = {"bias": self.arrays[4]} if len(self.arrays) > 4 else {}
        _, self.pullback = hw.vjp(hw.flash_attention, *rows, **bias, wrt=self.wrt, **self.keywords)

    def backward(self) -> Any:
        return self.pullback(self.arrays[0])


class PyTorch:
    """The operator with PyTorch."""

    def __init__(self, case: Case, arrays: Sequence[torch.Tensor]) -> None:
        self.d_output, self.leaves = arrays[0], [x.clone().requires_grad_() for x in arrays[1:]]
        self.case, self.mask = case, None
        if case.window:
            i, j = torch.arange(case.shape[2])[:, None], torch.arange(case.shape[2])
            self.mask = (j <= i) & (i - j < case.window)

    def forward(self) -> None:
        mask = self.leaves[3] if self.case.bias else self.mask
        causal = self.case.causal and mask is None
        self.output = F.scaled_dot_product_attention(
            *self.leaves[:3], attn_mask=mask, is_causal=causal, dropout_p=self.case.dropout
        )

    def backward(self) -> Any:
        return torch.autograd.grad(self.output, self.leaves, self.d_output, retain_graph=True)


def _as_numpy(x: torch.Tensor) -> Any:
    if x.dtype == torch.bfloat16:
        import ml_dtypes

        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def measure(case: Case, rounds: int) -> tuple[list[float], float]:
    """Medians of headwise's and PyTorch's backward pass and of both passes; the largest relative difference."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    arrays = [torch.randn(case.shape).to(dtype) for _ in range(4)]
    if case.bias:
        arrays.append(torch.randn((*case.shape[:2], case.shape[2], case.shape[2])))
    operators = (Headwise(case, arrays), PyTorch(case, arrays))
    for operator in operators:
        operator.forward()
    ours, theirs = (operator.backward() for operator in operators)
    difference = 0.0
    if not case.dropout:  # whose draws differ
        for a, b in zip(ours, theirs, strict=True):
            x, y = np.asarray(a, np.float64), b.double().numpy()
            difference = max(difference, float(np.abs(x - y).max() / np.abs(y).max()))

    def both(operator: Headwise | PyTorch) -> Callable[[], object]:
        return lambda: (operator.forward(), operator.backward())

    calls = [operator.backward for operator in operators] + [both(operator) for operator in operators]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, times, strict=True):
            time.sleep(0.002)  # threads of either library spin for a while after a call
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
    return [statistics.median(seconds) for seconds in times], difference


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="parts of names, separated by semicolons; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    hw.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    parts = [part for part in args.cases.split(";") if part] or [""]
    wrong = 0
    print(f"{args.threads} threads, load {os.getloadavg()[0]:.1f}; milliseconds, PyTorch / headwise")
    print(f"{'case':32}{'backward':>20}{'ratio':>7}{'both passes':>20}{'ratio':>7}{'GFLOP/s':>9}")
    for case in CASES:
        if not any(part in case.name for part in parts):
            continue
        (ours, theirs, ours_both, theirs_both), difference = measure(case, args.rounds)
        batch, heads, length, width = case.shape
        kept = (
            length * case.window - case.window * (case.window - 1) / 2
            if case.window
            else length * (length + 1) / 2
            if case.causal
            else length**2
        )
        print(
            f"{case.name:32}{1e3 * theirs:11.2f} / {1e3 * ours:6.2f}{theirs / ours:7.2f}"
            f"{1e3 * theirs_both:11.2f} / {1e3 * ours_both:6.2f}{theirs_both / ours_both:7.2f}"
            f"{10e-9 * batch * heads * kept * width / ours:9.0f}",
            flush=True,
        )
        if not (math.isfinite(difference) and difference <= _TOLERANCE[case.dtype]):
            wrong += 1
            print(f"  gradients differ by {difference:.1e}", file=sys.stderr)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())

"""Whether headwise, PyTorch and NumPy's BLAS, each with a pool of threads, starve each other in one process: medians of
milliseconds for a call, as a Markdown table.

python bench/pools.py
python bench/pools.py --seconds 5 --threads 4

headwise and PyTorch compute the same attention, NumPy a product of matrices. "alone": one call after another of the
same library. "rested": after a pause of 40 ms each, in which its threads fall asleep. "in turn": one call of each
library in every round, so that the threads of the one before may still be spinning. "beside …": two threads of Python,
one for each library, without a pause; two that share the processors fairly take about twice as long as alone. "least":
of the work that two of them did meanwhile, in time of calls alone, the share of who did less, beside whichever left it
the smallest: 50 % is fair, near 0 % is starved.

The last line names the libraries of OpenMP and BLAS that the process has loaded. PyTorch and a headwise that was
built here share that which was loaded first (``--torch-first``); one from a wheel has its own.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

if "--torch-first" in sys.argv and find_spec("torch"):
    import torch  # noqa: F401

import numpy as np
from compare import positive
from comparison import environment

import headwise

Call = Callable[[], object]


def main() -> None:
    args = make_parser().parse_args()
    if args.threads:
        headwise.set_num_threads(args.threads)
    facts = environment.describe([], [], headwise.get_num_threads())
    print(f"{facts.cpu}; {facts.system}; headwise {headwise.__version__}, {facts.target}, {facts.threads} threads.\n")
    for warning in environment.warnings(facts):
        print(warning)
    calls = make_calls(headwise.get_num_threads())
    for call in calls.values():
        call()
    alone = {name: statistics.median(take(call, args.seconds)) for name, call in calls.items()}
    rested = {name: statistics.median(take(call, args.seconds, pause=0.04)) for name, call in calls.items()}
    rounds = take_turns(calls, args.seconds)
    beside: dict[tuple[str, str], float] = {}
    least: dict[str, list[float]] = {name: [] for name in calls}
    for pair in itertools.combinations(calls, 2):
        samples = at_once([calls[name] for name in pair], args.seconds)
        done = [len(times) * alone[name] for name, times in zip(pair, samples, strict=True)]
        for one, other, times in zip(pair, pair[::-1], samples, strict=True):
            beside[one, other] = statistics.median(times)
            least[one].append(min(done) / sum(done))
    print("| | alone | rested | in turn |", " | ".join(f"beside {name}" for name in calls), "| least |")
    print("| --- |", " | ".join(["---:"] * (len(calls) + 4)), "|")
    for name in calls:
        others = [f"{beside[name, other] * 1e3:.2f}" if other != name else "" for other in calls]
        medians = (alone[name], rested[name], statistics.median(rounds[name]))
        numbers = [*(f"{seconds * 1e3:.2f}" for seconds in medians), *others]
        print(f"| {name} |", " | ".join(numbers), f"| {min(least[name], default=0.5):.0%} |")
    print(f"\nOpenMP and BLAS: {', '.join(loaded()) or 'not known'}")


def make_calls(threads: int) -> dict[str, Call]:
    query, key, value = (np.random.default_rng(n).standard_normal((1, 8, 512, 64), dtype=np.float32) for n in range(3))
    matrix = query.reshape(512, 512)
    calls: dict[str, Call] = {"headwise": lambda: headwise.flash_attention(query, key, value)}
    if find_spec("torch"):
        import torch

        torch.set_num_threads(threads)
        tensors = [torch.from_numpy(array) for array in (query, key, value)]
        calls["torch"] = lambda: torch.nn.functional.scaled_dot_product_attention(*tensors)
    else:
        print("PyTorch is not installed, and is left out.")
    calls["numpy"] = lambda: matrix @ matrix
    return calls


def take(call: Call, seconds: float, pause: float = 0) -> list[float]:
    """Seconds of each of the calls, at least three, that are made in so many."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def take_turns(calls: dict[str, Call], seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def at_once(calls: list[Call], seconds: float) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in calls]
    barrier = threading.Barrier(len(calls))

    def run(number: int) -> None:
        barrier.wait()
        times[number] = take(calls[number], seconds)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def loaded() -> list[str]:
    """Files of OpenMP's and BLAS's libraries in this process, where the system tells."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    files = {line.split()[-1] for line in lines if any(part in line for part in ("omp.so", "omp-", "openblas", "mkl"))}
    return sorted(file for file in files if file.startswith("/"))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="for each measurement (%(default)s)")
    parser.add_argument("--threads", type=positive, help="of each; by default as many as headwise takes by itself")
    parser.add_argument("--torch-first", action="store_true", help="import PyTorch before headwise")
    return parser


if __name__ == "__main__":
    main()

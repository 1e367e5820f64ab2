"""Shows how the thread pools of headwise, PyTorch and NumPy's BLAS slow each other down in one process.

The result is a Markdown table of median milliseconds per call.

python bench/pools.py
python bench/pools.py --seconds 5 --threads 4

headwise and PyTorch compute the same attention, NumPy a matrix product. The columns:

alone     calls of one library, one after another
rested    a pause of 40 ms before each call, in which the threads of the library fall asleep
rounds    one call of each library per round: the threads of the previous library may still be spinning
beside …  two Python threads, one per library, without pauses. A fair share of the processors doubles the time
share     two libraries run beside each other, and each one's work is counted as calls times its time alone. This is the
          smaller share of the work of the two, for the worst partner: 50 % is fair, near 0 % means starvation

The last line lists the OpenMP and BLAS libraries that the process has loaded. PyTorch and a headwise built from source
share the OpenMP library that was loaded first (``--torch-first``); headwise from a wheel has its own.
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

import headwise
from comparison import environment

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
    shares: dict[str, list[float]] = {name: [] for name in calls}
    for pair in itertools.combinations(calls, 2):
        samples = at_once([calls[name] for name in pair], args.seconds)
        done = [len(times) * alone[name] for name, times in zip(pair, samples, strict=True)]
        for one, other, times in zip(pair, pair[::-1], samples, strict=True):
            beside[one, other] = statistics.median(times)
            shares[one].append(min(done) / sum(done))
    print("| | alone | rested | rounds |", " | ".join(f"beside {name}" for name in calls), "| share |")
    print("| --- |", " | ".join(["---:"] * (len(calls) + 4)), "|")
    for name in calls:
        others = [f"{beside[name, other] * 1e3:.2f}" if other != name else "" for other in calls]
        medians = (alone[name], rested[name], statistics.median(rounds[name]))
        numbers = [*(f"{seconds * 1e3:.2f}" for seconds in medians), *others]
        print(f"| {name} |", " | ".join(numbers), f"| {min(shares[name], default=0.5):.0%} |")
    print(f"\nOpenMP and BLAS: {', '.join(loaded()) or 'unknown'}")


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
        print("PyTorch is not installed and is left out.")
    calls["numpy"] = lambda: matrix @ matrix
    return calls


def take(call: Call, seconds: float, pause: float = 0) -> list[float]:
    """Seconds of each call, for calls that take this many seconds together; at least three calls."""
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
    """Paths of the OpenMP and BLAS libraries in this process; empty where the system does not list them."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    files = {line.split()[-1] for line in lines if any(part in line for part in ("omp.so", "omp-", "openblas", "mkl"))}
    return sorted(file for file in files if file.startswith("/"))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="seconds of each measurement (%(default)s)")
    parser.add_argument(
        "--threads", type=positive, help="threads of each library; default: the number that headwise chooses"
    )
    parser.add_argument("--torch-first", action="store_true", help="import PyTorch before headwise")
    return parser


if __name__ == "__main__":
    main()

"""Timing of one case after another: results are compared first, then all libraries are timed in interleaved rounds."""

from __future__ import annotations

import gc
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from comparison.data import make_data
from comparison.progress import ProgressBar

if TYPE_CHECKING:
    from comparison.cases import Case
    from comparison.peers import Call, Peer

# Seconds. After a call, the threads of most libraries spin while they wait for more work (those of OpenBLAS for 2**26
# cycles) and would slow down the next library.
_PAUSE = 0.04
# Seconds. A sample consists of as many calls as take this long together.
_SAMPLE = 0.005
# Seconds. A library that would need longer than this for one case skips rounds, evenly.
_BUDGET = 6.0

# Relative to the largest entry. Wide enough for another order of summation, not for a lower internal precision.
_TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "high": 2e-4, "medium": 2e-2, "float16": 4e-3, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Result:
    section: str
    case: Case
    samples: dict[str, list[float]]  # seconds per call, by label of the library

    @property
    def seconds(self) -> dict[str, float]:
        return {label: statistics.median(samples) for label, samples in self.samples.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Slowdown of each peer: its time divided by that of headwise."""
        seconds = self.seconds
        own = seconds.pop("headwise")
        return {label: time / own for label, time in seconds.items()}

    @property
    def gflops(self) -> float | None:
        return None if self.case.flops is None else self.case.flops / self.seconds["headwise"] / 1e9


def run(sections: dict[str, list[Case]], libraries: list[Peer], rounds: int) -> tuple[list[Result], list[str]]:
    """Time every case, and describe the wrong results. A library with a wrong result is left out of that case.

    The first library is headwise.
    """
    results, failures = [], []
    bar = ProgressBar(sum(map(len, sections.values())) * rounds)
    for section, cases in sections.items():
        for case in cases:
            bar.name = case.name
            data = make_data(case)
            calls = {peer: call for peer in libraries if (call := peer.prepare(case, data)) is not None}
            for peer, how in _disagreements(case, calls).items():
                failures.append(f"{case.name}: {peer.label} {how}")
                del calls[peer]
            results.append(Result(section, case, _time_rounds(calls, rounds, bar)))
    bar.close()
    return results, failures


def _disagreements(case: Case, calls: dict[Peer, Call]) -> dict[Peer, str]:
    """The libraries whose results differ from those of the first one, with a description of the difference."""
    (first, first_call), *others = calls.items()
    # Copies, because all libraries write to the same array `out`.
    expected = [a.copy() for a in _numbers(first.arrays(case, first_call()))]
    tolerance = _TOLERANCE[case.dtype if case.precision == "highest" else case.precision]
    wrong = {}
    for peer, call in others:
        if not peer.same_result:
            continue
        for a, b in zip(_numbers(peer.arrays(case, call())), expected, strict=True):
            if a.shape != b.shape:
                wrong[peer] = f"has shape {a.shape}, expected {b.shape}"
                break
            error = float(np.abs(a - b).max() / np.abs(b).max())
            if not error <= tolerance:  # also true for NaN
                wrong[peer] = f"differs from headwise by {error:.1e} of the largest entry"
                break
    return wrong


def _numbers(arrays: list[Any]) -> list[Any]:
    """As arrays whose differences need no further rounding: 16-bit types become float32."""
    return [a.astype(np.float32) if a.itemsize == 2 else a for a in map(np.asarray, arrays)]


def _time_rounds(calls: dict[Peer, Call], rounds: int, bar: ProgressBar) -> dict[str, list[float]]:
    """Samples by label: one of each library in each round."""
    runners = {peer.label: _Runner(call, rounds) for peer, call in calls.items()}
    samples: dict[str, list[float]] = {label: [] for label in runners}
    gc.collect()
    gc.disable()
    try:
        for n in range(rounds):
            for label, runner in runners.items():
                if n % runner.every == 0:
                    samples[label].append(runner.sample())
            bar.advance()
    finally:
        gc.enable()
    return samples


class _Runner:
    """Takes samples of one call."""

    def __init__(self, call: Call, rounds: int) -> None:
        self._call, self._calls = call, 1
        self.sample()
        estimate = min(self.sample() for _ in range(3))
        self._calls = math.ceil(_SAMPLE / estimate)
        # At least 3 samples, for a median.
        self.every = max(1, min(rounds // 3, math.ceil(rounds * estimate / _BUDGET)))

    def sample(self) -> float:
        call = self._call
        time.sleep(_PAUSE)
        if self._calls > 1:
            call()  # untimed: wakes the threads and fills the caches
        start = time.perf_counter()
        for _ in range(self._calls):
            call()
        return (time.perf_counter() - start) / self._calls

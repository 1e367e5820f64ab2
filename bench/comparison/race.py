"""Who is how fast: for each case agreement first, then everybody in turn."""

from __future__ import annotations

import gc
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import make_data
from .progress import ProgressBar

if TYPE_CHECKING:
    from .cases import Case
    from .peers import Call, Peer

# After a call, the threads of most libraries spin for more work, OpenBLAS's for 2**26 cycles, and are in the way of
# whoever is next.
_PAUSE = 0.04
# A sample is as many calls as take so long together.
_SAMPLE = 0.005
# A contender that would need longer than this for one case sits out rounds, evenly.
_BUDGET = 6.0

# Of the largest entry. Wide enough for other orders of summation, not for less precision inside than was asked for.
_TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "high": 2e-4, "medium": 2e-2, "float16": 4e-3, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Result:
    section: str
    case: Case
    samples: dict[str, list[float]]  # seconds per call, by label of the contender

    @property
    def seconds(self) -> dict[str, float]:
        return {label: statistics.median(samples) for label, samples in self.samples.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as long as headwise the others take."""
        seconds = self.seconds
        ours = seconds.pop("headwise")
        return {label: theirs / ours for label, theirs in seconds.items()}

    @property
    def gflops(self) -> float | None:
        return None if self.case.flops is None else self.case.flops / self.seconds["headwise"] / 1e9


def run(sections: dict[str, list[Case]], contenders: list[Peer], rounds: int) -> tuple[list[Result], list[str]]:
    """The times of every case, and whose results were wrong: who errs in a case is left out of it.

    The first contender is headwise.
    """
    results, complaints = [], []
    bar = ProgressBar(sum(map(len, sections.values())) * rounds)
    for section, cases in sections.items():
        for case in cases:
            bar.name = case.name
            data = make_data(case)
            calls = {peer: call for peer in contenders if (call := peer.prepare(case, data)) is not None}
            for peer, how in _disagreements(case, calls).items():
                complaints.append(f"{case.name}: {peer.label} {how}")
                del calls[peer]
            results.append(Result(section, case, _race(calls, rounds, bar)))
    bar.close()
    return results, complaints


def _disagreements(case: Case, calls: dict[Peer, Call]) -> dict[Peer, str]:
    """What is wrong with results, compared with the first contender's."""
    (first, first_call), *others = calls.items()
    # A copy: everybody has the same array for `out`.
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
            if not error <= tolerance:  # NaN is wrong too
                wrong[peer] = f"differs from headwise by {error:.1e} of the largest entry"
                break
    return wrong


def _numbers(arrays: list[Any]) -> list[Any]:
    """As arrays that can be subtracted without further rounding."""
    return [a.astype(np.float32) if a.itemsize == 2 else a for a in map(np.asarray, arrays)]


def _race(calls: dict[Peer, Call], rounds: int, bar: ProgressBar) -> dict[str, list[float]]:
    """Samples by label: one of each contender in each round."""
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
            call()  # wakes its threads and fills the caches
        start = time.perf_counter()
        for _ in range(self._calls):
            call()
        return (time.perf_counter() - start) / self._calls

"""Medians of calls that take turns in one process."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Seconds. After a call, the threads of other libraries spin while they wait for work and would slow down the next one.
_PAUSE = 0.03
# Seconds. A sample consists of as many calls as take this long together.
_SAMPLE = 0.005


def medians(
    calls: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The median seconds of each call."""
    repeats = {}
    for name, call in calls.items():
        call()  # warms up
        start = clock()
        call()
        repeats[name] = max(1, round(_SAMPLE / max(clock() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(_PAUSE)
            call()
            start = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append((clock() - start) / repeats[name])
    return {name: statistics.median(samples) for name, samples in times.items()}

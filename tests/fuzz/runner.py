"""The fuzzers by name, and one run of each."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from fuzz import configs, functions
from fuzz.caches import CacheMachine
from fuzz.layers import LayerMachine
from fuzz.positions import PositionsMachine
from fuzz.twins import COUNTS

MACHINES: dict[str, Any] = {"caches": CacheMachine, "layers": LayerMachine, "positions": PositionsMachine}
CHECKS: dict[str, Any] = {"functions": functions, "configs": configs}
FUZZERS = (*CHECKS, *MACHINES)


def run(name: str, start: int | None = None, **changes: Any) -> Counter[str]:
    """Runs a fuzzer from a seed on, with changes of the profile's settings. Counts its examples, its calls on twins
    and the errors among their outcomes."""
    COUNTS.clear()
    these = settings(
        deadline=None,
        stateful_step_count=30,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        **changes,
    )
    if name in MACHINES:
        machine = type(name, (MACHINES[name],), {})
        run_state_machine_as_test(machine if start is None else seed(start)(machine), settings=these)
    else:
        test = these(given(**CHECKS[name].ARGUMENTS)(CHECKS[name].agree))
        (test if start is None else seed(start)(test))()
    return Counter(COUNTS)

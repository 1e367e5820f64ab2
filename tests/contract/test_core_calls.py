"""The private core, called with anything: an error or a result, never an access outside the arrays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from contract.core_calls.functions import FUNCTIONS
from implementations import PROFILE
from processes import environment
from runtime.interpreter import needs_native

pytestmark = [pytest.mark.single_implementation, needs_native]

NAMES = list(FUNCTIONS)
CALLS = {"default": 150, "ci": 5_000, "long": 50_000}[PROFILE]
BATCHES = [NAMES] if PROFILE == "default" else [[name] for name in NAMES]  # each in a process of its own


@pytest.mark.parametrize("names", BATCHES, ids="+".join)
def test_random_calls_of_the_core(names: list[str]) -> None:
    command = [sys.executable, "-m", "contract.core_calls", "0", str(CALLS), *names]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, errors="replace", timeout=1800, check=False
    )
    *_, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"exit status {done.returncode} in call {last}\n{done.stderr[-4000:]}"
    counts = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("results: ")]
    assert [name for name, _ in counts] == names
    # Otherwise most calls would test the first check alone.
    assert all(int(results) > CALLS / 5 for _, results in counts), counts

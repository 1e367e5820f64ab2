"""Arguments that another process or thread changes during a call: torn values or an error, never foreign memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from implementations import PROFILE
from operations import OPERATIONS, cases
from processes import HERE, environment
from threads.changing_inputs import position_calls

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the writing process is forked"),
    pytest.mark.above_operations,
]

ROUNDS = {"default": 10, "ci": 250, "long": 1_000}[PROFILE]
DTYPES = ["float32"] if PROFILE == "default" else ["float32", "float16", "float64"]
POSITIONS = [f"positions:{name}" for name in position_calls()]
LAYOUTS = [f"layouts:{name}" for name, operation in OPERATIONS.items() if operation.computed]
#: In the default profile all options of attention at once, otherwise one by one, too.
CASES = [str(case) for case in cases(short=PROFILE == "default")]
BATCHES = {dtype: [f"{dtype}:{name}" for name in CASES] for dtype in DTYPES} | {
    "positions": POSITIONS,
    "layouts": LAYOUTS,
}


@pytest.mark.parametrize("batch", BATCHES)
def test_changing_inputs(batch: str, implementation: str) -> None:
    backend, _, target = implementation.partition("-")
    chosen = environment(HEADWISE_BACKEND=backend, HEADWISE_TARGET=target, OMP_WAIT_POLICY="passive")
    command = [sys.executable, "-W", "ignore", str(HERE / "threads" / "changing_inputs.py"), str(ROUNDS)]
    done = subprocess.run(
        [*command, *BATCHES[batch]], env=chosen, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    counts = [line.split() for line in done.stdout.splitlines()]
    assert len(counts) >= len(BATCHES[batch])
    assert all(int(returned) + int(refused) == ROUNDS for *_, returned, refused in counts), counts

"""Runs code in a process of its own, on a chosen implementation."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

#: Runs before the code: selects the implementation, and defines a function that reads the memory use of the process.
PRELUDE = """
import sys
import numpy as np
import headwise as hw
from headwise._runtime import backend as _backend

backend, _, target = sys.argv[1].partition("-")
_backend.use(backend)
if target:
    hw.set_target(target)

def megabytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field + ":"))
"""


def in_process(
    implementation: str, code: str, environment: Mapping[str, str] | None = None, timeout: float = 900
) -> str:
    """The output of ``code`` in a process of its own, on ``implementation``, which can import these modules."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), implementation],
        env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout

"""New interpreters for tests of a whole process: forks, signals, numbers of threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import headwise

HERE = Path(__file__).parent

#: Runs before the code of a test: work on threads, whose bits can be compared, and children that end if they hang.
PRELUDE = """
import os, signal, sys, threading, time, zlib
import numpy as np
import headwise as hw
from operations import cases

def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape, np.float32)

X, W = normal(301, 400), normal(400, 600)
PACKED = hw.PackedLinear(W)  # too small for threads: nothing has been parallel before the first work()

# Every operation, in calls that are shared out; in the default profile every third of them, as a process takes a second
# to draw the numbers for all.
CALLS = [
    (case, case.arguments(sizes))
    for case, sizes in [
        (case, case.operation.parallel[size])
        for case in cases(short=True, where=lambda operation: operation.computed)
        for size in ("", "one-row")
        if case.variant == "" and size in case.operation.parallel
    ][:: 3 if os.environ.get("HEADWISE_TEST_PROFILE", "default") == "default" else 1]
]

def work():
    # Checksums: copies of the results, 100 MB, would take several times as long as the operations.
    results = [PACKED(X), *(result for case, arguments in CALLS for result in case.run(arguments))]
    return b"".join(zlib.crc32(np.ascontiguousarray(result)).to_bytes(4, "little") for result in results)

def fork(function):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        code = 1
        try:
            code = function() or 0
        finally:
            os._exit(code)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def tasks():
    return set(os.listdir("/proc/self/task"))

hw.set_num_threads(4)
"""


def environment(**changes: str) -> dict[str, str]:
    """The environment of this process, with the package and the tests on the path, without numbers of threads."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith(("_NUM_THREADS", "_LIMIT"))}
    path = [str(Path(headwise.__file__).parent.parent), str(HERE), *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {"PYTHONPATH": os.pathsep.join(path)} | changes


def command(code: str, first: str = "headwise") -> list[str]:
    """The command of an interpreter that imports ``first``, then runs the prelude and ``code``."""
    script = f"import {first}\n{PRELUDE}{textwrap.dedent(code)}"
    return [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]


def run(code: str, first: str = "headwise", **changes: str) -> str:
    """The output of ``code`` after the prelude; a failure, or more than four minutes, fails the test."""
    call = command(code, first)
    done = subprocess.run(call, env=environment(**changes), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def run_native(code: str, **changes: str) -> str:
    """:func:`run` on the native core, also where the environment chooses NumPy for this process."""
    return run(code, **{"HEADWISE_BACKEND": "native", **changes})

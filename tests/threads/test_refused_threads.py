"""The system refuses threads, at any moment: fewer threads or a MemoryError, and the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from implementations import PROFILE, native_present

pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.skipif(sys.platform != "linux", reason="limits address space and processes as Linux does"),
    pytest.mark.skipif(not native_present(), reason="headwise has no native core here (headwise._core)"),
]

#: Runs each trial in a forked child, which starts without workers. Prints the number of trials, the number without any
#: MemoryError, and the trials that had a wrong result or whose process was ended.
TRIALS = """
import itertools, os, resource, signal, sys, threading
import numpy as np
import headwise as hw

random = np.random.default_rng(0)
x = random.standard_normal((2000, 300), np.float32)
q, w = random.standard_normal((1, 4, 300, 64), np.float32), random.standard_normal((300, 400), np.float32)
hw.set_num_threads(1)
CALLS = {
    "softmax": lambda: hw.softmax(x).tobytes(),
    "attention": lambda: hw.flash_attention(q, q, q).tobytes(),
    "few tasks": lambda: hw.softmax(x[:3].repeat(300, 1)).tobytes(),
    "linear": lambda: hw.linear(x, w).tobytes(),
}
EXPECTED = {name: call() for name, call in CALLS.items()}

def megabytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmSize"))

def limit_space(margin):
    resource.setrlimit(resource.RLIMIT_AS, (int((megabytes() + margin) * 2**20), -1))

def limit_processes(more):
    os.geteuid() or os.setuid(65534)  # the number of processes of root is not limited
    resource.setrlimit(resource.RLIMIT_NPROC, (1 + more, 1 + more))

ORDERS = {  # threads and calls; None: the limit comes here
    "first call": [None, (8, "softmax"), (8, "attention")],
    "8, 2, 8": [(8, "softmax"), None, (2, "linear"), (8, "softmax"), (8, "attention")],
    "few tasks between": [(8, "attention"), (8, "few tasks"), None, (8, "few tasks"), (8, "linear"), (8, "attention")],
    "more and more": [(2, "softmax"), None, (4, "softmax"), (9, "linear"), (64, "attention"), (2, "few tasks")],
    "100000": [None, (100000, "softmax"), (100000, "linear"), (3, "attention")],
}

def calls(steps, limit):
    memory_errors = 0
    for step in steps:
        if step is None:
            limit()
            continue
        threads, name = step
        hw.set_num_threads(threads)
        try:
            if CALLS[name]() != EXPECTED[name]: os._exit(3)
        except MemoryError:
            memory_errors += 1
    return memory_errors

def trial(order, limit, callers):
    steps = ORDERS[order]
    if callers == 1: return calls(steps, limit)
    at, codes = steps.index(None), []
    calls(steps[:at], limit)
    barrier = threading.Barrier(callers)
    def caller():
        barrier.wait()
        codes.append(calls(steps[at + 1:], limit))
    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads: thread.start()
    limit()
    for thread in threads: thread.join()
    return sum(codes) if len(codes) == callers else 4

def run(name, order, limit, callers):
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)
        os._exit(0 if trial(order, limit, callers) == 0 else 77)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code in (0, 77) else f"{name}, {order}, {callers} callers: {code}", code == 0

kind, every = sys.argv[1], int(sys.argv[2])
limits = {
    "address space": [(f"{m} MB", lambda m=m: limit_space(m)) for m in (0, 1, 2, 4, 8, 16, 32, 52, 68, 100, 160, 300)],
    "processes": [(f"{n} more", lambda n=n: limit_processes(n)) for n in (-1, 0, 1, 2, 3, 5, 7, 12)],
}[kind]
grid = [
    (name, order, limit, callers) for (name, limit), order, callers in itertools.product(limits, ORDERS, (1, 4))
][::every]
results = [run(*trial) for trial in grid]
print(len(grid), sum(right for _, right in results), *(failure for failure, _ in results if failure), sep="\\n")
"""


@pytest.mark.parametrize("kind", ["address space", "processes"])
def test_refused_threads_are_fewer_threads(kind: str) -> None:
    if kind == "processes" and os.geteuid() == 0:
        test = subprocess.run([sys.executable, "-c", "import os; os.setuid(65534)"], capture_output=True, check=False)
        if test.returncode != 0:
            pytest.skip("root's processes are not limited, and this process may not become another user")
    every = 7 if PROFILE == "default" else 1
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", TRIALS, kind, str(every)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trials, right, *failures = done.stdout.splitlines()
    assert not failures, done.stdout + done.stderr
    assert int(trials) >= 11 and int(right) > int(trials) // 4, done.stdout

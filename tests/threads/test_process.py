"""The process around headwise: signals, limits on threads, and state that headwise must not change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import headwise as hw
from implementations import native_present
from processes import command, environment, run, run_native
from support import normal

once = pytest.mark.single_implementation
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
native = pytest.mark.skipif(not native_present(), reason="headwise has no native core here (headwise._core)")


# --- threads of Python ---


@once
@native
def test_the_number_of_threads_changes_while_others_compute() -> None:
    query, key, x = normal((1, 4, 130, 32), 1), normal((1, 4, 700, 32), 2), normal((300, 1000))

    def work(_: int = 0) -> list[bytes]:
        outputs = hw.flash_attention(query, key, key), hw.flash_attention(query[:, :, :1], key, key), hw.softmax(x)
        return [output.tobytes() for output in (*outputs, hw.linear(x[:40], x.T))]

    expected = work()
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(work, n) for n in range(40)]
        n = 0
        while not all(result.done() for result in results):
            hw.set_num_threads(1 + n % 9)
            n += 1
    assert all(result.result() == expected for result in results)


# --- signals ---


@once
@pytest.mark.skipif(os.name == "nt", reason="this system sends no SIGINT to one process")
def test_ctrl_c_during_a_call() -> None:
    code = """
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, shells have it ignored
        big = normal(1500, 1500)
        expected = work()
        try:
            print("computing", flush=True)
            while True: big_result = hw.linear(big, big)
        except KeyboardInterrupt:
            pass
        assert work() == expected
        print("interrupted", flush=True)
    """
    child = subprocess.Popen(command(code), env=environment(), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "computing\n"
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=120) == ("interrupted\n", None)
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()


@once
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_a_timer_that_interrupts_calls() -> None:
    """The signal handler runs in the main thread between calls, and computes, too."""
    run("""
        expected, ticks, results = work(), 0, []
        def tick(*_):
            global ticks
            ticks += 1
            results.append(hw.softmax(X).tobytes() == alone)
            signal.setitimer(signal.ITIMER_REAL, 0.001)  # not before: a handler may be interrupted, too
        alone = hw.softmax(X).tobytes()
        signal.signal(signal.SIGALRM, tick)
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        threads = [threading.Thread(target=lambda: [results.append(work() == expected) for _ in range(10)])
                   for _ in range(3)]
        for thread in threads: thread.start()
        while ticks < 50 or any(thread.is_alive() for thread in threads):
            results.append(work() == expected)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        assert all(results) and len(results) > 80, results.count(False)
    """)


# --- the end of the process ---


@once
@pytest.mark.parametrize("attempt", range(5))
def test_daemon_threads_compute_while_the_interpreter_ends(attempt: int) -> None:
    """The process ends as if they had been idle. A thread that wants the GIL back then never gets it."""
    run("""
        class Late:  # an object that is deleted during finalization, and lets other threads run meanwhile
            def __del__(self, sleep=time.sleep):
                sleep(0.3)
        sys.late = Late()
        x = normal(1, 2, 256, 64)
        def compute():
            while True:
                hw.flash_attention(x, x, x), hw.softmax(X), PACKED(X)
        for _ in range(3):
            threading.Thread(target=compute, daemon=True).start()
        time.sleep(0.1)
    """)


# --- arguments that change during a call ---


@once
def test_cumulative_lengths_that_another_process_changes(tmp_path: Path) -> None:
    """A call uses the lengths that it has checked: it is refused, or has the result of one of the two versions."""
    run(f"""
        path, versions = {str(tmp_path / "lengths")!r}, np.array([[0, 3, 9], [0, 1 << 40, 9]])
        lengths = np.memmap(path, np.int64, "w+", shape=3)
        lengths[:] = versions[0]
        x = normal(9, 2, 8)
        expected = hw.varlen_attention(x, x, x, versions[0]).tobytes()
        def write():
            shared = np.memmap(path, np.int64, "r+")
            while True:
                shared[1] = versions[1, 1]
                shared[1] = versions[0, 1]
        writer, counts = fork(write), [0, 0]
        try:
            for _ in range(3000):
                try:
                    assert hw.varlen_attention(x, x, x, lengths).tobytes() == expected
                    counts[0] += 1
                except ValueError as error:
                    assert str(error).startswith("cu_seqlens_q: "), error
                    counts[1] += 1
        finally:
            os.kill(writer, signal.SIGKILL)
            wait(writer)
        assert all(counts), counts
    """)


# --- how many threads ---

BY_DEFAULT = """
from headwise._runtime import threads as _threads
hw.set_num_threads(_threads.default_count())
before = tasks()
work()
print(hw.get_num_threads(), len(tasks() - before))
"""


def default_and_started(before: str = "", **changes: str) -> list[int]:
    """The default number of threads, and the number of threads that a call has started."""
    return [int(number) for number in run_native(before + BY_DEFAULT, **changes).split()]


@once
@native
@on_linux
@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"HEADWISE_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5", "OMP_THREAD_LIMIT": "2"}, 2),
        ({"OMP_THREAD_LIMIT": "1"}, 1),
        ({"OMP_NUM_THREADS": "3", "OMP_DYNAMIC": "false", "OMP_PROC_BIND": "true"}, 3),
    ],
    ids=str,
)
def test_threads_are_as_many_as_the_environment_allows(changes: dict[str, str], threads: int) -> None:
    assert default_and_started(**changes) == [threads, threads - 1]


@once
@native
@on_linux
def test_openmp_may_give_fewer_threads_than_asked_for() -> None:
    bits = "expected = work(); hw.set_num_threads(1); assert work() == expected"
    run_native(bits, OMP_THREAD_LIMIT="2")
    run_native(bits, OMP_DYNAMIC="true")


@once
@native
@on_linux
def test_one_processor_is_one_thread() -> None:
    assert default_and_started("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})") == [1, 0]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A control group with a quota of processor time, if this system permits one."""
    for hierarchy, limit in (("cpu", "cpu.cfs_quota_us"), ("", "cpu.max")):
        group = Path("/sys/fs/cgroup", hierarchy, f"headwise-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("this system does not let us make a control group of processor time")


@once
@native
@on_linux
def test_thread_count_follows_a_real_cgroup(cgroup: Path) -> None:
    quota = "150000"  # of 100,000 microseconds: one processor and a half
    if (cgroup / "cpu.max").exists():
        (cgroup / "cpu.max").write_text(f"{quota} 100000")
    else:
        (cgroup / "cpu.cfs_quota_us").write_text(quota)
    assert default_and_started(f"with open('{cgroup}/cgroup.procs', 'w') as file: file.write(str(os.getpid()))") == [
        1,
        0,
    ]


# --- state of the process ---

STATE = """
import ctypes, gc, locale, os, random, signal, sys, threading, warnings
import numpy
OMP = sys.argv[1:]
for name in OMP: __import__(name)
try: import threadpoolctl  # it sets a variable of the environment
except ImportError: threadpoolctl = None
libm = ctypes.CDLL(None)
tiny = numpy.float32(1e-40)
numpy.ones((300, 300)) @ numpy.ones((300, 300))
# From its first thread on a process catches a signal of glibc's. On one processor the BLAS has not started any.
first = threading.Thread(target=int); first.start(); first.join()

def others():
    state = {
        "environment": dict(os.environ), "directory": os.getcwd(),
        # Not what is queued, which counts other processes, too.
        "signals": [line for line in open("/proc/self/status") if line.startswith(("SigBlk", "SigIgn", "SigCgt"))],
        "handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "numpy": (numpy.random.get_state()[1].tobytes(), numpy.geterr(), numpy.geterrcall()),
        "printing": str(numpy.get_printoptions()),
        "python": (random.getstate(), gc.get_threshold(), gc.isenabled(), sys.getswitchinterval(),
                   sys.getrecursionlimit(), sys.excepthook is sys.__excepthook__, threading.excepthook),
        "locale": locale.setlocale(locale.LC_ALL), "warnings": list(warnings.filters),
        "rounding": libm.fegetround(), "traps": libm.fegetexcept(),
        "denormals": tiny / numpy.float32(2) > 0 and float(tiny) / 2 > 0,
    }
    if OMP: state["torch"] = sys.modules["torch"].get_num_threads(), sys.modules["torch"].get_num_interop_threads()
    pools = threadpoolctl.threadpool_info() if threadpoolctl else []
    state["pools"] = {pool["filepath"]: pool["num_threads"] for pool in pools}
    return state

def same(before, after):
    for name in before.keys() - {"pools"}: assert before[name] == after[name], (name, before[name], after[name])
    for path, threads in before["pools"].items(): assert after["pools"][path] == threads, path

before, tasks = others(), len(os.listdir("/proc/self/task"))
libm.feclearexcept(0x3F)
import headwise
flags = libm.fetestexcept(0x3F)
same(before, others())
assert not OMP or "torch" in sys.modules
assert len(os.listdir("/proc/self/task")) == tasks, "import starts threads"
assert flags & 0x1F == 0 or flags & 0x1F == 0x10, f"floating-point exceptions {flags:#x}"

def compute():
    headwise.set_num_threads(3)
    x = numpy.ones((8, 100, 500), numpy.float32)
    headwise.softmax(x)
    headwise.flash_attention(x, x, x, is_causal=True)
    headwise.linear(x, x[0].T)
    headwise.scaled_dot_product_attention(x[:, :, :64], x[:, :, :64], x, dropout=0.1, rng=0)
    headwise.MultiHeadAttention(500, 5)(x)

for thread in [threading.Thread(target=compute) for _ in range(3)]: thread.start(); thread.join()
compute()
same(before, others())
"""


@pytest.mark.slow
@once
@on_linux
@pytest.mark.parametrize("beside", ["nothing", "torch"])
def test_import_and_calls_leave_the_process_alone(beside: str) -> None:
    if beside != "nothing":
        pytest.importorskip(beside, reason="PyTorch, whose settings are compared, is not installed")
    call = [sys.executable, "-c", STATE, *([] if beside == "nothing" else [beside])]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.above_operations
def test_subnormal_numbers_are_not_flushed_on_any_thread() -> None:
    hw.set_num_threads(4)
    x = np.full((2000, 300), 1e-40, np.float32)
    assert np.array_equal(hw.add_alibi(x[None], np.zeros(1)), x[None])
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda _: np.float32(1e-40) / np.float32(2) > 0, range(8)))

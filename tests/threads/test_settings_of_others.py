"""Affinities and limits on threads that users, OpenMP, threadpoolctl or joblib have set are kept, and never changed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import headwise as hw
from headwise._runtime import processors, threads
from implementations import PROFILE, native_present
from processes import command, environment, run_native

pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.skipif(not native_present(), reason="headwise has no native core here (headwise._core)"),
]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets affinities")
needs_openmp = pytest.mark.skipif(
    hw.config()["backend"] == "native" and not any("gomp" in path or "omp" in path for path in processors._loaded()),
    reason="this core was built without OpenMP, whose limits these are",
)


# --- affinity ---


@on_linux
@pytest.mark.parametrize("variable", ["OMP_PROC_BIND=true", "OMP_PLACES={0}", "GOMP_CPU_AFFINITY=0"])
def test_openmp_binds_threads_to_processors(variable: str) -> None:
    """Importing headwise loads OpenMP's library, which then binds the importing thread. The mask is restored."""
    name, _, value = variable.partition("=")
    code = """
        hw.set_num_threads(4)
        before = tasks()
        work()
        print(imported == os.sched_getaffinity(0) == MASK, default, hw.get_num_threads())
        end = time.monotonic() + 60
        while any(os.sched_getaffinity(int(task)) != MASK for task in tasks() - before):
            assert time.monotonic() < end
            time.sleep(0.01)
    """
    first = """os
MASK = os.sched_getaffinity(0)
import headwise
imported, default = os.sched_getaffinity(0), headwise.get_num_threads()
"""
    output = run_native(code, first=first, **{name: value})
    assert output == f"True {threads.available()} 4\n"


@on_linux
def test_another_library_has_bound_the_main_thread_already() -> None:
    pytest.importorskip("torch", reason="PyTorch, which loads an OpenMP library of its own, is not installed")
    code = """
        before = tasks()
        work()
        assert imported == bound == os.sched_getaffinity(0), (imported, bound)
        end = time.monotonic() + 60
        while any(os.sched_getaffinity(int(task)) != MASK for task in tasks() - before):
            assert time.monotonic() < end
            time.sleep(0.01)
        print(default)
    """
    first = """os
MASK = os.sched_getaffinity(0)
import torch
bound = os.sched_getaffinity(0)
import headwise
imported, default = os.sched_getaffinity(0), headwise.get_num_threads()
"""
    assert run_native(code, first=first, OMP_PROC_BIND="true") == f"{threads.available()}\n"


@on_linux
def test_an_affinity_set_from_outside_is_kept() -> None:
    rounds = 100 if PROFILE == "default" else 1000
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one processor: no affinity to choose")
    code = """
        expected = work()
        print("computing", flush=True)
        while True:
            for pause in (0, 0, 0.001):
                time.sleep(pause)
                assert work() == expected
    """
    child = subprocess.Popen(
        command(code), env=environment(HEADWISE_BACKEND="native"), stdout=subprocess.PIPE, text=True
    )
    changed = []
    try:
        assert child.stdout is not None and child.stdout.readline() == "computing\n"
        tasks = [int(task.name) for task in Path(f"/proc/{child.pid}/task").iterdir()]
        for i in range(rounds):
            mask = [{allowed[0]}, {allowed[1]}, set(allowed)][i % 3]
            for task in tasks:
                os.sched_setaffinity(task, mask)
            time.sleep(0.002)
            # A worker that woke on the processor of the calling thread has another affinity while it moves itself.
            others = [task for task in tasks if os.sched_getaffinity(task) != mask]
            time.sleep(0.001 * bool(others))
            changed += [(i, task) for task in others if os.sched_getaffinity(task) != mask]
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()
    assert len(tasks) >= 4 and not changed, f"{len(changed)} of {rounds * len(tasks)}"


@on_linux
def test_a_confined_thread_does_not_confine_the_workers() -> None:
    """Workers run where the main thread may run, whichever thread has started them, and nothing changes its mask."""
    run_native("""
        mask, one, masks = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}, []
        before, workers = tasks(), set()
        def compute():
            os.sched_setaffinity(0, one)
            work()
            workers.update(tasks() - before - {str(threading.get_native_id())})
            masks.append(os.sched_getaffinity(0))
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
        assert masks == [one] and len(workers) == 3 and os.sched_getaffinity(0) == mask
        end = time.monotonic() + 60
        while any(os.sched_getaffinity(int(task)) != mask for task in workers):
            assert time.monotonic() < end
            time.sleep(0.01)
    """)


# --- limits on threads ---


@needs_openmp
def test_threadpoolctl_limits_the_threads_of_calls() -> None:
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    run_native("""
        import threadpoolctl
        def started(limit):  # in a fresh child
            with threadpoolctl.threadpool_limits(limit):
                before = tasks()
                assert work() == expected and hw.get_num_threads() == min(limit, 4)
                return len(tasks() - before)
        expected = work()
        for limit in (1, 2, 3, 50):
            assert wait(fork(lambda: started(limit))) == min(limit, 4) - 1, limit
        with threadpoolctl.threadpool_limits(1):
            hw.set_num_threads(3)
            assert hw.get_num_threads() == 1 and hw.config()["threads"] == 1
        assert hw.get_num_threads() == 3
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert hw.get_num_threads() == 3
    """)


@needs_openmp
def test_an_openmp_limit_holds_for_the_thread_that_set_it() -> None:
    run_native("""
        import ctypes
        from headwise._runtime import processors
        path, counts = sorted(processors._loaded())[0], []
        ctypes.CDLL(path).omp_set_num_threads(1)
        other = threading.Thread(target=lambda: counts.append(hw.get_num_threads()))
        other.start()
        other.join()
        assert hw.get_num_threads() == 1 and counts == [4], counts
        ctypes.CDLL(path).omp_set_num_threads(100)
        assert hw.get_num_threads() == 4
    """)


@pytest.mark.slow
def test_joblib_gives_each_process_its_share() -> None:
    pytest.importorskip("joblib", reason="joblib is not installed")
    run_native(
        """
        import joblib
        def count(_):
            import headwise
            return headwise.get_num_threads()
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            assert joblib.Parallel(n_jobs=2)(joblib.delayed(count)(i) for i in range(4)) == [1] * 4
        share = max(1, joblib.cpu_count() // 2)
        counts = joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(count)(i) for i in range(4))
        assert counts == [share] * 4, counts
        """
    )

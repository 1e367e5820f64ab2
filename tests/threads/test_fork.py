"""Forked children compute the same bits in any state of their parent. A child that hangs fails the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import headwise
from implementations import PROFILE, native_present
from processes import environment, run, run_native

pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
]


FORKS = 3 if PROFILE == "default" else 10


@pytest.mark.skipif(
    headwise.config()["backend"] != "native", reason="NumPy's BLAS may hold a lock of its own over a fork, for ever"
)
def test_fork_while_other_threads_compute() -> None:
    run(f"""
        expected, going, problems = work(), True, []
        def compute():
            while going:
                if work() != expected:
                    problems.append("other bits in the parent")
        threads = [threading.Thread(target=compute) for _ in range(3)]
        for thread in threads: thread.start()
        codes = [wait(fork(lambda: work() != expected)) for _ in range({FORKS})]
        going = False
        for thread in threads: thread.join()
        assert codes == [0] * {FORKS} and not problems, (codes, problems)
    """)


@pytest.mark.skipif(not native_present(), reason="headwise has no native core here (headwise._core)")
def test_fork_while_another_thread_packs_for_a_new_target() -> None:
    run_native(f"""
        if len(hw.list_targets()) < 2: sys.exit()
        weight, shared, going = normal(1500, 3000), [None], True
        first, second = hw.list_targets()[:2]
        def pack():
            while going:
                hw.set_target(first)
                shared[0] = hw.PackedLinear(weight)
                hw.set_target(second)
                shared[0](weight[:20, :1500])
        thread = threading.Thread(target=pack)
        thread.start()
        while shared[0] is None: time.sleep(0)
        codes = [wait(fork(lambda: shared[0](weight[:20, :1500]).shape != (20, 3000))) for _ in range({FORKS})]
        going = False
        thread.join()
        assert codes == [0] * {FORKS}, codes
    """)


@pytest.mark.parametrize("before", [False, True], ids=["fresh", "after-a-call"])
def test_fork_of_a_child(before: bool) -> None:
    run(f"""
        here = work() if {before} else None
        reader, writer = os.pipe()
        def child():
            bits = work()
            codes = wait(fork(lambda: work() != bits)), here is not None and bits != here
            os.write(writer, bits)
            return any(codes)
        assert wait(fork(child)) == 0
        assert os.read(reader, 1000) == work()
        assert wait(fork(child)) == 0
    """)


@pytest.mark.parametrize("where", ["main", "forking", "both"])
def test_fork_in_a_thread(where: str) -> None:
    """After a parallel call in the main thread, the forking thread, or both."""
    run(f"""
        expected, codes = work() if {where!r} != "forking" else None, []
        def forks():
            bits = work() if {where!r} != "main" else expected
            codes.append(wait(fork(lambda: work() != bits)))
            codes.append(work() != bits)
        thread = threading.Thread(target=forks)
        thread.start()
        thread.join()
        assert codes == [0, False] and (expected or work()) == work(), codes
    """)


def test_threads_in_a_child() -> None:
    run("""
        expected = work()
        def child():
            results = []
            threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            return results != [expected] * 4
        assert wait(fork(child)) == 0
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not native_present(), reason="headwise has no native core here (headwise._core)")
def test_a_child_is_parallel_and_says_so() -> None:
    run_native("""
        def started():
            before = tasks()
            hw.softmax(X)
            return len(tasks() - before) * 10 + hw.get_num_threads()
        assert wait(fork(started)) == 34
        work()
        assert wait(fork(started)) == 34
        assert wait(fork(lambda: work() and wait(fork(started)))) == 34
    """)


POOLS = """
import concurrent.futures, multiprocessing, sys
import numpy as np
import headwise as hw
hw.set_num_threads(3)
X = np.random.default_rng(0).standard_normal((300, 1000), np.float32)

def compute(n):
    return hw.softmax(X + np.float32(n)).tobytes() + hw.linear(X, X.T).tobytes()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    expected = [compute(n) for n in range(6)]
    with context.Pool(2) as pool:
        assert pool.map_async(compute, range(6)).get(timeout=180) == expected
    with concurrent.futures.ProcessPoolExecutor(2, context) as executor:
        assert list(executor.map(compute, range(6), timeout=180)) == expected
    assert compute(0) == expected[0]
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_process_pools(method: str, tmp_path: Path) -> None:
    script = tmp_path / "pools.py"
    script.write_text(POOLS)
    call = [sys.executable, "-W", "ignore::DeprecationWarning", str(script), method]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ran", ["torch", "headwise", "torch, headwise"])
@pytest.mark.parametrize("first", ["torch", "headwise"])
def test_fork_with_pytorch(first: str, ran: str) -> None:
    """PyTorch has its own OpenMP library, or shares that of headwise. Threads of either before the fork have no
    influence."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    code = f"""
        import torch
        torch.set_num_threads(3)
        tensor = torch.from_numpy(X)
        if "torch" in {ran!r}: tensor.exp().sum(), tensor @ tensor.T
        if "headwise" in {ran!r}: work()
        reader, writer = os.pipe()
        pid = fork(lambda: os.write(writer, work()) == 0)
        assert wait(pid) == 0
        assert torch.get_num_threads() == 3 and hw.get_num_threads() in (3, 4)  # 3: one OpenMP library for both
        assert os.read(reader, 1000) == work()
        assert torch.allclose(tensor.softmax(-1), torch.from_numpy(hw.softmax(X)), atol=1e-6)
        work(), tensor.exp().sum(), work()
    """
    run(code, first=first)

"""Every call with each of its allocations failing in turn: MemoryError, unchanged objects, no leaked reference, and the
same bits from the next call."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from in_process import in_process

#: The size from which allocations fail: more than the 64 KB buffers in which NumPy's functions convert numbers. NumPy 2
#: itself crashes where it cannot allocate these.
MIN_SIZE = 65537

SOURCE = Path(__file__).with_name("failing_malloc.c")


@pytest.fixture(scope="session")
def failing_malloc(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("replaces the malloc of glibc, which this system has not")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) for failing_malloc.c")
    library = tmp_path_factory.mktemp("malloc") / "failing_malloc.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return str(library)


CODE = f"""
import ctypes, sys
from memory.memory_calls import INPUTS, SUBJECTS, bits

malloc = ctypes.CDLL(None)
malloc.fail_allocation.argtypes = ctypes.c_long, ctypes.c_size_t
malloc.allocations_left.restype = ctypes.c_long

def references():
    return [sys.getrefcount(a) for a in INPUTS]

def attempt(subject, thing, n):
    '''The result, or None after a MemoryError.'''
    malloc.fail_allocation(n, {MIN_SIZE})
    try:
        return subject.call(thing)
    except MemoryError:
        return None
    finally:
        malloc.fail_allocation(0, 0)

failures = 0
for name, subject in SUBJECTS.items():
    subject.call(subject.make())  # what is made once, at the first call
    thing = subject.make()
    expected = bits(subject.call(thing))
    after = bits(thing)
    held = references()
    for n in range(1, 1000):
        thing = subject.make()
        before = bits(thing)
        result = attempt(subject, thing, n)
        if result is not None:
            assert bits(result) == expected, f"{{name}}: other bits in a call of {{n - 1}} allocations"
            break
        failures += 1
        assert references() == held, f"{{name}}: references kept, after allocation {{n}} failed"
        assert bits(thing) == before, f"{{name}}: another state, after allocation {{n}} failed"
        assert bits(subject.call(thing)) == expected, f"{{name}}: other bits, after allocation {{n}} failed"
        assert bits(thing) == after, f"{{name}}: another state, after allocation {{n}} failed and the call was repeated"
    else:
        raise AssertionError(f"{{name}}: no end of allocations")
    print(name, n - 1)
print("failures", failures)
"""


@pytest.mark.slow
@pytest.mark.above_operations
def test_every_allocation_may_fail(implementation: str, failing_malloc: str) -> None:
    counts = dict(
        line.rsplit(" ", 1)
        for line in in_process(
            implementation, CODE, {"LD_PRELOAD": failing_malloc, "OPENBLAS_NUM_THREADS": "1"}
        ).splitlines()
    )
    assert int(counts["failures"]) > 200, "the allocations are not seen"

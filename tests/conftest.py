"""One suite for every implementation: NumPy, and the native core on each instruction set of this machine.

A test runs once per implementation, which is forced before it and checked after it; the summary counts the tests that
each has passed. ``HEADWISE_BACKEND=numpy`` or ``native`` and ``HEADWISE_TARGET`` narrow the choice, and
``HEADWISE_REQUIRE_NATIVE=1`` makes a missing native core a failure.

Tests marked ``single_implementation`` (they start processes or choose implementations themselves) run once, on the
implementation that a user would get. Tests marked ``above_operations`` (they test Python code above operations that
have their own tests) run on NumPy and on the best instruction set.

``HEADWISE_TEST_PROFILE`` is one of

- ``default``: NumPy and the best instruction set, without the tests marked ``slow``, unless their file is named on the
  command line; about three minutes on two cores;
- ``ci``: as ``.ci/run``: every test on NumPy and the best instruction set, and each of its cases on one of the other
  instruction sets in turn (``rotation.py``); a test of few cases runs with all of them on each;
- ``long``: every case on every implementation, tests marked ``above_operations`` as well, and more hypothesis examples.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The first import of headwise: it sets a variable that the core reads.
from implementations import (
    FEW,
    IMPLEMENTATIONS,
    PRESENT,
    PROFILE,
    SELECTION,
    choose,
    in_force,
    native_present,
    use_bf16_for_any_shape,
)

import headwise  # isort: skip
import rotation  # isort: skip
from headwise._runtime import backend as _backend  # isort: skip

ONCE = "single implementation"
PASSED: Counter[str] = Counter()
LEFT_OUT: list[str] = []

for profile, examples in (("default", 10), ("ci", 25)):
    settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(PROFILE)

#: Two names of the same machine code, but for bfloat16 and "medium": other modules run on the first of them only that
#: is there.
SAME_CODE = ("native-avx512_bf16", "native-avx512")
WITH_BFLOAT16 = (
    "cache.test_cache",
    "cache.test_extend",
    "cache.test_rings",
    "contract.test_16bit",
    "contract.test_rulings",
    "ops.test_attention_16bit",
    "ops.test_linear",
    "ops.test_varlen",
    "runtime.test_config",
    "runtime.test_precision",
    "threads.test_threads",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "single_implementation: run once, on the implementation a user would get",
        "above_operations: run on NumPy and the best instruction set",
        "slow: left out of the default profile",
    ):
        config.addinivalue_line("markers", marker)
    if os.environ.get("HEADWISE_REQUIRE_NATIVE", "0") not in ("", "0") and not native_present():
        pytest.exit("HEADWISE_REQUIRE_NATIVE is set, but headwise has no native core (headwise._core)", returncode=1)
    if not IMPLEMENTATIONS:
        asked = ", ".join(f"{variable}={os.environ[variable]}" for variable in SELECTION if variable in os.environ)
        pytest.exit(f"no implementation of headwise on this machine fits {asked}", returncode=1)


def pytest_report_header() -> list[str]:
    missing = "" if native_present() else " (no native core: headwise._core is not there)"
    lines = [f"headwise implementations: {', '.join(IMPLEMENTATIONS)}{missing}"]
    if PROFILE == "default":
        more = ", ".join(name for name in PRESENT if name not in IMPLEMENTATIONS) or "no other implementation"
        lines.append(f"HEADWISE_TEST_PROFILE=ci adds: {more}; tests marked slow")
    if PROFILE == "ci":
        lines.append(f"HEADWISE_TEST_ROTATION={rotation.FIRST}: where the rotation of the other implementations begins")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("single_implementation") is not None:
        return
    few = metafunc.definition.get_closest_marker("above_operations") is not None and PROFILE != "long"
    names = FEW if few else IMPLEMENTATIONS
    if PROFILE != "long" and metafunc.module.__name__ not in WITH_BFLOAT16:
        same = [name for name in names if name in SAME_CODE]
        names = [name for name in names if name not in same[1:]]
    metafunc.parametrize("implementation", names, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Tens of thousands of tests stay until the end: the garbage collector need not look at them again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before -k, so that a case runs on the same implementations in any selection of tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out_slow_tests(config, items)
    if PROFILE == "ci":
        running, waiting = rotation.rotated(items, FEW)
        config.hook.pytest_deselected(items=waiting)
        items[:] = running
    # The examples in the docstrings of headwise.plot draw, and Matplotlib is not needed for anything else.
    if importlib.util.find_spec("matplotlib") is None:
        for item in items:
            if isinstance(item, pytest.DoctestItem) and item.name.startswith("headwise.plot."):
                # pytest reports a skip with a line, and doctest finds none for objects that name their public module.
                item.dtest.lineno = item.dtest.lineno or 0
                item.add_marker(pytest.mark.skip(reason="pictures need the package matplotlib"))


def leave_out_slow_tests(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the default profile, but for those whose file is named on the command line."""
    if PROFILE != "default":
        return
    named = {(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args}
    slow = [
        item for item in items if item.get_closest_marker("slow") is not None and Path(item.path).resolve() not in named
    ]
    if slow:
        LEFT_OUT.extend(item.nodeid for item in slow)
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


@pytest.fixture(autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one implementation for one test, and restores the one before."""
    name = getattr(request, "param", None)
    backend, threads, target = _backend.name(), headwise.get_num_threads(), headwise.config()["target"]
    request.node.user_properties.append(("implementation", name or ONCE))
    if name is not None:
        choose(name)
    yield name or backend
    assert name in (None, in_force()), f"{name} was forced, {in_force()} ran"
    use_bf16_for_any_shape(False)
    _backend.use(backend)
    headwise.set_target(target)
    headwise.set_num_threads(threads)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        PASSED.update(value for key, value in report.user_properties if key == "implementation")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("headwise implementations")
    for name in [*IMPLEMENTATIONS, ONCE]:
        terminalreporter.line(f"{name}: {PASSED[name]} tests passed")
    if LEFT_OUT:
        files = sorted({nodeid.split("::")[0].removeprefix("tests/") for nodeid in LEFT_OUT})
        terminalreporter.line(f"left out, as slow: {len(LEFT_OUT)} tests of {', '.join(files)}")


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every test that draws some."""
    return np.random.default_rng(0)

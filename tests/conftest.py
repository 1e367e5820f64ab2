"""One suite, every implementation: NumPy, and the native core on each instruction set this machine has.

Every test runs once per implementation, with that one forced before it and shown to be in force after it; the summary
counts the tests each has passed. ``HEADWISE_BACKEND=numpy`` or ``native`` and ``HEADWISE_TARGET`` narrow the choice,
``HEADWISE_REQUIRE_NATIVE=1`` makes a missing native core a failure, and ``HEADWISE_TEST_PROFILE=long`` lets hypothesis
look for longer. Tests marked ``single_implementation`` (they start processes or choose implementations themselves) run
once, on what a user would get. Tests marked ``above_operations`` (what they test is Python, on operations that have
their own tests) run on NumPy and on the best instruction set, and on all in the long profile.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Threads of OpenMP that wait spin for a while. On a machine that has other work the one they wait for then does not get
# a processor, and calls of microseconds take a time slice each. It must be set before the core is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import headwise
from headwise._runtime import backend as _backend

SELECTION = ("HEADWISE_BACKEND", "HEADWISE_TARGET")
ONCE = "single implementation"
PASSED: Counter[str] = Counter()

settings.register_profile(
    "default", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PROFILE = os.environ.get("HEADWISE_TEST_PROFILE", "default")
settings.load_profile(PROFILE)


def native_present() -> bool:
    return importlib.util.find_spec("headwise._core") is not None


def find_implementations() -> list[str]:
    """``numpy`` and ``native-<target>`` for each target, as far as the environment allows them."""
    backend, target = (os.environ.get(variable, "").strip().lower() for variable in SELECTION)
    names = [] if backend == "native" or target else ["numpy"]
    if backend != "numpy" and native_present():
        before = _backend.name()
        _backend.use("native")
        names += [f"native-{name}" for name in headwise.list_targets() if target in ("", name)]
        _backend.use(before)
    return names


IMPLEMENTATIONS = find_implementations()
FEW = IMPLEMENTATIONS[: 1 + ("numpy" in IMPLEMENTATIONS)]  # NumPy and the best instruction set

#: Computes as avx512 does but for bfloat16 and "medium": where it is not the best, only modules with these run on it.
DOTS = "native-avx512_bf16"
WITH_BFLOAT16 = (
    "cache.test_cache",
    "contract.test_16bit",
    "contract.test_rulings",
    "ops.test_attention_16bit",
    "ops.test_linear",
    "ops.test_varlen",
    "runtime.test_config",
    "threads.test_threads",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "single_implementation: run once, on the implementation a user would get")
    config.addinivalue_line("markers", "above_operations: run on NumPy and the best instruction set")
    if os.environ.get("HEADWISE_REQUIRE_NATIVE", "0") not in ("", "0") and not native_present():
        pytest.exit("HEADWISE_REQUIRE_NATIVE is set, but headwise has no native core (headwise._core)", returncode=1)
    if not IMPLEMENTATIONS:
        asked = ", ".join(f"{variable}={os.environ[variable]}" for variable in SELECTION if variable in os.environ)
        pytest.exit(f"no implementation of headwise on this machine fits {asked}", returncode=1)


def pytest_report_header() -> str:
    missing = "" if native_present() else " (no native core: headwise._core is not there)"
    return f"headwise implementations: {', '.join(IMPLEMENTATIONS)}{missing}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("single_implementation") is not None:
        return
    few = metafunc.definition.get_closest_marker("above_operations") is not None and PROFILE != "long"
    names = FEW if few else IMPLEMENTATIONS
    if PROFILE != "long" and DOTS not in FEW and metafunc.module.__name__ not in WITH_BFLOAT16:
        names = [name for name in names if name != DOTS]
    metafunc.parametrize("implementation", names, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The examples in the docstrings of headwise.plot draw, and Matplotlib is not needed for anything else."""
    if importlib.util.find_spec("matplotlib") is None:
        for item in items:
            if isinstance(item, pytest.DoctestItem) and item.name.startswith("headwise._plot."):
                item.add_marker(pytest.mark.skip(reason="pictures need the package matplotlib"))


@pytest.fixture(autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one implementation for one test, and puts back what was there before."""
    name = getattr(request, "param", None)
    backend, threads, target = _backend.name(), headwise.get_num_threads(), headwise.config()["target"]
    request.node.user_properties.append(("implementation", name or ONCE))
    if name is not None:
        choose(name)
    yield name or backend
    assert name in (None, in_force()), f"{name} was forced, {in_force()} ran"
    tiles_for_any_shape(False)
    _backend.use(backend)
    headwise.set_target(target)
    headwise.set_num_threads(threads)


def choose(name: str) -> None:
    """Puts ``numpy`` or ``native-<target>`` in force."""
    backend, _, target = name.partition("-")
    _backend.use(backend)
    if target:
        headwise.set_target(target)
        tiles_for_any_shape(True)


def tiles_for_any_shape(on: bool) -> None:
    """Small shapes go by multiply-adds where there are tiles; tests want the tiles."""
    if _backend.name() == "native":
        _backend.current()._set_tiles_for_any_shape(on)  # type: ignore[attr-defined]


def in_force() -> str:
    """The name of what runs now, as :func:`choose` takes it."""
    now = headwise.config()
    return "numpy" if now["backend"] == "numpy" else f"native-{now['target']}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        PASSED.update(value for key, value in report.user_properties if key == "implementation")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("headwise implementations")
    for name in [*IMPLEMENTATIONS, ONCE]:
        terminalreporter.line(f"{name}: {PASSED[name]} tests passed")


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every test that draws some."""
    return np.random.default_rng(0)

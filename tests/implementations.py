"""The implementations of headwise on this machine, and the profile of the tests: which of them a test runs on."""

from __future__ import annotations

import importlib.util
import os

# Waiting threads do not spin, so that the tests on a busy machine get the processors. It must be set before the core is
# loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import headwise
from headwise._runtime import backend as _backend

SELECTION = ("HEADWISE_BACKEND", "HEADWISE_TARGET")
#: ``default``: about three minutes; ``ci``: with the other instruction sets in turn; ``long``: every case on each.
PROFILE = os.environ.get("HEADWISE_TEST_PROFILE", "default")


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


PRESENT = find_implementations()
#: NumPy and the best instruction set.
FEW = PRESENT[: 1 + ("numpy" in PRESENT)]
#: Those that tests run on.
IMPLEMENTATIONS = FEW if PROFILE == "default" else PRESENT


def choose(name: str) -> None:
    """Puts ``numpy`` or ``native-<target>`` in force."""
    backend, _, target = name.partition("-")
    _backend.use(backend)
    if target:
        headwise.set_target(target)
        use_bf16_for_any_shape(True)


def use_bf16_for_any_shape(on: bool) -> None:
    """Switches to bf16 kernels at small shapes, which run on FMA otherwise; a no-op without HEADWISE_TEST_HOOKS."""
    if bf16_may_be_forced():
        _backend.current()._set_bf16_for_any_shape(on)  # type: ignore[attr-defined]


def bf16_may_be_forced() -> bool:
    """Whether the core in force was built with HEADWISE_TEST_HOOKS."""
    return hasattr(_backend.current(), "_set_bf16_for_any_shape")


def in_force() -> str:
    """The name of the implementation that runs now, as :func:`choose` takes it."""
    now = headwise.config()
    return "numpy" if now["backend"] == "numpy" else f"native-{now['target']}"

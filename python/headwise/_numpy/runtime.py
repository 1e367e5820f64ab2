"""Threads and targets: NumPy has one target, and its BLAS has threads of its own."""

from __future__ import annotations

from headwise._base.messages import shown

_threads = 1


def set_num_threads(n: int) -> None:
    """Remembered only."""
    global _threads  # noqa: PLW0603 (a setting of the process)
    _threads = n


def get_num_threads() -> int:
    return _threads


def set_target(name: str) -> None:
    if name != "numpy":
        raise ValueError(f"target: {shown(name)}, expected one of those available: numpy")


def get_target() -> str:
    return "numpy"


def list_targets() -> list[str]:
    return ["numpy"]

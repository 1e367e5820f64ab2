"""The machine and the versions of the libraries that were timed."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comparison.peers import Peer


@dataclass(frozen=True)
class Environment:
    cpu: str
    system: str
    target: str
    threads: int
    load: float  # average number of runnable processes in the minute before the start
    versions: dict[str, str]
    missing: list[str]  # labels of peers that are not installed


def available_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Give every library of this process the same number of threads: by the processor affinity and the environment."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HEADWISE_NUM_THREADS", "NPROC"):
        os.environ[name] = str(threads)


def has_bfloat16() -> bool:
    """Whether ``ml_dtypes``, which defines bfloat16 for NumPy, is installed."""
    return find_spec("ml_dtypes") is not None


def describe(libraries: list[Peer], missing: list[str], threads: int) -> Environment:
    import headwise

    config = headwise.config()
    versions = {peer.label: peer.version for peer in libraries if peer.version}
    return Environment(
        cpu=_cpu_model(),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        target=config["target"],
        threads=threads,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        versions=versions,
        missing=missing,
    )


def warnings(facts: Environment) -> list[str]:
    found = []
    if facts.load > 0.3 * (os.cpu_count() or 1):
        found.append(f"the machine is busy (load {facts.load}): times are not reliable, and ratios are approximate")
    if facts.target == "numpy":
        found.append("headwise's native core is not in use: the NumPy backend is timed")
    if facts.missing:
        found.append(f"not installed, so left out: {', '.join(facts.missing)} (pip install --group bench)")
    # Set on machines where an old OpenBLAS fails; a newer one selects a faster kernel itself.
    if "OPENBLAS_CORETYPE" in os.environ:
        found.append("OPENBLAS_CORETYPE is set, which may slow NumPy down")
    return found


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

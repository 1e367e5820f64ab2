"""The processors that this process may use, also where OpenMP has bound the main thread to one of them.

With ``OMP_PROC_BIND=true``, usual on clusters, an OpenMP library confines the thread that loads it to one processor.
The affinity mask of that thread is then not that of the process, but the library knows the mask that it found.
"""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_LIBRARY = re.compile(r"/lib(g|i)?omp[^/]*\.so[^/]*$")


def allowed() -> set[int] | None:
    """The processors of this process; None if the system has no affinity masks or denies reading them (seccomp)."""
    own = _mask()
    return own | _places() if own is not None and binding() else own


def binding(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks OpenMP to bind threads to processors."""
    return any(environ.get(name, "").strip().lower() not in ("", "false") for name in _BINDING)


@contextmanager
def unbound() -> Iterator[None]:
    """Load libraries without their effect on the affinity mask of this thread."""
    before = _mask()
    yield
    if before is not None and _mask() != before:
        os.sched_setaffinity(0, before)


def _mask() -> set[int] | None:
    affinity = getattr(os, "sched_getaffinity", None)
    try:
        return None if affinity is None else set(affinity(0))
    except OSError:
        return None


def _places() -> set[int]:
    """The processors in the places (OpenMP 4.5) of the OpenMP libraries that this process has loaded."""
    processors: set[int] = set()
    for path in _loaded():
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            for place in range(library.omp_get_num_places()):
                ids = (ctypes.c_int * library.omp_get_place_num_procs(place))()
                library.omp_get_place_proc_ids(place, ids)
                processors.update(ids)
        except (OSError, AttributeError):  # it was unloaded meanwhile, or is older than OpenMP 4.5
            continue
    return processors


def _loaded() -> set[str]:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n") for line in file]
    except OSError:
        return set()
    return {line[line.index("/") :] for line in lines if _LIBRARY.search(line)}

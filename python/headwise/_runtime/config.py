"""The configuration of this process: backend, instruction set and threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.scalars import check_int
from headwise._runtime import backend as _backend
from headwise._runtime.precision import get_precision
from headwise._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_THREADS = (1 << 31) - 1  # INT_MAX

# Header folders of Debian, `make install` and Homebrew.
_INCLUDE_DIRS = ("/usr/include", "/usr/local/include", "/opt/homebrew/include")
_HIGHWAY = "libhwy-dev"


def config() -> dict[str, Any]:
    """The configuration: version, backend, instruction set, threads, precision.

    Returns
    -------
    dict
        ``version`` (of headwise), ``backend`` ("native" or "numpy"), ``target`` (the instruction set in use),
        ``targets`` (those this machine can use, best first), ``threads``, ``precision`` (that of
        :func:`get_precision`), ``error`` (why an installed native core cannot be loaded, else None), ``numpy`` (the
        version of NumPy).

    Examples
    --------
    >>> import headwise as hw
    >>> sorted(hw.config())
    ['backend', 'error', 'numpy', 'precision', 'target', 'targets', 'threads', 'version']
    """
    backend = _backend.current()
    return {
        "version": __version__,
        "backend": _backend.name(),
        "target": backend.get_target(),
        "targets": backend.list_targets(),
        "threads": backend.get_num_threads(),
        "precision": get_precision(),
        "error": _backend.error(),
        "numpy": np.__version__,
    }


def show_config() -> None:
    """Print :func:`config` and, if the native core is not installed, the packages needed to build it.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.show_config()  # doctest: +ELLIPSIS
    headwise ...
    """
    facts = config()
    print(f"headwise {facts['version']}, numpy {facts['numpy']}")
    print(f"backend    {facts['backend']}")
    print(f"target     {facts['target']}, of {', '.join(facts['targets'])}")
    print(f"threads    {facts['threads']}")
    print(f"precision  {facts['precision']}")
    if facts["error"] is not None:
        print(f"error      {facts['error']}")
        print(f"           {_backend.remedy(facts['error'])}")
    if not _backend.core_is_installed():
        print("The native core is not installed; the NumPy backend is used.")
        missing = missing_tools()
        if missing:
            print(f"To build it, this machine lacks {', '.join(tool for tool, _ in missing)}. On Debian and Ubuntu:")
            print(f"    apt-get install {' '.join(package for _, package in missing)}")
            print("Then reinstall headwise from source.")
        else:
            print("This machine can build it: reinstall headwise from source.")
        print("With HEADWISE_REQUIRE_NATIVE=1 in the environment of pip, a failed build is an error with its reason.")
        if any(package == _HIGHWAY for _, package in missing):
            print("CMAKE_ARGS=-DHEADWISE_FETCH_HIGHWAY=ON downloads Highway where no package of it is available.")


def set_num_threads(n: int) -> None:
    """Set the number of threads that the native core uses. Results do not depend on it.

    A lower limit that OpenMP or threadpoolctl sets for a thread wins, and no call uses more than 1024 threads. The
    NumPy backend stores the number; its matrix products use the threads of NumPy's BLAS.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ValueError
        If `n` is not positive.
    TypeError
        If `n` is not an integer.

    Examples
    --------
    >>> import headwise as hw
    >>> before = hw.get_num_threads()
    >>> hw.set_num_threads(1)
    >>> hw.get_num_threads()
    1
    >>> hw.set_num_threads(before)
    """
    _backend.current().set_num_threads(check_int(n, "n", 1, _MAX_THREADS))


def get_num_threads() -> int:
    """The number of threads that a call of the native core from this thread may use.

    At import this is ``HEADWISE_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of processors that the
    affinity mask and the cgroup quota of this process allow. Limits that OpenMP or threadpoolctl sets later apply.

    Returns
    -------
    int

    Examples
    --------
    >>> import headwise as hw
    >>> hw.get_num_threads() >= 1
    True
    """
    return _backend.current().get_num_threads()


def set_target(name: str) -> None:
    """Force an instruction set, one of :func:`list_targets`.

    Parameters
    ----------
    name : str
        For example "avx512_amx", "avx512_bf16", "avx512", "avx2", "sse4" or "neon". The NumPy backend has only
        "numpy".

    Raises
    ------
    ValueError
        If `name` is unknown, or this build or processor does not support it.
    TypeError
        If `name` is not a string.

    Examples
    --------
    >>> import headwise as hw
    >>> before = hw.config()["target"]
    >>> hw.set_target(hw.list_targets()[0])
    >>> hw.config()["target"] == hw.list_targets()[0]
    True
    >>> hw.set_target(before)
    """
    if not isinstance(name, str):
        raise TypeError(f"target: {type(name).__name__}, expected a string")
    _backend.set_target(name)


def list_targets() -> list[str]:
    """The instruction sets that this build and this processor support, best first.

    Returns
    -------
    list of str

    Examples
    --------
    >>> import headwise as hw
    >>> hw.config()["target"] in hw.list_targets()
    True
    """
    return _backend.current().list_targets()


def missing_tools(
    include_dirs: Sequence[str] = _INCLUDE_DIRS, python_include: str | None = None
) -> list[tuple[str, str]]:
    """Build requirements of the native core that this machine lacks: (description, Debian package).

    Headers of Highway are looked for in ``include_dirs``, those of Python in ``python_include`` or where this
    interpreter has them. CMake is not a requirement, as pip installs it.
    """
    # Both take milliseconds to import, and only this function needs them.
    import shutil  # noqa: PLC0415
    import sysconfig  # noqa: PLC0415

    python_include = python_include or sysconfig.get_path("include")
    missing = []
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        missing.append(("a C++ compiler", "g++"))
    if not os.path.isfile(os.path.join(python_include, "Python.h")):
        missing.append(("the headers of Python", "python3-dev"))
    if not any(os.path.isfile(os.path.join(folder, "hwy", "highway.h")) for folder in include_dirs):
        missing.append(("the headers of Google Highway", _HIGHWAY))
    return missing

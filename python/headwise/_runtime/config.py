"""What runs here, and how to choose it."""

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

_MAX_THREADS = (1 << 31) - 1  # what a C int holds

# Where Debian, Homebrew and a local `make install` put headers.
_INCLUDE_DIRS = ("/usr/include", "/usr/local/include", "/opt/homebrew/include")
_HIGHWAY = "libhwy-dev"


def config() -> dict[str, Any]:
    """What runs: version, backend, instruction set, threads, precision.

    Returns
    -------
    dict
        ``version``, ``backend`` ("native" or "numpy"), ``target`` (the instruction set in use), ``targets`` (those
        this machine can use, best first), ``threads``, ``precision`` (what :func:`get_precision` says), ``error``
        (why a native core that is there cannot be used, else None), ``numpy`` (NumPy's version).

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
    """Print :func:`config` and, where the native core is not installed, what to install for it.

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
        print("The native core is not installed; NumPy does the work.")
        missing = missing_tools()
        if missing:
            print(f"To build it, this machine lacks {', '.join(what for what, _ in missing)}. On Debian and Ubuntu:")
            print(f"    apt-get install {' '.join(package for _, package in missing)}")
            print("Then install headwise again, from its sources.")
        else:
            print("This machine has what it takes to build it: install headwise again, from its sources.")
        print("HEADWISE_REQUIRE_NATIVE=1 in pip's environment makes it an error, which says why it cannot be built.")
        if any(package == _HIGHWAY for _, package in missing):
            print("CMAKE_ARGS=-DHEADWISE_FETCH_HIGHWAY=ON in it downloads Highway, where there is no package of it.")


def set_num_threads(n: int) -> None:
    """Set how many threads the native core may use. Results do not depend on it.

    The NumPy backend remembers the number, but its matrix products use the threads of NumPy's BLAS.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ValueError
        If `n` is not positive.
    TypeError
        If it is no integer.

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
    """How many threads the native core may use.

    At import this is ``HEADWISE_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of processors that this
    process may use.

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
        Such as "avx512_amx", "avx512_bf16", "avx512", "avx2", "sse4" or "neon"; "numpy" is the only one of the NumPy
        backend.

    Raises
    ------
    ValueError
        If `name` is unknown, or this build or processor does not have it.
    TypeError
        If it is no string.

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
    """The instruction sets that this build and this machine have, best first.

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
    import shutil  # not at the top: both take milliseconds to import, and only this function needs them
    import sysconfig

    python_include = python_include or sysconfig.get_path("include")
    missing = []
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        missing.append(("a C++ compiler", "g++"))
    if not os.path.isfile(os.path.join(python_include, "Python.h")):
        missing.append(("the headers of Python", "python3-dev"))
    if not any(os.path.isfile(os.path.join(folder, "hwy", "highway.h")) for folder in include_dirs):
        missing.append(("the headers of Google Highway", _HIGHWAY))
    return missing

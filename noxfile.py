"""Commands, each in an environment of its own: ``nox -l`` lists them, ``nox -s tests -- -k rope`` runs one.

No session installs packages of the system. ``lint`` looks for clang-tidy and cppcheck on the path; ``tests`` and
``cpp`` need a C++ compiler, Highway and, for ``cpp``, CMake, Ninja and GoogleTest (on Debian and Ubuntu:
``bash .ci/install run``).
"""

from __future__ import annotations

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]


def install(session: nox.Session, *arguments: str) -> None:
    """Install with a pip that knows dependency groups."""
    session.install("pip>=25.1")
    session.install(*arguments)


def install_headwise(session: nox.Session, group: str) -> None:
    """Install the package and a dependency group; later runs of the session compile only what has changed."""
    install(session, "--group", "build", "--group", group)
    session.install("--no-build-isolation", "-C", f"build-dir=build/nox-{session.name}", ".")


@nox.session
def tests(session: nox.Session) -> None:
    """The Python suite, on NumPy and on each instruction set of the machine. Arguments go to pytest."""
    install_headwise(session, "test")
    session.run("pytest", *(session.posargs or ["-q", "tests", "--pyargs", "headwise"]))


@nox.session
def cpp(session: nox.Session) -> None:
    """The C++ tests, on each instruction set of the machine. Arguments go to ctest."""
    session.run("cmake", "--preset", "dev", external=True)
    session.run("cmake", "--build", "--preset", "dev", external=True)
    session.run("ctest", "--preset", "dev", *session.posargs, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Every static check (.ci/lint)."""
    install(session, "--group", "lint")
    session.run("bash", ".ci/lint", external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The links of the documents, and the examples in them, on the NumPy backend."""
    session.env["HEADWISE_PURE"] = "1"
    install(session, ".", "--group", "test")
    session.run("python", "docs/check_links.py")
    session.run("pytest", "-q", "tests/interface/test_readme.py", "tests/interface/test_docstrings.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Headwise beside other libraries. Arguments go to bench/compare.py (``-- --help``)."""
    install_headwise(session, "bench")
    session.run("python", "bench/compare.py", *session.posargs)

"""Commands, each in an environment of its own: ``nox -l`` lists them, ``nox -s tests -- -k rope`` runs one.

No session installs packages of the system. ``lint`` looks for clang-tidy and cppcheck on the path; ``tests`` and
``cpp`` need a C++ compiler, Highway and, for ``cpp``, CMake, Ninja and GoogleTest (on Debian and Ubuntu:
``bash .ci/install run``).
"""

from __future__ import annotations

import functools
import pathlib
import re

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


#: Module of headwise.integrations: packages that its tests need beside its library.
INTEGRATIONS = {
    "autograd": (),
    "dask": ("distributed", "zarr"),
    "jax": (),
    "mygrad": ("autograd",),
    "onnx": (),
    "torch": (),
    "transformers": ("torch", "tokenizers"),
    "xarray": ("dask[array]",),
}

#: Packages that only the oldest version of a library needs, in versions of its time.
OF_OLDEST = {"dask": ("zarr<3",)}


@functools.cache
def oldest_versions() -> dict[str, str]:
    """The oldest version of each library, as its module states it."""
    text = pathlib.Path("python/headwise/integrations/_libraries.py").read_text(encoding="utf-8")
    return dict(re.findall(r'Integration\("(\w+)", "\w+", "([0-9.]+)"', text))


#: The wheel that this run of nox has built.
_wheel: list[pathlib.Path] = []


def built_wheel(session: nox.Session) -> pathlib.Path:
    """The wheel of this tree. Sessions of one run share it, and later runs compile only what has changed."""
    folder = pathlib.Path("build/nox-wheel")
    if not _wheel:
        for old in folder.glob("*.whl"):
            old.unlink()
        build = ("-C", "build-dir=build/nox-wheel/objects", "--no-build-isolation")
        install(session, "--group", "build")
        session.run("python", "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(folder), *build, ".")
        _wheel.extend(folder.glob("*.whl"))
    return _wheel[0]


@nox.session
@nox.parametrize(
    ("name", "versions"),
    [(name, versions) for name in INTEGRATIONS for versions in ("oldest", "newest")],
    ids=[f"{name}-{versions}" for name in INTEGRATIONS for versions in ("oldest", "newest")],
)
def integrations(session: nox.Session, name: str, versions: str) -> None:
    """Integrations with the oldest and newest versions of their libraries, or one: "integrations(torch-oldest)".

    On Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu brings PyTorch without CUDA.
    """
    packages = [name]
    if versions == "oldest":
        packages = [f"{name}=={oldest_versions()[name]}.*", *OF_OLDEST.get(name, ())]
    install(session, "--group", "test", *packages, *INTEGRATIONS[name])
    session.install("--force-reinstall", "--no-deps", str(built_wheel(session)))
    session.run("pytest", "-q", *map(str, sorted(pathlib.Path("tests/integrations").glob(f"test_{name}*.py"))))


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

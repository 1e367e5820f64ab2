"""A native core that cannot be loaded: one warning with the cause and a remedy, and the NumPy backend instead.

The cores are real ones, damaged. States that need a compiler or pip are in .ci/states.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import headwise as hw
from headwise._runtime import backend as _backend
from headwise._runtime.config import missing_tools
from runtime.interpreter import PRINT_CONFIG, copy_package, error_with, needs_native, run

pytestmark = [pytest.mark.single_implementation, needs_native]
linux = pytest.mark.skipif(sys.platform != "linux", reason="an ELF file is spoilt")


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """The core of a copy of the package."""
    spec = importlib.util.find_spec("headwise._core")
    assert spec is not None
    assert spec.origin is not None
    copy_package(tmp_path)
    bundled = Path(spec.origin).parent.parent / "headwise.libs"
    if bundled.is_dir():
        shutil.copytree(bundled, tmp_path / bundled.name)
    return Path(shutil.copy(spec.origin, tmp_path / "headwise"))


def cut(length: float) -> Callable[[Path], None]:
    def spoil(core: Path) -> None:
        content = core.read_bytes()
        core.write_bytes(content[: int(length if length >= 1 else length * len(content))])

    return spoil


def of_another_python(core: Path) -> None:
    core.rename(core.with_name("_core.cpython-399-nowhere.so"))


def of_another_version(core: Path) -> None:
    file = core.with_name("_version.py")
    file.write_text(file.read_text().replace(hw.__version__, "0.0.1"))


def of_another_processor(core: Path) -> None:
    content = bytearray(core.read_bytes())
    struct.pack_into("=H", content, 18, 0x1234)  # e_machine
    core.write_bytes(content)


def no_library(core: Path) -> None:
    core.write_bytes(b"#!/bin/sh\n" * 100)


STATES = [
    pytest.param(cut(0), "file too short", marks=linux, id="empty"),
    *(pytest.param(cut(n), "", marks=linux, id=f"cut-{n}") for n in (64,)),
    pytest.param(no_library, "invalid ELF header", marks=linux, id="garbage"),
    pytest.param(of_another_processor, "ImportError", marks=linux, id="processor"),
    pytest.param(of_another_python, "built for another Python or system: _core.cpython-399-nowhere.so", id="python"),
    pytest.param(of_another_version, f"its version is {hw.__version__}, that of headwise 0.0.1", id="version"),
]
REMEDY = "reinstalling headwise may help"


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "cause"), STATES)
def test_a_core_that_does_not_load_warns_once(core: Path, spoil: Callable[[Path], None], cause: str) -> None:
    spoil(core)
    home = str(core.parent.parent)
    result = run(PRINT_CONFIG, path=home)
    assert result.returncode == 0, result.stderr
    config = json.loads(result.stdout)
    assert config["backend"] == "numpy"
    assert cause in config["error"]
    assert result.stderr.count("Warning") == 1, result.stderr
    assert f"RuntimeWarning: headwise: the native core cannot be loaded ({config['error']}): {REMEDY}" in result.stderr
    shown = run("import headwise; headwise.show_config()", path=home).stdout
    assert config["error"] in shown
    assert REMEDY in shown
    assert "not installed" not in shown
    asked = error_with(path=home, HEADWISE_BACKEND="native")
    assert asked.startswith("ImportError: HEADWISE_BACKEND: 'native', but the native core cannot be loaded (")
    assert cause in asked
    assert run(PRINT_CONFIG, path=home, HEADWISE_BACKEND="numpy").stderr == ""


def test_a_core_that_loads_is_silent(core: Path) -> None:
    result = run(PRINT_CONFIG, path=str(core.parent.parent))
    assert (json.loads(result.stdout)["backend"], result.stderr) == ("native", "")


def test_the_core_is_of_this_version() -> None:
    import headwise._core

    assert headwise._core.__version__ == hw.__version__


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("libgomp.so.1: cannot open shared object file: No such file or directory", "apt-get install libgomp1"),
        ("libhwy.so.1: cannot open shared object file: No such file or directory", "apt-get install libhwy1"),
        ("libgomp-f9a9ad78.so.1.0.0: cannot open shared object file: No such file or directory", REMEDY),
        ("/a/_core.so: cannot open shared object file: No such file or directory", REMEDY),
        ("libgomp.so.1: version `GOMP_5.0' not found", REMEDY),
    ],
)
def test_remedies_for_load_errors(error: str, remedy: str) -> None:
    assert remedy in _backend.remedy(f"ImportError: {error}")


def test_missing_build_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    where = {"include_dirs": [str(tmp_path)], "python_include": str(tmp_path)}
    assert [package for _, package in missing_tools(**where)] == ["g++", "python3-dev", "libhwy-dev"]
    for file in ("c++", "Python.h", "hwy/highway.h"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch(mode=0o755)
    assert missing_tools(**where) == []

"""The package headwise.integrations: lazy modules, and the errors where a library is missing or too old."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

from headwise import integrations
from headwise.integrations import _libraries

pytestmark = pytest.mark.single_implementation

NAMES = [entry.name for entry in integrations.INTEGRATIONS]


def test_the_table_is_sorted_and_complete() -> None:
    assert sorted(NAMES) == NAMES
    folder = importlib.import_module("importlib.resources").files(integrations)
    found = {path.name.removesuffix(".py") for path in folder.iterdir() if not path.name.startswith("_")}
    assert found == set(NAMES)


def test_no_library_is_imported_before_its_module() -> None:
    code = (
        "import sys, headwise, headwise.integrations as integrations; integrations.usable(); "
        f"print([name for name in {[entry.library for entry in integrations.INTEGRATIONS]!r} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in integrations.INTEGRATIONS if entry.name == name)
    monkeypatch.setitem(sys.modules, entry.library, None)
    with pytest.raises(ImportError, match=rf"integrations\.{name} needs .* pip install '{entry.install}>="):
        _libraries.require(name)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in integrations.INTEGRATIONS if entry.name == name)
    old = types.ModuleType(entry.library)
    old.__version__ = "0.0.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, entry.library, old)
    with pytest.raises(ImportError, match=rf"needs {entry.install} {entry.minimum} or newer, found 0\.0\.1"):
        _libraries.require(name)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tensorflow'"):
        _ = integrations.tensorflow
    assert set(NAMES) <= set(dir(integrations))


def test_versions_are_compared_as_numbers() -> None:
    assert _libraries._numbers("2.13.0+cpu") == (2, 13, 0) > _libraries._numbers("2.6")
    assert _libraries._numbers("2.13.0.dev20260101") > (2, 6)

"""New interpreters with chosen environment variables, for the tests of the configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import headwise as hw
from implementations import native_present

VARIABLES = ("HEADWISE_BACKEND", "HEADWISE_TARGET", "HEADWISE_PRECISION", "HEADWISE_NUM_THREADS", "OMP_NUM_THREADS")

PRINT_CONFIG = "import headwise, json; print(json.dumps(headwise.config()))"

needs_native = pytest.mark.skipif(not native_present(), reason="headwise has no native core here (headwise._core)")

once = pytest.mark.single_implementation


def run(code: str, *, path: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a new interpreter, without headwise's environment variables but those given."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    # The package of this process, which need not be on PYTHONPATH.
    home = path or str(Path(hw.__file__).parent.parent)
    inherited["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [inherited.get("PYTHONPATH")])])
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)


def config_with(*, path: str | None = None, **environment: str) -> dict[str, object]:
    result = run(PRINT_CONFIG, path=path, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def error_with(*, code: str = "import headwise", path: str | None = None, **environment: str) -> str:
    """The last line on standard error of an import that fails."""
    result = run(code, path=path, **environment)
    assert result.returncode == 1, result.stdout
    return result.stderr.strip().splitlines()[-1]


def copy_package(folder: Path) -> None:
    source = Path(hw.__file__).parent
    for file in source.rglob("*.py"):
        copy = folder / "headwise" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())

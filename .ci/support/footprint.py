"""Installed size (under 6.5 MB), requirements (NumPy alone) and import time of headwise."""

from __future__ import annotations

import importlib.metadata
import statistics
import subprocess
import sys
from pathlib import Path

import headwise

files = [path for path in Path(headwise.__file__).parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
size = sum(path.stat().st_size for path in files)
required = [r for r in importlib.metadata.requires("headwise") or [] if "extra ==" not in r]


def milliseconds(statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print((time.perf_counter() - start) * 1e3)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


extra = statistics.median(milliseconds("import headwise") - milliseconds("import numpy") for _ in range(9))
print(f"installed {size / 1e6:.2f} MB, requires {required}, import {extra:.0f} ms after NumPy's (not checked)")
if size >= 6.5e6 or [r.split(">")[0] for r in required] != ["numpy"]:
    raise SystemExit("expected under 6.5 MB and NumPy as the only requirement")

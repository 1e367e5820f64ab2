"""Sub-interpreters, as mod_wsgi runs applications in them: the NumPy backend with a warning, and no call hangs.

NumPy loads once per process, so either the main interpreter or one sub-interpreter has headwise.
"""

from __future__ import annotations

import importlib.util
import json

import pytest

from runtime.interpreter import needs_native, run

pytestmark = [
    pytest.mark.single_implementation,
    needs_native,
    pytest.mark.skipif(
        not any(importlib.util.find_spec(name) for name in ("_interpreters", "_xxsubinterpreters")),
        reason="this Python has no module for sub-interpreters",
    ),
]

# call(interpreter) imports headwise and computes: "BACKEND WARNINGS" or "ImportError: ...". None: the main interpreter.
PRELUDE = """
import faulthandler, importlib, importlib.util, json, os, sys
faulthandler.dump_traceback_later(60, exit=True)
new = importlib.util.find_spec("_interpreters") is not None
interpreters = importlib.import_module("_interpreters" if new else "_xxsubinterpreters")

def create():  # with the GIL of the main interpreter, as mod_wsgi does
    return interpreters.create("legacy") if new else interpreters.create(isolated=False)

CODE = '''
import os, sys, warnings
sys.path[:] = {path!r}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        import numpy as np
        import headwise as hw
        x = np.ones((1, 2, 5, 8))
        assert hw.flash_attention(x, x, x).sum() == 80
        layer = hw.MultiHeadAttention(8, 2, rng=0)
        cache = hw.KVCache(1, 2, 16, 4)
        for _ in range(3):
            layer(np.ones((1, 1, 8), np.float32), cache=cache)
        result = hw.config()["backend"]
    except ImportError as error:
        result = f"ImportError: {{error}}"
told = [str(w.message) for w in caught if "headwise" in str(w.message)]
os.write({pipe}, (" | ".join([result, *told])).encode())
'''

def call(interpreter):
    reader, writer = os.pipe()
    code = CODE.format(path=sys.path, pipe=writer)
    if interpreter is None:
        exec(code, {})
    elif error := interpreters.run_string(interpreter, code):
        raise SystemExit(str(error))
    os.close(writer)
    with os.fdopen(reader) as file:
        return file.read()

one, other = create(), create()
"""
ENDS = """
for interpreter in (one, other):
    interpreters.destroy(interpreter)
print(json.dumps(results))
"""


def results_of(calls: str) -> list[str]:
    done = run(f"{PRELUDE}\nresults = [call(i) for i in ({calls})]\n{ENDS}")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def is_numpy_refusing(result: str) -> bool:
    return result.startswith("ImportError: ") and "headwise" not in result


def test_a_sub_interpreter_has_the_numpy_backend_and_is_told() -> None:
    first, again, other, main = results_of("one, one, other, None")
    backend, warning = first.split(" | ")
    assert backend == "numpy"
    assert "sub-interpreter" in warning
    assert "WSGIApplicationGroup %{GLOBAL}" in warning
    assert again == "numpy"
    assert other == first or is_numpy_refusing(other)
    assert main == "native" or is_numpy_refusing(main)


def test_sub_interpreters_leave_the_main_interpreter_its_core() -> None:
    main, *others, again = results_of("None, one, other, one, None")
    assert main == again == "native"
    assert all(result.startswith("numpy") or is_numpy_refusing(result) for result in others)

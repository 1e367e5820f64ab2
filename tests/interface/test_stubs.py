"""``_core.pyi`` matches the signatures of the extension, and backends match the protocol: names, parameters and their
order, kinds, defaults and types."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import headwise
from headwise._runtime import backend as _backend

pytestmark = pytest.mark.single_implementation

STUB = Path(headwise.__file__).with_name("_core.pyi")

#: Types as pybind11 writes them (some of them before 3.0), and as the stub does: it asks for int where __index__ would
#: do, and for nothing less than what the package passes.
SPELLINGS = {
    "numpy.ndarray": "NDArray[Any]",
    "Optional[numpy.ndarray]": "NDArray[Any] | None",
    "tuple": "tuple[Any, ...]",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]": "list[int]",
    "typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], 'FixedSize(2)']": (
        "tuple[int, int]"
    ),
    "headwise._core.PackedLinear": "PackedLinear",
}

Signature = tuple[list[tuple[str, str, str]], str]  # name, type and default of each parameter; type of the result


def spelled(annotation: ast.expr | None) -> str:
    """An annotation as the stub writes it."""
    text = "" if annotation is None else ast.unparse(annotation).replace("typing.Optional", "Optional")
    text = text.replace("List[", "list[")
    for theirs, ours in SPELLINGS.items():
        if text in (theirs, f"{theirs} | None"):
            text = text.replace(theirs, ours)
    return text


def signature(function: ast.FunctionDef) -> Signature:
    """The signature of a function whose parameters are all positional or keyword, as pybind11's are."""
    given = function.args
    assert not (given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg), function.name
    parameters = [parameter for parameter in given.args if parameter.arg != "self"]
    defaults = [""] * (len(given.args) - len(given.defaults)) + [ast.unparse(value) for value in given.defaults]
    described = [
        (parameter.arg, spelled(parameter.annotation), default)
        for parameter, default in zip(parameters, defaults[len(given.args) - len(parameters) :], strict=True)
    ]
    return described, spelled(function.returns)


def signatures(body: list[ast.stmt], prefix: str = "") -> dict[str, Signature]:
    found = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            found[prefix + node.name] = signature(node)
        elif isinstance(node, ast.ClassDef):
            found |= signatures(node.body, f"{node.name}.")
    return found


def in_stub() -> dict[str, Signature]:
    return signatures(ast.parse(STUB.read_text(encoding="utf-8")).body)


def in_extension(core: Any) -> dict[str, Signature]:
    """Signatures from the first line of each docstring, which pybind11 makes from the C++ types and names."""
    found = {}
    for name, thing in vars(core).items():
        if isinstance(thing, type):
            methods = {f"{name}.{key}": value for key, value in vars(thing).items() if is_bound(value)}
        else:
            methods = {name: thing} if is_bound(thing) else {}
        for path, function in methods.items():
            declared = ast.parse(f"def {function.__doc__.splitlines()[0]}: ...").body
            found[path] = next(iter(signatures(declared).values()))
    return found


def is_bound(thing: Any) -> bool:
    """Whether ``thing`` is a function that pybind11 made."""
    return callable(thing) and "->" in (getattr(thing, "__doc__", None) or "")


def test_the_stub_matches_the_extension() -> None:
    core = pytest.importorskip("headwise._core", reason="there is no native core to compare the stub with")
    # Hooks for tests (HEADWISE_TEST_HOOKS) begin with an underscore, and are not in the stub.
    stub = in_stub()
    extension = {name: found for name, found in in_extension(core).items() if not name.startswith("_")}
    assert {name for name in vars(core) if not name.startswith("_")} == {name.split(".")[0] for name in stub}
    assert stub == extension
    assert "attention" in stub and "PackedLinear.__call__" in stub


@pytest.mark.parametrize("name", ["headwise._numpy", "headwise._core"])
def test_backends_match_the_protocol(name: str) -> None:
    protocol = {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in vars(_backend.Backend).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert {"attention", "linear", "set_target"} < set(protocol)
    module = pytest.importorskip(name, reason="there is no native core to look at")
    if name == "headwise._numpy":
        taken = {method: list(inspect.signature(getattr(module, method)).parameters) for method in protocol}
    else:
        declared = in_extension(module)
        taken = {method: [parameter for parameter, _, _ in declared[method][0]] for method in protocol}
    assert taken == protocol


def test_the_stub_and_py_typed_are_installed() -> None:
    assert STUB.is_file() and STUB.with_name("py.typed").is_file()

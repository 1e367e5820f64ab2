"""Public docstrings have the parameters of the signature in order, results, errors, and an example that runs."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pickle
import re
import types
from collections.abc import Iterator
from typing import Any

import pytest

import headwise
from headwise import (
    attention,
    cache,
    layers,
    masks,
    normalization,
    plot,
    positional_encoding,
    rope,
)
from headwise._base.layer import Layer

pytestmark = pytest.mark.single_implementation

MODULES = (headwise, attention, cache, layers, masks, normalization, plot, positional_encoding, rope)


def public_names() -> dict[str, Any]:
    """Every class and function that a module exports, once, under its first name."""
    found: dict[int, tuple[str, Any]] = {}
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, (type, types.FunctionType)) and not hasattr(thing, "__total__"):  # no TypedDict
                found.setdefault(id(thing), (f"{module.__name__}.{name}", thing))
    return dict(found.values())


def own_bases(cls: type) -> list[type]:
    """``cls`` and the classes of headwise that it inherits from, in the order in which attributes are looked up."""
    return [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "headwise"]


def public_methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The methods of ``cls``, inherited ones included."""
    seen = set()
    for base in own_bases(cls):
        for name, thing in vars(base).items():
            public = not name.startswith("_") or (name == "__call__" and base is cls)
            if isinstance(thing, types.FunctionType) and public and name not in seen:
                seen.add(name)
                yield name, thing


PUBLIC = public_names()
METHODS = {
    f"{name}.{method}": (thing, function)
    for name, thing in PUBLIC.items()
    if isinstance(thing, type)
    for method, function in public_methods(thing)
    if all(function is not vars(base).get(method) for base in own_bases(thing)[1:] if base in PUBLIC.values())
}


def sections(thing: Any) -> dict[str, str]:
    """The text of each section of a numpydoc docstring, by its underlined title; "" is the summary."""
    parts = re.split(r"^(\S[^\n]*)\n-+$", inspect.cleandoc(thing.__doc__ or ""), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section: str) -> list[str]:
    """The names at the margin; ``a, b : type`` has two."""
    margin = [line.split(" : ")[0] for line in section.splitlines() if line and not line.startswith(" ")]
    return [name.strip().lstrip("*") for names in margin for name in names.split(",")]


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def complaints(thing: Any, function: Any) -> list[str]:
    """The sections and names that the docstring of ``thing`` lacks; ``function`` has its signature."""
    text, taken, wrong = sections(thing), parameters(function), []
    if not text[""].strip():
        wrong.append("no summary")
    if described(text.get("Parameters", "")) != taken:
        wrong.append(f"Parameters: {described(text.get('Parameters', ''))}, the signature has {taken}")
    answers = inspect.signature(function).return_annotation
    if isinstance(thing, types.FunctionType) and (answers == "None") != ("Returns" not in text):
        wrong.append(f"Returns: {'Returns' in text}, the signature says {answers}")
    if taken and "Raises" not in text:
        wrong.append("no Raises")
    return wrong


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_of_functions_and_classes(name: str) -> None:
    thing = PUBLIC[name]
    inherits = isinstance(thing, type) and "__init__" not in vars(thing)
    assert complaints(thing, (lambda: None) if inherits else thing.__init__ if isinstance(thing, type) else thing) == []
    assert ">>> " in sections(thing).get("Examples", "")


@pytest.mark.parametrize("name", METHODS)
def test_docstrings_of_methods(name: str) -> None:
    """The example may be in the docstring of the class, which calls a layer rather than its ``forward``."""
    cls, method = METHODS[name]
    assert complaints(method, method) == []
    in_class = sections(cls).get("Examples", "")
    own = ">>> " in sections(method).get("Examples", "")
    assert own or method.__name__ == "forward" or f".{method.__name__}(" in in_class


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if isinstance(thing, type)])
def test_docstrings_of_attributes(name: str) -> None:
    """The annotations of a class and of its private bases are among its documented parameters or attributes."""
    cls = PUBLIC[name]
    bases = [base for base in own_bases(cls) if base is cls or base not in (Layer, *PUBLIC.values())]
    if "__init__" not in vars(cls):
        bases = [cls]  # its attributes are described where its parameters are
    properties = {key for base in bases for key, thing in vars(base).items() if isinstance(thing, property)}
    declared = {key for base in bases for key in inspect.get_annotations(base) if not key.startswith("_")}
    text = sections(cls)
    known = described(text.get("Parameters", "")) + described(text.get("Attributes", ""))
    assert properties | declared <= set(known)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_module_is_public(name: str) -> None:
    """repr, pydoc and pickle name the public module, where the object is found."""
    thing = PUBLIC[name]
    assert "._" not in thing.__module__
    assert getattr(importlib.import_module(thing.__module__), thing.__name__) is thing
    assert pickle.loads(pickle.dumps(thing)) is thing


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_examples_run(name: str) -> None:
    """``--doctest-modules`` does not find the methods of a class whose ``__module__`` is not the module it is in."""
    if name.startswith("headwise.plot.") and importlib.util.find_spec("matplotlib") is None:
        pytest.skip("pictures need the package matplotlib")
    thing = PUBLIC[name] if name in PUBLIC else METHODS[name][1]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(recurse=False).find(thing, name, module=False, globs={}):
        runner.run(example)
    assert runner.summarize().failed == 0


def test_the_suite_finds_public_objects() -> None:
    assert len(PUBLIC) > 40 and len(METHODS) > 20


def a_function(first: int, second: int = 0) -> int:
    """Something.

    Parameters
    ----------
    second, first : int
        Numbers.
    """
    return first + second


def test_missing_sections_are_reported() -> None:
    assert complaints(a_function, a_function) == [
        "Parameters: ['second', 'first'], the signature has ['first', 'second']",
        "Returns: False, the signature says int",
        "no Raises",
    ]

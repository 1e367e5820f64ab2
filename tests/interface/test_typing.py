"""The types in ``typing/user_code.py`` hold at run time. Type checkers check the same file (mypy, and pyright in
``.ci/types``)."""

from __future__ import annotations

import importlib.util
import runpy
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.single_implementation

USER_CODE = Path(__file__).parents[1] / "typing" / "user_code.py"


def is_a(value: Any, declared: Any) -> bool:  # noqa: PLR0911 (a case per kind of type)
    """Whether ``value`` has the type ``declared``, as far as that can be checked at run time."""
    if declared is Any:
        return True
    if declared is None or declared is types.NoneType:
        return value is None
    origin, inner = typing.get_origin(declared) or declared, typing.get_args(declared)
    if hasattr(origin, "__value__"):  # an alias, as NDArray is from NumPy 2.5 on
        return is_a(value, origin.__value__)
    if origin in (typing.Union, types.UnionType):
        return any(is_a(value, one) for one in inner)
    if origin is tuple and Ellipsis not in inner:
        return type(value) is tuple and len(value) == len(inner) and all(map(is_a, value, inner))
    if origin is np.ndarray:
        return type(value) is np.ndarray
    return isinstance(value, origin)


def assert_type(value: Any, declared: Any) -> Any:
    assert is_a(value, declared), f"{type(value)}, expected {declared}"
    return value


@pytest.fixture
def user_code(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    home = typing if sys.version_info >= (3, 11) else pytest.importorskip("typing_extensions")
    monkeypatch.setattr(home, "assert_type", assert_type)
    return runpy.run_path(str(USER_CODE))


def functions(namespace: dict[str, Any]) -> dict[str, Callable[..., None]]:
    return {name: thing for name, thing in namespace.items() if isinstance(thing, types.FunctionType)}


def test_values_have_the_types_that_users_count_on(user_code: dict[str, Any], tmp_path: Path) -> None:
    chosen = {name: run for name, run in functions(user_code).items() if run.__module__ == "<run_path>"}
    assert len(chosen) == 10
    for name, run in chosen.items():
        if name != "pictures":
            run()


def test_figures_have_the_types_that_users_count_on(user_code: dict[str, Any], tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("pictures need the package matplotlib")
    user_code["pictures"](tmp_path)


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        (1.0, int),
        ((1, 2), tuple[int, int, int]),
        (None, np.ndarray),
        (np.ma.ones(3), np.ndarray),
        ((1, 2), tuple[int, None]),
    ],
)
def test_values_of_another_type_are_reported(value: Any, declared: Any) -> None:
    assert not is_a(value, declared)

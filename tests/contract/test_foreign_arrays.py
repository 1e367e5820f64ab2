"""Arrays of other packages: those that would lose gradients, units or laziness are refused, others are taken."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import dtype_named, normal

X = normal((3, 3))


def traced_by_autograd(use: Callable[[Any], Any]) -> None:
    importlib.import_module("autograd").grad(lambda x: use(x).sum())(X.astype(np.float64))


def traced_by_jax(use: Callable[[Any], Any]) -> None:
    importlib.import_module("jax").jit(use)(X)


def differentiated_by_jax(use: Callable[[Any], Any]) -> None:
    importlib.import_module("jax").grad(lambda x: use(x).sum())(X)


def mapped_by_jax(use: Callable[[Any], Any]) -> None:
    importlib.import_module("jax").vmap(use)(X[None])


BY_TORCH = r"gradients.*headwise\.integrations\.torch.*x\.detach\(\)"

#: The package that is needed, a call of `use` with an array of it, and the words of the error.
REFUSED: dict[str, tuple[str, Callable[[Callable[[Any], Any]], Any], str]] = {
    "torch": ("torch", lambda use: use(module("torch").tensor(X, requires_grad=True)), BY_TORCH),
    "torch-parameter": (
        "torch", lambda use: use(module("torch").nn.Parameter(module("torch").tensor(X))), BY_TORCH,
    ),
    "torch-list": (
        "torch", lambda use: use([[module("torch").tensor(1.0, requires_grad=True)]]), BY_TORCH,
    ),
    "torch-later": (
        "torch", lambda use: use([X[0], X[1], module("torch").tensor(X[2], requires_grad=True)]), r"gradients.*detach",
    ),
    "mygrad-later": ("mygrad", lambda use: use([X[0], X[1], module("mygrad").tensor(X[2])]), r"gradients.*x\.data"),
    "mygrad": ("mygrad", lambda use: use(module("mygrad").tensor(X)), r"gradients.*integrations\.mygrad.*x\.data"),
    "autograd": ("autograd", traced_by_autograd, r"gradient.*integrations\.autograd.*getval"),
    "jax-grad": ("jax", differentiated_by_jax, r"traces.*integrations\.jax"),
    "jax-vmap": ("jax", mapped_by_jax, r"traces.*integrations\.jax"),
    "jax": ("jax", traced_by_jax, r"traces.*integrations\.jax"),
    "dask": ("dask.array", lambda use: use(module("dask.array").ones((3, 3))), r"integrations\.dask.*x\.compute\(\)"),
    "astropy": ("astropy.units", lambda use: use(X * module("astropy.units").m), r"unit.*x\.value"),
    "pint": ("pint", lambda use: use(module("pint").UnitRegistry().Quantity(X, "m")), r"unit.*x\.magnitude"),
    "unyt": ("unyt", lambda use: use(X * module("unyt").m), r"unit.*x\.value"),
    "numpy.ma": ("numpy", lambda use: use(np.ma.masked_less(X, 0)), r"mask.*filled"),
}  # fmt: skip

TAKEN: dict[str, tuple[str, Callable[[], Any]]] = {
    "torch": ("torch", lambda: module("torch").tensor(X)),
    "mygrad-constant": ("mygrad", lambda: module("mygrad").tensor(X, constant=True)),
    "jax": ("jax", lambda: module("jax").numpy.asarray(X)),
    "pandas": ("pandas", lambda: module("pandas").DataFrame(X)),
    "xarray": ("xarray", lambda: module("xarray").DataArray(X, dims=("row", "column"))),
    "numpy.matrix": ("numpy", lambda: X.view(np.matrix)),
    "list": ("numpy", X.tolist),
}

USES: dict[str, Callable[[Any], Any]] = {
    "x": hw.softmax,
    "query": lambda x: hw.flash_attention(x, X, X),
    "value": lambda x: hw.flash_attention(X, X, x),
    "mask": lambda x: hw.flash_attention(X, X, X, x),
    "bias": lambda x: hw.flash_attention(X, X, X, bias=x),
    "key": lambda x: hw.MultiHeadAttention(3, 1, rng=0)(X, x),
    "weight": lambda x: hw.linear(np.ones((2, 3), np.float32), x),
}


def module(name: str) -> Any:
    return pytest.importorskip(name, reason=f"the package {name} is not installed")


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_lost_is_an_error(kind: str, name: str) -> None:
    package, call, words = REFUSED[kind]
    module(package)
    with pytest.raises(TypeError, match=rf"^{name}: .*{words}"):
        call(USES[name])


@pytest.mark.parametrize("kind", TAKEN)
def test_what_loses_nothing_is_taken(kind: str) -> None:
    package, make = TAKEN[kind]
    module(package)
    got = hw.softmax(make())
    assert type(got) is np.ndarray
    np.testing.assert_allclose(got, hw.softmax(X), rtol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "reversed"])
def test_torch_bfloat16_tensors_are_taken(layout: str) -> None:
    torch = module("torch")
    bfloat16 = dtype_named("bfloat16")
    tensor = torch.tensor(X).to(torch.bfloat16)
    if layout != "contiguous":
        tensor = tensor.T.contiguous().T if layout == "transposed" else tensor.flip(0)
    array = tensor.float().numpy().astype(bfloat16)
    for got, expected in (
        (hw.softmax(tensor), hw.softmax(array)),
        (hw.flash_attention(tensor, tensor, tensor), hw.flash_attention(array, array, array)),
        (
            hw.flash_attention(X, X, X, bias=tensor, sinks=tensor[0, :1]),
            hw.flash_attention(X, X, X, bias=array, sinks=array[0, :1]),
        ),
    ):
        assert type(got) is np.ndarray and got.dtype == expected.dtype
        np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))


def test_torch_bfloat16_tensors_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = module("torch")
    monkeypatch.setitem(importlib.import_module("sys").modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"^x: dtype torch\.bfloat16.*ml_dtypes.*float\(\)"):
        hw.softmax(torch.ones(3, dtype=torch.bfloat16))

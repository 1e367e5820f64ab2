"""Calls of PyTorch's attention, for the tests of headwise.integrations.torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from headwise._runtime import backend

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
attend = torch.nn.functional.scaled_dot_product_attention

#: Largest errors of outputs and gradients of size about 1, by dtype: those of PyTorch's own kernels.
ERRORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}


@contextmanager
def counted() -> Iterator[list[int]]:
    """A list with the number of calls of headwise's forward pass."""
    calls, before = [0], backend.current()

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls[0] += name == "attention"
            return getattr(before, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_current", Counting())
        yield calls


def tensor(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_near(got: Any, expected: Any, factor: float = 1.0) -> None:
    """``got`` equals the float64 tensor ``expected`` to the bound of its dtype."""
    bound = factor * ERRORS[got.dtype]
    torch.testing.assert_close(got.detach().double(), expected.detach(), rtol=bound, atol=bound)


def with_gradients(function: Any, tensors: list[Any], *others: Any, **keywords: Any) -> tuple[Any, list[Any]]:
    """The output, and its gradients by ``tensors`` for one fixed gradient of the loss."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    output = function(*leaves, *others, **keywords)
    d_output = tensor(*output.shape, seed=9, dtype=output.dtype)
    return output.detach(), list(torch.autograd.grad(output, leaves, d_output))

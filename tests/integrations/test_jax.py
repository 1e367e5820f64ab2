"""headwise.integrations.jax: every differentiable function under jit, grad and vmap."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import headwise as hw
from calls import Case, cast
from headwise._ops.gradients import vjp as registry
from integrations.adapted import SIZES, loss
from operations import cases
from support import normal

jax: Any = pytest.importorskip("jax", reason="the package jax is not installed")
adapter: Any = pytest.importorskip("headwise.integrations.jax")
jnp: Any = pytest.importorskip("jax.numpy")

pytestmark = pytest.mark.above_operations

CASES = [
    case
    for case in cases(short=True, where=lambda operation: bool(operation.wrt))
    if str(case) != "log_softmax-where"  # whose results hold -inf
]
X = normal((2, 3, 8))
ATOL = 2e-5


def jax_loss(results: Any) -> Any:
    results = results if isinstance(results, tuple) else (results,)
    return sum((y * np.cos(np.arange(y.size)).reshape(y.shape)).sum() for y in results if y is not None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case) -> None:
    """Compiled and not, those of headwise."""
    arguments = cast(case.arguments(SIZES), np.float32)
    names = case.wrt(arguments)
    arrays = [arguments[name] for name in names]
    function = getattr(adapter, case.operation.name)

    def run(*given: Any) -> Any:
        return jax_loss(function(**{**arguments, **dict(zip(names, given, strict=True))}))

    outputs, pullback = hw.vjp(case.operation.function, **arguments, wrt=names)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [
        None if y is None else np.cos(np.arange(np.size(y)), dtype=y.dtype).reshape(np.shape(y)) for y in outputs
    ]
    expected = pullback(*weights)
    for differentiate in (lambda f: f, jax.jit):
        value, found = differentiate(jax.value_and_grad(run, argnums=tuple(range(len(names)))))(*arrays)
        np.testing.assert_allclose(value, loss(outputs), rtol=1e-3, atol=1e-3)
        for gradient, wanted in zip(found, expected, strict=True):
            assert gradient.dtype == np.float32 and gradient.shape == wanted.shape
            np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=ATOL * max(1, np.abs(wanted).max(initial=0)))


@pytest.mark.parametrize("compiled", [False, True])
def test_vmap(compiled: bool) -> None:
    query, key = normal((4, 2, 3, 8)), normal((2, 5, 8), 1)

    def attend(q: Any) -> Any:
        return adapter.flash_attention(q, key, key, return_lse=True)

    mapped = jax.vmap(attend)
    output, lse = (jax.jit(mapped) if compiled else mapped)(query)
    for n in range(4):
        expected, expected_lse = hw.flash_attention(query[n], key, key, return_lse=True)
        np.testing.assert_array_equal(output[n], expected)
        np.testing.assert_array_equal(lse[n], expected_lse)
    gradient = jax.vmap(jax.grad(lambda q: attend(q)[0].sum()))(query)
    _, pullback = hw.vjp(hw.flash_attention, query[1], key, key, wrt=("query",))
    np.testing.assert_allclose(gradient[1], pullback(np.ones((2, 3, 8), np.float32))[0], atol=ATOL)
    nested = jax.vmap(jax.vmap(adapter.softmax, in_axes=0), in_axes=1)(X)
    np.testing.assert_array_equal(nested, hw.softmax(X).swapaxes(0, 1))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_dtypes(name: str) -> None:
    x = jnp.asarray(X).astype(name)
    y = jax.jit(adapter.softmax)(x)
    assert y.dtype == name
    np.testing.assert_array_equal(np.asarray(y), hw.softmax(np.asarray(x)))


def test_traced_masks_and_lengths() -> None:
    x = normal((2, 5, 8))
    mask = normal((2, 5, 5)) > -0.5
    got = jax.jit(lambda m: adapter.flash_attention(x, x, x, mask=m))(mask)
    np.testing.assert_array_equal(got, hw.flash_attention(x, x, x, mask=mask))
    rows, lengths = normal((6, 2, 8)), np.array([0, 2, 6])
    got = jax.jit(lambda n: adapter.varlen_attention(rows, rows, rows, n))(lengths)
    np.testing.assert_array_equal(got, hw.varlen_attention(rows, rows, rows, lengths))
    mask = hw.create_padding_mask([[1, 2, 0, 0, 0], [1, 2, 3, 4, 0]])
    got = jax.jit(lambda q: adapter.flash_attention(q, x, x, mask))(x)
    np.testing.assert_array_equal(got, hw.flash_attention(x, x, x, mask))


def test_lists() -> None:
    x = normal((6, 8))

    def merged(q: Any) -> Any:
        parts = [adapter.flash_attention(q, x[p], x[p], return_lse=True) for p in (slice(2), slice(2, 6))]
        return adapter.merge_attention([part[0] for part in parts], [part[1] for part in parts])[0]

    np.testing.assert_allclose(jax.jit(merged)(x), hw.flash_attention(x, x, x), atol=2e-6)


def test_empty_arrays() -> None:
    x = jnp.zeros((0, 3, 8))
    assert jax.jit(adapter.softmax)(x).shape == (0, 3, 8)


def test_errors_while_tracing() -> None:
    with pytest.raises(ValueError, match=r"^key"):
        jax.jit(lambda q: adapter.flash_attention(q, q[..., :3], q))(X)
    with pytest.raises(TypeError, match=r"^out: given"):
        adapter.softmax(X, out=X)
    with pytest.raises(TypeError, match=r"^rng: a Generator"):
        jax.jit(lambda x: adapter.dropout(x, 0.5, rng=np.random.default_rng(0)))(X)
    with pytest.raises(AttributeError, match="expected one of"):
        _ = adapter.unknown


def test_errors_while_running() -> None:
    rows = normal((6, 2, 8))
    with pytest.raises(Exception, match=r"headwise: ValueError: cu_seqlens_q"):
        jax.jit(lambda n: adapter.varlen_attention(rows, rows, rows, n))(np.array([0, 5, 2])).block_until_ready()


@pytest.mark.single_implementation
def test_loops_and_threads_do_not_hang() -> None:
    """Computations that wait in a queue, that run in a loop, and that several threads start."""
    x = normal((1, 2, 256, 64))
    eye = jnp.eye(64)
    attend = jax.jit(lambda q: adapter.flash_attention(q @ eye, x, x, is_causal=True) @ eye)
    gradient = jax.jit(jax.grad(lambda q: (attend(q) ** 2).sum()))
    loop = jax.jit(lambda q: jax.lax.fori_loop(0, 8, lambda _, y: adapter.flash_attention(y, x, x), q))
    results = [attend(x) for _ in range(30)]
    expected = hw.flash_attention(x, x, x, is_causal=True)
    wanted = np.asarray(gradient(x))
    found: list[bool] = []

    def work() -> None:
        for _ in range(3):
            found.append(np.array_equal(gradient(x), wanted))
            loop(x).block_until_ready()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert found == [True] * 9
    for y in results:
        np.testing.assert_allclose(y, expected, atol=1e-6)


PROGRAM = """
import jax, numpy as np
from headwise.integrations.jax import flash_attention
x = np.ones((1, 4, 512, 64), np.float32)
"""
UNFINISHED = """
jax.jit(lambda q: jax.lax.fori_loop(0, 50, lambda i, y: flash_attention(y, y, y), q))(x)
print("done")
"""
DEVICES = """
from jax.sharding import Mesh, NamedSharding, PartitionSpec
x = jax.device_put(x, NamedSharding(Mesh(jax.devices(), "d"), PartitionSpec(None, "d")))
try:
    flash_attention(x, x, x)
except ValueError as error:
    print(error)
"""


def run_program(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + code], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )  # fmt: skip
    return done.stdout


@pytest.mark.single_implementation
def test_exit_before_a_computation_ends() -> None:
    assert run_program(UNFINISHED) == "done\n"


@pytest.mark.single_implementation
def test_several_devices() -> None:
    assert run_program(DEVICES).startswith("query: an array on 2 devices, expected one device")


@pytest.mark.single_implementation
def test_names() -> None:
    assert set(adapter.__all__) == {function.__name__ for function in registry._rules}

"""HEADWISE_PRECISION, set_precision and precision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

import headwise as hw
from runtime.interpreter import config_with, error_with, once
from support import Array, normal


@pytest.fixture
def default_precision() -> Iterator[None]:
    """For tests that change the process's default."""
    before = hw.get_precision()
    yield
    hw.set_precision(before)


def attend(**keywords: str) -> Array:
    """Attention of a size that uses the bf16 matmul backends of the target."""
    x = normal((1, 2, 256, 64))
    return hw.flash_attention(x, x, x, **keywords)


def layer(**keywords: str) -> Array:
    output, _ = hw.MultiHeadAttention(128, 2, rng=0).forward(normal((1, 256, 128)), **keywords)
    return output


def project(**keywords: str) -> Array:
    return hw.linear(normal((256, 128)), normal((128, 64)), **keywords)


@once
@pytest.mark.parametrize(
    ("value", "level"), [("", "highest"), ("highest", "highest"), (" High ", "high"), ("medium", "medium")]
)
def test_precision_comes_from_the_environment(value: str, level: str) -> None:
    assert config_with(HEADWISE_PRECISION=value)["precision"] == level


@once
def test_unknown_precision_in_the_environment() -> None:
    message = error_with(HEADWISE_PRECISION="low")
    assert message == "ValueError: HEADWISE_PRECISION: 'low', expected one of 'highest', 'high', 'medium'"


@pytest.mark.usefixtures("default_precision")
@pytest.mark.parametrize("operation", [attend, layer, project])
def test_every_way_to_set_a_precision_gives_the_same_bits(operation: Callable[..., Array], implementation: str) -> None:
    highest, medium = operation(precision="highest"), operation(precision="medium")
    with hw.precision("medium"):
        np.testing.assert_array_equal(operation(), medium)
        np.testing.assert_array_equal(operation(precision=None), medium)
        np.testing.assert_array_equal(operation(precision="highest"), highest)
    np.testing.assert_array_equal(operation(), highest)
    hw.set_precision("medium")
    np.testing.assert_array_equal(operation(), medium)
    np.testing.assert_array_equal(operation(precision="highest"), highest)
    with hw.precision("highest"):
        np.testing.assert_array_equal(operation(), highest)
    assert np.array_equal(medium, highest) == (not implementation.endswith(("_amx", "_bf16")))


@pytest.mark.usefixtures("default_precision")
def test_precision_nests_over_the_default() -> None:
    hw.set_precision("high")
    with hw.precision("medium"):
        assert hw.get_precision() == hw.config()["precision"] == "medium"
        with hw.precision("highest"):
            hw.set_precision("medium")
            assert hw.get_precision() == "highest"
        hw.set_precision("high")
        assert hw.get_precision() == "medium"
    assert hw.get_precision() == "high"


def test_precision_ends_with_an_exception() -> None:
    before = hw.get_precision()
    with pytest.raises(ZeroDivisionError), hw.precision("high"), hw.precision("medium"):
        raise ZeroDivisionError
    assert hw.get_precision() == before


def test_precision_as_a_decorator() -> None:
    @hw.precision("medium")
    def level(depth: int = 0) -> list[str]:
        with hw.precision("high") if depth else nullcontext():
            return [hw.get_precision(), *(level(depth - 1) if depth else [])]

    before = hw.get_precision()
    assert level(1) == ["high", "medium"]
    assert level() == ["medium"]
    assert hw.get_precision() == before


@pytest.mark.usefixtures("default_precision")
def test_precision_is_per_thread_and_the_default_per_process() -> None:
    hw.set_precision("high")
    with ThreadPoolExecutor(1) as other:
        assert other.submit(hw.get_precision).result() == "high"  # the thread starts outside of the block
        with hw.precision("medium"):
            assert other.submit(hw.get_precision).result() == "high"
            hw.set_precision("highest")
            assert (other.submit(hw.get_precision).result(), hw.get_precision()) == ("highest", "medium")


def test_precision_is_per_task() -> None:
    async def levels(name: str) -> list[str]:
        with hw.precision(name):
            seen = [hw.get_precision()]
            await asyncio.sleep(0)  # the other task runs inside its block
            return [*seen, hw.get_precision()]

    async def both() -> list[list[str]]:
        return await asyncio.gather(levels("high"), levels("medium"))

    assert asyncio.run(both()) == [["high", "high"], ["medium", "medium"]]


@pytest.mark.parametrize("choose", [hw.set_precision, hw.precision])
@pytest.mark.parametrize(
    ("name", "error"), [("low", ValueError), ("", ValueError), ("High", ValueError), (None, TypeError), (2, TypeError)]
)
def test_bad_precisions(choose: Callable[[object], object], name: object, error: type[Exception]) -> None:
    before = hw.get_precision()
    with pytest.raises(error, match=r"^precision: .*, expected one of 'highest', 'high', 'medium'$"):
        choose(name)
    assert hw.get_precision() == before

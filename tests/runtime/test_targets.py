"""Which instruction set runs: HEADWISE_TARGET, alone and together with HEADWISE_BACKEND, and set_target.

``tests/cpp/targets_test.cc`` tests that a name selects the code compiled for it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import headwise as hw
from runtime.interpreter import PRINT_CONFIG, config_with, copy_package, error_with, needs_native, once, run

ALL = ("avx512_amx", "avx512_bf16", "avx512", "avx2", "sse4", "sse2", "neon", "scalar", "numpy")


def refused(name: str, available: list[str]) -> str:
    return f"target: {name!r} is unknown or unsupported on this machine; available: {', '.join(available)}"


def targets_of(backend: str) -> list[str]:
    targets = config_with(HEADWISE_BACKEND=backend)["targets"]
    assert isinstance(targets, list)
    return targets


@once
@pytest.mark.parametrize("backend", ["auto", "numpy", pytest.param("native", marks=needs_native)])
def test_unavailable_targets_are_errors_that_list_the_available_ones(backend: str) -> None:
    """Neither backend replaces an unavailable instruction set silently."""
    available = targets_of(backend)
    absent = [name for name in ALL if name not in available]
    for name in (*absent[:2], absent[-1], "mmx", "avx2,sse4"):
        message = error_with(HEADWISE_BACKEND=backend, HEADWISE_TARGET=name)
        assert message == f"ValueError: HEADWISE_TARGET: {refused(name, available)}"


@once
@pytest.mark.parametrize("backend", ["auto", "numpy", pytest.param("native", marks=needs_native)])
def test_every_available_target_can_be_forced(backend: str) -> None:
    for target in targets_of(backend):
        config = config_with(HEADWISE_BACKEND=backend, HEADWISE_TARGET=target)
        assert (config["target"], config["error"]) == (target, None)


@once
def test_case_and_blanks_do_not_matter_in_the_environment() -> None:
    target = targets_of("auto")[-1]
    for written in (target.upper(), f"  {target}\t", f"{target.title()}\n"):
        assert config_with(HEADWISE_TARGET=written)["target"] == target
    assert config_with(HEADWISE_BACKEND=" NumPy ", HEADWISE_TARGET=" NUMPY ")["target"] == "numpy"


@pytest.mark.slow
@once
@pytest.mark.parametrize("nothing", ["", "  ", "\t\n"])
def test_an_empty_variable_is_ignored(nothing: str) -> None:
    for backend in ("", "numpy"):
        expected = config_with(HEADWISE_BACKEND=backend)
        assert config_with(HEADWISE_BACKEND=backend or nothing, HEADWISE_TARGET=nothing) == expected


@pytest.mark.slow
@once
@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_non_utf8_target_names(backend: str) -> None:
    """The environment need not be UTF-8; Python decodes it with surrogates."""
    name = "\udcffavx2"
    message = error_with(HEADWISE_BACKEND=backend, HEADWISE_TARGET=name)
    assert message == f"ValueError: HEADWISE_TARGET: {refused(name, targets_of(backend))}"


@once
def test_a_target_of_a_missing_or_broken_core(tmp_path: Path) -> None:
    """NumPy does not replace an instruction set that was asked for."""
    copy_package(tmp_path)
    expected = f"ValueError: HEADWISE_TARGET: {refused('avx2', ['numpy'])}"
    assert error_with(path=str(tmp_path), HEADWISE_TARGET="avx2") == expected
    (tmp_path / "headwise" / "_core.py").write_text("raise ImportError('undefined symbol: gomp_lost')\n")
    result = run(PRINT_CONFIG, path=str(tmp_path), HEADWISE_TARGET="avx2")
    assert result.returncode == 1 and result.stderr.strip().splitlines()[-1] == expected
    assert "RuntimeWarning" in result.stderr and "gomp_lost" in result.stderr


def test_set_target() -> None:
    before = hw.config()["target"]
    for target in hw.list_targets():
        hw.set_target(target)
        assert hw.config()["target"] == target
        hw.set_target(before)
        assert hw.config()["target"] == before


@pytest.mark.parametrize("name", ["mmx", "", "AVX2", " scalar", "scalar\0", "\udcff"])
def test_set_target_does_not_normalise_names(name: str) -> None:
    before, targets = hw.config()["target"], hw.list_targets()
    with pytest.raises(ValueError) as error:
        hw.set_target(name)
    assert str(error.value) == refused(name, targets)
    assert hw.config()["target"] == before


def test_set_target_of_a_wrong_type() -> None:
    before = hw.config()["target"]
    for name in (2, None, b"scalar"):
        with pytest.raises(TypeError, match="target"):
            hw.set_target(name)  # type: ignore[arg-type]
    assert hw.config()["target"] == before

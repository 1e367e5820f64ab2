"""The example of attention on other schedulers: its parts and merges, on pools, and where a package is missing."""

from __future__ import annotations

import importlib.util
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwise as hw
from examples.test_generate import load

example = load(Path(__file__).parents[2] / "examples" / "attention_on_schedulers.py")


@pytest.fixture
def sequence(tmp_path: Path) -> Any:
    example.write_files(tmp_path, heads=2, tokens=50, dim=8)
    return example.Sequence(tmp_path, tokens=50, chunk=16)


@pytest.mark.above_operations
def test_parts_are_merged_in_any_order(sequence: Any) -> None:
    parts: dict[int, list[Any]] = {}
    for i, j in sequence.pairs():
        parts.setdefault(i, []).append(example.part(sequence, (i, j)))
    assert [len(found) for found in parts.values()] == [1, 2, 3, 4]
    for order in (1, -1):
        results = {i: reduce(example.merge, found[::order]) for i, found in parts.items()}
        assert example.largest_difference(sequence, results) < 1e-6
    whole = [np.load(sequence.folder / f"{name}.npy") for name in ("query", "key", "value")]
    lse = hw.flash_attention(*whole, is_causal=True, return_lse=True)[1]
    np.testing.assert_allclose(np.concatenate([results[i][1] for i in range(4)], axis=1), lse, rtol=1e-5)


@pytest.mark.single_implementation
def test_threads(sequence: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.largest_difference(sequence, example.on_threads(sequence)) < 1e-6
    example.main(["threads", "--tokens", "64", "--chunk", "32"])
    assert capsys.readouterr().out.startswith("threads: 3 parts of 32 queries and keys in ")


@pytest.mark.single_implementation
@pytest.mark.parametrize("scheduler", ["ray", "spark"])
def test_a_package_that_is_missing(
    scheduler: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    example.main([scheduler])
    assert "is not installed: pip install" in capsys.readouterr().out

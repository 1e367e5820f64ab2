"""The training examples: losses equal those of PyTorch from the same weights and batches, and the models learn."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.above_operations


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses_equal_those_of_pytorch() -> None:
    """The same model, initial weights, batches and optimiser, for 50 steps."""
    pytest.importorskip("torch", reason="the training loop is compared with PyTorch's")
    example, bench = load("examples/train_transformer.py"), load("bench/training.py")
    rng, text = np.random.default_rng(0), example.Text(example.text_of_python()[:50_000])
    model = example.LanguageModel(len(text.characters), 32, 4, 2, rng)
    twin, adam = bench.TorchModel(model), example.Adam(model.parameters)
    losses = []
    for _ in range(50):
        batch = text.batch(rng, 4, 32)
        loss, gradients = model.loss(*batch)
        assert set(gradients) == set(model.parameters)
        adam.step(gradients)
        losses.append((loss, twin.step(*batch)))
    ours, theirs = np.transpose(losses)
    assert np.abs(ours - theirs).max() < 1e-4
    assert ours[-5:].mean() < 0.85 * ours[0]


@pytest.mark.single_implementation
def test_the_scripts_run() -> None:
    small = "--steps 3 --batch 2 --length 16 --width 16 --depth 1 --write 20"
    for script, arguments, expected in (
        ("train_transformer.py", small, "step    3 of 3   loss "),
        ("learn_to_reverse.py", "", "100% of the digits right"),
    ):
        command = [sys.executable, str(ROOT / "examples" / script), *arguments.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout

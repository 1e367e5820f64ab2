"""A training step of examples/train_transformer.py with headwise and with PyTorch: the same model, weights and batches.

    python bench/training.py                # medians of interleaved steps, two threads
    python bench/training.py --width 256 --length 512

prints the seconds of a step (loss, gradients, Adam) of both, their ratio, and the largest difference of the losses.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import headwise as hw

_PATH = Path(__file__).parents[1] / "examples" / "train_transformer.py"


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("train_transformer", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TorchModel:
    """The model of the example on PyTorch, with copies of its parameters, and torch.optim.Adam."""

    def __init__(self, model: Any, rate: float = 2e-3, beta1: float = 0.9, beta2: float = 0.99) -> None:
        self.parameters = {name: torch.tensor(x, requires_grad=True) for name, x in model.parameters.items()}
        self.depth, self.heads = len(model.attention), model.attention[0].num_heads
        self.rope = model.attention[0].rope
        self.optimiser = torch.optim.Adam(self.parameters.values(), rate, (beta1, beta2), eps=1e-8)

    def loss(self, tokens: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        p = self.parameters
        x = p["embedding"][tokens]
        width = x.shape[-1]
        for i in range(self.depth):
            normed = F.rms_norm(x, (width,), p[f"{i}.norm_1"], eps=1e-6)
            q, k, v = (self._split(normed @ p[f"{i}.W_{c}"]) for c in "qkv")
            attended = F.scaled_dot_product_attention(self._rotate(q), self._rotate(k), v, is_causal=True)
            x = x + attended.transpose(1, 2).reshape(x.shape) @ p[f"{i}.W_o"]
            normed = F.rms_norm(x, (width,), p[f"{i}.norm_2"], eps=1e-6)
            hidden = F.gelu(normed @ p[f"{i}.up"] + p[f"{i}.up_bias"])
            x = x + hidden @ p[f"{i}.down"] + p[f"{i}.down_bias"]
        logits = F.rms_norm(x, (width,), p["norm"], eps=1e-6) @ p["head"]
        return F.cross_entropy(logits.flatten(0, 1), following.flatten())

    def step(self, tokens: NDArray[Any], following: NDArray[Any]) -> float:
        self.optimiser.zero_grad()
        loss = self.loss(torch.from_numpy(tokens.copy()), torch.from_numpy(following.copy()))
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        cos, sin = (torch.tensor(t[: x.shape[-2]], dtype=x.dtype) for t in (self.rope.cos_cached, self.rope.sin_cached))
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    example = load_example()
    hw.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    rng, text = np.random.default_rng(0), example.Text(example.text_of_python())
    model = example.LanguageModel(len(text.characters), args.width, args.heads, args.depth, rng)
    other, adam = TorchModel(model), example.Adam(model.parameters)

    def step(tokens: NDArray[Any], following: NDArray[Any]) -> float:
        loss, gradients = model.loss(tokens, following)
        adam.step(gradients)
        return float(loss)

    times: tuple[list[float], list[float]] = ([], [])
    difference = 0.0
    for _ in range(args.steps):
        batch, losses = text.batch(rng, args.batch, args.length), []
        for run, seconds in zip((step, other.step), times, strict=True):
            begin = time.perf_counter()
            losses.append(run(*batch))
            seconds.append(time.perf_counter() - begin)
        difference = max(difference, abs(losses[0] - losses[1]))
    ours, theirs = (statistics.median(seconds[1:]) for seconds in times)
    print(f"headwise {1e3 * ours:.1f} ms   PyTorch {1e3 * theirs:.1f} ms   ratio {theirs / ours:.2f}")
    print(f"losses differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()

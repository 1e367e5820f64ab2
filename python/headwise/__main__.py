"""``python -m headwise``: the configuration, the integrations that this environment can use, a quick start, and times
compared with plain NumPy."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import headwise as hw
from headwise.integrations import usable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

# Minimum time and number of calls for the median of a function.
_SECONDS = 0.2
_REPEATS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    description = "Print the configuration, run a quick start, and compare the times of headwise and plain NumPy."
    parser = argparse.ArgumentParser(prog="python -m headwise", description=description)
    parser.add_argument("--version", action="version", version=f"headwise {hw.__version__}")
    parser.parse_args(arguments)
    hw.show_config()
    show_integrations()
    print()
    quick_start()
    print()
    compare()


def show_integrations() -> None:
    """Print the modules of :mod:`headwise.integrations` whose library is installed here."""
    for entry in usable():
        print(f"headwise.integrations.{entry.name}: {entry.does}")


def quick_start() -> None:
    """Print the shapes of the results of a few calls."""
    rng = np.random.default_rng(0)

    q, k, v = rng.standard_normal((3, 32, 10, 64))
    output, weights = hw.scaled_dot_product_attention(q, k, v)
    print(f"scaled_dot_product_attention  {q.shape} -> output {output.shape}, weights {weights.shape}")
    print(f"                              weights sum to 1: {np.allclose(weights.sum(axis=-1), 1.0)}")

    embeddings = rng.standard_normal((32, 50, 512))
    x = hw.SinusoidalPositionalEncoding(d_model=512).forward(embeddings)
    output, weights = hw.MultiHeadAttention(d_model=512, num_heads=8, rng=0).forward(x)
    print(f"MultiHeadAttention(512, 8)    {x.shape} -> output {output.shape}, weights {weights.shape}")

    rotated = hw.RotaryPositionalEmbedding(d_model=512).forward(embeddings)
    kept = np.allclose(np.linalg.norm(rotated, axis=-1), np.linalg.norm(embeddings, axis=-1))
    print(f"RotaryPositionalEmbedding     {embeddings.shape} -> {rotated.shape}, lengths kept: {kept}")

    causal = hw.flash_attention(q, k, v, is_causal=True)
    print(f"flash_attention, causal       {q.shape} -> {causal.shape}, first query gets first value: ", end="")
    print(np.allclose(causal[:, 0], v[:, 0]))


# --- times ---


class Case(NamedTuple):
    """The same computation by headwise and by plain NumPy."""

    name: str
    ours: Callable[[], Any]
    plain: Callable[[], Any]


def compare() -> None:
    """Print a table of median times."""
    print("float32, median times          headwise    plain NumPy      ratio")
    for case in cases():
        if not np.allclose(case.ours(), case.plain(), rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"{case.name}: headwise and NumPy disagree; please report it with the lines above")
        ours, plain = median_times(case.ours, case.plain)
        print(f"{case.name:27} {ours * 1e3:8.2f} ms    {plain * 1e3:8.2f} ms   {plain / ours:7.1f}x")


def cases() -> list[Case]:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 8, 1024, 64), dtype=np.float32)
    x = rng.standard_normal((4096, 1024), dtype=np.float32)
    gamma, beta = rng.standard_normal((2, 1024), dtype=np.float32)
    angles = np.arange(1024)[:, None] * 10000.0 ** (-np.arange(32) / 32)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return [
        Case("attention (1, 8, 1024, 64)", lambda: hw.flash_attention(q, k, v), lambda: plain_attention(q, k, v)),
        Case(
            "  causal",
            lambda: hw.flash_attention(q, k, v, is_causal=True),
            lambda: plain_attention(q, k, v, np.tri(1024, dtype=bool)),
        ),
        Case("softmax (4096, 1024)", lambda: hw.softmax(x), lambda: plain_softmax(x)),
        Case(
            "layer norm (4096, 1024)",
            lambda: hw.layer_normalization(x, gamma, beta),
            lambda: plain_layer_normalization(x, gamma, beta),
        ),
        Case("RoPE (1, 8, 1024, 64)", lambda: hw.apply_rope(q, cos, sin), lambda: plain_rope(q, cos, sin)),
    ]


def median_times(*functions: Callable[[], Any]) -> list[float]:
    """The median time of one call of each function in seconds. The calls are interleaved, so that other load on the
    machine affects all functions alike."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + _SECONDS * len(functions)
    while len(times[0]) < _REPEATS or time.perf_counter() < end:
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


# --- the usual implementations in plain NumPy ---


def plain_softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def plain_attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    scores: Array = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(q.shape[-1]))
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-np.inf))
    output: Array = plain_softmax(scores) @ v
    return output


def plain_layer_normalization(x: Array, gamma: Array, beta: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    result: Array = centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5) * gamma + beta
    return result


def plain_rope(x: Array, cos: Array, sin: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)
    result: Array = np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
    return result


if __name__ == "__main__":
    main()

"""Figures of a small causal transformer: its attention weights, positional encodings and biases; statistics of weights.

    pip install 'headwise[plot]'
    python examples/attention_pictures.py FOLDER

writes the figures to FOLDER, ./pictures by default. Nothing is trained: the embeddings are random, equal words have
equal embeddings, and each head attends to words that equal the query's word, within the reach of its ALiBi slope.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[Any]

TOKENS = ["The", " cat", " sat", " on", " the", " mat", ".", "\n", "The", " dog", " sat", " on", " the", " cat", "."]
LAYERS, HEADS, WIDTH = 6, 8, 128


def embed(tokens: Sequence[str], rng: np.random.Generator) -> Array:
    """(tokens, WIDTH): a random vector for each distinct word."""
    words = sorted(set(tokens))
    table = rng.standard_normal((len(words), WIDTH))
    return table[[words.index(token) for token in tokens]]


def attention_of_layers(x: Array, rng: np.random.Generator) -> list[Array]:
    """The attention weights of each layer, (1, heads, tokens, tokens)."""
    slopes, ones = hw.alibi_slopes(HEADS), np.ones(WIDTH)
    collected = []
    for _ in range(LAYERS):
        attention = hw.CausalAttention(WIDTH, HEADS, rng=rng)
        attention.W_k = attention.W_q + 0.02 * rng.standard_normal((WIDTH, WIDTH))  # equal words get large scores
        output, weights = attention(hw.layer_normalization(x, ones, 0 * ones)[np.newaxis], alibi_slopes=slopes)
        x = x + 0.3 * output[0]
        collected.append(weights)
    return collected


def draw(folder: Path) -> Iterator[Path]:
    """Draw all figures; yields the path of each file after it has been written."""
    rng = np.random.default_rng(0)
    layers = attention_of_layers(embed(TOKENS, rng), rng)
    encoding = hw.SinusoidalPositionalEncoding(d_model=64, max_len=128)
    causal = np.where(hw.create_causal_mask(16), hw.alibi_bias(HEADS, 16), -np.inf)
    view = hw.attention_score_visualization(layers[-1], TOKENS, head=2)

    hw.plot.attention(layers[0], TOKENS, title="The heads of the first layer", path=folder / "heads.png")
    yield folder / "heads.png"
    hw.plot.attention(layers[0], TOKENS, head="mean", path=folder / "mean.svg")
    yield folder / "mean.svg"
    hw.plot.attention(view, title="One head of the last layer", path=folder / "head.png")
    yield folder / "head.png"
    hw.plot.grid(layers, title="All layers", path=folder / "layers.png")
    yield folder / "layers.png"
    hw.plot.lines(layers[0], TOKENS, head=[0, 4, 7], threshold=0.02, path=folder / "lines.svg")
    yield folder / "lines.svg"
    q, k = rng.standard_normal((2, 1, HEADS, 512, 64))
    statistics = hw.attention_statistics(q, k, which=("key_mass", "entropy", "block_mass"), is_causal=True)
    hw.plot.statistics(statistics, "key_mass", title="Sums of the weights of each key", path=folder / "key_mass.png")
    yield folder / "key_mass.png"
    hw.plot.statistics(statistics, "entropy", title="Entropy of each query", path=folder / "entropy.png")
    yield folder / "entropy.png"
    hw.plot.statistics(statistics, "block_mass", title="Sums of blocks", path=folder / "block_mass.png")
    yield folder / "block_mass.png"
    hw.plot.encoding(encoding.pe, title="Sinusoidal positions", path=folder / "encoding.png")
    yield folder / "encoding.png"
    hw.plot.bias(causal, title="ALiBi, causal", path=folder / "alibi.png")
    yield folder / "alibi.png"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("pictures"), help="created if it does not exist")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for file in draw(folder):
            print(f"{file}  {file.stat().st_size / 1024:.0f} KB")
    except ImportError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])

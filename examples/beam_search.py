"""Beam search with key/value caches: the four most likely continuations of one prompt.

    python examples/beam_search.py --beams 4 --tokens 12

The prompt is read once, by a batch of one sequence. `KVCache.select` then expands its keys and values to the beams.
After each token the beams that go on are copies of some of the former ones: `KVCache.reorder` copies only the sequences
that change, and `select` drops the finished ones, so that the batch shrinks. The model is a small decoder with random
weights; `examples/generate.py` has a real one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[Any]


class Decoder:
    """Layers of attention over an embedding of tokens, which also scores the next token.

    Parameters
    ----------
    vocabulary, width, heads, layers : int
    seed : int
    """

    def __init__(self, vocabulary: int = 50, width: int = 32, heads: int = 4, layers: int = 2, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.embedding = rng.standard_normal((vocabulary, width)).astype(np.float32)
        rope = hw.RotaryPositionalEmbedding(width // heads)
        self.layers = [hw.CausalAttention(width, heads, rope=rope, rng=rng, dtype=np.float32) for _ in range(layers)]

    def make_caches(self, batch_size: int, capacity: int) -> list[hw.KVCache]:
        return [layer.make_cache(batch_size, capacity) for layer in self.layers]

    def next_tokens(self, ids: Array, caches: Sequence[hw.KVCache]) -> Array:
        """Log-probabilities (batch, vocabulary) of the token after ``ids``, (batch, new), which the caches get."""
        x = self.embedding[ids]
        for layer, cache in zip(self.layers, caches, strict=True):
            x = x + layer(x, cache=cache, need_weights=False)[0]
        return hw.log_softmax(x[:, -1] @ self.embedding.T / x.shape[-1])


class Beam(NamedTuple):
    """A continuation of the prompt and its log-probability."""

    ids: list[int]
    score: float


def beam_search(
    model: Decoder, prompt: Sequence[int], tokens: int, beams: int = 4, end: int | None = None
) -> list[Beam]:
    """The ``beams`` best continuations found, of up to ``tokens`` tokens, best first.

    A continuation ends with the token ``end``, which counts as one of its tokens.
    """
    caches = model.make_caches(1, len(prompt) + tokens)
    scores = model.next_tokens(np.array([prompt]), caches)  # (live beams, vocabulary), log-probabilities of sequences
    live: list[list[int]] = [[]]
    finished: list[Beam] = []
    while True:
        best = np.argsort(-scores, axis=None, kind="stable")[: beams - len(finished)]
        parents, chosen = np.unravel_index(best, scores.shape)
        grown = [Beam([*live[p], int(c)], float(scores[p, c])) for p, c in zip(parents, chosen, strict=True)]
        done = [beam.ids[-1] == end or len(beam.ids) == tokens for beam in grown]
        finished += [beam for beam, is_done in zip(grown, done, strict=True) if is_done]
        going = [i for i, is_done in enumerate(done) if not is_done]
        if not going:
            return sorted(finished, key=lambda beam: -beam.score)
        caches = continue_with(caches, parents[going])
        live = [grown[i].ids for i in going]
        so_far = np.array([grown[i].score for i in going])
        scores = so_far[:, np.newaxis] + model.next_tokens(chosen[going][:, np.newaxis], caches)


def continue_with(caches: list[hw.KVCache], parents: Array) -> list[hw.KVCache]:
    """Caches whose sequence ``i`` is the sequence ``parents[i]`` of these: the same ones if the batch size stays."""
    if len(parents) != caches[0].batch_size:
        return [cache.select(parents) for cache in caches]
    for cache in caches:
        cache.reorder(parents)
    return caches


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Beam search over a small decoder with random weights.")
    parser.add_argument("--beams", type=int, default=4, help="%(default)s")
    parser.add_argument("--tokens", type=int, default=12, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (%(default)s)")
    args = parser.parse_args(arguments)
    for ids, score in beam_search(Decoder(seed=args.seed), [1, 2, 3], args.tokens, args.beams):
        print(f"{score:8.3f}  {' '.join(map(str, ids))}")


if __name__ == "__main__":
    main()

"""The beam search of the examples against one that has no caches and reads every sequence from its beginning."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.test_generate import load

pytestmark = pytest.mark.above_operations

example = load(Path(__file__).parents[2] / "examples" / "beam_search.py")


def score(model: object, prompt: list[int], ids: list[int]) -> float:
    """The log-probability of the continuation ``ids``, by one pass over the sequence for each token."""
    total = 0.0
    for i, token in enumerate(ids):
        read = np.array([prompt + ids[:i]])
        total += float(model.next_tokens(read, model.make_caches(1, read.shape[1]))[0, token])  # type: ignore[attr-defined]
    return total


def search(
    model: object, prompt: list[int], tokens: int, beams: int, vocabulary: int, end: int | None
) -> list[list[int]]:
    live: list[list[int]] = [[]]
    finished: list[list[int]] = []
    while live:
        grown = [[*ids, token] for ids in live for token in range(vocabulary)]
        grown.sort(key=lambda ids: -score(model, prompt, ids))
        grown = grown[: beams - len(finished)]
        done = [ids[-1] == end or len(ids) == tokens for ids in grown]
        finished += [ids for ids, is_done in zip(grown, done, strict=True) if is_done]
        live = [ids for ids, is_done in zip(grown, done, strict=True) if not is_done]
    return sorted(finished, key=lambda ids: -score(model, prompt, ids))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("beams", [1, 4])
def test_four_beams_of_one_prompt(beams: int, seed: int) -> None:
    """With an end token, so that beams finish at different lengths and the batch shrinks."""
    model, prompt = example.Decoder(vocabulary=7, seed=seed), [3, 1, 4, 1, 5]
    unfinished = example.beam_search(model, prompt, 6, beams)
    end = unfinished[0].ids[1]  # a token that the search meets
    for stop in (None, end):
        found = example.beam_search(model, prompt, 6, beams, stop)
        assert [beam.ids for beam in found] == search(model, prompt, 6, beams, 7, stop)
        for beam in found:
            assert abs(beam.score - score(model, prompt, beam.ids)) < 1e-4
    assert len({len(beam.ids) for beam in found}) > 1 or beams == 1


@pytest.mark.single_implementation
def test_as_many_beams_as_sequences_find_the_best() -> None:
    model = example.Decoder(vocabulary=5, seed=3)
    every = [list(ids) for ids in itertools.product(range(5), repeat=3)]
    best = max(every, key=lambda ids: score(model, [2], ids))
    assert example.beam_search(model, [2], 3, 25)[0].ids == best


@pytest.mark.single_implementation
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--tokens", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(len(line.split()) == 4 for line in lines), sys.argv

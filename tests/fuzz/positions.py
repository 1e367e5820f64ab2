"""Sequences of calls on the layers of positions, and on a packed linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import headwise as hw
from fuzz.twins import DTYPES, DUPLICATES, SEEDS, TARGETS, Twins, rows, set_threads, spoilt
from strategies import PRECISIONS, ROPE_SCALINGS

WIDTHS = st.sampled_from([2, 6, 8, 12])
ROTARY = st.fixed_dictionaries(
    {"d_model": WIDTHS, "max_len": st.integers(1, 40), "scaling": ROPE_SCALINGS},
    optional={
        "base": st.floats(1e-3, 1e7),
        "interleaved": st.booleans(),
        "rotary_dim": st.sampled_from([2, 4, 6]),
        "max_position_embeddings": st.integers(1, 5000),
    },
)
Call = tuple[str, dict[str, Any]]  # a method, and its arguments


def rotary(keywords: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[int, str, int], list[Call]]]:
    width = keywords["d_model"]

    def calls(count: int, dtype: str, seed: int) -> list[Call]:
        x = rows((2, 3, count, width), seed, dtype)
        where = np.random.default_rng(seed).integers(-50, 9000, (2, count))
        return [
            ("forward", {"x": x, "offset": seed - 2**15}),
            ("forward", {"x": x, "positions": where}),
            ("forward", {"x": x, "positions": where, "out": np.zeros(x.shape, dtype)}),
            ("rotate_half", {"x": x}),
        ]

    return lambda: hw.RotaryPositionalEmbedding(**keywords), calls


def sinusoidal(keywords: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[int, str, int], list[Call]]]:
    width, length = keywords["d_model"], keywords["max_len"]

    def calls(count: int, dtype: str, seed: int) -> list[Call]:
        x = rows((2, count, width), seed, dtype)
        return [
            ("forward", {"x": x, "training": seed % 2 == 0, "rng": seed}),
            ("get_encoding", {"positions": np.random.default_rng(seed).integers(-50, 9000, (2, count))}),
        ]

    return lambda: hw.SinusoidalPositionalEncoding(width, length, 0.5), calls


def learned(keywords: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[int, str, int], list[Call]]]:
    width, length = keywords["d_model"], keywords["max_len"]

    def calls(count: int, dtype: str, seed: int) -> list[Call]:
        x = rows((2, count, width), seed, dtype)
        return [
            ("forward", {"x": x}),
            ("update_embeddings", {"gradients": x, "learning_rate": 0.1}),
            ("__setattr__", {"name": "embeddings", "value": rows((length, width), seed, dtype)}),
        ]

    return lambda: hw.LearnedPositionalEmbedding(length, width, rng=3), calls


def relative(keywords: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[int, str, int], list[Call]]]:
    width, reach = keywords["d_model"], keywords["max_len"]

    def calls(count: int, dtype: str, seed: int) -> list[Call]:
        table = rows((2 * reach + 1, width), seed, dtype)
        return [("forward", {"seq_len": count}), ("__setattr__", {"name": "embeddings", "value": table})]

    return lambda: hw.RelativePositionalEncoding(width, reach, rng=4), calls


def alibi(keywords: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[int, str, int], list[Call]]]:
    heads, length = keywords["d_model"], keywords["max_len"]

    def calls(count: int, dtype: str, seed: int) -> list[Call]:
        scores = rows((heads, count, 5), seed, dtype)
        return [("forward", {"attention_scores": scores, "offset": seed}), ("bias.__array__", {})]

    return lambda: hw.ALiBiPositionalBias(heads, length), calls


def packed(keywords: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[int, str, int], list[Call]]]:
    width, columns = keywords["d_model"], keywords["max_len"]
    weight, bias = rows((width, columns), 1), rows((columns,), 2)

    def calls(count: int, dtype: str, seed: int) -> list[Call]:
        x = rows((2, count, width), seed, "float32")
        return [("__call__", {"x": x}), ("__call__", {"x": x, "out": np.zeros((2, count, columns), np.float32)})]

    return lambda: hw.PackedLinear(weight, bias, precision=keywords.get("precision")), calls


KINDS = [sinusoidal, learned, relative, alibi, packed]
SIZES = st.fixed_dictionaries({"d_model": WIDTHS, "max_len": st.integers(1, 40)}, optional={"precision": PRECISIONS})
MADE = st.one_of(st.tuples(st.just(rotary), ROTARY), st.tuples(st.sampled_from(KINDS), SIZES))


def method(name: str, arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """A call of a method, whose arguments have a copy of ``out``, the only array that is written to."""

    def call(made: Any) -> Any:
        function = made
        if name == "__setattr__":
            return setattr(made, *arguments.values())
        for part in name.split("."):
            function = getattr(function, part)
        own = {
            key: value.copy() if key == "out" and hasattr(value, "copy") else value for key, value in arguments.items()
        }
        return function(**own)

    return call


class PositionsMachine(RuleBasedStateMachine):
    """A layer of positions, and its twin."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: Twins

    @initialize(made=MADE, native=TARGETS)
    def make(self, made: tuple[Any, dict[str, Any]], native: str) -> None:
        kind, keywords = made
        create, self.calls = kind(keywords)
        self.precision = keywords.get("precision")
        self.layer = Twins(native, create)

    @precondition(lambda self: self.layer.error is None)
    @rule(count=st.integers(0, 50), dtype=DTYPES, seed=SEEDS, data=st.data())
    def call(self, count: int, dtype: str, seed: int, data: st.DataObject) -> None:
        name, arguments = data.draw(st.sampled_from(self.calls(count, dtype, seed)))
        self.layer.call(method(name, arguments), self.precision)

    @precondition(lambda self: self.layer.error is None)
    @rule(seed=SEEDS, data=st.data())
    def hostile(self, seed: int, data: st.DataObject) -> None:
        """One argument is replaced by an arbitrary object."""
        name, arguments = data.draw(st.sampled_from(self.calls(3, "float32", seed)))
        if places := [place for place in arguments if place not in ("name", "rng")]:
            place = data.draw(st.sampled_from(places))
            # A batch of gradients is summed, whatever its length.
            arguments[place] = data.draw(spoilt(arguments[place], huge=place != "gradients"))
        self.layer.duplicate().call(method(name, arguments), self.precision)

    @precondition(lambda self: self.layer.error is None)
    @rule(way=st.sampled_from(DUPLICATES))
    def duplicate(self, way: Any) -> None:
        self.layer.replace(way)

    @rule(native=TARGETS, threads=st.integers(1, 3))
    def change_target(self, native: str, threads: int) -> None:
        self.layer.native = native
        set_threads(threads)

    def teardown(self) -> None:
        set_threads(2)

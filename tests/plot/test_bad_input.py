"""Errors of headwise.plot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headwise import plot

pytest.importorskip("matplotlib", reason="pictures need the package matplotlib")

pytestmark = pytest.mark.single_implementation


@pytest.mark.parametrize("draw", [plot.attention, plot.lines, plot.bias])
@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"tokens": ["a", "b"]}, ValueError, "tokens: 2 labels, expected 3, one for each key"),
        ({"key_tokens": list("abcd")}, ValueError, "key_tokens: 4 labels, expected 3, one for each key"),
        ({"query_tokens": []}, ValueError, "query_tokens: 0 labels, expected 3, one for each query"),
        ({"tokens": "abc"}, TypeError, "tokens: a str, expected a sequence of str"),
        ({"tokens": 3}, TypeError, "tokens: int, expected a sequence of str"),
        ({"head": 2}, ValueError, "head: 2, expected -2 to 1"),
        ({"head": [0, -3]}, ValueError, "head: -3, expected -2 to 1"),
        ({"head": []}, ValueError, "head: an empty sequence"),
        ({"head": "max"}, ValueError, "head: 'max', expected 'mean', an integer, several or None"),
        ({"head": 0.5}, TypeError, "head: 0.5 of type float, expected an integer"),
        ({"batch": 1}, ValueError, "batch: 1, expected -1 to 0"),
        ({"batch": None}, TypeError, "batch: None of type NoneType, expected an integer"),
        ({"vmax": 0}, ValueError, "vmax: 0.0, expected a positive number"),
        ({"vmax": "1"}, TypeError, "vmax: str, expected a real number"),
        ({"title": 3}, TypeError, "title: int, expected a str"),
        ({"path": "a.pdf"}, ValueError, "path: 'a.pdf', expected a name that ends in .png or .svg"),
        ({"path": "png"}, ValueError, "path: 'png', expected a name that ends in .png or .svg"),
        ({"path": 3}, TypeError, "path: int, expected a str or a path"),
    ],
)
def test_bad_keywords(draw: Any, keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        draw(np.full((2, 3, 3), 0.5), **keywords)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.ones(3), ValueError, "{}: shape (3,), expected (query_len, key_len), "),
        (np.ones((0, 3)), ValueError, "{}: shape (0, 3), expected (query_len, key_len), "),
        (np.ones((1, 1, 1, 1, 1)), ValueError, "{}: shape (1, 1, 1, 1, 1), expected (query_len, key_len), "),
        ([["a"]], TypeError, "{}: dtype <U1, expected"),
        ([[1j]], TypeError, "{}: dtype complex128, expected"),
        ([[1.0], [1.0, 2.0]], ValueError, "{}: list cannot be read as an array"),
        (None, TypeError, "{}: None, expected an array"),
        ([[0.5, np.nan]], ValueError, "{}: nan at (0, 0, 1), expected finite numbers"),
        ([[0.5, np.inf]], ValueError, "{}: inf at (0, 0, 1), expected finite numbers"),
    ],
)
def test_bad_numbers(given: Any, error: type[Exception], message: str) -> None:
    for draw, name, wrapped in (
        (plot.attention, "weights", given),
        (plot.lines, "weights", given),
        (plot.bias, "bias", given),
        (plot.grid, "weights[1]", [np.eye(2), given]),
    ):
        with pytest.raises(error) as caught:
            draw(wrapped)
        assert str(caught.value).startswith(message.format(name))


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match=r"^weights: -0.5 at \(0, 0, 1\), expected attention weights, .*plot.bias"):
        plot.attention([[1.5, -0.5]])
    with pytest.raises(ValueError, match=r"^weights: a mapping with the entries \['a'\], expected the result of"):
        plot.attention({"a": 1})
    with pytest.raises(ValueError, match=r"^weights: shape .* headwise.plot.grid draws several layers$"):
        plot.attention(np.ones((2, 1, 2, 3, 3)))
    with pytest.raises(ValueError, match=r"^weights: no layers"):
        plot.grid([])
    with pytest.raises(TypeError, match=r"^weights: a mapping, expected a sequence of layers$"):
        plot.grid({"weights": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"^weights\[0\]: shape \(2,\), expected"):
        plot.grid(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"^threshold: nan"):
        plot.lines([[1.0]], threshold=float("nan"))


def test_bad_tables() -> None:
    for shape in ((3,), (0, 4), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"^table: shape .* expected \(positions, features\), not empty$"):
            plot.encoding(np.ones(shape))
    with pytest.raises(ValueError, match=r"^table: -inf at \(0, 0\), expected finite numbers$"):
        plot.encoding([[-np.inf]])
    with pytest.raises(TypeError, match=r"^table: dtype"):
        plot.encoding([["a"]])


def test_bad_colour_maps() -> None:
    with pytest.raises(ValueError, match=r"^cmap: 'no such map', expected"):
        plot.attention([[1.0]], cmap="no such map")
    with pytest.raises(TypeError, match=r"^cmap: int, expected"):
        plot.encoding([[1.0]], cmap=3)  # type: ignore[arg-type]

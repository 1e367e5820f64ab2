"""Weights to draw, and the contents of figures, for the tests of headwise.plot."""

from __future__ import annotations

from typing import Any

import numpy as np

import headwise as hw
from support import Array, normal

TOKENS = ["The", "cat", "sat", "on", "the", "mat", "because", "it", "was", "very", "tired", "."]


def weights(*shape: int, causal: bool = False, seed: int = 0) -> Array:
    scores = normal(shape, seed)
    if causal:
        scores = np.where(np.tril(np.ones(shape[-2:], bool)), scores, -np.inf)
    return hw.softmax(scores)


def panels(figure: Any) -> list[Any]:
    """The axes with an image or with lines, without the colour bar."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def bar(figure: Any) -> Any:
    (axes,) = (axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    return axes


def image(panel: Any) -> Any:
    (image,) = panel.images
    return image


def drawn(figure: Any) -> list[Array]:
    return [image(panel).get_array() for panel in panels(figure)]


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def keys(panel: Any) -> list[str]:
    return texts(panel.get_xticklabels())


def queries(panel: Any) -> list[str]:
    return texts(panel.get_yticklabels())

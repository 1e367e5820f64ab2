"""Figures of grids, lines, encodings and biases."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
from plot.figures import bar, drawn, image, panels, queries, texts, weights
from support import normal

matplotlib = pytest.importorskip("matplotlib", reason="pictures need the package matplotlib")


from headwise import plot  # noqa: E402

pytestmark = pytest.mark.single_implementation


def test_grid() -> None:
    layers = [weights(2, 3, 4, 4, seed=0), weights(2, 2, 5, 6, seed=1)]
    figure = plot.grid(layers, batch=1, title="two layers")
    assert len(panels(figure)) == 5
    for got, want in zip(drawn(figure), [*layers[0][1], *layers[1][1]], strict=True):
        np.testing.assert_array_equal(got.data, want)
    titles = [(p.get_title(), p.get_ylabel()) for p in panels(figure)]
    assert titles == [("head 0", "layer 0"), ("head 1", ""), ("head 2", ""), ("", "layer 1"), ("", "")]
    assert figure.get_suptitle() == "two layers"
    left, top = np.array([[p.get_position().x0, p.get_position().y1] for p in panels(figure)]).T
    assert left[0] == left[3] < left[1] == left[4] < left[2]
    assert top[0] == top[1] == top[2] > top[3] == top[4]


@pytest.mark.parametrize("shape", [(2, 5, 5), (2, 3, 5, 5), (2, 4, 3, 5, 5)])
def test_grid_of_one_array(shape: tuple[int, ...]) -> None:
    figure = plot.grid(weights(*shape))
    assert len(panels(figure)) == 2 * (shape[-3] if len(shape) > 3 else 1)


def test_block_mask() -> None:
    mask = hw.BlockMask.from_mod(lambda b, h, q, k: (k <= q) & (h == 0), 6, 6, heads=2, block_size=2)
    figure = plot.block_mask(mask, title="causal")
    np.testing.assert_array_equal([x.data for x in drawn(figure)], mask.block_shares()[0])
    assert figure.get_suptitle() == "causal"
    with pytest.raises(TypeError, match="mask: ndarray"):
        plot.block_mask(mask.to_dense())  # type: ignore[arg-type]


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("which", ["key_mass", "entropy", "max_weight", "block_mass"])
def test_statistics(which: str, average: bool) -> None:
    x = normal((2, 3, 20, 8))
    found = hw.attention_statistics(x, x, is_causal=True, block_size=4, average_heads=average)
    figure = plot.statistics(found, which, batch=1, title="a title")
    values = np.asarray(getattr(found, which))[1]
    if which == "block_mass":
        shown = np.array([np.ma.filled(x, 0) for x in drawn(figure)])
    else:
        (shown,) = drawn(figure)
        assert panels(figure)[0].get_xlabel() == ("key" if which == "key_mass" else "query")
    np.testing.assert_array_equal(shown, values.reshape(shown.shape))
    assert figure.get_suptitle() == "a title"


def test_statistics_of_some_heads() -> None:
    x = normal((3, 20, 8))[None]
    found = hw.attention_statistics(x, x, which=("entropy",))
    figure = plot.statistics(found, "entropy", head=[2, 0])
    np.testing.assert_array_equal(drawn(figure)[0], np.asarray(found.entropy)[0, [2, 0]])
    assert queries(panels(figure)[0]) == ["head 2", "head 0"]
    with pytest.raises(ValueError, match=r"^found: no key_mass; headwise.*which='key_mass'\)"):
        plot.statistics(found)
    with pytest.raises(ValueError, match=r"^which: 'top_k', expected one of key_mass, entropy,"):
        plot.statistics(found, "top_k")
    with pytest.raises(TypeError, match=r"^found: ndarray, expected the result of"):
        plot.statistics(x)  # type: ignore[arg-type]


def test_lines() -> None:
    given = np.array([[0.5, 0.0, 0.5], [0.0, 0.2, 0.8]])
    figure = plot.lines(given, query_tokens=["x", "y"], key_tokens=["a", "b", "c"])
    (panel,) = panels(figure)
    (lines,) = panel.collections
    found = {}
    for (start, end), colour in zip(lines.get_segments(), lines.get_colors(), strict=True):
        assert (start[0], end[0]) == (0.0, 1.0)
        found[start[1], end[1]] = colour[3]
    # The two queries are centred on the height of the three keys.
    expected = {(0.5, 0): 0.625, (0.5, 2): 0.625, (1.5, 1): 0.25, (1.5, 2): 1.0}
    assert found == pytest.approx(expected)
    assert list(lines.get_colors()[:, 3]) == sorted(found.values())
    (right,) = panel.child_axes
    assert (queries(panel), texts(right.get_yticklabels())) == (["x", "y"], ["a", "b", "c"])
    assert panel.yaxis_inverted()
    assert {"query", "key"} <= set(texts(panel.texts))


def test_lines_above_a_threshold() -> None:
    given = weights(3, 6, 6)
    figure = plot.lines(given, threshold=0.25, vmax=0.5, head=[0, 2])
    for panel, values in zip(panels(figure), given[[0, 2]], strict=True):
        assert len(panel.collections[0].get_segments()) == (values > 0.25).sum()
        assert panel.collections[0].get_colors()[:, 3].max() <= 1.0
    assert len(panels(plot.lines(given, threshold=2.0))[0].collections[0].get_segments()) == 0


def test_encoding() -> None:
    table = hw.SinusoidalPositionalEncoding(d_model=16, max_len=40).pe
    figure = plot.encoding(table, title="sines")
    (panel,) = panels(figure)
    np.testing.assert_array_equal(image(panel).get_array().data, table)
    assert image(panel).get_clim() == (-1.0, 1.0)
    assert (panel.get_xlabel(), panel.get_ylabel(), figure.get_suptitle()) == ("feature", "position", "sines")
    assert image(panels(plot.encoding([[-4.0, 3.0]]))[0]).get_clim() == (-4.0, 4.0)
    assert image(panels(plot.encoding(table, vmax=0.5))[0]).get_clim() == (-0.5, 0.5)


def test_bias() -> None:
    given = hw.alibi_bias(4, 8)
    figure = plot.bias(given)
    assert {image(p).get_clim() for p in panels(figure)} == {(-float(-given.min()), float(-given.min()))}
    assert bar(figure).get_ylim() == (float(given.min()), 0.0)  # no number is positive
    assert bar(figure).get_ylabel() == "bias of the score"
    for got, want in zip(drawn(figure), given, strict=True):
        np.testing.assert_array_equal(got.data, want)


@pytest.mark.parametrize("never", [-np.inf, -1e9, np.finfo(np.float32).min, np.finfo(np.float64).min])
def test_masked_bias_is_grey_and_not_in_the_scale(never: float) -> None:
    keep = np.tril(np.ones((5, 5), bool))
    given = np.where(keep, normal((2, 5, 5), dtype=np.float64), never)
    figure = plot.bias(given)
    for got in drawn(figure):
        np.testing.assert_array_equal(got.mask, ~keep)
    largest = abs(given[:, keep]).max()
    assert {image(p).get_clim() for p in panels(figure)} == {(-largest, largest)}
    assert texts(bar(figure).get_legend().get_texts()) == ["masked"]
    assert image(panels(plot.bias(np.full((2, 2), never)))[0]).get_clim() == (-1.0, 1.0)
    assert drawn(plot.bias(given, head="mean"))[0].mask.sum() == 10

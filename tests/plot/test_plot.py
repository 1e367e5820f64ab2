"""Figures: panels, numbers, labels, colour scales and files, but not pixels."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import headwise as hw
from plot.figures import TOKENS, bar, drawn, image, keys, panels, queries, texts, weights
from support import dtype_named, normal

matplotlib = pytest.importorskip("matplotlib", reason="pictures need the package matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from headwise import plot  # noqa: E402

pytestmark = pytest.mark.single_implementation


# --- numbers ---


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_every_documented_shape(shape: tuple[int, ...]) -> None:
    given = weights(*shape)
    figure = plot.attention(given, batch=-1 if len(shape) == 4 else 0)
    expected = given[-1] if len(shape) == 4 else given.reshape(-1, 4, 5)
    assert len(panels(figure)) == len(expected)
    for got, want in zip(drawn(figure), expected, strict=True):
        np.testing.assert_array_equal(got.data, want)
    assert [p.get_title() for p in panels(figure)] == (["head 0", "head 1", "head 2"] if len(shape) > 2 else [""])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype: str) -> None:
    given = weights(3, 3).astype(dtype_named(dtype))
    np.testing.assert_array_equal(drawn(plot.attention(given))[0].data, given.astype(np.float64))


def test_weights_of_a_layer() -> None:
    _, given = hw.MultiHeadAttention(8, 2, rng=0)(normal((1, 6, 8)), is_causal=True)
    assert len(panels(plot.attention(given))) == 2


def test_heads() -> None:
    given = weights(2, 4, 5, 5)
    (mean,) = drawn(plot.attention(given, head="mean", batch=1))
    np.testing.assert_allclose(mean.data, given[1].mean(axis=0), rtol=1e-6)
    figure = plot.attention(given, head=[3, -4])
    assert [p.get_title() for p in panels(figure)] == ["head 3", "head 0"]
    np.testing.assert_array_equal(drawn(figure)[1].data, given[0, 0])
    (one,) = drawn(plot.attention(given, head=2))
    np.testing.assert_array_equal(one.data, given[0, 2])
    assert panels(plot.attention(given, head="mean"))[0].get_title() == "mean of 4 heads"


def test_masked_weights_are_grey() -> None:
    figure = plot.attention(weights(2, 5, 5, causal=True))
    for got in drawn(figure):
        np.testing.assert_array_equal(got.mask, np.triu(np.ones((5, 5), bool), 1))
    assert tuple(image(panels(figure)[0]).get_cmap().get_bad()) == matplotlib.colors.to_rgba("#d4d4d4")
    assert texts(bar(figure).get_legend().get_texts()) == ["0 (masked)"]
    assert bar(plot.attention(weights(5, 5))).get_legend() is None


def test_one_scale_for_all_panels() -> None:
    given = weights(6, 4, 4)
    given[2] *= 0.1
    for figure in (plot.attention(given), plot.grid([given[:3], given[3:]])):
        assert {image(p).get_clim() for p in panels(figure)} == {(0.0, float(given.max()))}
        assert bar(figure).get_ylabel() == "attention weight"
    assert image(panels(plot.attention(given, vmax=1))[0]).get_clim() == (0.0, 1.0)
    assert image(panels(plot.attention(np.zeros((2, 2))))[0]).get_clim() == (0.0, 1.0)


def test_cells_are_square() -> None:
    for shape in ((5, 5), (3, 7), (2, 12, 4), (1, 40)):
        figure = plot.attention(weights(*shape))
        for panel in panels(figure):
            width, height = np.array(panel.get_position().size) * figure.get_size_inches()
            assert width / shape[-1] == pytest.approx(height / shape[-2], rel=0.3 if 1 in shape else 1e-9)


def test_figures_grow_with_their_contents() -> None:
    small, large, many = (plot.attention(weights(*s)).get_size_inches() for s in ((8, 8), (24, 24), (12, 24, 24)))
    assert (small < large).all() and large[0] < many[0] < 20
    for shape in ((400, 400), (1, 3000), (3000, 1), (33, 2, 2)):
        assert (plot.attention(weights(*shape)).get_size_inches() < 22).all()


def test_cmap() -> None:
    assert image(panels(plot.attention(weights(3, 3), cmap="magma"))[0]).get_cmap().name == "magma"
    given = matplotlib.colormaps["cividis"]
    assert image(panels(plot.bias(normal((3, 3)), cmap=given))[0]).get_cmap().name == "cividis"
    assert tuple(given.get_bad()) != matplotlib.colors.to_rgba("#d4d4d4")  # the caller's colour map is not changed


# --- labels ---


def test_tokens_label_both_sides() -> None:
    figure = plot.attention(weights(8, 12, 12), TOKENS)
    left, below = panels(figure)[::4], panels(figure)[4:]
    assert [queries(panel) for panel in left] == [TOKENS] * 2
    assert [keys(panel) for panel in below] == [TOKENS] * 4
    assert {panel.get_ylabel() for panel in left} == {"query"} and {panel.get_xlabel() for panel in below} == {"key"}
    assert keys(panels(plot.attention(weights(3, 3)))[0]) == ["0", "1", "2"]


def test_tokens_of_each_side() -> None:
    panel = panels(plot.attention(weights(2, 3), ["a", "b", "c"]))[0]
    assert (queries(panel), keys(panel)) == (["0", "1"], ["a", "b", "c"])
    panel = panels(plot.attention(weights(2, 3), query_tokens=["x", "y"], key_tokens=("a", "b", "c")))[0]
    assert (queries(panel), keys(panel)) == (["x", "y"], ["a", "b", "c"])
    panel = panels(plot.attention(weights(2, 2), [7, 8], query_tokens=np.array(["x", "y"])))[0]
    assert (queries(panel), keys(panel)) == (["x", "y"], ["7", "8"])


def test_attention_score_visualization_figures() -> None:
    given = weights(2, 4, 4)
    figure = plot.attention(hw.attention_score_visualization(given, ["a", "b"], batch=1))
    (panel,) = panels(figure)
    np.testing.assert_array_equal(image(panel).get_array().data, given[1])
    assert keys(panel) == ["a", "b", "∅", "∅"]
    assert texts(figure.texts) == ["tokens: 2 labels for 4 keys, the last 2 left empty"]
    view = hw.attention_score_visualization(given[0], list("abcdef"))
    assert keys(panels(plot.attention(view))[0]) == list("abcd")
    assert keys(panels(plot.attention(view, list("wxyz")))[0]) == list("wxyz")
    assert queries(panels(plot.lines(view))[0]) == list("abcd")
    assert len(panels(plot.grid([view, view]))) == 2


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("", "∅"), (" ", "␣"), ("   ", "␣␣␣"), (" the", "␣the"), ("the ", "the␣"), ("New York", "New York"),
        ("\n", "⏎"), ("\n\n", "⏎⏎"), (" \n", "␣⏎"), ("a\tb", "a⇥b"), ("\r", "\\r"), ("\x00", "\\x00"),
        ("\u200b", "\\u200b"), ("\ud800", "\\ud800"), ("\u00a0", "\\xa0"), ("Ġdog", "Ġdog"), ("▁dog", "▁dog"),
        ("$x$", "$x$"), ("<|endoftext|>", "<|endoftext|>"), ("x" * 21, "x" * 19 + "…"), ("x" * 20, "x" * 20),
    ],
)  # fmt: skip
def test_tokens_are_made_visible(token: str, shown: str, tmp_path: Path) -> None:
    figure = plot.attention(weights(2, 2), [token, "a"], title=token, path=tmp_path / "a.png")
    assert keys(panels(figure)[0]) == [shown, "a"]


def test_dollar_signs_are_literal(tmp_path: Path) -> None:
    labels = ["$x$", "$\\frac$", "$", "\\", "_^{"]
    for draw in (plot.attention, plot.lines):
        figure = draw(weights(2, 5, 5), labels, title="$\\nothing$", path=tmp_path / "a.svg")
        assert queries(panels(figure)[0]) == labels
        assert figure.get_suptitle() == "$\\nothing$"
        assert not any(text.get_parse_math() for text in panels(figure)[0].get_yticklabels())


def test_characters_without_a_glyph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Characters are escaped, or drawn with another installed font that has them; warnings are errors here."""
    has, more = (
        set(get_font(findfont(FontProperties(family=name))).get_charmap()) for name in ("DejaVu Sans", "STIXGeneral")
    )
    missing = chr(min(code for code in more - has if chr(code).isprintable()))
    # Matplotlib's own fonts, which include none of those that are looked for; then one of these, with STIX's glyphs.
    own = [font for font in fontManager.ttflist if font.fname.startswith(matplotlib.get_data_path())]
    symbols = FontEntry(fname=findfont(FontProperties(family="STIXGeneral")), name="Symbola")
    for fonts, shown in ((own, missing.encode("unicode_escape").decode()), ([*own, symbols], missing)):
        monkeypatch.setattr(fontManager, "ttflist", fonts)
        for draw in (plot.attention, plot.lines):
            figure = draw(weights(2, 2), [f"a{missing}", "b"], title=missing, path=tmp_path / "a.png")
            assert queries(panels(figure)[0]) == [f"a{shown}", "b"]
            assert figure.get_suptitle() == shown
    monkeypatch.undo()
    plot.attention(weights(3, 3), ["你好", "🚀", "नमस्ते"], path=tmp_path / "b.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "label"),
    [
        ((3, 3), lambda i: f"wOrd{i}" * (1 + i % 3)),
        ((12, 12), lambda i: "Wi"[i % 2]),
        ((2, 12, 12), str),
        ((3, 30, 30), lambda i: f"wOrd{i}" * (1 + i % 3)),
        ((60, 60), lambda i: "Wi"[i % 2]),
        ((2, 200, 90), str),
        ((1, 70), lambda i: f"w{i}"),
        ((5, 10, 1), lambda i: "Wi" * 5),
    ],
)
def test_labels_never_overlap(shape: tuple[int, ...], label: Callable[[int], str]) -> None:
    sides = [[label(i) for i in range(n)] for n in shape[-2:]]
    for draw in (plot.attention, plot.lines):
        figure = draw(weights(*shape), query_tokens=sides[0], key_tokens=sides[1])
        figure.draw_without_rendering()
        right = [axes for panel in panels(figure) for axes in panel.child_axes]
        for axes in (*panels(figure), *right):
            for axis, low, high in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
                boxes = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_visible() and t.get_text()]
                boxes = sorted(boxes, key=lambda box: getattr(box, low))
                for one, next_one in itertools.pairwise(boxes):
                    assert getattr(one, high) <= getattr(next_one, low) + 0.5


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.attention(
            [[1e-5]], title="A title that is much wider than the only cell of the picture, with\ntwo lines"
        ),
        lambda: plot.attention(hw.attention_score_visualization(weights(3, 3, causal=True), ["<|start_header_id|>"])),
        lambda: plot.attention(weights(2, 1, 40, causal=True), title="a step", vmax=0.01),
        lambda: plot.attention(weights(5, 9, 3), query_tokens=["abcdefghijklmnopqrst"] * 9, key_tokens=["W" * 20] * 3),
        lambda: plot.grid(weights(1, 1, 2, 2, causal=True), title="one"),
        lambda: plot.grid(weights(12, 12, 4, 4)),
        lambda: plot.lines(
            weights(7, 9, 3), query_tokens=["abcdefghijklmnopqrst"] * 9, key_tokens=["W" * 20] * 3, title="7"
        ),
        lambda: plot.lines([[1.0]]),
        lambda: plot.encoding(normal((5000, 3)) * 1e4, title="long"),
        lambda: plot.encoding([[0.0]]),
        lambda: plot.bias(np.where(np.tri(30) > 0, 1234.5, -np.inf), title="far"),
    ],
)
def test_everything_fits_on_the_figure(draw: Callable[[], Any]) -> None:
    figure = draw()
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    width, height = figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_all_labels_are_drawn_if_they_fit() -> None:
    panel = panels(plot.attention(weights(30, 30), [f"word{i}" for i in range(30)]))[0]
    assert len(keys(panel)) == len(queries(panel)) == 30
    assert {label.get_rotation() for label in panel.get_xticklabels()} == {90.0}
    panel = panels(plot.attention(weights(300, 300)))[0]
    steps = np.diff([int(text) for text in keys(panel)])
    assert len(set(steps)) == 1 and str(steps[0])[0] in "125"
    assert {label.get_rotation() for label in panel.get_xticklabels()} == {0.0}


# --- files ---

DRAWN = {
    "attention": lambda path: plot.attention(weights(2, 6, 6, causal=True), list("abcdef"), path=path),
    "grid": lambda path: plot.grid(weights(2, 3, 6, 6), path=path, title="layers"),
    "lines": lambda path: plot.lines(weights(2, 6, 6), list("abcdef"), path=path),
    "encoding": lambda path: plot.encoding(normal((20, 8)), path=path),
    "bias": lambda path: plot.bias(hw.alibi_bias(2, 6), path=path),
}


@pytest.mark.parametrize("name", DRAWN)
def test_files(name: str, tmp_path: Path) -> None:
    DRAWN[name](tmp_path / "a.PNG")
    pixels = imread(tmp_path / "a.PNG")
    assert min(pixels.shape[:2]) > 150 and pixels.std() > 0.05
    DRAWN[name](str(tmp_path / "a.svg"))
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_picture_gives_the_same_bytes(name: str, kind: str, tmp_path: Path) -> None:
    salt = matplotlib.rcParams["svg.hashsalt"]
    files = [tmp_path / f"{i}.{kind}" for i in range(2)]
    for file in files:
        DRAWN[name](file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert matplotlib.rcParams["svg.hashsalt"] == salt


def test_no_global_state(tmp_path: Path) -> None:
    """Figures from many threads equal those from one; pyplot is not loaded."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    jobs = list(zip(DRAWN, itertools.cycle(["png", "svg"])))
    for name, kind in jobs:
        DRAWN[name](alone / f"{name}.{kind}")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: DRAWN[job[0]](together / f"{job[0]}.{job[1]}"), jobs))
    for name, kind in jobs:
        assert (alone / f"{name}.{kind}").read_bytes() == (together / f"{name}.{kind}").read_bytes()
    code = "import sys, headwise; headwise.plot.attention([[1.0]]); assert 'matplotlib.pyplot' not in sys.modules"
    home = str(Path(hw.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {home!r}); {code}"], check=True, timeout=120)


def test_user_settings_do_not_change_figures(tmp_path: Path) -> None:
    settings = {"image.origin": "lower", "axes.grid": True, "figure.autolayout": True, "image.cmap": "gray"}
    with matplotlib.rc_context(settings):
        for draw in DRAWN.values():
            figure = draw(tmp_path / "a.png")
            for panel in panels(figure):
                assert panel.yaxis_inverted()
                assert not any(line.get_visible() for line in panel.get_xgridlines())


def test_figures_display_and_pickle(tmp_path: Path) -> None:
    figure = plot.attention(weights(3, 3))
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "a.pdf")
    assert len(panels(pickle.loads(pickle.dumps(figure)))) == 1

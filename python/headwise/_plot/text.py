"""Tokens as text for figures: every character visible, no mathematical notation, no missing glyphs."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import TextToPath

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MAX_CHARACTERS = 20  # of a label
_LINE = 1.25  # height of a line in units of the font size, including the space between lines
_SIGNS = {"\n": "⏎", "\t": "⇥"}

# Font families for characters that Matplotlib's default font lacks, used if installed. A search over all installed
# fonts would also find fonts that draw every character as an empty box.
_FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC",
    "Hiragino Sans", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil",
    "Noto Sans Thai", "Noto Sans Arabic", "Noto Sans Symbols", "Noto Sans Symbols 2", "Noto Emoji", "Symbola",
)  # fmt: skip


def visible(token: str) -> str:
    """A token as one short line with every character visible.

    Leading and trailing spaces, line breaks, tabs and the empty string become signs, and other unprintable characters
    become escapes. Spaces between words are unchanged.
    """
    if not token:
        return "∅"
    words = token.strip(" ")
    start = len(token) - len(token.lstrip(" ")) if words else len(token)
    text = "␣" * start + words + "␣" * (len(token) - start - len(words))
    text = "".join(_SIGNS.get(c) or (c if c.isprintable() else _escape(c)) for c in text)
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"


class Lettering:
    """The fonts of a figure, chosen so that they have the characters of all its texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._families = list(FontProperties().get_family())
        has = _characters(self._families)
        missing = set().union(*texts) - has - {"\n"}
        if missing:
            installed = set(fontManager.get_font_names())
            for family in _FALLBACKS:
                more = missing & _characters([family]) if family in installed else set()
                if more:
                    self._families.append(family)
                    missing -= more
        self._escapes = {ord(c): _escape(c) for c in missing}

    def __call__(self, text: str) -> str:
        """``text`` with escapes for characters that no font has."""
        return text.translate(self._escapes)

    @property
    def style(self) -> dict[str, Any]:
        """The properties of texts that users provide. Dollar signs are literal."""
        return {"fontfamily": self._families, "parse_math": False, "usetex": False}

    def width(self, labels: Sequence[str], size: float) -> float:
        """The width of the widest label in inches."""
        font = FontProperties(family=self._families, size=size)
        points = max(
            (_MEASURE.get_text_width_height_descent(label, font, False)[0] for label in set(labels)), default=0.0
        )
        return float(points) / 72


def line_height(size: float) -> float:
    """The height of one line of text in inches."""
    return size * _LINE / 72


def thin(labels: Sequence[str], room: float) -> list[int]:
    """The indices of the labels to show, if each needs ``room`` times the distance between neighbouring labels."""
    step = max(1, math.ceil(room - 1e-9))
    if step > 1 and are_positions(labels):
        step = next(n * 10**e for e in range(19) for n in (1, 2, 5) if n * 10**e >= step)
    return list(range(0, len(labels), step))


def are_positions(labels: Sequence[str]) -> bool:
    return all(label == str(i) for i, label in enumerate(labels))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _characters(families: Iterable[str]) -> set[str]:
    """The characters for which at least one of the families has a glyph."""
    return set().union(*(_in_file(findfont(FontProperties(family=[family]))) for family in families))


@lru_cache(maxsize=32)
def _in_file(font: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(font).get_charmap()))


_MEASURE = TextToPath()

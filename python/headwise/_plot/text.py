"""Tokens as text that can be drawn: every character visible, none of it mathematics, none without a glyph."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import TextToPath

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LONGEST = 20  # characters of a label
_LINE = 1.25  # height of a line in units of the font size, with what keeps it apart from the next
_SIGNS = {"\n": "⏎", "\t": "⇥"}

# Families that have what Matplotlib's own font lacks, where they are installed. The search over all fonts would also
# find those that have an empty box for everything.
_FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC",
    "Hiragino Sans", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil",
    "Noto Sans Thai", "Noto Sans Arabic", "Noto Sans Symbols", "Noto Sans Symbols 2", "Noto Emoji", "Symbola",
)  # fmt: skip


def visible(token: str) -> str:
    """A token as one short line in which nothing hides: spaces at the ends, line breaks, tabs and the empty string get
    a sign, what cannot be printed its escape. Spaces between words stay."""
    if not token:
        return "∅"
    words = token.strip(" ")
    start = len(token) - len(token.lstrip(" ")) if words else len(token)
    text = "␣" * start + words + "␣" * (len(token) - start - len(words))
    text = "".join(_SIGNS.get(c) or (c if c.isprintable() else _escape(c)) for c in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


class Lettering:
    """How all texts of one figure are written: with fonts that have their characters."""

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
        """``text`` with escapes for what no font has."""
        return text.translate(self._escapes)

    @property
    def style(self) -> dict[str, Any]:
        """The properties of each text that is not ours: dollars are dollars."""
        return {"fontfamily": self._families, "parse_math": False, "usetex": False}

    def width(self, labels: Sequence[str], size: float) -> float:
        """Of the widest label, in inches."""
        font = FontProperties(family=self._families, size=size)
        points = max(
            (_MEASURE.get_text_width_height_descent(label, font, False)[0] for label in set(labels)), default=0.0
        )
        return float(points) / 72


def line_height(size: float) -> float:
    """What one line of text takes, in inches."""
    return size * _LINE / 72


def thin(labels: Sequence[str], room: float) -> list[int]:
    """Which labels to show where each may take ``room`` of the distance from one to the next."""
    step = max(1, math.ceil(room - 1e-9))
    if step > 1 and are_positions(labels):
        step = next(n * 10**e for e in range(19) for n in (1, 2, 5) if n * 10**e >= step)
    return list(range(0, len(labels), step))


def are_positions(labels: Sequence[str]) -> bool:
    return all(label == str(i) for i, label in enumerate(labels))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _characters(families: Iterable[str]) -> set[str]:
    """What at least one of the families has a glyph for."""
    return set().union(*(_in_file(findfont(FontProperties(family=[family]))) for family in families))


@lru_cache(maxsize=32)
def _in_file(font: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(font).get_charmap()))


_MEASURE = TextToPath()

"""Untrusted text in a picture: no mathtext, no TeX, and only characters that a font can draw."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.font_manager import FontProperties

__all__ = ["PLAIN", "drawable", "font_families"]

PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}
"""Text properties under which ``$`` and ``\\`` are ordinary characters."""

_FALLBACKS = (
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans CJK KR",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "IPAexGothic",
    "Arial Unicode MS",
)
"""Tried after the user's fonts, where they are installed."""
_MISSING = "□"


def font_families() -> list[str]:
    """The user's font families and what this machine has for other scripts."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [*rcParams["font.family"], *(name for name in _FALLBACKS if name in installed)]


def drawable(text: str, families: Sequence[str]) -> str:
    """Replace what none of the font families can draw (emoji, perhaps) by ``□``."""
    return "".join(c if c.isascii() or _has(c, tuple(families)) else _MISSING for c in text)


@lru_cache(maxsize=4096)
def _has(character: str, families: tuple[str, ...]) -> bool:
    paths = [font_manager.findfont(FontProperties(family=[family])) for family in families]
    return any(font_manager.get_font(path).get_char_index(ord(character)) for path in paths)

"""What is measured of a text, each measure in a file of its own."""

from __future__ import annotations

from captum_lig.corpus.measures.base import Measure

__all__ = ["DEFAULT", "MEASURES", "find_measure"]

MEASURES: dict[str, type[Measure]] = {}
DEFAULT: tuple[str, ...] = tuple(MEASURES)


def find_measure(name: str) -> Measure:
    """The measure of that name, or of ``"package.module:Class"``."""
    return MEASURES[name]()

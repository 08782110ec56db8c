"""What is measured of a text, each measure in a file of its own."""

from __future__ import annotations

from importlib import import_module

from captum_lig._arguments import brief
from captum_lig.corpus.measures.answer import Effects, Erasing, Explained
from captum_lig.corpus.measures.base import Column, Measure
from captum_lig.corpus.measures.completeness import Completeness
from captum_lig.corpus.measures.consistency import Consistency
from captum_lig.corpus.measures.links import Links, Nodes
from captum_lig.corpus.measures.shares import Shares
from captum_lig.corpus.measures.totals import Totals
from captum_lig.corpus.measures.treebank import Treebank
from captum_lig.errors import LigError

__all__ = ["MEASURES", "Column", "Measure", "find_measure"]

MEASURES: dict[str, type[Measure]] = {
    one.name: one
    for one in (
        Totals,
        Completeness,
        Consistency,
        Shares,
        Links,
        Nodes,
        Treebank,
        Explained,
        Erasing,
        Effects,
    )
}


def find_measure(name: str) -> Measure:
    """The measure of that name, or the one that ``"package.module:Class"`` is.

    Raises:
        LigError: if there is none.
    """
    if name in MEASURES:
        return MEASURES[name]()
    module, _, own = str(name).partition(":")
    if own:
        try:
            found = getattr(import_module(module), own)
        except (ImportError, AttributeError) as error:
            raise LigError(f"measure {brief(name)} cannot be imported: {error}.") from error
        if isinstance(found, type) and issubclass(found, Measure):
            return found()
    raise LigError(
        f"measure {brief(name)} is unknown: use some of {', '.join(MEASURES)}, or of your own "
        "package.module:Class, a captum_lig.corpus.measures.Measure."
    )

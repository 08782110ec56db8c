"""The texts of a corpus, one after the other: files of several kinds, data sets, and lists."""

from __future__ import annotations

from dataclasses import dataclass

from captum_lig.metrics.treebank import Tree

__all__ = ["Text"]


@dataclass(frozen=True)
class Text:
    """One text, with the number that is to be explained of it, if there is one. Picklable."""

    number: int
    """Its position in the corpus, from 0; bad and empty lines count."""
    id: str
    """What the corpus calls it, or its number."""
    text: str
    counterfactual: str | None = None
    """The other text, ``against`` of :func:`captum_lig.why`; None: padding."""
    target: str | int | None = None
    """A token, a class, or for a sentence encoder the text that it is compared with."""
    foil: str | int | None = None
    """The token that the target is explained against."""
    tree: Tree | None = None
    """Of a treebank's sentence."""
    problem: str | None = None
    """Why it cannot be read: it is recorded as skipped."""

    @property
    def asked(self) -> bool:
        """Whether there is a number to explain."""
        return not (self.counterfactual is self.target is self.foil is None)

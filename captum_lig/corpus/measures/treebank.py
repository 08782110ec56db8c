"""Grammar: strongest links beside the heads of a treebank's trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from captum_lig.corpus.measures.base import Column, Measure, Rows, Tables
from captum_lig.corpus.seen import Seen
from captum_lig.errors import LigError
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.metrics.linguistic import Attachment, attachment, word_map

__all__ = ["Treebank"]


class Treebank(Measure):
    """UAS and UUAS of the composed map of each layer; missing of texts without a tree."""

    name = "treebank"
    about = "Whether a word's strongest source is its head in the treebank's tree."
    boundaries = ("attention", "mlp", "layer")
    tables: ClassVar[Tables] = {
        "texts": (
            Column("tree_words", "int32", "words", "Words with a head in the tree."),
            Column("next_or_last", "float", "of these words",
                   "Attached right by pointing at the better neighbour: a control."),
        ),
        "layers": (
            Column("uas", "float", "of these words", "Whose strongest source is their head."),
            Column("uuas", "float", "of these words", "Or whose head's strongest source they are."),
        ),
    }  # fmt: skip

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        found = [_attachment(seen, text) for text in range(len(seen.texts))]
        layers = len(seen.flows)
        none = torch.full((layers,), torch.nan, dtype=torch.float64)
        return {
            "texts": {
                "tree_words": [None if one is None else one.words for one in found],
                "next_or_last": [None if one is None else one.next_or_last for one in found],
            },
            "layers": {
                "uas": torch.stack([none if one is None else one.directed for one in found]),
                "uuas": torch.stack([none if one is None else one.undirected for one in found]),
            },
        }


def _attachment(seen: Seen, text: int) -> Attachment | None:
    tree, tokenizer = seen.texts[text].tree, seen.model.subject.tokenizer
    if tree is None or not tokenizer.is_fast:
        return None
    offsets = seen.model.subject.offsets(tree.text)
    size = len(offsets)
    maps = torch.stack(
        [seen.compose(layer, DEFAULT_RULE)[text, :size, :size] for layer in range(len(seen.flows))]
    )
    try:
        tree = tree.joined(offsets)
        return attachment(word_map(maps, tree, offsets), tree.heads)
    except LigError:  # one word, no word with a head, or a word that has no token
        return None

"""Maps between words beside what grammar says: heads of a dependency tree, subjects of verbs.

After Clark et al., "What Does BERT Look At?" (2019), section 4.2 (a word's most attended word
beside its head in the tree), and Raganato & Tiedemann (2018). UAS is the share of words whose head
is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, product

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.words import in_order, merge_map
from captum_lig.metrics.statistics import OverTexts
from captum_lig.metrics.treebank import Tree

__all__ = ["Attachment", "AttachmentOverTexts", "attachment", "cue_found", "strongest", "word_map"]


def word_map(matrix: Tensor, tree: Tree, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """A map between tokens as one between the words of a tree.

    Rows and columns of a word's tokens are added up; tokens of no word (special ones) are left out.

    Args:
        matrix: ``(..., T, S)`` with all tokens as targets.
        tree: the sentence's words.
        offsets: ``S`` of them: where each token begins and ends in the text, in characters.

    Returns:
        ``(..., W, W)``

    Raises:
        LigError: if the map does not fit the tokens, or a word has no token of its own: see
            :meth:`Tree.joined`.
    """
    groups = tree.words_of_tokens(offsets)
    lost = set(range(len(tree.forms))) - set(groups)
    if lost:
        word = min(lost)
        raise LigError(
            f"no token stands for word {word}, {tree.forms[word]!r}: join it with the one that has "
            "its token, tree.joined(offsets)."
        )
    # Tokens of no word are words of their own for now.
    alone = count(len(tree.forms))
    own = [next(alone) if word is None else word for word in groups]
    number = in_order(own)
    words = torch.tensor([number[own.index(n)] for n in range(len(tree.forms))])
    words = words.to(matrix.device)
    return merge_map(matrix, number)[..., words, :][..., words]


def strongest(matrix: Tensor, absolute: bool = False) -> Tensor:
    """The strongest source of each target other than itself, ``(..., W)``; -1 if that gives 0.

    As in a causal model, where the first word has none, and a later word is no source.

    Args:
        matrix: ``(..., W, W)``
        absolute: by size, whatever the sign.

    Raises:
        LigError: for a map that is not square, or of one word.
    """
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] < 2:
        raise LigError(f"a map of shape {tuple(matrix.shape)}: give (..., W, W), W at least 2.")
    values = matrix.abs() if absolute else matrix.clone()
    values.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    most, found = values.max(-1)
    return torch.where(most == 0, -1, found)


@dataclass(frozen=True)
class Attachment:
    """Shares of the words with a head in the tree, ``(...)`` each: of maps, layers or heads."""

    directed: Tensor
    """Whose strongest source is their head (UAS)."""
    reversed: Tensor
    """Whose head's strongest source they are."""
    undirected: Tensor
    """Either of the two (UUAS)."""
    words: int
    """With a head: all but the root."""
    next_or_last: float
    """What pointing at the neighbour on the better side reaches, directed: a control."""


def attachment(matrix: Tensor, heads: Sequence[int], absolute: bool = False) -> Attachment:
    """Strongest links of a map beside the gold heads of the words.

    Args:
        matrix: ``(..., W, W)`` between words, any number of maps.
        heads: the index of each word's head, -1 of a root.
        absolute: by size, whatever the sign.

    Raises:
        LigError: if they do not fit, or no word has a head.
    """
    found = strongest(matrix, absolute)
    size = matrix.shape[-1]
    if len(heads) != size or any(not -1 <= head < size for head in heads):
        raise LigError(
            f"heads of {len(heads)} words beside a map of {size}: each is from -1 to {size - 1}."
        )
    words = [word for word, head in enumerate(heads) if head >= 0]
    if not words:
        raise LigError("no word has a head in the tree: there is nothing to find.")
    gold = torch.tensor([heads[word] for word in words], device=matrix.device)
    word = torch.tensor(words, device=matrix.device)
    down, up = found[..., word] == gold, found[..., gold] == word
    sides = [sum(heads[w] == w + step for w in words) / len(words) for step in (-1, 1)]
    directed, turned, either = (x.double().mean(-1) for x in (down, up, down | up))
    return Attachment(directed, turned, either, len(words), max(sides))


def cue_found(matrix: Tensor, pairs: Sequence[tuple[int, int]], absolute: bool = False) -> Tensor:
    """Share of the verbs whose subject is their strongest source, ``(...)``.

    Args:
        matrix: ``(..., W, W)``
        pairs: of a target and the source that should be its strongest, as :attr:`Tree.subjects`.
        absolute: by size, whatever the sign.

    Raises:
        LigError: without pairs.
    """
    if not pairs:
        raise LigError("there is no pair of a verb and its subject: leave this sentence out.")
    target, source = torch.tensor(pairs, device=matrix.device).unbind(-1)
    return (strongest(matrix, absolute)[..., target] == source).double().mean(-1)


class AttachmentOverTexts(OverTexts):
    """UAS, UUAS and subjects found, over sentences, of one map or of each of several.

    Args:
        absolute: strongest by size, whatever the sign.
        level: see :class:`OverTexts`.
        seed: see :class:`OverTexts`.
    """

    def __init__(self, absolute: bool = False, level: float = 0.95, seed: int = 0) -> None:
        super().__init__(level, seed)
        self.absolute = absolute

    def update(self, matrix: Tensor, tree: Tree) -> None:
        """Add one sentence: a map ``(..., W, W)`` between its words; indices go into the names."""
        found = attachment(matrix, tree.heads, self.absolute)
        shares = {name: getattr(found, name) for name in ("directed", "reversed", "undirected")}
        if tree.subjects:
            shares["subject"] = cue_found(matrix, tree.subjects, self.absolute)
        numbers = {"next or last": found.next_or_last}
        for name, values in shares.items():
            for at in product(*map(range, values.shape)):
                numbers[" ".join([name, ".".join(map(str, at))]).strip()] = float(values[at])
        self.add(numbers)

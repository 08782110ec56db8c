"""Sentences with dependency trees, from CoNLL-U."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_lig.errors import LigError

__all__ = ["Tree", "parse_tree", "read_trees"]


@dataclass(frozen=True)
class Tree:
    """A sentence's words and what they depend on."""

    name: str
    """The treebank's ``sent_id``."""
    text: str
    forms: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    """Where each word begins and ends in the text, in characters."""
    heads: tuple[int, ...]
    """Index of the word that each depends on; -1 of the root."""
    relations: tuple[str, ...]
    """As Universal Dependencies name them, such as ``nsubj``."""
    parts_of_speech: tuple[str, ...]

    @property
    def subjects(self) -> tuple[tuple[int, int], ...]:
        """Pairs of a verb and its nominal subject (``nsubj``, of the active or the passive)."""
        return tuple(
            (head, word)
            for word, (head, relation) in enumerate(zip(self.heads, self.relations, strict=True))
            if head >= 0
            and relation.split(":")[0] == "nsubj"
            and self.parts_of_speech[head] in ("VERB", "AUX")
        )

    def words_of_tokens(self, offsets: Sequence[tuple[int, int]]) -> list[int | None]:
        """The word of each token: that which holds most of its characters; None if none does."""
        found: list[int | None] = []
        for begin, end in offsets:
            shared = [min(end, b) - max(begin, a) for a, b in self.spans]
            best = max(range(len(shared)), key=shared.__getitem__)
            found.append(best if shared[best] > 0 else None)
        return found

    def joined(self, offsets: Sequence[tuple[int, int]]) -> Tree:
        """The tree in which words without a token of their own are one with the word that has it.

        A tokenizer may have one token for a full stop and a quotation mark, or for "cannot". The
        joined word depends on what its first member outside of it depends on.

        Args:
            offsets: where each token begins and ends in the text, in characters.

        Raises:
            LigError: if no token holds a word.
        """
        own = set(self.words_of_tokens(offsets))
        joins = list(range(len(self.forms)))
        for word, (begin, end) in enumerate(self.spans):
            if word not in own:
                shared = [min(end, b) - max(begin, a) for a, b in offsets]
                token = max(range(len(shared)), key=shared.__getitem__, default=-1)
                if token < 0 or shared[token] <= 0:
                    raise LigError(
                        f"no token stands for word {word}, {self.forms[word]!r}: are these the "
                        f"offsets of {self.text!r}?"
                    )
                (owner,) = self.words_of_tokens([offsets[token]])
                assert owner is not None
                joins[word] = owner
        kept = [word for word in range(len(joins)) if joins[word] == word]
        members = [[word for word in range(len(joins)) if joins[word] == one] for one in kept]
        # The member that ties the joined word to the rest: the others depend on it.
        ties = [
            next((w for w in some if self.heads[w] < 0 or joins[self.heads[w]] != one), one)
            for one, some in zip(kept, members, strict=True)
        ]
        spans = [
            (min(self.spans[w][0] for w in some), max(self.spans[w][1] for w in some))
            for some in members
        ]
        heads = [self.heads[tie] for tie in ties]
        return Tree(
            self.name,
            self.text,
            tuple(self.text[begin:end] for begin, end in spans),
            tuple(spans),
            tuple(kept.index(joins[head]) if head >= 0 else -1 for head in heads),
            tuple(self.relations[tie] for tie in ties),
            tuple(self.parts_of_speech[tie] for tie in ties),
        )


def read_trees(path: str | Path) -> Iterator[Tree]:
    """The sentences of a CoNLL-U file, with their trees.

    Raises:
        LigError: if the file is no CoNLL-U or no UTF-8 text, if words do not stand in their text,
            or if the package ``conllu`` is missing.
        OSError: if it cannot be read.
    """
    conllu = _conllu()
    with Path(path).open(encoding="utf-8") as file:
        try:
            for sentence in conllu.parse_incr(file):
                yield _tree(sentence, str(path))
        except (conllu.exceptions.ParseException, UnicodeDecodeError, KeyError) as error:
            raise LigError(f"{str(path)!r} is no CoNLL-U: {error}.") from error


def parse_tree(lines: str, path: str) -> Tree:
    """The tree of one sentence of a CoNLL-U file.

    Args:
        lines: of the sentence, comments included.
        path: of the file, for messages.

    Raises:
        LigError: see :func:`read_trees`.
    """
    conllu = _conllu()
    try:
        (sentence,) = conllu.parse(lines)
        return _tree(sentence, path)
    except (conllu.exceptions.ParseException, KeyError, ValueError) as error:
        raise LigError(f"a sentence of {path!r} is no CoNLL-U: {error}.") from error


def _conllu() -> Any:
    try:
        import conllu
    except ModuleNotFoundError as error:
        raise LigError(
            "conllu is not installed, and treebanks need it: pip install 'captum-lig[corpus]'."
        ) from error
    return conllu


def _tree(sentence: Any, path: str) -> Tree:
    if any(token["id"] is None for token in sentence):
        raise LigError(f"a sentence of {path!r} has a word without a number.")
    about = sentence.metadata or {}
    name, text = about.get("sent_id") or "", about.get("text")
    if text is None:
        text = _text_of(sentence)
    words = [token for token in sentence if isinstance(token["id"], int)]
    number = {token["id"]: index for index, token in enumerate(words)}
    return Tree(
        name,
        text,
        tuple(token["form"] for token in words),
        tuple(_spans(sentence, text, f"{path!r}: sentence {name!r}")),
        tuple(number.get(token["head"], -1) for token in words),
        tuple(token["deprel"] or "" for token in words),
        tuple(token["upos"] or "" for token in words),
    )


def _text_of(sentence: Any) -> str:
    """The text of a sentence whose ``# text`` is missing, from its words."""
    parts: list[str] = []
    inside = 0  # the last word of the multi-word token that the words belong to
    for token in sentence:
        first = token["id"]
        if isinstance(first, tuple):
            if first[1] == ".":  # an empty node, which is not in the text
                continue
            inside = first[2]
        elif first <= inside:
            continue
        spaced = (token.get("misc") or {}).get("SpaceAfter") != "No"
        parts.append(token["form"] + (" " if spaced else ""))
    return "".join(parts).strip()


def _spans(sentence: Any, text: str, where: str) -> Iterator[tuple[int, int]]:
    """Where words stand; words of a contraction share its characters as they come, if they do."""
    at, inside, surface = 0, 0, (0, 0)
    for token in sentence:
        identity = token["id"]
        if isinstance(identity, tuple) and identity[1] == ".":
            continue  # an empty node, which is not in the text
        if isinstance(identity, int) and identity <= inside:
            begin = text.find(token["form"], at, surface[1])
            if begin < 0:
                yield surface  # "au" for "à le"
                continue
            at = begin + len(token["form"])
            yield begin, at
            continue
        begin = text.find(token["form"], max(at, surface[1]))
        if begin < 0:
            raise LigError(f"{where}: {token['form']!r} does not stand in {text!r}.")
        surface = (begin, begin + len(token["form"]))
        if isinstance(identity, tuple):
            inside, at = identity[2], begin
        else:
            at = surface[1]
            yield surface

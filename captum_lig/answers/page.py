"""An answer as the interactive page shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_lig.answers.says import Said, is_likeliest
from captum_lig.answers.screen import agreement, rather
from captum_lig.answers.words import padding_for, quoted
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import token_texts
from captum_lig.flow.tokens import readable_text
from captum_lig.graph import FlowGraph
from captum_lig.patching import Check, Node
from captum_lig.patching.writes import Writes, writes
from captum_lig.views.page import Known, Promoted, page, write_page
from captum_lig.views.page.question import MOST_NODES, Likely, node_name, strongest_nodes

__all__ = ["answer_page", "promoted", "write_answer"]

EACH = 8
"""Tokens that a node promotes most, and least."""
AT_ONCE = 2**25
"""Logits that are worked out at once."""


class Paged(Protocol):
    """What the page shows of an :class:`Answer`."""

    text: str
    against: str | None
    model: str
    target: str
    tokens: list[str]
    other_tokens: list[str]
    says: Said
    would_say: Said
    graph: FlowGraph
    favours: tuple[str, str] | None
    continuation: str | None
    checked: Check | None
    hints: list[str]
    run: Any

    @property
    def sum_error(self) -> float:
        """See :class:`Answer`."""


def write_answer(answer: Any, path: Path) -> Path:
    """Write the page of an :class:`Answer`."""
    title, known = _known(answer)
    return write_page(answer.graph, path, title, known=known)


def answer_page(answer: Any) -> str:
    """The page of an :class:`Answer`."""
    title, known = _known(answer)
    return page(answer.graph, title, known=known)


def _known(answer: Any) -> tuple[str, Known]:
    """The title of the page, and what it shows beside the graph."""
    a: Paged = answer
    options = []
    for one in a.says.options:
        there = a.would_say.of(one.number)
        assert there is not None
        options.append((one.words, one.probability, there.probability, one.logit, there.logit))
    notes = [f"Note: {hint}" for hint in a.hints]
    if a.against is None:
        notes.append(
            f"The comparison is with {padding_for(a.tokens, a.other_tokens)}. Then what taking "
            "a node out does can have little to do with what putting it in does, and no one number "
            "can be both: compare with another text (against), or check."
        )
    checked, checked_says = None, []
    if a.checked is not None:
        checked_says = agreement(a.checked)
        checked = [
            {
                "kind": row.node.kind,
                "layer": row.node.layer,
                "head": row.node.head,
                "position": row.node.position,
                "part": row.attributed,
                "out": row.out,
                "into": row.into,
            }
            for row in a.checked.rows
        ]
    known = Known(
        question=_question(a),
        other_tokens=a.other_tokens,
        other="padding" if a.against is None else "the other text",
        value=a.says.value,
        other_value=a.would_say.value,
        favours=a.favours,
        options=options,
        options_title="The model says" if a.continuation is None else "Before it, the model says",
        notes=notes,
        sums=a.sum_error,
        checked=checked,
        checked_says=checked_says,
        promoted=promoted(answer),
    )
    return f"{known.question} {quoted(a.text, 200)}", known


def _question(a: Paged) -> str:
    if a.favours is not None:
        if not is_likeliest(a.says, a.target, a.favours):
            return rather(a.model, a.favours)
        return f"Why does {a.model} say {a.favours[0]} and not {a.favours[1]}?"
    if a.continuation is not None:
        return f"What speaks for the continuation {quoted(a.continuation, 80)} in {a.model}?"
    if a.target.startswith("cosine with "):
        other = a.target.removeprefix("cosine with ").rpartition(" (")[0]
        return f"Why does {a.model} find the text like {other}?"
    return f"What does the {readable_text(a.target)} come from in {a.model}?"


def promoted(answer: Any, count: int = MOST_NODES) -> Promoted | str:
    """What the strongest nodes of an answer promote in the vocabulary, or why that is not known."""
    a: Paged = answer
    run, names = a.run, strongest_nodes(a.graph, count)
    if not names:
        return "no head or MLP has a part"
    nodes = [
        Node("feed_forward" if head is None else "heads", layer, position, head)
        for layer, head, position in names
    ]
    try:
        found = writes(
            run.model,
            run.inputs,
            run.other,
            run.target,
            nodes,
            run.position,
            layers=a.graph.indices,
            tokenizer=run.tokenizer,
        )
    except LigError as error:
        return str(error)
    at = range(len(a.graph.tokens))[run.position]
    both = [_likely(found, rows, run.tokenizer) for rows in (found.change, found.own)]
    pairs = zip(*both, strict=True)
    return Promoted(at, {node_name(*name): one for name, one in zip(names, pairs, strict=True)})


def _likely(found: Writes, rows: Tensor, tokenizer: Any) -> list[Likely]:
    """Of each write, the tokens whose logits grow and fall most."""
    result: list[Likely] = []
    at_once = max(1, AT_ONCE // len(found.unembedding.weight))
    with torch.no_grad():
        for some in rows.split(at_once):
            logits = found.unembedding(some)
            sides = []
            for largest in (True, False):
                best = logits.topk(min(EACH, logits.shape[-1]), largest=largest)
                sides.append((best.values.tolist(), best.indices.tolist()))
            for up, ups, down, downs in zip(*sides[0], *sides[1], strict=True):
                names = [token_texts(tokenizer, ids) for ids in (ups, downs)]
                result.append(
                    (list(zip(names[0], up, strict=True)), list(zip(names[1], down, strict=True)))
                )
    return result

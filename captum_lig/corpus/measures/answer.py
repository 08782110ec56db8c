"""What a number of the model came from, of the texts that have one to explain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_lig.answers.answer import Answer
from captum_lig.corpus.measures.base import Column, Measure, Rows, Tables, largest
from captum_lig.corpus.seen import Seen
from captum_lig.metrics.texts import erasure

__all__ = ["Effects", "Erasing", "Explained"]

RANK = Column("rank", "int32", "", "From 0, the strongest of its kind in the text.")
NODE = (
    Column("kind", "string", "", "token (as it enters the lowest layer), head or mlp."),
    Column("layer", "int32", "", "Missing of a token."),
    Column("head", "int32", "", "Missing of tokens and MLPs."),
    Column("position", "int32", "", "Of the token, or at which it writes."),
    Column("token", "string", "", "What it says, as `Answer.tokens` has it."),
)
KINDS = {"tokens": "token", "heads": "head", "feed_forward": "mlp"}


class Explained(Measure):
    """The number, its change from the counterfactual, and the strongest parts of the change."""

    name = "answer"
    about = "What a number of the model changes by from the counterfactual, and its parts."
    tables: ClassVar[Tables] = {
        "texts": (
            Column("target", "string", "", "The number, in words; missing of texts without one."),
            Column("value", "float", "of the target", "The number for the text."),
            Column("other_value", "float", "of the target", "For the counterfactual, or padding."),
            Column("change", "float", "of the target", "value less other_value."),
            Column("sum_error", "float", "of the change",
                   "By how much the parts miss the change, at the worst depth."),
            Column("unanswered", "string", "", "Why there is no answer; the text is measured."),
        ),
        "parts": (
            RANK,
            *NODE,
            Column("value", "float", "of the target", "Its part of the change."),
            Column("share", "float", "of the change", "The same as a share."),
        ),
    }  # fmt: skip

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        names = ("target", "value", "other_value", "change", "sum_error", "unanswered")
        texts: dict[str, list[Any]] = {name: [] for name in names}
        parts: dict[str, list[Any]] = {}
        for text, answer in enumerate(seen.answers):
            numbers: dict[str, Any] = {}
            if isinstance(answer, Answer):
                numbers = {
                    "target": answer.target,
                    "value": answer.says.value,
                    "other_value": answer.would_say.value,
                    "change": answer.change,
                    "sum_error": answer.sum_error,
                }
                for name, values in _parts(answer, seen.settings.strongest).items():
                    parts.setdefault(name, []).extend(values)
                    count = len(values)
                parts.setdefault("text", []).extend([text] * count)
            elif answer is not None:
                numbers = {"unanswered": " ".join(str(answer).split())}
            for name in names:
                texts[name].append(numbers.get(name))
        return {"texts": texts, "parts": parts}


def _parts(answer: Answer, count: int) -> dict[str, list[Any]]:
    trace = answer.graph.relevance()
    kinds: dict[str, Tensor] = {"token": trace.tokens[0][None], "head": trace.heads}
    if trace.feed_forward is not None:
        kinds["mlp"] = trace.feed_forward
    found: dict[str, list[Any]] = {}
    for kind, values in kinds.items():
        _, rank, places = largest(values[None], count)
        value = values[places.unbind(-1)]
        position = places[:, -1].tolist()
        none = [None] * len(rank)
        rows = {
            "rank": rank.tolist(),
            "kind": [kind] * len(rank),
            "layer": none if kind == "token" else [trace.layers[i] for i in places[:, 0].tolist()],
            "head": places[:, 1].tolist() if kind == "head" else none,
            "position": position,
            "token": [answer.tokens[i] for i in position],
            "value": value.tolist(),
            "share": (value / answer.change).tolist() if answer.change else none,
        }
        for name, column in rows.items():
            found.setdefault(name, []).extend(column)
    return found


class Effects(Measure):
    """Parts beside what patching does, see :meth:`Answer.check`."""

    name = "effects"
    about = "What patching the strongest parts, and as many at random, does to the number."
    tables: ClassVar[Tables] = {
        "effects": (
            *NODE,
            Column("strongest", "bool", "", "One of the strongest; else chosen at random."),
            Column("value", "float", "of the target", "Its part of the change."),
            Column("taken_out", "float", "of the target",
                   "What the number loses if this alone is as with the counterfactual."),
            Column("put_in", "float", "of the target",
                   "What the counterfactual's number gains if this alone is as with the text."),
        )
    }  # fmt: skip

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        found: dict[str, list[Any]] = {}
        for text, answer in enumerate(seen.answers):
            if not isinstance(answer, Answer):
                continue
            for row in answer.check(seen.settings.strongest).rows:
                node = row.node
                values = {
                    "text": text,
                    "kind": KINDS[node.kind],
                    "layer": None if node.kind == "tokens" else node.layer,
                    "head": node.head,
                    "position": node.token,
                    "token": None if node.token is None else answer.tokens[node.token],
                    "strongest": row.strongest,
                    "value": row.attributed,
                    "taken_out": row.out,
                    "put_in": row.into,
                }
                for name, value in values.items():
                    found.setdefault(name, []).append(value)
        return {"effects": found}


class Erasing(Measure):
    """Comprehensiveness and sufficiency, see :func:`captum_lig.metrics.erasure`."""

    name = "erasure"
    about = "What the number is with the tokens of the largest parts erased, or with them alone."
    tables: ClassVar[Tables] = {
        "texts": (
            Column("aopc_comprehensiveness", "float", "of the target",
                   "Mean loss with the tokens of largest parts erased, over all fractions and 0."),
            Column("aopc_sufficiency", "float", "of the target", "Mean loss with them alone."),
        ),
        "erasure": (
            Column("fraction", "float", "of the tokens that differ", "How many are erased."),
            Column("count", "int32", "tokens", "The same, rounded up."),
            Column("comprehensiveness", "float", "of the target", "What is lost without them."),
            Column("sufficiency", "float", "of the target", "What is lost with them alone."),
        ),
    }  # fmt: skip

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        names = ("aopc_comprehensiveness", "aopc_sufficiency")
        texts: dict[str, list[Any]] = {name: [] for name in names}
        rows: dict[str, list[Any]] = {}
        for text, answer in enumerate(seen.answers):
            one = None
            if isinstance(answer, Answer):
                run, relevance = answer.run, answer.graph.relevance().tokens[0]
                (one,) = erasure(
                    run.model,
                    run.inputs,
                    relevance[None],
                    run.target,
                    run.other,
                    tokenizer=run.tokenizer,
                )
                values: dict[str, list[Any]] = {
                    "text": [text] * len(one.fractions),
                    "fraction": list(one.fractions),
                    "count": list(one.counts),
                    "comprehensiveness": torch.as_tensor(one.comprehensiveness).tolist(),
                    "sufficiency": torch.as_tensor(one.sufficiency).tolist(),
                }
                for name, column in values.items():
                    rows.setdefault(name, []).extend(column)
            for name in names:
                texts[name].append(None if one is None else getattr(one, name))
        return {"texts": texts, "erasure": rows}

"""The strongest links of each layer, and its strongest heads and MLPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from captum_lig.corpus.measures.base import LAYER, Column, Measure, Rows, Tables, largest
from captum_lig.corpus.seen import Seen
from captum_lig.flow.composition import DEFAULT_RULE, share_of

__all__ = ["Links", "Nodes"]

RANK = Column("rank", "int32", "", "From 0, the strongest of the text in this layer.")
SHARE = Column("share", "float", "of the target's change", "The same beside its row's total.")


class Links(Measure):
    """Links between different tokens with the largest shares of their targets."""

    name = "links"
    about = "The links between different tokens that are the largest shares of their targets."
    boundaries = ("attention", "mlp", "layer")
    tables: ClassVar[Tables] = {
        "links": (
            LAYER,
            RANK,
            Column("target", "int32", "", "Position of the token that is moved."),
            Column("source", "int32", "", "Position of the token that moves it."),
            Column("target_token", "string", "", "What it says, as `Answer.tokens` has it."),
            Column("source_token", "string", "", "Likewise."),
            Column("head", "int32", "", "The head that carries more of the link than any other."),
            Column("value", "float", "length", f"Of the map composed by {DEFAULT_RULE}."),
            SHARE,
        )
    }

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        found = []
        for layer, flow in enumerate(seen.flows):
            values = seen.compose(layer, DEFAULT_RULE)
            shares = share_of(values, flow.need("layer_total").unsqueeze(-1))
            shares = shares * ~torch.eye(shares.shape[-1], dtype=torch.bool)
            text, rank, (target, source) = _unbound(*largest(shares, seen.settings.strongest))
            signs = values[text, target, source].sign().unsqueeze(-1)
            heads = (flow.need("chain")[text, :, target, source] * signs).argmax(-1)
            found.append(
                {
                    "text": text,
                    "layer": torch.full_like(text, flow.index),
                    "rank": rank,
                    "target": target,
                    "source": source,
                    "head": heads,
                    "value": values[text, target, source],
                    "share": shares[text, target, source],
                }
            )
        columns = joined(found)
        for what in ("target", "source"):
            columns[f"{what}_token"] = tokens_at(seen, columns["text"], columns[what])
        return {"links": columns}


class Nodes(Measure):
    """Heads and MLPs at a token that bring the most."""

    name = "nodes"
    about = "The heads and MLPs, each at a token, with the largest parts of all tokens' changes."
    boundaries = ("attention", "mlp", "feed_forward")
    tables: ClassVar[Tables] = {
        "nodes": (
            LAYER,
            RANK,
            Column("kind", "string", "", "head or mlp."),
            Column("head", "int32", "", "Missing of an MLP."),
            Column("position", "int32", "", "Of the token at which it writes."),
            Column("token", "string", "", "What it says, as `Answer.tokens` has it."),
            Column("value", "float", "length", "Its part of the change of this token."),
            SHARE,
        )
    }

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        found = []
        for flow in seen.flows:
            values = flow.need("mlp").transpose(1, 2)  # (B, H, T)
            heads = values.shape[1]
            if flow.feed_forward is not None:
                values = torch.cat([values, flow.feed_forward[:, None]], 1)
            text, rank, (row, position) = _unbound(*largest(values, seen.settings.strongest))
            value = values[text, row, position]
            found.append(
                {
                    "text": text,
                    "layer": torch.full_like(text, flow.index),
                    "rank": rank,
                    "head": row,
                    "is_head": row < heads,
                    "position": position,
                    "value": value,
                    "share": share_of(value, flow.need("mlp_total")[text, position]),
                }
            )
        columns = joined(found)
        is_head = columns.pop("is_head").tolist()
        columns["kind"] = ["head" if one else "mlp" for one in is_head]
        columns["head"] = [
            n if one else None for n, one in zip(columns["head"].tolist(), is_head, strict=True)
        ]
        columns["token"] = tokens_at(seen, columns["text"], columns["position"])
        return {"nodes": columns}


def joined(by_layer: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Rows of several layers, those of a text together and by layer."""
    columns = {name: torch.cat([one[name] for one in by_layer]) for name in by_layer[0]}
    order = columns["text"].argsort(stable=True)
    return {name: values[order] for name, values in columns.items()}


def tokens_at(seen: Seen, texts: torch.Tensor, positions: torch.Tensor) -> list[str]:
    """What tokens say."""
    pairs = zip(texts.tolist(), positions.tolist(), strict=True)
    return [seen.tokens[text][position] for text, position in pairs]


def _unbound(
    text: torch.Tensor, rank: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    return text, rank, places.unbind(-1)

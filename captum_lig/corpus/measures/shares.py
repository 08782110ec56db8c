"""Shares: what comes through the heads, through the MLP and past both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from captum_lig.corpus.measures.base import Column, Measure, Rows, Tables
from captum_lig.corpus.seen import Seen
from captum_lig.flow.composition import share_of
from captum_lig.flow.layer_flow import LayerFlow

__all__ = ["Shares"]

UNIT = "of the change"


class Shares(Measure):
    """Shares of the change of all tokens, and of its parts by size."""

    name = "shares"
    about = "What comes through the heads, through the MLP, and past them."
    boundaries = ("attention", "mlp", "feed_forward")
    tables: ClassVar[Tables] = {
        "layers": (
            Column("heads_share", "float", UNIT, "Through the heads, through the MLP or not."),
            Column("own_share", "float", UNIT,
                   "From the token itself, past the heads; with heads_share 1."),
            Column("mlp_share", "float", UNIT,
                   "Out of the MLP, whatever it reads; missing where the MLP is no node."),
            Column("residual_share", "float", UNIT, "Past both, from the token itself."),
            Column("via_heads", "float", "of the parts' sizes",
                   "Sizes of the heads' parts beside all, as `explain` shows it."),
        )
    }  # fmt: skip

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        by_layer = [_shares(flow) for flow in seen.flows]
        return {"layers": {n: torch.stack([one[n] for one in by_layer], 1) for n in by_layer[0]}}


def _shares(flow: LayerFlow) -> dict[str, Tensor]:
    total = flow.need("mlp_total").double().sum(1)
    heads, residual = (flow.need(name).double() for name in ("mlp", "residual"))
    own, mlp = residual, torch.full_like(total, torch.nan)
    if flow.feed_forward is not None:
        own = residual + flow.need("feed_forward_token").double()
        mlp = share_of(flow.need("feed_forward").double().sum(1), total)
    size, beside = heads.abs().flatten(1).sum(1), own.abs().sum(1)
    return {
        "heads_share": share_of(heads.flatten(1).sum(1), total),
        "own_share": share_of(own.sum(1), total),
        "mlp_share": mlp,
        "residual_share": torch.where(mlp.isnan(), torch.nan, share_of(residual.sum(1), total)),
        "via_heads": share_of(size, size + beside),
    }

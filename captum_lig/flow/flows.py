"""``Flows``: what an attribution of several layers returns, a list that shows itself."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, SupportsIndex

from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.tables import flow_frame

__all__ = ["Flows"]


class Flows(list[LayerFlow]):
    """A list of flows, one a layer, in the order the layers run."""

    @typing.overload
    def __getitem__(self, item: SupportsIndex) -> LayerFlow: ...
    @typing.overload
    def __getitem__(self, item: slice) -> Flows: ...
    def __getitem__(self, item: SupportsIndex | slice) -> LayerFlow | Flows:
        """A flow, or some of them."""
        if isinstance(item, slice):
            return Flows(super().__getitem__(item))
        return super().__getitem__(item)

    def select(self, text: int) -> Flows:
        """The flows of one text of the batch, see :meth:`LayerFlow.select`."""
        return Flows(flow.select(text) for flow in self)

    def to_pandas(
        self,
        boundaries: Sequence[str] | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
    ) -> Any:
        """A table in long form, a row for each attribution that is not 0 (``pandas.DataFrame``).

        Columns:

        - ``text``: which of the batch; ``layer``: its index;
        - ``boundary``: the field of the flow that the number is from: a boundary, or what its rows
          count beside it (``residual``, what comes from the token itself past the heads);
        - ``head``, where there is one;
        - ``target_position`` and ``target``, the token that is moved: its position and what it
          says, if the flow knows its tokens;
        - ``source_position`` and ``source``, likewise, where the number comes from a token, and not
          from a head (``mlp``); of an encoder's tokens the position alone;
        - ``value``: the attribution;
        - ``share`` of the row's total, or in flows with a target of its change;
        - ``converged``: whether its row is within the tolerance; missing for a plain rule.

        Args:
            boundaries: names of boundaries, such as ``["layer"]``; None for all.
            threshold: leave out shares that are smaller, between 0 and 1.
            top_k: only the largest of each row, so many.

        Raises:
            LigError: if pandas is not installed, or for a boundary that is not there.
        """
        return flow_frame(self, boundaries, threshold, top_k)

    def __repr__(self) -> str:
        if not self:
            return "Flows(none)"
        first, last = self[0], self[-1]
        layers = (
            f"layer {first.index}" if len(self) == 1 else f"layers {first.index} to {last.index}"
        )
        return f"Flows({layers}: {first.described()})"

    def _repr_html_(self) -> str:
        """Facts and a picture of the first text, for notebooks."""
        from captum_lig.views.notebook import flows_html

        return flows_html(self)

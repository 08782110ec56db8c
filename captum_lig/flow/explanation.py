"""The flows of one text, with its tokens and the settings they were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from captum_lig.flow.flows import Flows
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.tokens import readable_text

__all__ = ["Explanation"]


@dataclass(frozen=True, repr=False)
class Explanation:
    """How one text flows through the layers of a model."""

    flows: list[LayerFlow]
    """One a layer, in the order the layers ran."""
    tokens: list[str]
    """As the tokenizer writes them, byte-level ones as text; special ones too; one a source."""
    text: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the flows were made, in JSON's types."""

    def to_pandas(
        self,
        boundaries: Sequence[str] | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
    ) -> Any:
        """A row for each attribution, see :meth:`captum_lig.flow.flows.Flows.to_pandas`."""
        return Flows(self.flows).to_pandas(boundaries, threshold, top_k)

    def __repr__(self) -> str:
        text = readable_text(self.text, 60)
        return f"Explanation({self.model or 'a model'} of {text!r}; {Flows(self.flows)!r})"

    def _repr_html_(self) -> str:
        """Facts and a picture, for notebooks."""
        from captum_lig.views.notebook import flows_html

        return flows_html(self.flows, self.tokens)

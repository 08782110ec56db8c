"""Targets that are read from vectors: of a text, or of one token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.shown import Short
from captum_lig.flow.tokens import TokenIndex
from captum_lig.model.inputs import ModelCall
from captum_lig.prediction.bound_target import BoundTarget, Target, tensor_called
from captum_lig.prediction.positions import (
    number_of,
    position_in,
    positions_of,
    tokens_of,
    whole_position,
)
from captum_lig.pretrained.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Cosine", "State", "cosine", "state"]

POOLINGS = ("mean", "cls")
Other = str | Tensor | tuple[Tensor, ...] | Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Cosine(Short, Target):
    """See :func:`cosine`."""

    other: Other
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise LigError(
                f"pooling {brief(self.pooling)} is unknown: use {' or '.join(POOLINGS)}."
            )

    def bind(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> BoundTarget:
        """The cosine with the other text as this model embeds it."""
        inputs = self.other
        if isinstance(inputs, str):
            inputs = (tokenizer or tokenizer_of(model))(inputs, return_tensors="pt")
        call = ModelCall.of(model, inputs)
        args, kwargs = call.arguments()
        with torch.no_grad():
            other = _embedding(model(*args, **kwargs), call, self.pooling)
        if len(other) != 1:
            raise LigError(f"the other text of a cosine holds {len(other)} texts: give one.")
        text = repr(self.other) if isinstance(self.other, str) else "another text"
        return BoundTarget(
            f"cosine with {text} ({self.pooling} pooling)",
            lambda output, call: torch.cosine_similarity(
                _embedding(output, call, self.pooling), other
            ),
        )


def cosine(other: Other, pooling: str = "mean") -> Cosine:
    """The cosine of a text's embedding with that of another text, of a sentence encoder.

    Args:
        other: the other text: a string, token ids ``(1, S)``, or a tokenizer's mapping. It is
            embedded once, and is a constant afterwards.
        pooling: ``"mean"`` over the text without padding, or ``"cls"``, the first token.
    """
    return Cosine(other, pooling)


def _embedding(output: Any, call: ModelCall, pooling: str) -> Tensor:
    """One vector a text, ``(P, D)``."""
    hidden = tensor_called(output, "last_hidden_state", call)
    kept = tokens_of(call)
    if kept is None:
        kept = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
    if hidden.dim() != 3 or hidden.shape[1] != kept.shape[1]:
        raise LigError(
            f"{type(call.model).__name__} gives {tuple(hidden.shape)} for {kept.shape[1]} tokens: "
            "an embedding is read from (B, S, D), a vector at each token."
        )
    if pooling == "cls":
        kept = kept & (kept.cumsum(-1) == 1)
    weight = kept.to(hidden).expand(len(hidden), -1)
    return torch.einsum("bs,bsd->bd", weight, hidden) / weight.sum(-1, keepdim=True)


# --- a token's own vector -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class State(Short, Target):
    """See :func:`state`."""

    position: TokenIndex
    direction: Tensor | None = None

    def __post_init__(self) -> None:
        whole_position(self.position)
        e = self.direction
        if e is None:
            return
        vector = isinstance(e, Tensor) and e.dim() == 1 and e.is_floating_point()
        if not vector or not bool(torch.isfinite(e).all()) or not bool(e.any()):
            raise LigError(
                f"direction={brief(e)}: give a vector (D,) of finite numbers that are not all 0."
            )

    @property
    def words(self) -> str:
        """What the number is."""
        along = "its own change" if self.direction is None else "the given direction"
        return f"state of the token at position {self.position}, along {along}"

    def where(self, kept: Tensor) -> Tensor:
        """``(B,)`` the token's position in each text; ``kept (B, S)`` is False at padding."""
        return positions_of(kept, number_of(self.position))

    def placed(self, call: ModelCall, tokenizer: PreTrainedTokenizerBase | None = None) -> State:
        """The same at a position that is a number."""
        return replace(self, position=position_in(call, self.position, tokenizer))

    def along(self, change: Tensor) -> Tensor:
        """The direction ``(D,)``: the given one, or that of the token's change ``(D,)``.

        Raises:
            LigError: for a given one of another width, or a token that does not change.
        """
        if self.direction is None:
            length = torch.linalg.vector_norm(change)
            if not bool(length > 0):
                raise LigError(
                    f"the token at position {self.position} leaves the last block as it does in "
                    "the baseline: its change has no direction. Give direction=, or another "
                    "baseline."
                )
            unit: Tensor = change / length
            return unit
        if self.direction.shape != change.shape:
            raise LigError(
                f"direction has shape {tuple(self.direction.shape)}, and the tokens are of width "
                f"{len(change)}."
            )
        return self.direction.to(change)

    def bind(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> BoundTarget:
        """Refused: it is not read from the model's output."""
        raise LigError(
            f"the {self.words}, is read where tokens leave the last block, and not from the "
            "model's output: it is a target of LayerFlowIG.attribute alone."
        )


def state(position: TokenIndex, direction: Tensor | None = None) -> State:
    """Where a token's vector came from: its component along a direction, leaving the last block.

    Args:
        position: which token, padding not counted: a number, negative ones from the end, or what
            it says.
        direction: ``(D,)``; None for that of the token's own change from the baseline to the
            input, of length 1: the number changes by as much as the token moves.
    """
    return State(position, direction)

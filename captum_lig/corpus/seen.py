"""What measures are taken of: texts, and the flows and answers that they share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from captum_lig.answers.answer import Answer
from captum_lig.answers.asker import Asker
from captum_lig.answers.subject import Subject
from captum_lig.answers.wanted import Wanted
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.texts import Text
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import token_texts
from captum_lig.flow.flows import Flows
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.layer_flow_ig import LayerFlowIG

__all__ = ["Model", "Seen"]


@dataclass(frozen=True)
class Model:
    """A model as it is asked."""

    subject: Subject
    network: torch.nn.Module
    lig: LayerFlowIG
    asker: Asker
    boundaries: tuple[str, ...]
    """That flows of lengths have."""
    has_mlp: bool
    """Whether MLPs are nodes of the flows."""


class Seen:
    """A batch of texts; what several measures need is computed once, when it is asked for.

    Args:
        texts: as they were read.
        encodings: what the model is called with for each, ``(1, S)`` tensors.
        model: loaded.
        settings: of the run.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        encodings: Sequence[dict[str, Tensor]],
        model: Model,
        settings: Settings,
    ) -> None:
        self.texts, self.encodings = list(texts), list(encodings)
        self.model, self.settings = model, settings
        self.lengths = torch.tensor([one["input_ids"].shape[1] for one in encodings])
        tokenizer, ids = model.subject.tokenizer, [one["input_ids"][0] for one in encodings]
        self.tokens: list[list[str]] = [token_texts(tokenizer, one.tolist()) for one in ids]

    @cached_property
    def flows(self) -> Flows:
        """Of lengths, all layers, the texts one batch, on the CPU. Padding stands at the right."""
        settings, model = self.settings, self.model
        with warnings.catch_warnings():
            # Rows that did not converge are counted in the table of layers.
            warnings.filterwarnings("ignore", message=".*rows are not within tolerance")
            found: Any = model.lig.attribute(
                padded(self.encodings, model.subject.tokenizer),
                baselines=settings.baselines,
                n_steps=settings.n_steps,
                tolerance=settings.tolerance,
                max_steps=settings.max_steps,
                boundaries=model.boundaries,
            )
        return Flows(map(_on_the_cpu, found))

    @cached_property
    def valid(self) -> Tensor:
        """``(B, S)`` False where a token is padding."""
        return torch.arange(int(self.lengths.max())) < self.lengths[:, None]

    @cached_property
    def composed(self) -> list[dict[str, Tensor]]:
        """Of each layer the composed maps ``(B, T, S)``, by rule; filled by who asks."""
        return [{} for _ in self.flows]

    def compose(self, layer: int, rule: str) -> Tensor:
        """The composed map ``(B, T, S)`` of the ``layer``-th flow."""
        kept = self.composed[layer]
        if rule not in kept:
            kept[rule] = self.flows[layer].compose(rule)
        return kept[rule]

    @cached_property
    def answers(self) -> list[Answer | LigError | None]:
        """What carries the number of each text; why there is none; None of texts without one."""
        return [self._answer(text) if text.asked else None for text in self.texts]

    def _answer(self, text: Text) -> Answer | LigError:
        try:
            asker = self.model.asker
            prepared = asker.prepare(wanted_of(text, self.model.subject))
            with warnings.catch_warnings():
                # The error of the sums is a column of its own.
                warnings.filterwarnings("ignore", message=".*sums are not within tolerance")
                return asker.answer(prepared, tolerance=self.settings.answer_tolerance)
        except LigError as error:
            return error


def _on_the_cpu(flow: LayerFlow) -> LayerFlow:
    tensors = {name: tensor.cpu() for name, tensor in flow.tensors.items()}
    return replace(flow, targets=flow.targets.cpu(), valid=flow.valid.cpu(), tensors=tensors)


def wanted_of(text: Text, subject: Subject) -> Wanted:
    """The question of a text: its target is a token, a class, or another text."""
    key = {"classes": "label", "sentence": "similar_to"}.get(str(subject.kind), "target")
    given: dict[str, Any] = {
        "against": text.counterfactual,
        "foil": text.foil,
        key: text.target,
    }
    return Wanted(text.text, **given)


def padded(encodings: Sequence[dict[str, Tensor]], tokenizer: Any) -> dict[str, Tensor]:
    """One batch of several texts, padded at the right whatever the tokenizer does."""
    if len(encodings) == 1:
        return dict(encodings[0])
    fill = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    found = {}
    for name in encodings[0]:
        rows = [one[name][0] for one in encodings]
        value = fill if name == "input_ids" else 0
        found[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
    if "attention_mask" not in found:
        rows = [torch.ones_like(one["input_ids"][0]) for one in encodings]
        found["attention_mask"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return found

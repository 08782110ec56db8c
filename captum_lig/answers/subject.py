"""The model that is asked, of which as little is loaded as the question needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from captum_lig._arguments import brief
from captum_lig.answers.wanted import Kind, kind_of
from captum_lig.errors import LigError
from captum_lig.pretrained.load import Checkpoint, find_model, quiet
from captum_lig.pretrained.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Subject", "subject_of"]

_UNLIMITED = 10**9
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Subject:
    """A model by name, or one that is there already."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    config: Any
    kind: Kind | None
    """What it is for; None if that is seen only when it runs."""
    place: Checkpoint | nn.Module

    @property
    def most_tokens(self) -> int | None:
        """How many tokens a text may have; None if nothing says so."""
        limits = (
            getattr(self.config, "max_position_embeddings", None),
            self.tokenizer.model_max_length,
        )
        return min((int(n) for n in limits if n is not None and 0 < n < _UNLIMITED), default=None)

    @property
    def class_names(self) -> Mapping[int, str]:
        """Of a classifier."""
        names = getattr(self.config, "id2label", None) or {}
        return {int(number): str(name) for number, name in names.items()}

    def load(self, kind: Kind, dtype: str | None, device: str | None) -> nn.Module:
        """The model with the head that this use of it needs.

        Raises:
            LigError: if it cannot be loaded.
        """
        if isinstance(self.place, nn.Module):
            return self.place
        import transformers

        auto = {
            "causal": transformers.AutoModelForCausalLM,
            "masked": transformers.AutoModelForMaskedLM,
            "classes": transformers.AutoModelForSequenceClassification,
            "sentence": transformers.AutoModel,
        }
        network: Any = self.place.load(auto[kind], DTYPES[dtype or "float32"])
        if kind == "sentence" and network.config.is_encoder_decoder:
            network = network.get_encoder()
        with quiet():
            network.to(device or "cpu")
        return network  # type: ignore[no-any-return]


def subject_of(
    model: str | Path | nn.Module | None,
    sentence: bool,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: str | None,
    device: str | None,
) -> Subject:
    """Find a model; its weights are not loaded.

    Args:
        model: see ``why``.
        sentence: whether it is asked how alike two texts are.
        tokenizer: of a model that has none beside it.
        dtype: ``"float32"`` or ``"float64"``.
        device: such as ``"cuda"``.

    Raises:
        LigError: if there is no such model, precision or device.
    """
    if dtype is not None and dtype not in DTYPES:
        raise LigError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}.")
    if isinstance(model, nn.Module):
        if dtype is not None or device is not None:
            raise LigError("dtype and device are of a model by name: move the model itself.")
        model = getattr(model, "_orig_mod", model)
        name = type(model).__name__
        own = tokenizer or tokenizer_of(model)
        return Subject(name, own, getattr(model, "config", None), kind_of(name), model)
    if model is not None and not isinstance(model, (str, Path)):
        raise LigError(f"model={brief(model)}: give a name, a folder or a torch.nn.Module.")
    if device is not None:
        _check_device(device)
    found = find_model(model or ("minilm" if sentence else "smollm2"))
    if not sentence and getattr(found.config, "is_encoder_decoder", False):
        raise LigError(
            f"{found.name} has an encoder and a decoder, and two texts: explain it with "
            "LayerFlowIG(model).attribute(inputs, target=...), or give similar_to, for its encoder."
        )
    kind = kind_of(found.architecture)
    return Subject(found.name, tokenizer or found.tokenizer, found.config, kind, found)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise LigError(
            f"device {device!r} cannot be used ({reason[:120]}): use cpu, or cuda where there is "
            "a GPU that this torch was built for."
        ) from error

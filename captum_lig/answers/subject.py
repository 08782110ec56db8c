"""The model that is asked, of which as little is loaded as the question needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from captum_lig._arguments import brief
from captum_lig.answers.wanted import Kind, kind_of
from captum_lig.errors import LigError
from captum_lig.pretrained.load import (
    DTYPES,
    Checkpoint,
    Reader,
    check_place,
    find_model,
    quiet,
)
from captum_lig.pretrained.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Subject", "subject_of"]


@dataclass(frozen=True)
class Subject(Reader):
    """A model by name, or one that is there already."""

    name: str
    config: Any
    tokenizer: PreTrainedTokenizerBase
    kind: Kind | None
    """What it is for; None if that is seen only when it runs."""
    place: Checkpoint | nn.Module

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
    check_place(dtype, device)
    if tokenizer is not None and not callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
        raise LigError(
            f"tokenizer={brief(tokenizer)}: give a tokenizer of transformers, such as "
            "AutoTokenizer.from_pretrained gives, or leave it out."
        )
    if isinstance(model, nn.Module):
        if dtype is not None or device is not None:
            raise LigError("dtype and device are of a model by name: move the model itself.")
        model = getattr(model, "_orig_mod", model)
        name = type(model).__name__
        own = tokenizer or tokenizer_of(model)
        return Subject(name, getattr(model, "config", None), own, kind_of(name), model)
    if model is not None and not isinstance(model, (str, Path)):
        raise LigError(f"model={brief(model)}: give a name, a folder or a torch.nn.Module.")
    if model is None:
        model = "minilm" if sentence else "smollm2"
    elif not str(model).strip():
        raise LigError(f"model={brief(model)} is empty: give a name or a folder, or leave it out.")
    found = find_model(model)
    if not sentence and getattr(found.config, "is_encoder_decoder", False):
        raise LigError(
            f"{found.name} has an encoder and a decoder, and two texts: explain it with "
            "LayerFlowIG(model).attribute(inputs, target=...), or give similar_to, for its encoder."
        )
    kind = kind_of(found.architecture)
    return Subject(found.name, found.config, tokenizer or found.tokenizer, kind, found)

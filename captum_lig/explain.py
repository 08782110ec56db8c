"""The main job in one call: load a model, attribute its layers for a text, gather the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from captum_lig.errors import LigError
from captum_lig.flow import LayerFlow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Explanation", "explain"]

_UNLIMITED = 10**9
"""transformers writes a tokenizer without a limit as one with a limit of about 10**30 tokens."""


@dataclass(frozen=True)
class Explanation:
    """How one text flows through the layers of a model."""

    flows: list[LayerFlow]
    """One a layer, in the order the layers ran."""
    tokens: list[str]
    """As the tokenizer writes them, special tokens included; one for each source."""
    text: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the flows were made, in JSON's types."""


def explain(
    text: str,
    model: str | Path | None = None,
    *,
    layers: Sequence[int] | None = None,
    baseline: str | float = "target_token",
    scalarization: str = "l2",
    n_steps: int = 16,
    method: str = "gausslegendre",
    tolerance: float | None = 1e-3,
    show_progress: bool = False,
) -> Explanation:
    """Attribute the layers of a model for a text.

    Args:
        text: the text; the tokenizer adds its special tokens, and they are kept.
        model: a model on the Hugging Face hub or a folder; None is the embedded model.
            It is loaded in float32. Of an encoder-decoder the encoder is explained.
        layers: indices of the layers to attribute, None for all.
        baseline: what the paths start from: ``"target_token"``, ``"zero"`` or a number.
        scalarization: ``"l2"`` or ``"projection"``.
        n_steps: first nodes of the quadrature.
        method: quadrature, see :meth:`LayerFlowIG.attribute`.
        tolerance: largest completeness error of a row, which rows are refined to.
        show_progress: show a progress bar over the layers.

    Returns:
        The flows, one a layer, with all three boundaries.

    Raises:
        LigError: if the model cannot be loaded, if the text is empty or longer than the model
            takes, or if a setting is not one :class:`LayerFlowIG` knows.
    """
    from captum_lig.layer_flow import LayerFlowIG

    if not text.strip():
        raise LigError(f"the text {text!r} is empty: give at least one word.")
    name, folder = _find(model)
    tokenizer, network = _load(name, folder)
    encoding = _encode(tokenizer, network, text, name)
    engine = LayerFlowIG(
        network, layer=None if layers is None else list(layers), scalarization=scalarization
    )
    result = engine.attribute(
        encoding,
        baselines=baseline,
        n_steps=n_steps,
        method=method,
        tolerance=tolerance,
        show_progress=show_progress,
    )
    flows = [result] if isinstance(result, LayerFlow) else result
    return Explanation(
        flows=flows,
        tokens=tokenizer.convert_ids_to_tokens(encoding["input_ids"][0].tolist()),
        text=text,
        model=name,
        settings={
            "layers": [flow.index for flow in flows],
            "baseline": baseline,
            "scalarization": scalarization,
            "n_steps": n_steps,
            "method": method,
            "tolerance": tolerance,
        },
    )


def _find(model: str | Path | None) -> tuple[str, str]:
    """The model's name for people and where to load it from."""
    if model is not None:
        return str(model), str(model)
    from captum_lig.embedded import EMBEDDED_MODEL, embedded_model_path

    return EMBEDDED_MODEL, str(embedded_model_path())


def _load(name: str, source: str) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    if Path(source).is_dir() and not Path(source, "config.json").is_file():
        raise LigError(
            f"folder {name!r} has no config.json: give a folder that save_pretrained wrote a model "
            "and its tokenizer to."
        )
    try:
        with _quiet():
            AutoConfig.from_pretrained(source, trust_remote_code=False)  # fails soonest
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            network, info = AutoModel.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # whatever the hub, the files or the model's configuration raise
        reason = " ".join(str(error).split())
        raise LigError(
            f"model {name!r} cannot be loaded: give a folder that holds a model and its tokenizer, "
            "or the name of a text model on the Hugging Face hub that can be reached from here "
            f"({type(error).__name__}: {reason[:200]})."
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # transformers makes an empty tokenizer up where it finds none
        raise LigError(f"model {name!r} has no tokenizer beside it: save its tokenizer there too.")
    absent = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if absent:
        raise LigError(
            f"the weights of model {name!r} lack {len(absent)} parameters ({absent[0]}, ...), "
            "which would be random numbers: give a model whose weights are complete."
        )
    network.eval()
    return tokenizer, network.get_encoder() if network.config.is_encoder_decoder else network


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor progress bars of transformers and of the hub's client."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub.set_verbosity(ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()


def _encode(
    tokenizer: PreTrainedTokenizerBase, network: nn.Module, text: str, name: str
) -> dict[str, torch.Tensor]:
    with _quiet():
        encoding = dict(tokenizer(text, return_tensors="pt", truncation=False, padding=False))
    count = encoding["input_ids"].shape[1]
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if count <= special:
        raise LigError(
            f"the text {text!r} gives model {name!r} no token of its own: give at least one word."
        )
    limits = (getattr(network.config, "max_position_embeddings", None), tokenizer.model_max_length)
    limit = min((int(n) for n in limits if n is not None and 0 < n < _UNLIMITED), default=None)
    if limit is not None and count > limit:
        raise LigError(
            f"the text has {count} tokens, {special} special ones included, and model {name!r} "
            f"takes {limit} at most: shorten the text or split it."
        )
    return encoding

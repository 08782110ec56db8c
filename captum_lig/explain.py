"""Explain a text in one call: load a model, attribute its layers for a text, gather the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig._restore import restoring
from captum_lig.attribution.lengths import BOUNDARIES
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import token_texts
from captum_lig.flow.explanation import Explanation
from captum_lig.flow.flows import Flows
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.layer_flow_ig import LayerFlowIG
from captum_lig.prediction import layer_baselines
from captum_lig.pretrained.load import Pretrained, load_model, says_what_comes_next

__all__ = ["Explanation", "explain"]


@restoring
def explain(
    text: str,
    model: str | Path | Pretrained | None = None,
    *,
    layers: Sequence[int] | None = None,
    baseline: str | float | None = None,
    scalarization: str = "l2",
    n_steps: int = 16,
    method: str = "gausslegendre",
    tolerance: float | None = 1e-3,
    self_term: str | None = None,
    influence: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    show_progress: bool = False,
) -> Explanation:
    """Attribute the layers of a model for a text.

    Args:
        text: the text; the tokenizer adds its special tokens, and they are kept.
        model: ``"minilm"`` (None), ``"smollm2"``, a model on the Hugging Face hub, a folder, or
            what :func:`captum_lig.pretrained.load.load_model` gave, for text after text. Of an
            encoder-decoder the encoder is explained.
        layers: indices of the layers to attribute, None for all.
        baseline: what the paths start from: ``"target_token"``, ``"zero"``, a number, or
            ``"padding"``: the tokens as they are when all but special tokens and the first are
            padding (the end-of-text token, if there is no padding token). None is ``"padding"``
            for a causal model, where the second token sees only the first and itself, so that from
            its own token all comes from the first, by construction; and ``"target_token"`` for
            others, and with a self term.
        scalarization: ``"l2"`` or ``"projection"``.
        n_steps: first nodes of the quadrature.
        method: quadrature, see :meth:`LayerFlowIG.attribute`.
        tolerance: largest completeness error of a row, which rows are refined to.
        self_term: estimate of what targets owe to themselves, ``"map_ratio"``, ``"zero_ratio"`` or
            None, see :meth:`LayerFlow.with_self_term`.
        influence: also attribute the boundary ``"influence"``, how much each source moves a target,
            whichever way; views open with it then. 3 to 5 times the work for a sentence, 13 times
            for 60 tokens.
        dtype: ``"float32"`` (None) or ``"float64"``, of a model by name.
        device: such as ``"cuda"``, of a model by name.
        show_progress: show a progress bar over the layers.

    Returns:
        The flows, one a layer, with all three boundaries, and influence if asked for.

    Raises:
        LigError: if the model cannot be loaded, if the text is empty or longer than the model
            takes, if a setting is not one :class:`LayerFlowIG` knows, or if a causal model has no
            token to put in place of the text's and no baseline is given.
    """
    if not isinstance(text, str):
        raise LigError(f"text={brief(text)}: give a text. Of several, explain one after another.")
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence)):
        raise LigError(f"layers={brief(layers)}: give a list of indices, such as [3], or None.")
    if not text.strip():
        raise LigError(f"the text {text!r} is empty: give at least one word.")
    loaded = model if isinstance(model, Pretrained) else load_model(model, dtype, device)
    place = next((parameter.device for parameter in loaded.network.parameters()), None)
    encoding = {name: x.to(place) for name, x in loaded.encode(text).items()}
    engine = LayerFlowIG(
        loaded.network, layer=None if layers is None else list(layers), scalarization=scalarization
    )
    settings: dict[str, Any] = {
        "n_steps": n_steps,
        "method": method,
        "tolerance": tolerance,
        "self_term": self_term,
    }
    start, named = _start(loaded, encoding, baseline, self_term)
    if named == "padding" and layers is not None:
        start = [start[i] for i in layers if i in range(-len(start), len(start))]
    boundaries = [*BOUNDARIES, "influence"] if influence else None
    result = engine.attribute(
        encoding,
        start,
        boundaries=boundaries,
        show_progress=show_progress,
        tokenizer=loaded.tokenizer,
        **settings,
    )
    flows = Flows([result]) if isinstance(result, LayerFlow) else result
    return Explanation(
        flows=flows,
        tokens=token_texts(loaded.tokenizer, encoding["input_ids"][0].tolist()),
        text=text,
        model=loaded.name,
        settings={
            "layers": [flow.index for flow in flows],
            "baseline": named,
            "scalarization": scalarization,
            **settings,
        },
    )


def _start(
    loaded: Pretrained,
    encoding: dict[str, Tensor],
    baseline: str | float | None,
    self_term: str | None,
) -> tuple[Any, str | float]:
    """The baselines to attribute with, and what they are called."""
    if baseline is None and self_term is not None:
        baseline = "target_token"
    if baseline is not None and baseline != "padding":
        return baseline, baseline
    try:
        padded = layer_baselines(loaded.network, encoding, tokenizer=loaded.tokenizer)
    except LigError as error:
        if baseline is not None:
            raise
        if not says_what_comes_next(loaded.network):
            return "target_token", "target_token"
        raise LigError(
            f"model {loaded.name!r} says what comes next, and is explained from padding: {error} "
            "Or choose where paths start: baseline='zero', a number, or 'target_token', from where "
            "the second token is all the first's."
        ) from error
    if baseline is None and not _is_causal(loaded, encoding, padded):
        return "target_token", "target_token"
    return padded, "padding"


def _is_causal(loaded: Pretrained, encoding: dict[str, Tensor], padded: list[Tensor]) -> bool:
    """Whether the first token, which stays, sees none of those that padding stands for."""
    if says_what_comes_next(loaded.network):
        return True
    own = layer_baselines(loaded.network, encoding, encoding["input_ids"])
    others = [not torch.equal(a[:, 1:], b[:, 1:]) for a, b in zip(own, padded, strict=True)]
    return len(own) > 1 and any(others) and torch.allclose(own[-1][:, 0], padded[-1][:, 0])

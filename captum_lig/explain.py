"""Explain a text in one call: load a model, attribute its layers for a text, gather the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captum_lig.errors import LigError
from captum_lig.flow.explanation import Explanation
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.layer_flow_ig import LayerFlowIG
from captum_lig.pretrained.load import load_model

__all__ = ["Explanation", "explain"]


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
    self_term: str | None = None,
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
        self_term: estimate of what targets owe to themselves, ``"map_ratio"``, ``"zero_ratio"`` or
            None, see :meth:`LayerFlow.with_self_term`.
        show_progress: show a progress bar over the layers.

    Returns:
        The flows, one a layer, with all three boundaries.

    Raises:
        LigError: if the model cannot be loaded, if the text is empty or longer than the model
            takes, or if a setting is not one :class:`LayerFlowIG` knows.
    """
    if not text.strip():
        raise LigError(f"the text {text!r} is empty: give at least one word.")
    loaded = load_model(model)
    encoding = loaded.encode(text)
    engine = LayerFlowIG(
        loaded.network, layer=None if layers is None else list(layers), scalarization=scalarization
    )
    settings: dict[str, Any] = {
        "n_steps": n_steps,
        "method": method,
        "tolerance": tolerance,
        "self_term": self_term,
    }
    result = engine.attribute(encoding, baseline, show_progress=show_progress, **settings)
    flows = [result] if isinstance(result, LayerFlow) else result
    return Explanation(
        flows=flows,
        tokens=loaded.tokenizer.convert_ids_to_tokens(encoding["input_ids"][0].tolist()),
        text=text,
        model=loaded.name,
        settings={
            "layers": [flow.index for flow in flows],
            "baseline": baseline,
            "scalarization": scalarization,
            **settings,
        },
    )

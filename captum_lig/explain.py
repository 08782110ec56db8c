"""Explain a text in one call: load a model, attribute its layers for a text, gather the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captum_lig.errors import LigError
from captum_lig.flow.explanation import Explanation
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.layer_flow_ig import LayerFlowIG
from captum_lig.prediction import layer_baselines
from captum_lig.pretrained.load import Pretrained, load_model, says_what_comes_next

__all__ = ["Explanation", "explain"]


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
            padding. None is ``"padding"`` for a model that says what comes next, where the second
            token sees only the first and itself, so that from its own token all comes from the
            first, by construction; and ``"target_token"`` for others.
        scalarization: ``"l2"`` or ``"projection"``.
        n_steps: first nodes of the quadrature.
        method: quadrature, see :meth:`LayerFlowIG.attribute`.
        tolerance: largest completeness error of a row, which rows are refined to.
        self_term: estimate of what targets owe to themselves, ``"map_ratio"``, ``"zero_ratio"`` or
            None, see :meth:`LayerFlow.with_self_term`.
        dtype: ``"float32"`` (None) or ``"float64"``, of a model by name.
        device: such as ``"cuda"``, of a model by name.
        show_progress: show a progress bar over the layers.

    Returns:
        The flows, one a layer, with all three boundaries.

    Raises:
        LigError: if the model cannot be loaded, if the text is empty or longer than the model
            takes, or if a setting is not one :class:`LayerFlowIG` knows.
    """
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
    if baseline is None:
        padded = says_what_comes_next(loaded.network) and self_term is None
        baseline = "padding" if padded else "target_token"
    start: Any = baseline
    if baseline == "padding":
        start = layer_baselines(loaded.network, encoding, tokenizer=loaded.tokenizer)
        if layers is not None:
            start = [start[i] for i in layers if i in range(len(start))]
    result = engine.attribute(encoding, start, show_progress=show_progress, **settings)
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

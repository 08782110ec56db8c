"""Relevances of tokens as what Captum's ``visualize_text`` shows."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.tokens import readable_token

if TYPE_CHECKING:
    from captum.attr import visualization

__all__ = ["captum_record"]


def captum_record(
    values: Tensor | Sequence[float],
    tokens: Sequence[str],
    *,
    predicted: str = "",
    probability: float = math.nan,
    true: str = "",
    target: str = "",
    delta: float = math.nan,
) -> visualization.VisualizationDataRecord:
    """A record for Captum's ``visualization.visualize_text``: tokens coloured by their values.

    Green stands for a positive value, red for a negative one, full colour for the largest size.
    Captum puts words into its HTML as they are; here all of them are escaped.

    Args:
        values: ``(N,)``, such as a row of ``trace.tokens`` or ``flow.layer[0]``.
        tokens: ``N`` of them.
        predicted: what the model says.
        probability: how likely that is; Captum shows ``(nan)`` if it is left out.
        true: what it should say.
        target: what the values are of.
        delta: what they miss of their total.

    Raises:
        LigError: if values and tokens do not fit, or values are not finite.

    Example::

        >>> from captum.attr import visualization
        >>> from captum_lig import FlowGraph, LayerFlowIG
        >>> graph = FlowGraph(LayerFlowIG(decoder).attribute(ids, other_ids, target))
        >>> trace = graph.relevance()
        >>> record = captum_record(trace.tokens[0], trace.labels, target=graph.target)
        >>> page = visualization.visualize_text([record])  # shows it, too
        <IPython.core.display.HTML object>
    """
    from captum.attr import visualization

    row = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if row.shape != (len(tokens),):
        raise LigError(
            f"values of shape {tuple(row.shape)} and {len(tokens)} tokens: give one value a token."
        )
    if not bool(row.isfinite().all()):
        raise LigError("values that are not finite have no colour.")
    largest = float(row.abs().max()) if len(row) else 0.0
    return visualization.VisualizationDataRecord(
        word_attributions=row / (largest or 1.0),
        pred_prob=probability,
        pred_class=html.escape(predicted),
        true_class=html.escape(true),
        attr_class=html.escape(target),
        attr_score=float(row.sum()),
        raw_input_ids=[html.escape(readable_token(token)) for token in tokens],
        convergence_score=delta,
    )

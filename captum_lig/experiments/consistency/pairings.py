"""Composed against direct maps of one text, for every pairing of baselines, starts and rules.

Two baselines a layer are integrated (zero, target token), each with the mlp boundary from both its
starts. The pairings are arithmetic on what that gives.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.compare_maps import Comparison, compare_maps
from captum_lig.flow.layer_flow import MLP_STARTS, RULES, LayerFlow
from captum_lig.flow.words import add_up
from captum_lig.layer_flow_ig import LayerFlowIG

__all__ = [
    "ALL_ZERO",
    "ATTENTION_BASELINES",
    "CONTROLS",
    "LAYER_BASELINES",
    "LayerMaps",
    "Pairing",
    "Record",
    "layer_maps",
    "measure_text",
    "uniform_map",
]

LAYER_BASELINES = ("zero", "target_token", "target_token+zero_ratio")
ATTENTION_BASELINES = (*LAYER_BASELINES[:2], "target_token+map_ratio", LAYER_BASELINES[2])
ALL_ZERO, UNIFORM = "all_zero", "uniform"
CONTROLS = (ALL_ZERO, UNIFORM)
"""Maps made without the model; the second takes the total of each row."""


@dataclass(frozen=True)
class Pairing:
    """How a composed map was made."""

    attention_baseline: str | None
    """None for a control."""
    mlp_start: str | None
    rule: str
    """A composition rule, or a control's name."""


PAIRINGS = tuple(
    Pairing(*names) for names in itertools.product(ATTENTION_BASELINES, MLP_STARTS, RULES)
)


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer and one text of ``S`` tokens, padding left out."""

    index: int
    visible: Tensor
    """``(S, S)`` which sources a target can see."""
    direct: dict[str, Tensor]
    """``(S, S)`` by layer baseline."""
    composed: dict[Pairing, Tensor]
    """``(S, S)``"""
    direct_unconverged: dict[str, Tensor]
    """``(S,)`` targets whose direct row is not within tolerance."""
    composed_unconverged: dict[Pairing, Tensor]
    """``(S,)`` targets for which a row that the composed map is made of is not."""

    def merged(self, words: Tensor) -> LayerMaps:
        """The same maps between words: ``(S,)`` says which word each token belongs to."""
        words = words.to(self.visible.device)

        def merged(x: Tensor) -> Tensor:
            return add_up(add_up(x, -2, words), -1, words)

        def any_of(rows: Tensor) -> Tensor:
            return add_up(rows.long(), -1, words) > 0

        return LayerMaps(
            self.index,
            merged(self.visible.long()) > 0,
            {name: merged(x) for name, x in self.direct.items()},
            {pairing: merged(x) for pairing, x in self.composed.items()},
            {name: any_of(x) for name, x in self.direct_unconverged.items()},
            {pairing: any_of(x) for pairing, x in self.composed_unconverged.items()},
        )

    def with_controls(self, layer_baseline: str) -> tuple[dict[Pairing, Tensor], Tensor]:
        """Composed maps for one direct map, then the controls; and rows that did not converge."""
        direct = self.direct[layer_baseline]
        controls = {
            Pairing(None, None, ALL_ZERO): torch.zeros_like(direct),
            Pairing(None, None, UNIFORM): uniform_map(direct.sum(-1), self.visible),
        }
        direct_rows = self.direct_unconverged[layer_baseline]
        unconverged = [direct_rows | rows for rows in self.composed_unconverged.values()]
        return self.composed | controls, torch.stack([*unconverged, direct_rows, direct_rows])


@dataclass(frozen=True)
class Record:
    """One pairing in one layer of one text: means and deviations over its targets.

    A mean over no rows is None. Deviations are those of the rows around their mean (the
    square root of the mean square).
    """

    layer: int
    layer_baseline: str
    attention_baseline: str | None
    mlp_start: str | None
    rule: str
    rows: int
    """Targets compared."""
    unconverged_rows: int
    """Of them, those that use a row that is not within tolerance."""
    relative_rows: int
    """Of them, those with a direct row that is not all 0."""
    correlation_rows: int
    """Of them, those in which neither map is constant."""
    l2_mean: float | None
    l2_std: float | None
    relative_l2_mean: float | None
    relative_l2_std: float | None
    pearson_mean: float | None
    pearson_std: float | None
    spearman_mean: float | None
    spearman_std: float | None


def uniform_map(totals: Tensor, visible: Tensor) -> Tensor:
    """The map that spreads ``totals (..., T)`` evenly over what each target sees.

    Args:
        totals: what the rows have to add up to.
        visible: ``(T, S)``; each target sees something.

    Returns:
        ``(..., T, S)``.
    """
    share = totals / visible.sum(-1)
    return torch.where(visible, share.unsqueeze(-1), 0.0)


def layer_maps(zero: Sequence[LayerFlow], target_token: Sequence[LayerFlow]) -> LayerMaps:
    """The maps of one layer.

    Args:
        zero: flows of one text with the zero baseline, one for each mlp start, with all three
            boundaries for all tokens, and a tolerance.
        target_token: the same with the target-token baseline.
    """
    kept = zero[0].valid[0].nonzero().squeeze(-1)

    def unpadded(x: Tensor) -> Tensor:
        return x[0][kept][:, kept].double()

    by_zero = [
        ours.with_self_term("zero_ratio", z) for ours, z in zip(target_token, zero, strict=True)
    ]
    by_map = [flow.with_self_term("map_ratio") for flow in target_token]
    variants = dict(zip(ATTENTION_BASELINES, (zero, target_token, by_map, by_zero), strict=True))
    composed, composed_unconverged = {}, {}
    for pairing in PAIRINGS:
        assert pairing.attention_baseline is not None
        start = [flow.mlp_start for flow in zero].index(str(pairing.mlp_start))
        flow = variants[pairing.attention_baseline][start]
        composed[pairing] = unpadded(flow.compose(pairing.rule))
        rows = _unconverged(flow, pairing.rule)
        if pairing.attention_baseline.endswith("zero_ratio"):
            rows = rows | _unconverged(zero[start], pairing.rule)
        composed_unconverged[pairing] = rows[kept]
    directs = dict(zip(LAYER_BASELINES, (zero[0], target_token[0], by_zero[0]), strict=True))
    of_zero, of_token = (~flows[0].converged["layer"][0, kept] for flows in (zero, target_token))
    unconverged = (of_zero, of_token, of_zero | of_token)
    return LayerMaps(
        index=zero[0].index,
        visible=_visible(zero[0])[kept][:, kept],
        direct={name: unpadded(flow.need("layer")) for name, flow in directs.items()},
        composed=composed,
        direct_unconverged=dict(zip(LAYER_BASELINES, unconverged, strict=True)),
        composed_unconverged=composed_unconverged,
    )


def measure_text(
    engine: LayerFlowIG,
    inputs: Mapping[str, Any] | Tensor,
    words: Sequence[int] | Tensor | None = None,
    *,
    n_steps: int = 16,
    method: str = "gausslegendre",
    tolerance: float = 1e-3,
    max_steps: int = 1024,
    dtype: torch.dtype | None = None,
    show_progress: bool = False,
) -> list[Record]:
    """Compare composed and direct maps of one text, in the engine's layers.

    ``words (S,)`` says which word each token belongs to, to compare maps between words, see
    :func:`captum_lig.flow.words.word_groups`; None: between tokens. The settings are those of
    :meth:`LayerFlowIG.attribute`. Rows that are not within tolerance are counted, not left out.

    Returns:
        A record for each layer, layer baseline, and pairing or control.

    Raises:
        LigError: for more than one text, words that do not fit, or anything that cannot be
            attributed.
    """
    words = None if words is None else torch.as_tensor(words)

    def flows(baseline: str, mlp_start: str) -> list[LayerFlow]:
        # The layer boundary is the same whatever the mlp boundary starts from.
        boundaries = ("attention", "mlp", *(("layer",) if mlp_start == MLP_STARTS[0] else ()))
        with warnings.catch_warnings():
            # They are counted in the records.
            warnings.filterwarnings("ignore", message=".*rows are not within tolerance")
            found = engine.attribute(
                inputs,
                baselines=baseline,
                n_steps=n_steps,
                method=method,
                tolerance=tolerance,
                max_steps=max(max_steps, n_steps),
                dtype=dtype,
                show_progress=show_progress,
                boundaries=boundaries,
                mlp_start=mlp_start,
            )
        return [found] if isinstance(found, LayerFlow) else found

    records: list[Record] = []
    by_baseline = (
        zip(*(flows(baseline, start) for start in MLP_STARTS), strict=True)
        for baseline in ("zero", "target_token")
    )
    for zero, target_token in zip(*by_baseline, strict=True):
        _one_text(zero[0], words)
        maps = layer_maps(zero, target_token)
        if words is not None:
            kept = zero[0].valid[0].cpu()
            maps = maps.merged(torch.unique(words[kept], return_inverse=True)[1])
        records += _records(maps)
    return records


def _one_text(flow: LayerFlow, words: Tensor | None) -> None:
    texts, tokens = flow.valid.shape
    if texts != 1:
        raise LigError(f"{texts} texts were given: compare the maps of one text at a time.")
    if words is not None and (words.shape != (tokens,) or words.is_floating_point()):
        raise LigError(
            f"words={brief(words)} does not fit the text's {tokens} tokens: give a whole number "
            "for each."
        )


def _visible(zero: LayerFlow) -> Tensor:
    """``(T, S)`` what each target can see: what the mask leaves of the layer's attention.

    A source that the mask forbids has an attention weight of exactly 0 on the whole zero path, in
    every head; near the start of that path attention is spread over everything else.
    """
    seen = (zero.need("attention")[0] != 0).any(0)
    seen[torch.arange(len(zero.targets), device=seen.device), zero.targets] = True
    return seen


def _unconverged(flow: LayerFlow, rule: str) -> Tensor:
    """``(T,)`` targets for which a row of the rule's boundaries is not within tolerance."""
    heads = flow.converged["chain" if rule == "chain" else "attention"][0]
    return ~(heads.all(0) & flow.converged["mlp"][0])


def _records(maps: LayerMaps) -> list[Record]:
    records = []
    for layer_baseline in LAYER_BASELINES:
        composed, unconverged = maps.with_controls(layer_baseline)
        found = compare_maps(
            maps.direct[layer_baseline], torch.stack(list(composed.values())), maps.visible
        )
        missed = unconverged.sum(-1).tolist()
        for row, pairing in enumerate(composed):
            one = Comparison(*(measure[row] for measure in vars(found).values()))
            records.append(
                Record(
                    layer=maps.index,
                    layer_baseline=layer_baseline,
                    **vars(pairing),
                    rows=len(one.l2),
                    unconverged_rows=missed[row],
                    relative_rows=int((~one.relative_l2.isnan()).sum()),
                    correlation_rows=int((~one.pearson.isnan()).sum()),
                    **_means_and_stds(vars(one)),
                )
            )
    return records


def _means_and_stds(measures: dict[str, Tensor]) -> dict[str, Any]:
    """The numbers of a record, None where no row has the measure."""
    numbers = {}
    for name, measure in measures.items():
        rows = measure[~measure.isnan()]
        numbers[f"{name}_mean"] = float(rows.mean()) if len(rows) else None
        numbers[f"{name}_std"] = float(rows.std(correction=0)) if len(rows) else None
    return numbers

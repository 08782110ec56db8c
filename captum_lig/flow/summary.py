"""The few numbers of a layer that a table or a picture shows, one text at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig._arguments import users_line
from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.findings import View, first_token, off_diagonal, one_source
from captum_lig.flow.layer_flow import LayerFlow

__all__ = [
    "TOLERANCE",
    "LayerSummary",
    "Link",
    "findings",
    "one_text",
    "row_errors",
    "row_shares",
    "shares",
    "summarize",
    "target_rows",
    "warn_of_rows_not_converged",
]

TOLERANCE = 1e-3
"""A row whose completeness error is above this is called out, if the flow has no tolerance."""


MOST_NAMED = 20
"""How many rows a warning names; ``flow.converged`` has them all."""


@dataclass(frozen=True)
class Link:
    """A link between two different tokens of one layer."""

    source: int
    target: int
    """Positions in the text."""
    head: int | None
    """The head that carries more of the link than any other, none of those that work against it;
    None in maps that know no heads."""
    share: float
    """Signed share of the target, see :func:`shares`."""


@dataclass(frozen=True)
class LayerSummary:
    """One layer in numbers; means and maxima run over the targets."""

    index: int
    total: float
    """Mean length of what the layer's input changed in a token leaving it."""
    completeness_error: float
    """Worst ``|sum of attributions - total| / total`` of all rows of all boundaries."""
    rows: int
    """How many rows that is the worst of."""
    missed: int
    """How many of them are further off than ``tolerance``."""
    tolerance: float
    """The flow's own tolerance, or :data:`TOLERANCE`."""
    agreement: float
    """Mean distance of the composed from the direct map; 0 is perfect, NaN if there is no link."""
    via_heads: float
    """Share of the heads against the residual path in what reached the tokens leaving."""
    links: tuple[Link, ...]
    """The strongest, strongest first; see :func:`findings`."""

    @property
    def converged(self) -> bool:
        """True if no row is further off its total than ``tolerance``."""
        return self.missed == 0

    @property
    def error_text(self) -> str:
        """The completeness error as it is shown: ``3e-06``, or ``0.078`` if it is not small."""
        error = self.completeness_error
        return f"{error:.0e}" if error <= self.tolerance else f"{error:.2g}"

    @property
    def agreement_text(self) -> str:
        """The agreement as it is shown: ``17%``."""
        return "n/a" if math.isnan(self.agreement) else f"{self.agreement:.0%}"


def one_text(flows: Sequence[LayerFlow], tokens: Sequence[str] | None = None) -> list[str]:
    """The tokens of flows of one and the same text: those given, or else what the flows have.

    Flows that do not know their tokens have them called by their positions.

    Raises:
        LigError: if there is no flow, if a flow holds several texts or no target but padding,
            or if the number of tokens is not the number of sources.
    """
    if not flows:
        raise LigError("there is no flow to show: the list of flows is empty.")
    for flow in flows:
        texts, sources = flow.valid.shape
        if texts != 1:
            raise LigError(
                f"layer {flow.index} holds the flow of {texts} texts: give one text at a time."
            )
        if not len(target_rows(flow)):
            raise LigError(f"every target of layer {flow.index} is padding: choose other targets.")
        if tokens is None:
            names = flow.tokens
            tokens = list(map(str, range(sources))) if names is None else names[0]
        if sources != len(tokens):
            raise LigError(
                f"{len(tokens)} tokens were given for layer {flow.index}, which has {sources} "
                "sources: give every token of the text, special tokens included."
            )
    assert tokens is not None
    return list(tokens)


def target_rows(flow: LayerFlow) -> Tensor:
    """``(T',)`` the rows that are no padding."""
    return flow.valid[0, flow.targets].nonzero().squeeze(-1)


def row_errors(flow: LayerFlow, name: str, rows: Tensor) -> Tensor:
    """Completeness errors of some rows of the first text, ``(..., R)``, targets last."""
    target = FIELDS[name].rows.index("target")
    return flow.completeness_error(name).movedim(target, -1)[0][..., rows]


def shares(flow: LayerFlow, rule: str | None = DEFAULT_RULE) -> Tensor:
    """A map ``z -> z'`` as shares of its targets.

    Args:
        flow: one layer of one text.
        rule: a composition rule, or None for the direct map.

    Returns:
        ``(T, S)``, signed. A row is divided by its target's total, so that it adds up to 1; with
        the rule ``product``, which does not conserve, by the sum of its absolute values.
        Rows of targets that nothing moved are 0.
    """
    values = (flow.need("layer") if rule is None else flow.compose(rule))[0]
    if rule == "product" or flow.layer_total is None:
        size = values.abs().sum(-1, keepdim=True)
    else:
        size = flow.layer_total[0].unsqueeze(-1)
    return torch.where(size > 0, values / size, 0.0)


def row_shares(flow: LayerFlow, view: View) -> Tensor:
    """The map of a view as shares of its rows, ``(T, S)``; see :func:`shares`.

    The lengths of ``influence`` do not add up to a total: they are shares of the row's sum.

    Raises:
        LigError: if a boundary is missing.
    """
    if view.kind == "influence":
        values = flow.need("influence")[0]
        size = values.sum(-1, keepdim=True)
        return torch.where(size > 0, values / size, 0.0)
    return shares(flow, view.rule if view.kind == "composed" else None)


def findings(flow: LayerFlow, hide_first_token: bool = False) -> Tensor:
    """``(T, S)`` True at links that a view may list.

    Those are links between different tokens, neither of them padding, in rows that have more than
    one possible source (:func:`one_source`).

    Args:
        flow: one layer of one text.
        hide_first_token: leave out links from the first token.
    """
    found = off_diagonal(flow) & ~one_source(flow).unsqueeze(-1)
    if hide_first_token:
        found[:, first_token(flow)] = False
    return found


def summarize(
    flow: LayerFlow,
    rule: str = DEFAULT_RULE,
    links: int = 3,
    *,
    view: View | None = None,
    hide_first_token: bool = False,
) -> LayerSummary:
    """Sum up one layer of one text.

    Args:
        flow: a flow with all three boundaries.
        rule: composition rule, see :meth:`LayerFlow.compose`.
        links: how many of the strongest links to name, see :func:`findings`.
        view: the map that they are of; None for the composed one.
        hide_first_token: name none from the first token.

    Raises:
        LigError: for an unknown rule, or if a boundary is missing.
    """
    rows = target_rows(flow)
    composed = View("composed", rule)
    agreement = flow.agreement(rule)[0, rows]
    errors = torch.cat([row_errors(flow, name, rows).flatten() for name in flow.checked])
    heads = flow.need("mlp")[0, rows].abs().sum().item()
    residual = flow.need("residual")[0, rows].abs().sum().item()
    tolerance = TOLERANCE if flow.tolerance is None else flow.tolerance
    return LayerSummary(
        index=flow.index,
        total=flow.need("layer_total")[0, rows].mean().item(),
        completeness_error=errors.max().item(),
        rows=len(errors),
        missed=int((~(errors <= tolerance)).sum()),
        tolerance=tolerance,
        agreement=agreement.nanmean().item(),
        via_heads=heads / (heads + residual) if heads + residual > 0 else 0.0,
        links=tuple(_strongest(flow, view or composed, links, hide_first_token)),
    )


def _strongest(flow: LayerFlow, view: View, count: int, hide_first_token: bool) -> list[Link]:
    share = torch.where(findings(flow, hide_first_token), row_shares(flow, view), 0.0)
    by_head = None
    if view.kind == "composed":
        by_head = flow.compose(view.rule, by_head=True)[0] * share.sign()
    order = share.abs().flatten().argsort(descending=True, stable=True)[:count]
    links = []
    for row, source in zip(*torch.unravel_index(order, share.shape), strict=True):
        if share[row, source] != 0:
            links.append(
                Link(
                    source=int(source),
                    target=int(flow.targets[row]),
                    head=None if by_head is None else int(by_head[:, row, source].argmax()),
                    share=share[row, source].item(),
                )
            )
    return links


def warn_of_rows_not_converged(flows: list[LayerFlow]) -> None:
    """Name the sums that are not within tolerance, in one warning."""
    named = [*_sums_off(flows), *_rows_off(flows)]
    if named:
        more = f"; and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        what = "rows" if flows[0].target is None else "sums"
        warnings.warn(
            f"{len(named)} {what} are not within tolerance={flows[0].tolerance} (completeness "
            "error): "
            + "; ".join(named[:MOST_NAMED])
            + more
            + ". Rows are flagged in flow.converged; raise max_steps or choose another baseline.",
            stacklevel=users_line(),
        )


def _rows_off(flows: list[LayerFlow]) -> Iterator[str]:
    for flow in flows:
        for boundary, converged in flow.converged.items():
            error = flow.completeness_error(boundary)
            for position in (~converged).nonzero().tolist():
                text, *head, row = position
                yield (
                    f"{boundary} of layer {flow.index}"
                    + (f", head {head[0]}" if head else "")
                    + f", target {int(flow.targets[row])} of text {text}: "
                    f"{float(error[tuple(position)]):.1e}"
                )


def _sums_off(flows: list[LayerFlow]) -> Iterator[str]:
    """Of flows with a target: depths whose relevances do not add up to its change."""
    for flow in flows:
        if flow.target is None or flow.tolerance is None:
            continue
        other = 0 if flow.elsewhere is None else flow.elsewhere
        missing = (flow.need("entering").sum(-1) + other - flow.need("change")).abs()
        for text in (
            (~(missing <= flow.tolerance * flow.need("scale"))).nonzero().flatten().tolist()
        ):
            error = float(missing[text] / flow.need("scale")[text])
            yield f"all that enters layer {flow.index} of text {text}: {error:.1e}"

"""What of a map is a finding, which map a view opens with, and when the first token is a sink.

A view shows all numbers; what is 100 % whatever the model does, it does not list as a link.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS
from captum_lig.flow.composition import find_rule
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.tokens import readable_token

__all__ = [
    "DOMINATES",
    "FAR",
    "KINDS",
    "Sink",
    "View",
    "check_kind",
    "choose_view",
    "distance",
    "find_sink",
    "first_token",
    "off_diagonal",
    "one_source",
    "one_source_rows",
    "part_of_first",
]

FAR = 0.5
"""Distance of the composed from the direct map above which a view opens with the direct one."""
DOMINATES = 0.5
"""The first token is a sink where it is more than this part of what the others get: more than all
other tokens together."""
KINDS = ("composed", "direct", "influence")
"""Maps ``z -> z'`` that a view can show."""


# --- what is so by construction ---------------------------------------------------------------


def one_source_rows(maps: Sequence[Tensor]) -> Tensor:
    """Rows that have one possible source: it is 100 % of them, whatever the model does.

    A source that a target cannot see has exactly 0 in every map, and so has one that stands still
    on the path: the target's own token on target-token paths, tokens that are the same in both
    runs. So in a causal model the second token's row is such on target-token paths.

    Args:
        maps: ``(..., T, S)`` all maps of one layer over the same targets and sources.

    Returns:
        ``(T,)`` True where a single source has anything in any of them.
    """
    some = torch.stack([(one != 0).reshape(-1, *one.shape[-2:]).any(0) for one in maps])
    return some.any(0).sum(-1) == 1


def one_source(flow: LayerFlow) -> Tensor:
    """The same of the first text of a flow, ``(T,)``; all False if it has no map."""
    maps = [
        tensor[:1]
        for name, tensor in flow.tensors.items()
        if FIELDS[name].axes[-2:] == ("target", "source")
    ]
    if not maps:
        return torch.zeros_like(flow.targets, dtype=torch.bool)
    return one_source_rows(maps)


def off_diagonal(flow: LayerFlow) -> Tensor:
    """``(T, S)`` True where target and source are different tokens, neither of them padding."""
    sources = torch.arange(flow.valid.shape[1], device=flow.valid.device)
    different = flow.targets.unsqueeze(-1) != sources
    return different & flow.valid[0] & flow.valid[0, flow.targets].unsqueeze(-1)


# --- which map ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """Which map a view shows, and how far the composed one is from the direct one."""

    kind: str
    """One of :data:`KINDS`."""
    rule: str
    """The composition rule, that of ``composed``."""
    off_by: float = math.nan
    """See :func:`distance`; NaN if nothing is known of it."""

    @property
    def far(self) -> bool:
        """Whether the composed map is so far off that it does not stand for the layers."""
        return self.off_by > FAR

    @property
    def name(self) -> str:
        """The map in words."""
        return {"composed": f"composed by {self.rule}", "direct": "direct map"}.get(
            self.kind, self.kind
        )

    @property
    def signed(self) -> bool:
        """Whether shares have a sign; lengths have none."""
        return self.kind != "influence"

    @property
    def sentence(self) -> str:
        """How far the composed map is off, and what follows."""
        if math.isnan(self.off_by):
            return ""
        said = f"Maps composed by {self.rule} are {self.off_by:.0%} off the direct maps"
        if not self.far:
            return f"{said} (median layer)."
        if self.kind == "composed":
            return f"{said} (median layer): they do not say what the layers do."
        if self.kind == "direct":
            return f"{said} (median layer), so the direct maps are shown."
        return f"{said} (median layer); influence, which is shown, is of no composed map."


def distance(flows: Sequence[LayerFlow], rule: str) -> float:
    """How far composed maps are from direct ones, ``||direct - composed|| / ||direct||``.

    Mean over the targets of a layer, median over the layers; NaN if no layer has a direct map with
    anything in it.

    Raises:
        LigError: for an unknown rule, or a missing boundary.
    """
    means = [flow.agreement(rule)[0].nanmean().item() for flow in flows if flow.layer is not None]
    known = [mean for mean in means if not math.isnan(mean)]
    return statistics.median(known) if known else math.nan


def check_kind(kind: str | None) -> None:
    """Refuse a kind that is neither None nor one of :data:`KINDS`."""
    if kind is not None and kind not in KINDS:
        raise LigError(f"kind={brief(kind)} is unknown: use one of {', '.join(KINDS)}, or None.")


def choose_view(flows: Sequence[LayerFlow], rule: str, kind: str | None = None) -> View:
    """The map to show.

    Args:
        flows: of one text.
        rule: a composition rule.
        kind: one of :data:`KINDS`. None chooses: influence where the flows hold it, since it is
            what agrees best with how much sources do, and links are ranked by size; else the
            composed map, or the direct one if that is far from it.

    Raises:
        LigError: for an unknown rule or kind, or a missing boundary.
    """
    find_rule(rule)
    check_kind(kind)
    off_by = distance(flows, rule)
    opened = "direct" if off_by > FAR else "composed"
    if flows and all(flow.influence is not None for flow in flows):
        opened = "influence"
    return View(kind or opened, rule, off_by)


# --- the first token ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sink:
    """The first token where it is more than :data:`DOMINATES` of what the others get."""

    part: float
    """Mean over those layers of its part in what reaches the others from tokens but themselves."""
    layers: tuple[int, ...]
    """Their indices."""

    def sentence(self, token: str, hidden: bool) -> str:
        """What a view says of it."""
        named = f"The first token, {readable_token(token, 24)},"
        said = f"{named} is {self.part:.0%} of what reaches the others in {spans(self.layers)}"
        if hidden:
            return f"{said} (a sink); its links are hidden here."
        return f"{said}: a sink. hide_first_token (--hide-first-token) hides its links."


def first_token(flow: LayerFlow) -> int:
    """Position of the first token that is no padding."""
    return int(flow.valid[0].to(torch.uint8).argmax())


def part_of_first(values: Tensor, links: Tensor, rows: Tensor, first: int) -> float:
    """The first token's part in what reaches other tokens from tokens but themselves.

    Args:
        values: ``(T, S)`` a map.
        links: ``(T, S)`` True at links between different tokens.
        rows: ``(T,)`` True for rows that count: not the first token's, not those of one source.
        first: the first token among the sources.

    Returns:
        From the sizes of all rows together; 0 if there is nothing.
    """
    sizes = torch.where(links & rows.unsqueeze(-1), values.abs(), 0.0)
    whole = sizes.sum()
    return (sizes[:, first].sum() / whole).item() if whole > 0 else 0.0


def find_sink(flows: Sequence[LayerFlow], maps: Sequence[Tensor]) -> Sink | None:
    """The layers in which the first token dominates a map; None if there are none.

    Args:
        flows: of one text.
        maps: ``(T, S)`` a map of each, as shares of its rows.
    """
    found: dict[int, float] = {}
    for flow, values in zip(flows, maps, strict=True):
        first = first_token(flow)
        rows = ~one_source(flow) & (flow.targets != first)
        part = part_of_first(values, off_diagonal(flow), rows, first)
        if part > DOMINATES:
            found[flow.index] = part
    return Sink(statistics.mean(found.values()), tuple(found)) if found else None


def spans(numbers: Sequence[int]) -> str:
    """``layer 3`` or ``layers 0, 3-5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"layer{'s' * (len(numbers) > 1)} {said}"

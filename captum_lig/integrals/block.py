"""Attributing one block that was cut open: texts, rows, and the flow they make."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief, fraction, index_list, whole_number
from captum_lig.cost import Cost, Meter
from captum_lig.errors import LigError
from captum_lig.flow.layer_flow import MLP_STARTS, LayerFlow
from captum_lig.integrals.adaptive import Integrable, refine
from captum_lig.integrals.boundaries import (
    AttentionBoundary,
    Chain,
    LayerBoundary,
    MlpBoundary,
    sweep_together,
)
from captum_lig.integrals.cross_attention import CROSS, attribute_cross, check_cross_baseline
from captum_lig.integrals.influence import Influence
from captum_lig.integrals.quadrature import nodes_and_weights
from captum_lig.integrals.rows import Rows
from captum_lig.model.attention_call import allowed
from captum_lig.model.call import BlockCall
from captum_lig.model.cross_attention import SplitCrossAttention, find_cross, without_cross
from captum_lig.model.split import SplitBlock
from captum_lig.paths.baselines import Baseline, Start, describe, start_of
from captum_lig.paths.choose import Structure, floats_per_pair, inspect_structure, make_path

__all__ = ["BOUNDARIES", "CROSS", "INFLUENCE", "Settings", "attribute_block", "epsilons"]

BOUNDARIES = ("attention", "mlp", "layer")
INFLUENCE = "influence"
"""Vectors instead of scalars: more work, so only when it is asked for."""

MEMORY = 2**28
"""Bytes that the path points and targets in flight may take, if nothing else is said."""

# Results come rows first, the flow has heads before targets.
HEADS_FIRST = (
    "attention",
    "attention_total",
    "self_weight",
    "chain",
    "chain_total",
    "attention_influence",
    "attention_influence_missing",
    CROSS,
    f"{CROSS}_total",
)


@dataclass(frozen=True)
class Settings:
    """What an attribution was asked for."""

    scalarization: str
    alphas: Tensor
    weights: Tensor
    tolerance: float | None
    max_steps: int
    boundaries: frozenset[str]
    internal_batch_size: int | None
    output_indices: Sequence[int] | Tensor | None
    dtype: torch.dtype | None
    mlp_starts: tuple[str, ...] = ("attention",)
    """Several make a flow for each; the attention and layer boundaries are integrated once."""
    cross_baseline: Baseline = "zero"
    """What the path of the encoder's states starts from."""

    @classmethod
    def checked(
        cls,
        scalarization: str,
        n_steps: int,
        method: str,
        tolerance: float | None,
        max_steps: int,
        boundaries: Sequence[str],
        internal_batch_size: int | None,
        output_indices: Sequence[int] | Tensor | None,
        dtype: torch.dtype | None,
        mlp_start: str = "attention",
        cross_baseline: Baseline = "zero",
    ) -> Settings:
        """Settings from what the caller gave.

        Raises:
            LigError: for anything unknown or out of range.
        """
        alphas, weights = nodes_and_weights(method, n_steps)
        asked = (boundaries,) if isinstance(boundaries, str) else boundaries
        known = (*BOUNDARIES, INFLUENCE, CROSS)
        names = ", ".join(map(repr, known))
        if not isinstance(asked, (tuple, list, set, frozenset)) or not asked:
            raise LigError(f"boundaries={brief(boundaries)}: name one or more of {names}.")
        for name in asked:
            if name not in known:
                raise LigError(
                    f"boundaries={brief(boundaries)}: {brief(name)} is unknown, name one or more "
                    f"of {names}."
                )
        if internal_batch_size is not None:
            whole_number("internal_batch_size", internal_batch_size, 1)
        if tolerance is not None:
            fraction("tolerance", tolerance)
        whole_number("max_steps", max_steps, n_steps)
        if dtype not in (None, torch.float32, torch.float64):
            raise LigError(
                f"dtype={brief(dtype)}: give torch.float32, torch.float64 or None; half precision "
                "is too coarse for path integrals."
            )
        if mlp_start not in MLP_STARTS:
            names = " or ".join(map(repr, MLP_STARTS))
            raise LigError(f"mlp_start={brief(mlp_start)} is unknown: use {names}.")
        check_cross_baseline(cross_baseline)
        return cls(
            scalarization,
            alphas,
            weights,
            tolerance,
            max_steps,
            frozenset(asked),
            internal_batch_size,
            output_indices,
            dtype,
            (mlp_start,),
            cross_baseline,
        )

    def refined(self, boundary: Integrable, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """``parts`` with the rows of ``boundary`` that are not within tolerance refined."""
        if self.tolerance is None:
            return parts
        return refine(boundary, parts, self.tolerance, len(self.alphas), self.max_steps)

    def pairs_at_once(self, floats: int, size: int) -> int:
        """How many pairs of a path point and a target to work on at once.

        Args:
            floats: about how many numbers each takes.
            size: bytes that a number takes.
        """
        return self.internal_batch_size or max(1, MEMORY // (floats * size))

    def targets(self, sources: int, device: torch.device) -> Tensor:
        """Positions ``(T,)`` of the targets among ``sources`` tokens."""
        if self.output_indices is None:
            return torch.arange(sources, device=device)
        return index_list(self.output_indices, sources, device, "tokens")


def attribute_block(
    call: BlockCall, baseline: Baseline, settings: Settings, valid: Tensor
) -> tuple[LayerFlow, ...]:
    """All boundaries of one block, for every text of the batch: a flow for each ``mlp_start``.

    Args:
        call: the block and what it was called with.
        baseline: what the path of its input starts from.
        settings: what is asked for.
        valid: ``(B, S)`` False at padding.

    Raises:
        LigError: activations that are not finite, masks, baselines or indices that do not fit,
            or a block that cannot be cut.
    """
    z = call.hidden
    batch, sources, _ = z.shape
    if call.attention is None and settings.boundaries & {"attention", "mlp"}:
        asked = tuple(name for name in BOUNDARIES if name in settings.boundaries)
        raise LigError(
            f"{call.describe()} has no attention that can be cut: boundaries={asked} need one, and "
            "it has the layer boundary alone. Ask for boundaries=('layer',), name the blocks with "
            "attention in layer=[...], or describe this one with captum_lig.Block."
        )
    began = time.perf_counter()
    half = z.dtype not in (torch.float32, torch.float64)
    call = call.in_dtype(settings.dtype or (torch.float32 if half else z.dtype))
    z = call.hidden
    targets, meter = settings.targets(sources, z.device), Meter()
    cross = find_cross(call) if CROSS in settings.boundaries else None
    if CROSS in settings.boundaries and cross is None:
        raise without_cross(call)
    inner = replace(settings, boundaries=settings.boundaries - {CROSS})
    texts: list[dict[str, Tensor]] = [{} for _ in range(batch)]
    for text, found in enumerate(texts):
        start = start_of(baseline, z[text], text, batch, targets)
        if inner.boundaries:
            cut = SplitBlock(call, text, meter)
            found |= _attribute_text(cut, start, inner, targets, valid[text])
        if cross is not None:
            seen = SplitCrossAttention(call, cross, text, meter)
            found |= attribute_cross(seen, settings, targets, valid[text], epsilons(call.module))
    parts = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
    for name in parts:
        if name.split("@")[0] in HEADS_FIRST:
            parts[name] = parts[name].transpose(1, 2).contiguous()
    cost = Cost(
        path_points=meter.pairs / max(1, int(valid[:, targets].sum())),
        forward_equivalents=meter.passed / (batch * sources),
        seconds=time.perf_counter() - began,
    )

    def flow(start: str) -> LayerFlow:
        own = _from_start(parts, start)
        return LayerFlow(
            name=call.name,
            index=call.index,
            targets=targets,
            valid=valid,
            scalarization=settings.scalarization,
            baseline=describe(baseline),
            delta=_deltas(own),
            tolerance=settings.tolerance,
            cost=cost,
            mlp_start=start,
            cross_baseline=None if cross is None else describe(settings.cross_baseline),
            **own,
        )

    return tuple(flow(start) for start in settings.mlp_starts)


def _to_start(parts: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """Parts of the mlp boundary under names that say where its path starts."""
    return {f"{name}@{start}": part for name, part in parts.items()}


def _from_start(parts: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """The parts of the flow whose mlp boundary starts there, under their own names."""
    shared = {name: part for name, part in parts.items() if "@" not in name}
    own = {name: part for name, part in parts.items() if name.endswith(f"@{start}")}
    return shared | {name.split("@")[0]: part for name, part in own.items()}


def _deltas(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    delta = {}
    for name in (INFLUENCE, f"attention_{INFLUENCE}"):
        if f"{name}_missing" in parts:
            delta[name] = parts.pop(f"{name}_missing")
    if "attention" in parts:
        delta["attention"] = parts["attention"].sum(-1) - parts["attention_total"]
    if "mlp" in parts:
        delta["mlp"] = parts["mlp"].sum(-1) + parts["residual"] - parts["mlp_total"]
    if "layer" in parts:
        delta["layer"] = parts["layer"].sum(-1) - parts["layer_total"]
    if CROSS in parts:
        delta[CROSS] = parts[CROSS].sum(-1) - parts[f"{CROSS}_total"]
    return delta


def _attribute_text(
    cut: SplitBlock, start: Start, settings: Settings, targets: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """One block for one text, rows first; zeros for padded targets."""
    kept = valid[targets].nonzero().squeeze(-1)
    if len(kept) == 0:
        return _nothing(cut, settings, len(targets))
    moved = len(kept) if start.is_target_token else 0
    structure = inspect_structure(cut, epsilons(cut.call.module), moved)
    floats = floats_per_pair(cut, structure, start)
    at_once = settings.pairs_at_once(floats, cut.z.element_size())
    chunks = []
    for chunk in kept.split(at_once):
        rows = _rows(cut, start.select(chunk), structure, settings, targets[chunk], at_once)
        chunks.append(_attribute_rows(rows, settings))
    result = {}
    # A block without attention counts as one head: that is nothing to hand out.
    wanted = [name for name in chunks[0] if cut.has_attention or not name.startswith("attention")]
    for name in wanted:
        rows_found = torch.cat([chunk[name] for chunk in chunks])
        shape = (len(targets), *rows_found.shape[1:])
        result[name] = rows_found.new_zeros(shape).index_copy_(0, kept, rows_found)
    return result


def _nothing(cut: SplitBlock, settings: Settings, count: int) -> dict[str, Tensor]:
    """Zeros, rows first, for a text whose targets are all padding."""
    heads, sources, wanted = cut.heads, len(cut.z), settings.boundaries
    shapes: dict[str, tuple[int, ...]] = {}
    if "attention" in wanted:
        shapes |= {"attention": (heads, sources), "attention_total": (heads,)}
        if cut.opens:
            shapes["self_weight"] = (heads,)
    for start in settings.mlp_starts if "mlp" in wanted else ():
        shapes |= {f"mlp@{start}": (heads,), f"residual@{start}": (), f"mlp_total@{start}": ()}
        if "attention" in wanted:
            shapes |= {f"chain@{start}": (heads, sources), f"chain_total@{start}": (heads,)}
    if "layer" in wanted:
        shapes["layer"] = (sources,)
    if INFLUENCE in wanted:
        shapes |= {INFLUENCE: (sources,), f"{INFLUENCE}_missing": ()}
        shapes |= {f"attention_{INFLUENCE}": (heads, sources)}
        shapes |= {f"attention_{INFLUENCE}_missing": (heads,), "attention_total": (heads,)}
    if wanted & {"mlp", "layer", INFLUENCE}:
        shapes["layer_total"] = ()
    if not cut.has_attention:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("attention")}
    return {name: cut.z.new_zeros(count, *shape) for name, shape in shapes.items()}


def _rows(
    cut: SplitBlock,
    start: Start,
    structure: Structure,
    settings: Settings,
    rows: Tensor,
    pairs_at_once: int,
) -> Rows:
    """Some rows, none of them padding, made sure of against the block itself."""
    with_post = settings.boundaries != {"attention"}
    made = Rows.between(
        make_path(cut, structure, start, rows),
        cut.post,
        start.residual(cut.z, rows),
        cut.z[rows],
        _still(cut, start, rows),
        settings.scalarization,
        pairs_at_once,
        cut.meter,
        with_outputs=with_post,
    )
    cut.check(rows, made.u_start + made.u_step, with_post)
    return made


def _attribute_rows(rows: Rows, settings: Settings) -> dict[str, Tensor]:
    """All boundaries for some rows, rows first."""
    wanted = settings.boundaries
    result: dict[str, Tensor] = {}
    nodes = settings.alphas, settings.weights
    on_path: list[AttentionBoundary | Chain | LayerBoundary] = []
    for start in settings.mlp_starts if "mlp" in wanted else ():
        mlp = MlpBoundary(rows if start == "attention" else rows.from_zero())
        found = settings.refined(mlp, mlp.sweep(*nodes))
        gradient, found["mlp_total"] = found.pop("gradient"), mlp.rows.layer_total
        if "attention" in wanted:
            chain = Chain(rows, gradient, found["mlp_total"], f"chain@{start}")
            found["chain_total"] = found["mlp"] if start == "attention" else chain.totals
            on_path.append(chain)
        result |= _to_start(found, start)
    if "attention" in wanted:
        if rows.self_weight is not None:
            result["self_weight"] = rows.self_weight
        on_path.append(AttentionBoundary(rows))
    if "layer" in wanted:
        on_path.append(LayerBoundary(rows))
    if wanted & {"attention", INFLUENCE}:
        result["attention_total"] = rows.attention_total
    if wanted & {"mlp", "layer", INFLUENCE}:
        result["layer_total"] = rows.layer_total
    if INFLUENCE in wanted:
        result |= _influence(rows, settings)
    if on_path:
        together = sweep_together(on_path, *nodes)
        for boundary in on_path:
            part = {name: together[name] for name in boundary.gives}
            result |= settings.refined(boundary, part)
    return result


def _influence(rows: Rows, settings: Settings) -> dict[str, Tensor]:
    """Lengths of the sources' vectors, and of what the vectors of a row miss of its change."""
    found: dict[str, list[Tensor]] = {}
    sources = rows.path.sources
    indices = torch.arange(len(rows), device=rows.start.device)
    # The vectors of all rows at once would be targets x sources x width.
    for chunk in indices.split(max(1, rows.pairs_at_once // sources)):
        boundary = Influence(rows.select(chunk))
        parts = boundary.sweep(settings.alphas, settings.weights)
        parts = settings.refined(boundary, parts)
        missing = boundary.miss(boundary.sums(parts), boundary.totals)
        lengths = {
            INFLUENCE: torch.linalg.vector_norm(parts["vectors"], dim=-1),
            f"{INFLUENCE}_missing": missing[:, -1],
            f"attention_{INFLUENCE}": torch.linalg.vector_norm(
                parts["head_vectors"], dim=-1
            ).transpose(1, 2),
            f"attention_{INFLUENCE}_missing": missing[:, :-1],
        }
        for name, part in lengths.items():
            found.setdefault(name, []).append(part)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _still(cut: SplitBlock, start: Start, rows: Tensor) -> Tensor:
    """``(R,)`` rows that see no source that the path moves, and that stay themselves."""
    moves = ~start.frozen(cut.z, rows)
    own = moves[torch.arange(len(rows), device=rows.device), rows]
    if cut.mask is not None:
        moves = moves & allowed(cut.mask[:, rows]).any(0)
    return ~(moves.any(-1) | own)


def epsilons(block: nn.Module) -> list[float]:
    """Values of eps of the norms inside a block."""
    names = ("eps", "variance_epsilon", "epsilon")
    values = [getattr(m, name, None) for m in block.modules() for name in names]
    return [value for value in values if isinstance(value, float)]

"""``LayerFlowIG``: Layer-wise Integrated Gradients inside the layers of a Transformer."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_lig._arguments import brief
from captum_lig._captum import GradientAttribution, log_usage
from captum_lig.errors import LigError
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.self_term import ESTIMATES
from captum_lig.integrals import scalarization as scalar
from captum_lig.integrals.block import (
    BOUNDARIES,
    CROSS,
    INFLUENCE,
    Settings,
    attribute_block,
)
from captum_lig.model.call import BlockCall
from captum_lig.model.cross_attention import find_cross, without_cross
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder, Layer, is_one
from captum_lig.paths.baselines import Baseline

__all__ = ["LayerFlowIG"]

Delta = dict[str, Tensor]

MOST_NAMED = 20
"""How many rows a warning names; ``flow.converged`` has them all."""


class LayerFlowIG(GradientAttribution):  # type: ignore[misc]
    r"""Integrated Gradients on the maps between sets of tokens inside each layer.

    Each layer maps the tokens ``z`` entering it to the tokens ``z'`` leaving it, through per-head
    attention outputs ``u``. Its boundaries are attributed as set-to-set maps: ``attention``
    (z -> u), ``mlp`` (u and the residual stream -> z') and ``layer`` (z -> z'). A target's vector
    output is made a number by its distance from where the path starts, so that each row of a map
    adds up to a known total.

    After Suzuki, Hino, Murata, "LIG: Layer-wise Integrated Gradients for Within-Layer Flow
    Analysis in Transformers", arXiv 2606.21564 (2026). The model is used as it is: its
    blocks are cut where they attend (``docs/own-models.md``), and left as they were.

    Args:
        model: a Transformer, in evaluation mode.
        layer: None for every block; or one block, as a module, a dotted name, a number in the
            order the blocks run, or a :class:`~captum_lig.Block` that describes it; or a list of
            those.
        scalarization: ``"l2"`` (the paper) or ``"projection"`` (on the direction of the change).

    Example::

        >>> lig = LayerFlowIG(model)
        >>> flows = lig.attribute(tokenizer("The cat sat.", return_tensors="pt"))
        >>> flows[0].layer.shape   # (texts, targets, sources)
        torch.Size([1, 6, 6])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: Layer | Sequence[Layer] | None = None,
        scalarization: str = "l2",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise LigError(f"model is a {type(model).__name__}: give a torch.nn.Module.")
        super().__init__(getattr(model, "_orig_mod", model))  # as it was before torch.compile
        self._finder = Finder(self.forward_func, layer)
        self.layer = layer
        self.scalarization = scalar.check(scalarization)

    @typing.overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
        baselines: Baseline | Sequence[Baseline] = "target_token",
        additional_forward_args: object = None,
        n_steps: int = 16,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: Literal[False] = False,
        boundaries: Sequence[str] = BOUNDARIES,
        output_indices: Sequence[int] | Tensor | None = None,
        tolerance: float | None = 1e-3,
        max_steps: int = 1024,
        dtype: torch.dtype | None = None,
        show_progress: bool = False,
        mlp_start: str = "attention",
        self_term: str | None = None,
        cross_baseline: Baseline = "zero",
    ) -> LayerFlow | list[LayerFlow]: ...

    @typing.overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
        baselines: Baseline | Sequence[Baseline] = "target_token",
        additional_forward_args: object = None,
        n_steps: int = 16,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        *,
        return_convergence_delta: Literal[True],
        boundaries: Sequence[str] = BOUNDARIES,
        output_indices: Sequence[int] | Tensor | None = None,
        tolerance: float | None = 1e-3,
        max_steps: int = 1024,
        dtype: torch.dtype | None = None,
        show_progress: bool = False,
        mlp_start: str = "attention",
        self_term: str | None = None,
        cross_baseline: Baseline = "zero",
    ) -> tuple[LayerFlow | list[LayerFlow], Delta | list[Delta]]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
        baselines: Baseline | Sequence[Baseline] = "target_token",
        additional_forward_args: object = None,
        n_steps: int = 16,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        boundaries: Sequence[str] = BOUNDARIES,
        output_indices: Sequence[int] | Tensor | None = None,
        tolerance: float | None = 1e-3,
        max_steps: int = 1024,
        dtype: torch.dtype | None = None,
        show_progress: bool = False,
        mlp_start: str = "attention",
        self_term: str | None = None,
        cross_baseline: Baseline = "zero",
    ) -> Any:
        r"""Attribute the tokens leaving each layer to the tokens entering it.

        Args:
            inputs: what the model is called with: token ids ``(B, S)``, a tuple of tensors (with
                ``additional_forward_args`` after them, as in Captum), or a tokenizer's mapping.
                Padding is what the blocks' own attention masks hide, or what an
                ``attention_mask`` leaves out and a block is shown not to read.
            baselines: where the path of each layer's input starts. ``"target_token"``: for
                target ``j`` every source starts as token ``j`` (the paper's ITB); ``"zero"`` or
                None; a number; a tensor ``(D,)``, ``(B or 1, S, D)`` or, for a start per target,
                ``(B or 1, T, S, D)``. A tuple or list gives one for each layer.
            additional_forward_args: further arguments of the model after ``inputs``.
            n_steps: number of quadrature nodes.
            method: ``"gausslegendre"``, ``"gausslegendre_graded"`` (nodes gathered where the
                path starts; for zero baselines), ``"riemann_left"``, ``"riemann_right"``,
                ``"riemann_middle"`` or ``"riemann_trapezoid"``.
            internal_batch_size: at most so many pairs of a path point and a target at once;
                None chooses.
            return_convergence_delta: also return the completeness errors.
            boundaries: which of ``"attention"``, ``"mlp"``, ``"layer"``, ``"influence"`` and
                ``"cross"``. The composition ``chain`` needs the first two. ``influence`` is more
                work, one Jacobian-vector product per pair of tokens and node, and not in the
                default. Blocks without attention have ``"layer"`` and ``"influence"`` alone.
                ``cross`` is for blocks that also attend to the states of an encoder: its tokens to
                the heads of that cross-attention. With ``layer=None`` other blocks go without, and
                if nothing else is asked for they are left out.
            output_indices: positions of the targets to attribute; None for all tokens.
            tolerance: largest completeness error of a row, relative to its total. Rows that are
                not within it after ``n_steps`` nodes are refined by panels whose errors are
                known; rows that do not make it are named in a warning. None: the plain rule.
            max_steps: most nodes for one row.
            dtype: precision of the path arithmetic, ``torch.float32`` or ``torch.float64``, on a
                copy of one block at a time. None: the model's own, or float32 if that is half
                precision.
            show_progress: show a progress bar over layers.
            mlp_start: where the path of the mlp boundary starts. ``"attention"``: the attention
                output and the residual stream where the layer's path starts, so that boundaries
                chain and totals agree. ``"zero"``: an attention output of zero, with the residual
                stream held where it ends, the paper's alternative; then ``mlp_total`` is not
                ``layer_total``.
            self_term: an estimate of what targets owe to themselves, for ``"target_token"``:
                ``"map_ratio"`` or ``"zero_ratio"`` (which attributes with zero baselines too), see
                :meth:`LayerFlow.with_self_term`. None: as integrated, exactly 0.
            cross_baseline: where the path of the encoder's states starts, for ``"cross"``:
                ``"zero"``; ``"mean"``, the mean of the text's own states, so that a map says what
                their differences do; a number; or a tensor ``(D,)`` or ``(S_enc, D)``.

        Returns:
            A :class:`~captum_lig.LayerFlow` if ``layer`` is one block, a list of them
            otherwise; with ``return_convergence_delta`` a pair of that and, for each flow, its
            ``delta``: sum of attributions minus total by boundary, ``attention (B, H, T)``,
            ``mlp (B, T)``, ``layer (B, T)``.

        Raises:
            LigError: for anything that cannot be worked with; the message says what to do.
        """
        model: nn.Module = self.forward_func
        settings = Settings.checked(
            self.scalarization,
            n_steps,
            method,
            tolerance,
            max_steps,
            boundaries,
            internal_batch_size,
            output_indices,
            dtype,
            mlp_start,
            cross_baseline,
        )
        if self_term is not None:
            _check_self_term(self_term, baselines, settings)
        call = ModelCall.of(model, inputs, additional_forward_args)

        def attributed(block: BlockCall, start: Baseline, settings: Settings) -> LayerFlow:
            (flow,) = attribute_block(block, start, settings, block.valid)
            if self_term is None:
                return flow
            if self_term != "zero_ratio":
                return flow.with_self_term(self_term)
            estimated = replace(settings, boundaries=settings.boundaries - {INFLUENCE, CROSS})
            (zero,) = attribute_block(block, "zero", estimated, block.valid)
            _warn_of_open_rows([zero])
            flow = flow.with_self_term(self_term, zero)
            assert flow.cost is not None and zero.cost is not None
            return replace(flow, cost=flow.cost + zero.cost)

        with self.blocks(call) as calls:
            starts = _one_for_each(baselines, calls)
            asked = [settings] * len(calls)
            if self.layer is None and CROSS in settings.boundaries:
                asked = _where_there_is_cross(calls, settings)
            work = [one for one in zip(calls, starts, asked, strict=True) if one[2].boundaries]
            shown = tqdm(work, desc="layers", unit="layer", disable=not show_progress)
            flows = [attributed(*one) for one in shown]
        _warn_of_open_rows(flows)
        # A module that runs several times (ALBERT's) has a flow for each.
        single = is_one(self.layer) and len(flows) == 1
        result = flows[0] if single else flows
        if not return_convergence_delta:
            return result
        return result, flows[0].delta if single else [flow.delta for flow in flows]

    def blocks(self, call: ModelCall) -> AbstractContextManager[list[BlockCall]]:
        """The chosen blocks with what they were called with, made sure of, to be attributed inside.

        Raises:
            LigError: if there are no such blocks, or one of them cannot be cut.
        """
        return self._finder.blocks(call)

    def compute_convergence_delta(
        self, flow: LayerFlow | Sequence[LayerFlow]
    ) -> Delta | list[Delta]:
        """Completeness errors, sum of attributions minus total, of a flow or a list of flows.

        Unlike Captum's, which adds up over targets and so hides errors of opposite sign, there
        is one for each row.
        """
        return flow.delta if isinstance(flow, LayerFlow) else [f.delta for f in flow]

    def has_convergence_delta(self) -> bool:
        """True: every row comes with its completeness error."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: attributions are contributions, not sensitivities."""
        return True


def _one_for_each(
    baselines: Baseline | Sequence[Baseline], calls: list[BlockCall]
) -> list[Baseline]:
    if not isinstance(baselines, (list, tuple)):
        return [baselines] * len(calls)  # type: ignore[list-item]
    if len(baselines) != len(calls):
        raise LigError(
            f"{len(baselines)} baselines for {len(calls)} layers: give one, or one for each."
        )
    return list(baselines)


def _where_there_is_cross(calls: list[BlockCall], settings: Settings) -> list[Settings]:
    """What to ask of each block: the cross boundary of those that have it.

    Raises:
        LigError: if none has.
    """
    without = replace(settings, boundaries=settings.boundaries - {CROSS})
    there = [find_cross(call) is not None for call in calls]
    if not any(there):
        raise without_cross(calls[-1])
    return [settings if cross else without for cross in there]


def _check_self_term(
    self_term: str, baselines: Baseline | Sequence[Baseline], settings: Settings
) -> None:
    """Say what does not fit before the work rather than after it."""
    if self_term not in ESTIMATES:
        raise LigError(f"self_term={brief(self_term)} is unknown: use {' or '.join(ESTIMATES)}.")
    for one in baselines if isinstance(baselines, (list, tuple)) else [baselines]:
        if not isinstance(one, str) or one != "target_token":
            raise LigError(
                f"self_term={self_term!r} with the baseline {brief(one)}: self terms are estimated "
                "for the baseline 'target_token', where they are 0."
            )
    estimated = {"attention"} if self_term == "map_ratio" else {"attention", "layer"}
    if not estimated & settings.boundaries:
        names = " or ".join(map(repr, sorted(estimated)))
        raise LigError(
            f"self_term={self_term!r} has nothing to estimate in boundaries="
            f"{tuple(sorted(settings.boundaries))}: name {names}, too."
        )


def _warn_of_open_rows(flows: list[LayerFlow]) -> None:
    """Name the rows that are not within tolerance, in one warning."""
    named, count = [], 0
    for flow in flows:
        for boundary, converged in flow.converged.items():
            error = flow.completeness_error(boundary)
            for place in (~converged).nonzero().tolist():
                text, *head, row = place
                count += 1
                named.append(
                    f"{boundary} of layer {flow.index}"
                    + (f", head {head[0]}" if head else "")
                    + f", target {int(flow.targets[row])} of text {text}: "
                    f"{float(error[tuple(place)]):.1e}"
                )
    if named:
        more = f"; and {count - MOST_NAMED} more" if count > MOST_NAMED else ""
        warnings.warn(
            f"{count} rows are not within tolerance={flows[0].tolerance} (completeness error): "
            + "; ".join(named[:MOST_NAMED])
            + more
            + ". They are flagged in flow.converged; raise max_steps or choose another baseline.",
            stacklevel=4,
        )

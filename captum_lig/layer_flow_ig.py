"""``LayerFlowIG``: Layer-wise Integrated Gradients inside the layers of a Transformer."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict, Unpack

from captum_lig._arguments import brief, whole_number
from captum_lig._captum import GradientAttribution, log_usage
from captum_lig._restore import restoring
from captum_lig.attribution.batches import BatchOfTexts
from captum_lig.attribution.direct import edges_towards
from captum_lig.attribution.lengths import (
    BOUNDARIES,
    Baselines,
    Problem,
    check_dtype,
)
from captum_lig.attribution.towards import Finders, Question, flows_towards, only_without_target
from captum_lig.errors import LigError
from captum_lig.flow.flows import Flows
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.self_term import check_estimate
from captum_lig.flow.summary import warn_of_rows_not_converged
from captum_lig.flow.tokens import TokenIndex
from captum_lig.graph.direct_edges import DirectEdges
from captum_lig.integrals.kinds import Asked
from captum_lig.integrals.scalarization import check
from captum_lig.integrals.settings import Settings
from captum_lig.io.direct_edges import check_edge_file
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder, Layer, is_one
from captum_lig.paths.baselines import Baseline
from captum_lig.prediction.baselines import InputBaseline
from captum_lig.prediction.positions import named_tokens, positions_in
from captum_lig.prediction.targets import TargetLike

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LayerFlowIG"]

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Any]
Delta = dict[str, Tensor] | Tensor


class FlowSettings(TypedDict, total=False):
    """The settings of :meth:`LayerFlowIG.attribute`."""

    n_steps: int | None
    method: str
    internal_batch_size: int | None
    boundaries: Sequence[str] | None
    output_indices: Sequence[TokenIndex] | Tensor | None
    tolerance: float | None
    max_steps: int
    dtype: torch.dtype | None
    show_progress: bool
    mlp_start: str
    self_term: str | None
    cross_baseline: Baseline
    tokenizer: PreTrainedTokenizerBase | None


class LayerFlowIG(GradientAttribution):  # type: ignore[misc]
    r"""Integrated Gradients on the maps between sets of tokens inside each layer.

    Each layer maps the tokens ``z`` entering it to the tokens ``z'`` leaving it, through per-head
    attention outputs ``u``. Its boundaries are attributed as set-to-set maps: ``attention``
    (z -> u), ``mlp`` (u and the residual stream -> z') and ``layer`` (z -> z'). A target's vector
    output is made a number by its distance from where the path starts, so that each row of a map
    adds up to a known total.

    After Suzuki, Hino, Murata, "LIG: Layer-wise Integrated Gradients for Within-Layer Flow
    Analysis in Transformers", arXiv 2606.21564 (2026). The model is used as it is: its
    blocks are split where they attend (``docs/own-models.md``), and left as they were.

    Args:
        model: a Transformer, in evaluation mode.
        layer: None for every block; or one block, as a module, a dotted name, a number in the
            order the blocks run, or a :class:`~captum_lig.Block` that describes it; or a list of
            those.
        scalarization: ``"l2"`` (the paper) or ``"projection"`` (on the direction of the change), of
            flows without a target.

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
        self._finders = Finders(self.forward_func, layer)
        self.layer = layer
        self.scalarization = check(scalarization)

    def __repr__(self) -> str:
        layer = "" if self.layer is None else f", layer={brief(self.layer)}"
        return f"LayerFlowIG({type(self.forward_func).__name__}{layer}, {self.scalarization!r})"

    @typing.overload
    def attribute(
        self,
        inputs: Inputs,
        baselines: Baselines | InputBaseline = None,
        target: TargetLike | None = None,
        additional_forward_args: object = None,
        *,
        return_convergence_delta: Literal[False] = False,
        **settings: Unpack[FlowSettings],
    ) -> LayerFlow | Flows: ...

    @typing.overload
    def attribute(
        self,
        inputs: Inputs,
        baselines: Baselines | InputBaseline = None,
        target: TargetLike | None = None,
        additional_forward_args: object = None,
        *,
        return_convergence_delta: Literal[True],
        **settings: Unpack[FlowSettings],
    ) -> tuple[LayerFlow | Flows, Delta | list[Delta]]: ...

    @restoring
    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Inputs,
        baselines: Baselines | InputBaseline = None,
        target: TargetLike | None = None,
        additional_forward_args: object = None,
        *,
        n_steps: int | None = None,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        boundaries: Sequence[str] | None = None,
        output_indices: Sequence[TokenIndex] | Tensor | None = None,
        tolerance: float | None = 1e-3,
        max_steps: int = 1024,
        dtype: torch.dtype | None = None,
        show_progress: bool = False,
        mlp_start: str = "attention",
        self_term: str | None = None,
        cross_baseline: Baseline = "zero",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Any:
        r"""Attribute the tokens leaving each layer to the tokens entering it.

        Without a ``target`` flows say how far each token was moved, layer by layer, whatever for.
        With one they say what of that the model's number reads: the number hands down the
        direction, layer by layer, and the relevances of the tokens at every depth, or of all heads
        and what goes past them, add up to its change from the baseline to the input.

        Args:
            inputs: what the model is called with: token ids ``(B, S)``, a tuple of tensors (with
                ``additional_forward_args`` after them, as in Captum), or a tokenizer's mapping.
                Padding is what the blocks' own attention masks hide, or what an
                ``attention_mask`` leaves out and a block is shown not to read.
            baselines: where the path of each layer's input starts. ``"target_token"``, which None
                stands for: for target ``j`` every source starts as token ``j`` (the paper's ITB);
                ``"zero"``; a number; a tensor ``(D,)``, ``(B or 1, S, D)`` or, for a start per
                target, ``(B or 1, T, S, D)``. A tuple or list gives one for each layer. With a
                target, the baseline of the *input*, of the same shape, as Captum's: other token
                ids, vectors or pixels, a number, a tokenizer's mapping, a text of as many tokens;
                ``"padding"``, which None stands for, is padding in place of all but special tokens
                and the first token of each text, and 0 for vectors and pixels. See
                :func:`~captum_lig.prediction.input_baseline`.
            target: the number to explain: as in Captum an int, a tuple of indices into the output
                (``(position, token)``), or a list or tensor of them, one for each text; a target
                of :mod:`captum_lig.prediction`, such as ``logit(" are", minus=" is")``; or a
                function of the model's output that gives ``(B,)``. None: no number.
            additional_forward_args: further arguments of the model after ``inputs``.
            n_steps: number of quadrature nodes; None is 16, and with a target 5 for each stage of
                a layer: a straight line between two runs of the model is smooth.
            method: ``"gausslegendre"``, ``"gausslegendre_graded"`` (nodes gathered where the
                path starts; for zero baselines), ``"riemann_left"``, ``"riemann_right"``,
                ``"riemann_middle"`` or ``"riemann_trapezoid"``.
            internal_batch_size: at most so many pairs of a path point and a target at once;
                None chooses.
            return_convergence_delta: also return the completeness errors.
            boundaries: with a target, ``"mlp"`` for the sums alone: what goes through each head,
                the MLP and past them; with ``"attention"``, or None, the edges into the heads, too.
                Without a target, which of ``"attention"``, ``"mlp"``,
                ``"layer"`` (the default are these three), ``"feed_forward"`` (with ``"mlp"``: the
                MLP's output is a node of its own), ``"influence"`` and ``"cross"``. The
                composition ``chain`` needs the first two. ``influence`` is more work, one
                Jacobian-vector product per pair of tokens and node. Blocks without attention have
                ``"layer"`` and ``"influence"`` alone.
                ``cross`` is for blocks that also attend to the states of an encoder: its tokens to
                the heads of that cross-attention. With ``layer=None`` other blocks go without, and
                if nothing else is asked for they are left out.
            output_indices: the targets to attribute: positions among all tokens, padding counted,
                or what they say; None for all tokens.
            tolerance: largest completeness error of a row, relative to its total; with a target,
                of the sum at every depth, relative to the change (to the sum of its parts' sizes,
                where they cancel to less than a tenth of it). Rows that are not within it after
                ``n_steps`` nodes are refined by panels whose errors are known; rows that do not
                make it are named in a warning. None: the plain rule.
            max_steps: most nodes for one row.
            dtype: precision of the path arithmetic, ``torch.float32`` or ``torch.float64``, on a
                copy of one block at a time; with a target on a copy of the whole model, which an
                offloaded model and blocks described by :class:`Block` cannot have. None: the
                model's own, or float32 if that is half precision.
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
            tokenizer: for tokens and texts given as strings; None is the one beside the model.

        Returns:
            A :class:`~captum_lig.LayerFlow` if ``layer`` is one block, otherwise a list of them,
            :class:`~captum_lig.flow.flows.Flows`; with ``return_convergence_delta`` a pair of that
            and, for each flow, its ``delta``: sum of attributions minus total by boundary,
            ``attention (B, H, T)``, ``mlp (B, T)``, ``layer (B, T)``, ``chain (B, H, T)`` and those
            of the others that were asked for. With a target it is
            ``(B,)``: the sum over the tokens entering the lowest layer minus the change.

        Raises:
            LigError: for anything that cannot be worked with; the message says what to do.
        """
        if target is not None:
            only_without_target(
                scalarization=self._asked_scalarization,
                output_indices=output_indices,
                mlp_start=None if mlp_start == "attention" else mlp_start,
                self_term=self_term,
                cross_baseline=None if cross_baseline == "zero" else cross_baseline,
            )
            steps = 5 if n_steps is None else n_steps
            question = Question(
                inputs=inputs,
                baselines=baselines,  # type: ignore[arg-type]
                additional=additional_forward_args,
                target=target,
                tokenizer=tokenizer,
                boundaries=boundaries,
                dtype=check_dtype(dtype),
                settings=Settings.checked(steps, method, tolerance, max_steps, internal_batch_size),
                show_progress=show_progress,
            )
            flows = flows_towards(self._finders, question)
            call = ModelCall.of(self.forward_func, inputs, additional_forward_args)
            return self._result(flows, return_convergence_delta, call, tokenizer)
        n_steps = 16 if n_steps is None else n_steps
        boundaries = BOUNDARIES if boundaries is None else boundaries
        settings = Settings.checked(n_steps, method, tolerance, max_steps, internal_batch_size)
        call = ModelCall.of(self.forward_func, inputs, additional_forward_args)
        problem = Problem(
            asked=Asked.of(boundaries, self.scalarization, mlp_start),
            settings=settings,
            scalarization=self.scalarization,
            output_indices=positions_in(call, output_indices, tokenizer),
            dtype=dtype,
            cross_baseline=cross_baseline,
        )
        problem.check()
        if self_term is not None:
            starts = "target_token" if baselines is None else baselines
            check_estimate(self_term, starts, problem.asked.boundaries)
        batch = BatchOfTexts(
            finder=self._finder,
            call=call,
            problem=problem,
            baselines=baselines,  # type: ignore[arg-type]
            self_term=self_term,
            everything=self.layer is None,
            show_progress=show_progress,
        )
        flows = batch.flows()
        return self._result(flows, return_convergence_delta, call, tokenizer)

    @restoring
    @log_usage()  # type: ignore[untyped-decorator]
    def direct_edges(
        self,
        inputs: Inputs,
        baselines: InputBaseline = None,
        target: TargetLike | None = None,
        additional_forward_args: object = None,
        *,
        keep: int = 100_000,
        file: str | Path | None = None,
        text: int | None = None,
        n_steps: int | None = None,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        tolerance: float | None = 1e-3,
        max_steps: int = 1024,
        dtype: torch.dtype | None = None,
        show_progress: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> DirectEdges:
        r"""Attribute a number to edges from what writes to the residual stream to what reads it.

        Writers are the embedding, heads and MLPs; readers the queries, keys and values of heads,
        MLPs, and the number. For models whose residual stream is a sum of what is written to it
        (pre-norm). Relevances are those of :meth:`attribute` with a target: edges into a reader, or
        out of a writer, add up to its own; into the number, or out of the embedding, to the change.

        Args:
            inputs: one text, or a batch of which ``text`` says the one that is meant; as in
                :meth:`attribute`.
            baselines: of the input, as in :meth:`attribute` with a target.
            target: the number, as in :meth:`attribute`.
            additional_forward_args: further arguments of the model after ``inputs``.
            keep: how many of the strongest edges to keep, each of a writer, a reader and a token.
            file: where to write all of them, ``.safetensors``; see
                :func:`captum_lig.io.direct_edges.load_direct_edges`.
            text: which text of a batch.
            n_steps: see :meth:`attribute` with a target, as for all that follow.
            method: name of the rule.
            internal_batch_size: at most so many pairs of a path point and a token at once.
            tolerance: largest error of a sum over all edges of one depth, relative to the change.
            max_steps: most nodes of a stage.
            dtype: precision of the model's copy; None: the model's own, float32 if that is half.
            show_progress: show a progress bar over layers.
            tokenizer: for what is given as a string, and the names of the tokens; None is the one
                beside the model.

        Raises:
            LigError: if the residual stream is not a sum, as in post-norm models, or those that
                norm what heads write; and for anything that cannot be worked with.

        Example::

            >>> from captum_lig.graph import Reader
            >>> edges = LayerFlowIG(decoder).direct_edges(ids, other_ids, target)
            >>> edges.strongest(2).words()  # MLPs of layers 0 and 1, to the number
            ['m0 -> output at 2', 'm1 -> output at 2']
            >>> read = edges.summed().into(Reader("output")).rows()
            >>> round(sum(row["value"] for row in read) / edges.change, 3)  # all of the change
            1.0
        """
        whole_number("keep", keep, 1)
        if target is None:
            raise LigError("direct_edges needs a target: the number that the edges add up to.")
        only_without_target(scalarization=self._asked_scalarization)
        question = Question(
            inputs=inputs,
            baselines=baselines,
            additional=additional_forward_args,
            target=target,
            tokenizer=tokenizer,
            boundaries=None,
            dtype=check_dtype(dtype),
            settings=Settings.checked(
                5 if n_steps is None else n_steps, method, tolerance, max_steps, internal_batch_size
            ),
            show_progress=show_progress,
        )
        path = None if file is None else check_edge_file(file)
        return edges_towards(self._finders, question, keep, path, text)

    @property
    def _asked_scalarization(self) -> str | None:
        """What vectors are made numbers by, if it is not the default; a target needs none."""
        return None if self.scalarization == "l2" else self.scalarization

    def _result(
        self,
        flows: list[LayerFlow],
        with_delta: bool,
        call: ModelCall,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> Any:
        warn_of_rows_not_converged(flows)
        shapes = {tuple(flow.valid.shape) for flow in flows}
        names = {shape: named_tokens(call, tokenizer, shape) for shape in shapes}
        flows = [replace(flow, tokens=names[tuple(flow.valid.shape)]) for flow in flows]
        # A module that runs several times (ALBERT's) has a flow for each.
        single = is_one(self.layer) and len(flows) == 1
        result = flows[0] if single else Flows(flows)
        if not with_delta:
            return result
        return result, self.compute_convergence_delta(result)

    def compute_convergence_delta(
        self, flow: LayerFlow | Sequence[LayerFlow]
    ) -> Delta | list[Delta]:
        """Completeness errors, sum of attributions minus total, of a flow or a list of flows.

        Unlike Captum's, which adds up over targets and so hides errors of opposite sign, there
        is one for each row. Of flows with a target, one for each text, ``(B,)``: the sum over the
        tokens at the depth where the lowest of the layers begins, minus the change.
        """
        first = flow if isinstance(flow, LayerFlow) else flow[0]
        if first.target is not None:
            other = 0 if first.elsewhere is None else first.elsewhere
            return first.need("entering").sum(-1) + other - first.need("change")
        return flow.delta if isinstance(flow, LayerFlow) else [f.delta for f in flow]

    def has_convergence_delta(self) -> bool:
        """True: every row comes with its completeness error."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: attributions are contributions, not sensitivities."""
        return True

"""Checks of what a caller of the graph gave; each raises a LigError if it does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_lig._arguments import brief, index_list
from captum_lig.errors import LigError, out_of_memory
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.findings import FAR, distance
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.tokens import TokenIndex, find_tokens
from captum_lig.graph.joined import About
from captum_lig.graph.layer import GraphLayer

__all__ = [
    "CannotCarryWarning",
    "about_flows",
    "check_flows",
    "check_whole",
    "in_order",
    "layer_range",
    "no_target",
    "one_token",
    "refuse_arguments",
    "start_relevance",
    "token_indices",
    "warn_if_nothing_carries",
    "warn_of_start",
]


def check_flows(flows: list[LayerFlow], text: int | None) -> int:
    """The index of the text, if the flows can be joined."""
    if not flows:
        raise LigError("there is no flow to make a graph of: the list of flows is empty.")
    indices = [flow.index for flow in flows]
    if indices != list(range(indices[0], indices[0] + len(indices))):
        raise LigError(
            f"the flows are of layers {indices}: give consecutive layers, in the order they run."
        )
    first = flows[0]
    for flow in flows[1:]:
        if flow.valid.shape != first.valid.shape or bool((flow.valid != first.valid).any()):
            raise LigError(
                f"the flow of layer {flow.index} is of other texts than that of layer "
                f"{first.index}: make a graph of the flows of one call."
            )
        if flow.tokens is not None and first.tokens is not None and flow.tokens != first.tokens:
            raise LigError(
                f"the flow of layer {flow.index} is of {brief(flow.tokens)}, that of layer "
                f"{first.index} of {brief(first.tokens)}: make a graph of the flows of one call."
            )
        for name in ("scalarization", "baseline", "mlp_start", "target"):
            own, others = getattr(flow, name), getattr(first, name)
            if own != others:
                raise LigError(
                    f"layer {flow.index} has {name} {own!r}, layer {first.index} {others!r}: make "
                    "a graph of flows made in the same way."
                )
        if first.target is not None and not torch.equal(flow.need("change"), first.need("change")):
            raise LigError(
                f"layer {flow.index} has the change {flow.need('change').tolist()} of the target, "
                f"layer {first.index} {first.need('change').tolist()}: make a graph of the flows "
                "of one call."
            )
    texts = len(first.valid)
    if text is None:
        if texts != 1:
            raise LigError(f"the flows hold {texts} texts: say which one, text=0 to {texts - 1}.")
        return 0
    if isinstance(text, bool) or not isinstance(text, int) or not -texts <= text < texts:
        raise LigError(f"text {brief(text)} does not exist: the flows hold {texts} texts.")
    return text % texts


def about_flows(flow: LayerFlow, text: int) -> About:
    """How the flows that ``flow`` is one of were made."""
    change = None if flow.target is None else float(flow.need("change")[text])
    return About(flow.scalarization, flow.baseline, flow.target, change)


def refuse_arguments(
    of: str,
    target: TokenIndex | Sequence[TokenIndex] | None,
    start: Tensor | Sequence[float] | None,
    rule: str,
    absolute: bool,
) -> None:
    """Refuse what has no meaning for the relevances of a graph with the target ``of``."""
    if target is not None or start is not None:
        name, given = ("target", target) if target is not None else ("start", start)
        raise LigError(
            f"{name}={brief(given)}: the flows are of one number, {of!r}, and their relevances are "
            "of that alone: leave it out. For where a token at the end came from, attribute that: "
            "LayerFlowIG.attribute(..., target=state(position)), of captum_lig.prediction."
        )
    if rule != DEFAULT_RULE or absolute:
        name, said = ("rule", brief(rule)) if rule != DEFAULT_RULE else ("absolute", "True")
        raise LigError(
            f"{name}={said}: relevances of {of!r} are signed and exact, and nothing is composed or "
            "shared out: leave it out."
        )


class CannotCarryWarning(UserWarning):
    """Flows that a graph of lengths was made of cannot carry anything across layers."""


def warn_if_nothing_carries(flows: Sequence[LayerFlow], text: int) -> None:
    """Warn of flows of lengths that cannot carry across layers, called by the graph's maker."""
    if len(flows) == 1 or flows[0].target is not None:
        return
    instead = (
        "For what a prediction reads, attribute it: LayerFlowIG.attribute(..., target=...). For "
        "shares of lengths "
    )
    if flows[0].baseline == "target_token":
        why = (
            "with the baseline 'target_token' a token owes itself nothing, so what it carries "
            "leaves it in every layer, by construction"
        )
        instead += "give a self term, attribute(..., self_term='zero_ratio'), or another baseline"
    else:
        rule = DEFAULT_RULE if all(flow.chain is not None for flow in flows) else "conserve"
        off_by = distance([flow.select(text) for flow in flows], rule)
        if not off_by > FAR:
            return
        why = (
            f"maps composed by {rule} are {off_by:.0%} off the direct ones (median layer), and so "
            "is what they hand down"
        )
        instead += "choose another baseline, such as captum_lig.prediction.layer_baselines"
    warnings.warn(
        f"these flows cannot carry anything across layers: {why}. {instead}.",
        CannotCarryWarning,
        stacklevel=3,
    )


def warn_of_start() -> None:
    """Warn of what sharing out a prediction does not say, called by a method of the graph."""
    warnings.warn(
        "a prediction's relevance handed down by shares of lengths says little of what the "
        "prediction reads (correlation with patching, MiniLM: tokens 0.69, heads 0.23): use "
        "LayerFlowIG.attribute(..., target=...) and relevance() without start.",
        stacklevel=3,
    )


def layer_range(
    layers: Sequence[GraphLayer], wanted: tuple[int, int] | None
) -> Sequence[GraphLayer]:
    """The layers from a first to a last index, or all."""
    if wanted is None:
        return layers
    first, last = layers[0].index, layers[-1].index
    if (
        not isinstance(wanted, (tuple, list))
        or len(wanted) != 2
        or not all(isinstance(one, int) for one in wanted)
        or not first <= wanted[0] <= wanted[1] <= last
    ):
        raise LigError(
            f"layers={brief(wanted)}: give the indices of the first and the last layer of a "
            f"range within {first} to {last}."
        )
    return layers[wanted[0] - first : wanted[1] - first + 1]


def token_indices(
    given: TokenIndex | Sequence[TokenIndex] | Tensor, tokens: Sequence[str], name: str
) -> list[int]:
    """Tokens, by what they say or their positions, negative ones from the end, as indices."""
    found = find_tokens(given, tokens, name)
    listed = [found] if isinstance(found, int) else found
    device = torch.device("cpu")
    indices = [int(i) for i in index_list(listed, len(tokens), device, "tokens", name)]
    if len(set(indices)) != len(indices):
        raise LigError(f"{name}={brief(given)} names a token twice: name each once.")
    return indices


def one_token(given: TokenIndex, tokens: Sequence[str], name: str) -> int:
    """The same for one token."""
    indices = token_indices(given, tokens, name)
    if len(indices) != 1:
        raise LigError(f"{name}={brief(given)}: a route goes from one token to one: give one.")
    return indices[0]


def in_order(positions: Tensor) -> bool:
    """Whether tokens ``(N,)`` stand as in their text, each once."""
    return bool((positions.diff() > 0).all())


def check_whole(layers: Sequence[GraphLayer], tokens: Sequence[str]) -> None:
    """Check that all tokens are targets in all layers but the last: what reaches them goes on."""
    for layer in layers[:-1]:
        if not bool(layer.known.all()):
            raise no_target(layer, int((~layer.known).nonzero()[0]), tokens)


def no_target(layer: GraphLayer, token: int, tokens: Sequence[str]) -> LigError:
    """The error that says so."""
    return LigError(
        f"token {token} ({tokens[token]!r}) was no target in layer {layer.index}, so what reaches "
        "it cannot be handed down: attribute all tokens (output_indices=None) in every layer but "
        "the last."
    )


def start_relevance(
    given: TokenIndex | Sequence[TokenIndex] | None,
    start: Tensor | Sequence[float] | None,
    tokens: Sequence[str],
    name: str,
) -> Tensor:
    """Relevance ``(N,)`` to start from, float64: 1 at each token, or what ``start`` says."""
    if given is None and start is None:
        raise LigError("give a target, or a start for all tokens, or both.")
    count = len(tokens)
    indices = list(range(count)) if given is None else token_indices(given, tokens, name)
    try:
        values = torch.as_tensor(1.0 if start is None else start).detach().double().flatten().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise LigError(f"start={brief(start)}: give numbers, one for each token.") from error
    if start is not None and len(values) != len(indices):
        raise LigError(
            f"start holds {len(values)} numbers for {len(indices)} tokens: give one for each."
        )
    if not bool(torch.isfinite(values).all()):
        raise LigError("start holds numbers that are not finite: give finite ones.")
    relevance = torch.zeros(count, dtype=torch.float64)
    relevance[indices] = values
    return relevance

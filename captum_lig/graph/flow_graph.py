"""``FlowGraph``: the flows of a text's layers joined into one graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lig._arguments import brief, fraction, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import plain_tokens
from captum_lig.flow.composition import DEFAULT_RULE, share_of
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.tokens import TokenIndex
from captum_lig.graph.arguments import (
    about_flows,
    check_flows,
    check_whole,
    layer_range,
    no_target,
    one_token,
    refuse_arguments,
    start_relevance,
    token_indices,
    warn_if_nothing_carries,
    warn_of_start,
)
from captum_lig.graph.edges import Edges, only_heads
from captum_lig.graph.joined import JoinedLayers
from captum_lig.graph.layer import GraphLayer
from captum_lig.graph.length_layer import LengthLayer
from captum_lig.graph.merge_words import merged_layer, words_of
from captum_lig.graph.routes import MOST_ROUTES, Route, routes_between, signed_route
from captum_lig.graph.target_layer import closed_layers, target_layers
from captum_lig.graph.trace import Trace, shared_out, traced_exactly, traced_up

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Edges", "FlowGraph"]


class FlowGraph(JoinedLayers):
    r"""The layers of one text as a graph, from the tokens entering to the tokens leaving.

    Nodes are tokens of the residual stream ``z[l, i]`` entering layer ``l`` (those leaving it are
    those entering the next) and per-head attention outputs ``u[l, h, j]``. Signed edges run
    ``z -> u`` (attention), ``u -> z'`` (mlp) and ``z -> z'`` (residual). They are held as tensors,
    a matrix a head.

    **Of flows with a target** edges and relevances are in its units. MLPs' outputs ``m[l, j]`` are
    nodes too: edges run ``u -> m``, ``z -> m``, ``m -> z'`` and past the MLP ``u -> z'``. They are
    completed from the target down, so that rows into a node and columns out of it add up to its
    relevance, and every cut through the graph to the target's change.

    **Of flows of lengths** a layer hands down a share of a token leaving it: the edge's attribution
    by the sum of all of the token's. So the total of what starts above arrives below, with the
    composition rules that conserve (after LRP, Bach et al. 2015).

    Args:
        flows: one flow a layer, of consecutive layers, all with the same target, or all without
            one and with the attention and mlp boundaries, as :class:`~captum_lig.LayerFlowIG`
            gives them. Every token has to be a target; without one, except in the last layer.
        tokens: what the tokens are called, one for each source. None: as the flows have them, or
            else their indices.
        text: which text of the batch, negative ones from the end; needed if the flows hold several.

    Attributes:
        tokens: the tokens without padding.
        positions: ``(N,)`` their positions in the text as the model got it.

    Raises:
        LigError: flows that do not fit together, or lack a boundary. The methods raise it for
            tokens, layers, heads, kinds of edges or a rule that do not exist, and where relevance
            or a route would reach a token below the last layer that was no target of the
            attribution.

    Warns:
        CannotCarryWarning: for flows of lengths of several layers that cannot carry across them:
            with ``"target_token"`` a token has no part in itself, so its relevance leaves it in
            every layer, unless the flows have a self term (``LayerFlowIG.attribute(...,
            self_term="zero_ratio")``); and where the composed maps are more than 50 % off the
            direct ones (mean over the targets of a layer, median over the layers).

    Example::

        >>> from captum_lig import FlowGraph, LayerFlowIG
        >>> from captum_lig.prediction import cosine
        >>> flows = LayerFlowIG(model).attribute(inputs, target=cosine("A dog lay on a rug."))
        >>> graph = FlowGraph(flows, tokens)
        >>> graph.relevance().strongest(2)   # token, index, part of the change
        [('mat', 6, 0.173...), ('cat', 2, 0.114...)]
        >>> print(graph.paths(source="cat", k=2)[1])   # share, and the edges on the way
        +0.00396  cat -[2.mlp +0.037 +0.044]-> cat -[+0.08]-> target
    """

    def __init__(
        self,
        flows: Sequence[LayerFlow] | LayerFlow,
        tokens: Sequence[str] | None = None,
        text: int | None = None,
    ) -> None:
        flows = [flows] if isinstance(flows, LayerFlow) else list(flows)
        text = check_flows(flows, text)
        valid = flows[0].valid[text]
        if tokens is None:
            names = flows[0].tokens
            tokens = list(map(str, range(len(valid)))) if names is None else names[text]
        if len(tokens) != len(valid):
            raise LigError(
                f"{len(tokens)} tokens were given for flows of {len(valid)} sources: give every "
                "token of the text, special tokens included, and padding where there is some."
            )
        self.positions = valid.nonzero().squeeze(-1)
        tokens = plain_tokens(tokens)
        self.tokens = [tokens[int(index)] for index in self.positions]
        self.layers: Sequence[GraphLayer] = (
            [LengthLayer.of(flow, text) for flow in flows]
            if flows[0].target is None
            else closed_layers(flows, text)
        )
        self.about = about_flows(flows[0], text)
        warn_if_nothing_carries(flows, text)

    # --- what moves along it --------------------------------------------------------------------

    def relevance(
        self,
        target: TokenIndex | Sequence[TokenIndex] | None = None,
        start: Tensor | Sequence[float] | None = None,
        *,
        rule: str = DEFAULT_RULE,
        absolute: bool = False,
        layers: tuple[int, int] | None = None,
    ) -> Trace:
        r"""What each node has of the target; or of tokens at the end, by sharing out lengths.

        **In a graph with a target** no argument but ``layers`` is needed: relevances of tokens,
        heads and MLPs are there, exact, in units of the target. Of a whole graph they add up to
        ``change`` at every depth. Pruning does not change a node's relevance;
        :attr:`Trace.lost` says what the edges that are left do not carry.

        **In a graph of lengths** relevance is handed down from the tokens leaving the last layer:
        in each layer a token's relevance is shared out among the edges into it, in proportion to
        their attributions (after LRP, Bach et al. 2015), and adds up at the other end. That
        reproduces the paper. How far a token moved, in whatever direction, is not what a prediction
        reads: with a start from a prediction such relevances correlate with the effects of patching
        at 0.69 for tokens (0.68 if all is left on its token) and at 0.23 for heads (MiniLM, cosine
        of two sentences against padding). For a prediction attribute a target.

        Args:
            target: the token, or the tokens, to start from: positions, negative ones from the end,
                or what they say, as wherever a token is meant.
            start: with ``target``, its relevance (a number for each); without, the relevance of
                all tokens ``(N,)``, as :func:`~captum_lig.prediction.last_layer_relevance` gives
                it for a logit. None: 1 for each target.
            rule: ``"chain"``, ``"conserve"`` or ``"product"``, see :meth:`LayerFlow.compose`.
            absolute: take absolute values of the edges: then every share is between 0 and 1.
            layers: indices of the first and the last layer of a range; None for all.

        Raises:
            LigError: see the class; and in a graph with a target for any other argument than
                ``layers``.

        Warns:
            UserWarning: for a ``start``.
        """
        if self.target is not None:
            refuse_arguments(self.target, target, start, rule, absolute)
            return traced_exactly(target_layers(layer_range(self.layers, layers)), self.tokens)
        trace = shared_out(self, target, start, rule, absolute, layers)
        if start is not None:
            warn_of_start()
        return trace

    def contributions(
        self,
        source: TokenIndex | Sequence[TokenIndex],
        *,
        rule: str = DEFAULT_RULE,
        absolute: bool = False,
        layers: tuple[int, int] | None = None,
    ) -> Trace:
        """Follow tokens entering the first layer forward: their share in every node above.

        The forward counterpart of :meth:`relevance` in a graph of lengths: the share of ``source``
        in a target at the end is what of the target's relevance arrives at ``source``. In a graph
        with a target shares are of the sizes of the edges into a node, whatever ``absolute`` is:
        signed ones explode where a relevance is near 0. Tokens that were no target of
        the attribution in the last layer have no edges there, and no share.

        Args:
            source: the token, or the tokens (their shares add up).
            rule: see :meth:`relevance`.
            absolute: see :meth:`relevance`.
            layers: see :meth:`relevance`.
        """
        chosen = self._whole(layers)
        share = start_relevance(source, None, self.tokens, "source")
        return traced_up(chosen, self.tokens, share.to(self.positions.device), rule, absolute)

    def rollout(
        self,
        layers: tuple[int, int] | None = None,
        *,
        rule: str = DEFAULT_RULE,
        absolute: bool = False,
    ) -> Tensor:
        """The token-to-token map across a range of layers: the product of the layers' shares.

        In a graph with a target these are shares of sizes, see :meth:`contributions`.

        Args:
            layers: indices of the first and the last layer; None for all.
            rule: see :meth:`relevance`. Rows add up to 1 with ``conserve`` and ``chain``; with an
                encoder, and in a pruned graph, to less.
            absolute: see :meth:`relevance`. The signed map and the absolute one differ by what
                cancels on the way.

        Returns:
            ``(N, N)``, float64: row ``j`` is what of token ``j`` leaving the last layer comes from
            each token entering the first; all 0 if it was no target of the attribution there.
        """
        product = torch.eye(len(self.tokens), dtype=torch.float64, device=self.positions.device)
        for layer in self._whole(layers):
            product = layer.shares(rule, absolute).matrix @ product
        return product

    def paths(
        self,
        source: TokenIndex | None = None,
        target: TokenIndex | None = None,
        k: int = 5,
        *,
        rule: str = DEFAULT_RULE,
        layers: tuple[int, int] | None = None,
    ) -> list[Route]:
        """The ``k`` strongest routes, with their heads, MLPs and layers.

        The strength of a route is the absolute product of the shares of its steps; of all routes
        these are exactly the strongest (dynamic programming over layers).

        In a graph of lengths shares are signed, and all routes from a source to a target together,
        with their signs, add up to its entry in :meth:`rollout`.

        In a graph with a target routes run on to the target itself, unless ``target=`` names a
        token where they end. Signed shares of a relevance near 0 would be many times the whole: a
        step's share is that of the size of its edges in the sizes of all into the same node, and
        the last step's that of a token's relevance in the sizes of all tokens'. Shares of routes
        are between 0 and 1, and those of all routes of a whole graph add up to 1. The signed edges,
        in units of the target, are in :attr:`Step.edges` and :attr:`Route.end`.

        Args:
            source: a token entering the first layer; None for any.
            target: a token leaving the last layer; None for the graph's target.
            k: how many, 10,000 at most; fewer are returned if fewer carry anything.
            rule: see :meth:`relevance`.
            layers: indices of the first and the last layer; None for all.
        """
        if whole_number("k", k, 1) > MOST_ROUTES:
            raise LigError(f"k={brief(k)}: at most {MOST_ROUTES:,} routes are looked for.")
        chosen = self._whole(layers)
        count = len(self.tokens)
        sources = range(count) if source is None else [one_token(source, self.tokens, "source")]
        if target is not None:
            last = one_token(target, self.tokens, "target")
            if not chosen[-1].known[last]:
                raise no_target(chosen[-1], last, self.tokens)
            ends = torch.zeros(count, dtype=torch.float64)
            ends[last] = 1.0
        elif self.target is None:
            raise LigError("give a target: a graph of lengths has routes from token to token.")
        else:
            sizes = target_layers(chosen)[-1].leaving.abs().cpu()
            ends = share_of(sizes, sizes.sum())
        indices = [layer.index for layer in chosen]
        shares = [layer.shares(rule, False).cpu() for layer in chosen]
        routes = routes_between(shares, indices, self.tokens, sources, ends, k)
        if self.target is None:
            return routes
        return [signed_route(route, target_layers(chosen), target is None) for route in routes]

    # --- less of it -----------------------------------------------------------------------------

    def prune(
        self,
        threshold: float | None = None,
        top_k: int | None = None,
        *,
        rule: str = DEFAULT_RULE,
    ) -> FlowGraph:
        """Only the strong edges.

        In a graph of lengths an edge is as strong as the share of its target, a token leaving the
        layer, that it carries (see :meth:`relevance`), its sign aside. The shares of the edges that
        are left stay what they are: what the others carried is :attr:`Trace.lost`.

        In a graph with a target an edge is as strong as it is large, relative to the size of
        ``change``. Relevances of nodes stay what they are.

        Args:
            threshold: keep edges that carry at least this share, between 0 and 1.
            top_k: keep this many of the strongest into each token leaving a layer, in a graph with
                a target into each node: a head's output, an MLP's, a token leaving.
            rule: by which rule an edge's share is measured.

        Raises:
            LigError: unless one of ``threshold`` and ``top_k`` is given; for a threshold if the
                target's change is 0.
        """
        if (threshold is None) == (top_k is None):
            raise LigError("give either threshold or top_k, and not both.")
        if threshold is not None:
            fraction("threshold", threshold)
            if self.change == 0:
                raise LigError(
                    f"the change of {self.target!r} is 0, and so is any part of it: "
                    "give top_k in place of threshold."
                )
            threshold *= 1.0 if self.change is None else abs(self.change)
        else:
            whole_number("top_k", top_k, 1)
        layers = [layer.strong(rule, threshold, top_k) for layer in self.layers]
        return self._with(layers, self.tokens, self.positions)

    def subgraph(
        self,
        tokens: TokenIndex | Sequence[TokenIndex] | Tensor | None = None,
        layers: tuple[int, int] | None = None,
        heads: Iterable[int | tuple[int, int]] | None = None,
    ) -> FlowGraph:
        """Only some tokens, layers or heads, and the edges between them.

        The shares of the edges that are left stay what they are in the whole graph.

        Args:
            tokens: the tokens to keep, each once; None for all.
            layers: indices of the first and the last layer; None for all.
            heads: numbers of heads to keep in every layer, or pairs of (layer, head); None for
                all. Residual edges stay.
        """
        chosen = layer_range(self.layers, layers)
        if heads is not None:
            chosen = only_heads(chosen, heads)
        if tokens is None:
            return self._with(chosen, self.tokens, self.positions)
        found = token_indices(tokens, self.tokens, "tokens")
        indices = torch.tensor(found, device=self.positions.device)
        return self._with(
            [layer.at(indices) for layer in chosen],
            [self.tokens[index] for index in found],
            self.positions[indices],
        )

    def merge_tokens(
        self,
        word_ids: Sequence[int | None] | None = None,
        *,
        offsets: Sequence[tuple[int, int]] | None = None,
        text: str | None = None,
    ) -> FlowGraph:
        """Words in place of word pieces, with attributions and totals kept.

        The edges of the pieces of a word add up, and so do the sums at their nodes. A word has the
        position of its first piece. Across layers words are less exact than pieces: what reaches a
        word is handed down by all of its pieces, whichever of them it came to.

        Args:
            word_ids: the number of each token's word (``encoding.word_ids()``), None for a token
                that stays alone. One for each token of the graph, or of the text with its padding.
            offsets: instead, where each token begins and ends in ``text``; see
                :func:`captum_lig.flow.words.word_groups` for which pieces make a word.
            text: the text that was tokenized, with ``offsets``.

        Raises:
            LigError: for words that do not fit the graph, or have a piece that was a target of the
                attribution and one that was none.
        """
        groups, labels = words_of(self.tokens, self.positions, word_ids, offsets, text)
        first = [groups.index(word) for word in range(len(labels))]
        layers = [merged_layer(layer, groups) for layer in self.layers]
        return self._with(layers, labels, self.positions[first])

    # --- files, other programs and pictures -----------------------------------------------------

    def to_networkx(self) -> networkx.DiGraph[Any]:
        """The graph for networkx, see :func:`captum_lig.io.networkx.to_networkx`."""
        from captum_lig.io.networkx import to_networkx

        return to_networkx(self)

    def save(self, path: str | Path) -> Path:
        """Write the graph to a file, see :func:`captum_lig.io.graphs.save_graph`."""
        from captum_lig.io.graphs import save_graph

        return save_graph(self, path)

    @staticmethod
    def load(path: str | Path, **settings: int) -> FlowGraph:
        """Read back what :meth:`save` wrote, see :func:`captum_lig.io.graphs.load_graph`."""
        from captum_lig.io.graphs import load_graph

        return load_graph(path, **settings)

    def to_html(
        self,
        path: str | Path,
        title: str | None = None,
        rule: str = DEFAULT_RULE,
        *,
        kind: str | None = None,
        hide_first_token: bool = False,
    ) -> Path:
        """Write the interactive page, see :func:`captum_lig.views.page.write_page`."""
        from captum_lig.views.page import write_page

        return write_page(self, path, title, rule, kind=kind, hide_first_token=hide_first_token)

    def plot(
        self, target: TokenIndex | Sequence[TokenIndex] | None = None, **settings: Any
    ) -> tuple[Figure, Axes]:
        """Draw what reaches a token, see :func:`captum_lig.views.plots.plot_graph`."""
        from captum_lig.views.plots import plot_graph

        return plot_graph(self, target, **settings)

    def explore(self, height: int = 720) -> Any:
        """The page inside a notebook, see :func:`captum_lig.views.notebook.show_page`."""
        from captum_lig.views.notebook import show_page
        from captum_lig.views.page import page

        return show_page(page(self), height)

    def _repr_html_(self) -> str:
        """Facts and a picture, for notebooks."""
        from captum_lig.views.notebook import graph_html

        return graph_html(self)

    def _whole(self, layers: tuple[int, int] | None) -> Sequence[GraphLayer]:
        """A range of layers, with all edges between its first and its last tokens."""
        chosen = layer_range(self.layers, layers)
        check_whole(chosen, self.tokens)
        return chosen

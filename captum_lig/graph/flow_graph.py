"""``FlowGraph``: the flows of a text's layers joined into one graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_lig._arguments import brief, fraction, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.graph.arguments import (
    check_flows,
    check_whole,
    layer_range,
    no_target,
    one_token,
    start_relevance,
    token_indices,
)
from captum_lig.graph.edges import KINDS, Edges, edges_of, only_heads, only_strong
from captum_lig.graph.layer import Certificate, GraphLayer
from captum_lig.graph.merge_words import merged_layer, words_of
from captum_lig.graph.routes import MOST_ROUTES, Route, routes_between
from captum_lig.graph.trace import Trace, traced_down, traced_up

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Edges", "FlowGraph"]


class FlowGraph:
    r"""The layers of one text as a graph, from the tokens entering to the tokens leaving.

    Nodes are tokens of the residual stream ``z[l, i]`` entering layer ``l`` (those leaving it are
    those entering the next) and per-head attention outputs ``u[l, h, j]``. Signed edges run
    ``z -> u`` (attention), ``u -> z'`` (mlp) and ``z -> z'`` (residual). They are held as tensors,
    a matrix a head.

    What a layer hands down from a target to its sources is a share of the target: the edge's
    attribution by the sum of all of the target's. So the total of what starts above arrives
    below, with the composition rules that conserve (after LRP, Bach et al. 2015).

    Args:
        flows: one flow a layer, of consecutive layers, with the attention and mlp boundaries,
            as :class:`~captum_lig.LayerFlowIG` gives them. Every token has to be a target,
            except in the last layer.
        tokens: what the tokens are called, one for each source. None: their indices.
        text: which text of the batch, negative ones from the end; needed if the flows hold several.

    Attributes:
        tokens: the tokens without padding.
        positions: ``(N,)`` their positions in the text as the model got it.

    Raises:
        LigError: flows that do not fit together, or lack a boundary. The methods raise it for
            tokens, layers, heads, kinds of edges or a rule that do not exist, and where relevance
            or a route would reach a token below the last layer that was no target of the
            attribution.

    Across layers the baseline matters: with ``"target_token"`` a token has no part in itself, so
    its relevance leaves it in every layer. Give the flows a self term
    (``LayerFlowIG.attribute(..., self_term="zero_ratio")``) or use the zero baseline.

    Example::

        >>> graph = FlowGraph(flows, tokens)
        >>> graph.relevance(target=3).strongest(2)   # token, index, part
        [('[SEP]', 8, 0.185...), ('.', 7, 0.146...)]
        >>> print(graph.paths(source=1, target=3, k=1)[0])
        +6.69e-06  the -[0.h9]-> . ... -[5.h11]-> sat
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
            tokens = [str(index) for index in range(len(valid))]
        if len(tokens) != len(valid):
            raise LigError(
                f"{len(tokens)} tokens were given for flows of {len(valid)} sources: give every "
                "token of the text, special tokens included, and padding where there is some."
            )
        self.positions: Tensor = valid.nonzero().squeeze(-1)
        self.tokens: list[str] = [str(tokens[int(index)]) for index in self.positions]
        self.layers: list[GraphLayer] = [GraphLayer.of(flow, text) for flow in flows]
        self.scalarization: str = flows[0].scalarization
        self.baseline: str = flows[0].baseline

    @classmethod
    def of_layers(
        cls,
        layers: list[GraphLayer],
        tokens: list[str],
        positions: Tensor,
        scalarization: str,
        baseline: str,
    ) -> FlowGraph:
        """A graph of layers that are there already, over the same tokens."""
        graph = object.__new__(cls)
        graph.layers, graph.tokens, graph.positions = layers, tokens, positions
        graph.scalarization, graph.baseline = scalarization, baseline
        return graph

    def _with(self, layers: list[GraphLayer], tokens: list[str], positions: Tensor) -> FlowGraph:
        return self.of_layers(layers, tokens, positions, self.scalarization, self.baseline)

    # --- what there is ------------------------------------------------------------------------

    @property
    def indices(self) -> tuple[int, ...]:
        """Indices of the layers, in the order they run."""
        return tuple(layer.index for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the graph's tensors."""
        held = [layer.tensors() for layer in self.layers] + [layer.errors for layer in self.layers]
        return sum(tensor.nbytes for tensors in held for tensor in tensors.values())

    def __repr__(self) -> str:
        counts = self.edge_counts
        summary = self.summary()
        rows, missed = sum(one.rows for one in summary), sum(one.missed for one in summary)
        return (
            f"FlowGraph(layers {self.indices[0]} to {self.indices[-1]}, {len(self.tokens)} tokens, "
            f"edges: {counts['attention']} attention, {counts['mlp']} mlp, "
            f"{counts['residual']} residual; {missed} of {rows} rows miss their total)"
        )

    def summary(self) -> list[Certificate]:
        """How far the rows of each layer and each certified field are off their totals."""
        return [one for layer in self.layers for one in layer.certificates()]

    @cached_property
    def edge_counts(self) -> dict[str, int]:
        """Number of edges by kind; an edge that carries nothing is none."""
        return {
            name: sum(int(kept(one).sum()) for one in self.layers) for name, kept in KINDS.items()
        }

    def edges(self, kind: str) -> Edges:
        """The edges of one kind, ``"attention"``, ``"mlp"`` or ``"residual"``, as columns."""
        return edges_of(self.layers, kind)

    # --- what moves along it --------------------------------------------------------------------

    def relevance(
        self,
        target: int | Sequence[int] | None = None,
        start: Tensor | Sequence[float] | None = None,
        *,
        rule: str = "conserve",
        absolute: bool = False,
        layers: tuple[int, int] | None = None,
    ) -> Trace:
        r"""Hand relevance down from tokens leaving the last layer, to every node below.

        In each layer a token's relevance is shared out among the edges into it, in proportion to
        their attributions (LRP, Bach et al. 2015), and adds up at the other end.

        Args:
            target: the token, or the tokens, to start from. Negative numbers count from the end.
            start: with ``target``, its relevance (a number for each); without, the relevance of
                all tokens ``(N,)``, as :func:`~captum_lig.prediction.last_layer_relevance` gives
                it for a logit. None: 1 for each target.
            rule: ``"conserve"``, ``"chain"`` or ``"product"``, see :meth:`LayerFlow.compose`.
            absolute: take absolute values of the edges: then every share is between 0 and 1.
            layers: indices of the first and the last layer of a range; None for all.
        """
        chosen = layer_range(self.layers, layers)
        relevance = self._start(target, start, "target")
        return traced_down(chosen, self.tokens, relevance, rule, absolute)

    def contributions(
        self,
        source: int | Sequence[int],
        *,
        rule: str = "conserve",
        absolute: bool = False,
        layers: tuple[int, int] | None = None,
    ) -> Trace:
        """Follow tokens entering the first layer forward: their share in every node above.

        The forward counterpart of :meth:`relevance`: the share of ``source`` in a target at the
        end is what of the target's relevance arrives at ``source``. Tokens that were no target of
        the attribution in the last layer have no edges there, and no share.

        Args:
            source: the token, or the tokens (their shares add up).
            rule: see :meth:`relevance`.
            absolute: see :meth:`relevance`.
            layers: see :meth:`relevance`.
        """
        chosen = self._whole(layers)
        return traced_up(chosen, self.tokens, self._start(source, None, "source"), rule, absolute)

    def rollout(
        self,
        layers: tuple[int, int] | None = None,
        *,
        rule: str = "conserve",
        absolute: bool = False,
    ) -> Tensor:
        """The token-to-token map across a range of layers: the product of the layers' shares.

        Args:
            layers: indices of the first and the last layer; None for all.
            rule: see :meth:`relevance`. Rows add up to 1 with ``conserve`` and ``chain``.
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
        source: int,
        target: int,
        k: int = 5,
        *,
        rule: str = "conserve",
        layers: tuple[int, int] | None = None,
    ) -> list[Route]:
        """The ``k`` strongest routes between two tokens, with their heads and layers.

        The strength of a route is the absolute product of the signed shares of its steps; of all
        routes these are exactly the strongest (dynamic programming over layers). All routes from
        a source together, with their signs, add up to its entry in :meth:`rollout`.

        Args:
            source: a token entering the first layer.
            target: a token leaving the last layer.
            k: how many, 10,000 at most; fewer are returned if fewer carry anything.
            rule: see :meth:`relevance`.
            layers: indices of the first and the last layer; None for all.
        """
        if whole_number("k", k, 1) > MOST_ROUTES:
            raise LigError(f"k={brief(k)}: at most {MOST_ROUTES:,} routes are looked for.")
        chosen = self._whole(layers)
        first = one_token(source, len(self.tokens), "source")
        last = one_token(target, len(self.tokens), "target")
        if not chosen[-1].known[last]:
            raise no_target(chosen[-1], last, self.tokens)
        indices = [layer.index for layer in chosen]
        shares = [layer.shares(rule, False).cpu() for layer in chosen]
        return routes_between(shares, indices, self.tokens, first, last, k)

    # --- less of it -----------------------------------------------------------------------------

    def prune(
        self,
        threshold: float | None = None,
        top_k: int | None = None,
        *,
        rule: str = "conserve",
    ) -> FlowGraph:
        """Only the strong edges.

        An edge is as strong as the share of its target, a token leaving the layer, that it
        carries (see :meth:`relevance`), its sign aside. The shares of the edges that are left
        stay what they are: what the others carried is :attr:`Trace.lost`.

        Args:
            threshold: keep edges that carry at least this share, between 0 and 1.
            top_k: keep this many of the strongest into each token leaving a layer.
            rule: by which rule an edge's share is measured.

        Raises:
            LigError: unless one of ``threshold`` and ``top_k`` is given.
        """
        if (threshold is None) == (top_k is None):
            raise LigError("give either threshold or top_k, and not both.")
        if threshold is not None:
            fraction("threshold", threshold)
        else:
            whole_number("top_k", top_k, 1)
        layers = [only_strong(layer, rule, threshold, top_k) for layer in self.layers]
        return self._with(layers, self.tokens, self.positions)

    def subgraph(
        self,
        tokens: Sequence[int] | Tensor | None = None,
        layers: tuple[int, int] | None = None,
        heads: Iterable[int | tuple[int, int]] | None = None,
    ) -> FlowGraph:
        """Only some tokens, layers or heads, and the edges between them.

        The shares of the edges that are left stay what they are in the whole graph.

        Args:
            tokens: indices of the tokens to keep, each once; None for all.
            layers: indices of the first and the last layer; None for all.
            heads: numbers of heads to keep in every layer, or pairs of (layer, head); None for
                all. Residual edges stay.
        """
        chosen = layer_range(self.layers, layers)
        if heads is not None:
            chosen = only_heads(chosen, heads)
        if tokens is None:
            return self._with(chosen, self.tokens, self.positions)
        found = token_indices(tokens, len(self.tokens), "tokens")
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

    # --- sums -----------------------------------------------------------------------------------

    def by_head(self) -> Tensor:
        """``(L, H)``: the share of each head in what reached the tokens leaving a layer.

        Absolute values of the mlp boundary, added up over the targets. With
        :meth:`residual_share`, the shares of a whole graph's layer add up to 1. Of less of it, they
        stay what they are in the whole layer, and of an output that no edge reaches any more there
        is none. NaN in a layer that moved nothing.
        """
        return pad_sequence([layer.head_shares() for layer in self.layers], batch_first=True)

    def residual_share(self) -> Tensor:
        """``(L,)``: the share of the residual edges in what reached the tokens leaving a layer.

        See :meth:`by_head`.
        """
        return torch.stack([layer.residual_share() for layer in self.layers])

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
    def load(path: str | Path) -> FlowGraph:
        """Read back what :meth:`save` wrote, see :func:`captum_lig.io.graphs.load_graph`."""
        from captum_lig.io.graphs import load_graph

        return load_graph(path)

    def to_html(self, path: str | Path, title: str | None = None, rule: str = "conserve") -> Path:
        """Write the interactive page, see :func:`captum_lig.views.page.write_page`."""
        from captum_lig.views.page import write_page

        return write_page(self, path, title, rule)

    def plot(
        self, target: int | Sequence[int] | None = None, **settings: Any
    ) -> tuple[Figure, Axes]:
        """Draw what reaches a token, see :func:`captum_lig.views.plots.plot_graph`."""
        from captum_lig.views.plots import plot_graph

        return plot_graph(self, target, **settings)

    def _repr_html_(self) -> str:
        """Facts and a picture, for notebooks."""
        from captum_lig.views.notebook import graph_html

        return graph_html(self)

    def _whole(self, layers: tuple[int, int] | None) -> list[GraphLayer]:
        """A range of layers, with all edges between its first and its last tokens."""
        chosen = layer_range(self.layers, layers)
        check_whole(chosen, self.tokens)
        return chosen

    def _start(
        self, tokens: int | Sequence[int] | None, start: Tensor | Sequence[float] | None, name: str
    ) -> Tensor:
        return start_relevance(tokens, start, len(self.tokens), name).to(self.positions.device)

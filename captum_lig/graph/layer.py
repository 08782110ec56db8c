"""One layer of the graph: its edges as tensors, whichever kind of flows they are of.

Shapes: ``N`` tokens of the text, ``H`` heads. Matrices are ``[target, source]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from captum_lig.flow.axes import FIELDS
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import TOLERANCE

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Convergence", "GraphLayer", "Part", "Places", "Shares", "part"]


@dataclass(frozen=True)
class Shares:
    """What share of each target its routes carry through one layer.

    ``heads[h, j, i]`` goes from source ``i`` through head ``h`` to target ``j``, ``residual[j]``
    stays with the token; where MLPs are nodes, both past the MLP, and what goes through it stands
    beside them. In a whole graph a target's shares add up to 1, with the rules that conserve.
    """

    heads: Tensor
    """``(H, N, N)``, float64."""
    residual: Tensor
    """``(N,)``, float64."""
    heads_through_mlp: Tensor | None = None
    """``(H, N, N)``: through a head, and the target's MLP."""
    token_through_mlp: Tensor | None = None
    """``(N,)``: from the token itself through its MLP."""

    @property
    def all_heads(self) -> Tensor:
        """``(H, N, N)`` through each head, past the MLP and through it."""
        through = self.heads_through_mlp
        return self.heads if through is None else self.heads + through

    @property
    def stays(self) -> Tensor:
        """``(N,)`` what stays with the token, past the MLP and through it."""
        through = self.token_through_mlp
        return self.residual if through is None else self.residual + through

    @property
    def matrix(self) -> Tensor:
        """``(N, N)`` all routes from a source to a target together."""
        return self.all_heads.sum(0) + torch.diag(self.stays)

    def cpu(self) -> Shares:
        """The same on the CPU."""
        through, stays = self.heads_through_mlp, self.token_through_mlp
        return Shares(
            self.heads.cpu(),
            self.residual.cpu(),
            None if through is None else through.cpu(),
            None if stays is None else stays.cpu(),
        )


@dataclass(frozen=True)
class Convergence:
    """How far the rows of one boundary of one layer are off their totals."""

    layer: int
    boundary: str
    rows: int
    missed: int
    """Rows that are further off than ``tolerance``."""
    worst: float
    """Largest relative completeness error."""
    tolerance: float


class Part(NamedTuple):
    """How a tensor of a layer behaves."""

    name: str
    axes: tuple[str, ...]
    """Of head, target and source; targets and sources are the tokens of the graph."""
    dtype: torch.dtype | None = None
    """None: that of the flow's attributions."""
    merge: str | None = "sum"
    """What merging tokens to words makes of it: the ``sum`` over the pieces, ``any`` or ``all`` of
    them; None: worked out anew from the edges; ``drop``: nothing, it is left out."""
    mask: str | None = None
    """Which of the masks of edges that are kept it is subject to."""
    needs: tuple[str, ...] = ()
    """Tensors that it comes together with."""


def part(*axes: str, **behaviour: Any) -> dict[str, Any]:
    """The declaration of a tensor, see :class:`Part`."""
    return {"axes": axes, **behaviour}


@cache
def _declared(kind: type[GraphLayer]) -> dict[str, Part]:
    return {one.name: Part(one.name, **one.metadata) for one in fields(kind) if one.metadata}


@dataclass(frozen=True, kw_only=True)
class GraphLayer(ABC):
    """The edges of one layer.

    An edge that is not in the graph (pruned, or of another part of the text) is 0. What the layer
    knows of its nodes (sums of all of their edges) stays what it was, and so do the shares of the
    other edges.
    """

    KINDS: ClassVar[tuple[str, ...]]
    """Names of the tensors of edges, one for each kind of edge."""

    name: str
    index: int
    tolerance: float | None = None
    """Completeness error that rows were refined to."""
    attention: Tensor = field(metadata=part("head", "target", "source", mask="attention"))
    """z -> u, signed."""
    known: Tensor = field(metadata=part("target", dtype=torch.bool, merge="any"))
    """False for tokens that were no target of the attribution: they have no edges."""
    errors: dict[str, Tensor] = field(default_factory=dict)
    """Completeness errors of each checked field of the flow, float64, ``(N,)`` or ``(H, N)``;
    see :meth:`LayerFlow.completeness_error`."""

    @abstractmethod
    def shares(self, rule: str, absolute: bool) -> Shares:
        """The share of each target that each route carries; a LigError for an unknown rule."""

    @abstractmethod
    def links(self, above: Tensor, rule: str, absolute: bool) -> Tensor:
        """``(N, N)`` what goes from each token leaving, with relevance ``above``, to each below."""

    @abstractmethod
    def there(self, kind: str) -> Tensor:
        """Where the edges of a kind are, a mask of its tensor."""

    @abstractmethod
    def share(self, kind: str) -> Tensor:
        """What share of its target each edge of a kind carries, in the shape of the edges."""

    @abstractmethod
    def strong(self, rule: str, threshold: float | None, top_k: int | None) -> Self:
        """Edges of at least a threshold, or the ``top_k`` strongest into each node."""

    @abstractmethod
    def only_heads(self, kept: Tensor) -> Self:
        """The edges through some heads, of ``kept (H,)``, and those past all heads."""

    @abstractmethod
    def head_shares(self) -> Tensor:
        """``(H,)`` float64: each head's part in the sizes of the layer's edges into its targets.

        Outputs whose edges are not in the graph have none.
        """

    @abstractmethod
    def residual_share(self) -> Tensor:
        """The part of what goes past all heads in them."""

    @staticmethod
    @abstractmethod
    def sums_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums at nodes that follow from the edges alone, for when edges were added up."""

    @classmethod
    def declared(cls) -> dict[str, Part]:
        """The tensors of a layer by name."""
        return _declared(cls)

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.attention)

    def convergence(self) -> Iterator[Convergence]:
        """How far the rows of the targets are off, by boundary."""
        tolerance = TOLERANCE if self.tolerance is None else self.tolerance
        for name, errors in self.errors.items():
            found = errors[..., self.known].flatten()
            missed = int((~(found <= tolerance)).sum())
            worst = float(found.max()) if len(found) else 0.0
            yield Convergence(self.index, name, len(found), missed, worst, tolerance)

    def where(self, masks: Mapping[str, Tensor]) -> Self:
        """Only the edges where the masks, by name, are True."""
        kept: dict[str, Any] = {
            one.name: torch.where(masks[one.mask], value, value.new_zeros(()))
            for one, value in self.parts()
            if one.mask is not None
        }
        return replace(self, **kept)

    def at(self, tokens: Tensor) -> Self:
        """Only the edges between some tokens ``(N',)``, which become the tokens of the layer."""
        chosen: dict[str, Any] = {}
        for one, value in self.parts():
            for dim, axis in enumerate(one.axes):
                if axis != "head":
                    value = value.index_select(dim, tokens)
            chosen[one.name] = value
        errors = {name: errors[..., tokens] for name, errors in self.errors.items()}
        return replace(self, **chosen, errors=errors)

    def parts(self) -> Iterator[tuple[Part, Tensor]]:
        """The tensors that are there, with their declarations."""
        for one in self.declared().values():
            value: Tensor | None = getattr(self, one.name)
            if value is not None:
                yield one, value

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, but the errors."""
        return {one.name: value for one, value in self.parts()}


class Places:
    """Where the rows and columns of one text's flow are among the tokens of a graph."""

    def __init__(self, flow: LayerFlow) -> None:
        self.tokens = flow.valid[0].nonzero().squeeze(-1)
        self.kept = flow.valid[0, flow.targets].nonzero().squeeze(-1)
        self.rows = torch.searchsorted(self.tokens, flow.targets[self.kept])

    def __call__(self, values: Tensor, *axes: str) -> Tensor:
        """Values of one text at the tokens of the graph; 0 for those that are no targets."""
        for dim, axis in enumerate(axes):
            if axis == "source":
                values = values.index_select(dim, self.tokens)
            elif axis == "target":
                shape = (*values.shape[:dim], len(self.tokens), *values.shape[dim + 1 :])
                values = values.new_zeros(shape).index_copy_(
                    dim, self.rows, values.index_select(dim, self.kept)
                )
        return values

    @property
    def known(self) -> Tensor:
        """``(N,)`` True for targets."""
        known = torch.zeros(len(self.tokens), dtype=torch.bool, device=self.tokens.device)
        known[self.rows] = True
        return known

    def errors(self, flow: LayerFlow) -> dict[str, Tensor]:
        """Completeness errors of each checked field, targets last."""
        errors = {}
        for name in flow.checked:
            axes = FIELDS[name].rows[1:]
            found = self(flow.completeness_error(name)[0].double(), *axes)
            errors[name] = found.movedim(axes.index("target"), -1)
        return errors

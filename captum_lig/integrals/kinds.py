"""The boundaries of a block by the name that callers ask for them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from captum_lig._arguments import brief
from captum_lig._types import Parts
from captum_lig.errors import LigError
from captum_lig.integrals.boundaries import (
    GRADIENT,
    AttentionBoundary,
    LayerBoundary,
    MlpBoundary,
)
from captum_lig.integrals.boundary import Boundary
from captum_lig.integrals.feed_forward import INTO, PAST, FeedForwardBoundary, PastMlpBoundary
from captum_lig.integrals.rows import Rows
from captum_lig.integrals.scalarization import (
    SCALARIZATIONS,
    Cotangent,
    Scalarization,
    Vector,
)

__all__ = ["KINDS", "MLP_STARTS", "Asked", "Kind"]

MLP_STARTS = ("attention", "zero")


@dataclass(frozen=True)
class Asked:
    """What an attribution of a block is asked for."""

    boundaries: frozenset[str]
    """Names among :data:`KINDS`."""
    scalarization: type[Scalarization]
    mlp_start: str = "attention"
    """Where ``u`` starts at the mlp boundary: ``"attention"``, where the path of the block starts,
    or ``"zero"``, with the residual stream held where it ends."""

    @classmethod
    def of(cls, boundaries: Collection[str], scalarization: str, mlp_start: str) -> Asked:
        """What a caller asked for.

        Args:
            boundaries: names, or one of them.
            scalarization: a name among ``SCALARIZATIONS``.
            mlp_start: ``"attention"`` or ``"zero"``.

        Raises:
            LigError: for a name that is unknown.
        """
        asked = (boundaries,) if isinstance(boundaries, str) else boundaries
        names = ", ".join(map(repr, KINDS))
        if not isinstance(asked, (tuple, list, set, frozenset)) or not asked:
            raise LigError(f"boundaries={brief(boundaries)}: name one or more of {names}.")
        for name in asked:
            if name not in KINDS:
                raise LigError(
                    f"boundaries={brief(boundaries)}: {brief(name)} is unknown, name one or more "
                    f"of {names}."
                )
        if "feed_forward" in asked and "mlp" not in asked:
            raise LigError(
                f"boundaries={brief(boundaries)}: 'feed_forward' is what 'mlp' hands down, name "
                "both."
            )
        if mlp_start not in MLP_STARTS:
            starts = " or ".join(map(repr, MLP_STARTS))
            raise LigError(f"mlp_start={brief(mlp_start)} is unknown: use {starts}.")
        return cls(frozenset(asked), SCALARIZATIONS[scalarization], mlp_start)

    def only(self, names: Collection[str]) -> Asked:
        """The same of some of the boundaries."""
        return replace(self, boundaries=frozenset(names) & self.boundaries)


@dataclass(frozen=True)
class Kind:
    """A boundary, or several, that can be asked for by name."""

    build: Callable[[Rows, Asked, Parts], list[Boundary]]
    """From the rows, what is asked for, and the results of what is integrated before."""
    after: tuple[str, ...] = ()
    """Names of those that are integrated before, if they are asked for too."""
    needs_heads: bool = False
    """Whether a block whose attention is not reached has none."""
    needs_outputs: bool = True
    """Whether it looks at what follows the attention."""
    of_encoder: bool = False
    """Whether its sources are an encoder's tokens."""


def _mlp(rows: Rows, asked: Asked, _: Parts) -> list[Boundary]:
    rows = rows if asked.mlp_start == "attention" else rows.from_zero()
    if rows.around_mlp is not None:
        return [PastMlpBoundary.of("mlp", rows, asked.scalarization)]
    return [MlpBoundary.of("mlp", rows, asked.scalarization)]


def _feed_forward(rows: Rows, asked: Asked, found: Parts) -> list[Boundary]:
    rows = rows if asked.mlp_start == "attention" else rows.from_zero()
    handed_down, scale = Cotangent(found[INTO][:, None]), found["mlp_total"][:, None]
    return [FeedForwardBoundary("feed_forward", rows, handed_down, found[PAST], scale)]


def _attention(rows: Rows, asked: Asked, found: Parts) -> list[Boundary]:
    """The attention boundary; with the mlp boundary the chain too."""
    boundary = AttentionBoundary.of("attention", rows, asked.scalarization)
    if GRADIENT not in found:
        return [boundary]
    handed_down, scale = Cotangent(found[GRADIENT]), found["mlp_total"][:, None]
    return [boundary, AttentionBoundary("chain", rows, handed_down, scale)]


def _layer(rows: Rows, asked: Asked, _: Parts) -> list[Boundary]:
    return [LayerBoundary.of("layer", rows, asked.scalarization)]


def _influence(rows: Rows, asked: Asked, _: Parts) -> list[Boundary]:
    whole = LayerBoundary.of("influence", rows, Vector)
    if not rows.has_heads:
        return [whole]
    return [AttentionBoundary.of("attention_influence", rows, Vector), whole]


def _cross(rows: Rows, asked: Asked, _: Parts) -> list[Boundary]:
    return [AttentionBoundary.of("cross", rows, asked.scalarization)]


KINDS: dict[str, Kind] = {
    "attention": Kind(
        _attention, after=("mlp", "feed_forward"), needs_heads=True, needs_outputs=False
    ),
    "mlp": Kind(_mlp, needs_heads=True),
    "feed_forward": Kind(_feed_forward, after=("mlp",), needs_heads=True),
    "layer": Kind(_layer),
    "influence": Kind(_influence),
    "cross": Kind(_cross, needs_outputs=False, of_encoder=True),
}
"""What ``boundaries=(...)`` may name. A boundary of one's own is entered here, and its results
declared with :func:`captum_lig.flow.axes.declare`."""

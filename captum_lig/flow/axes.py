"""What a result contains: every tensor of a :class:`~captum_lig.LayerFlow`, declared once.

All else follows from the declarations: what a flow takes, how one text is selected, which rows are
checked and how, what is in a file, and what stands in a graph's summary. A boundary of one's own
is declared the same way, before flows with it are made or loaded::

    declare(Field("gate_total", ("text", "target")))
    declare(Field("gate", ("text", "target", "source"), total="gate_total"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError

__all__ = [
    "AXES",
    "FIELDS",
    "Declared",
    "Field",
    "aligned",
    "check_shape",
    "declare",
    "field_of",
    "stacked",
]

AXES = ("text", "head", "target", "source", "encoder")
"""``source`` runs over the tokens entering the layer, ``encoder`` over those of the encoder. Fields
may have further axes, by any name."""


@dataclass(frozen=True)
class Field:
    """One tensor of a flow. As an attribute of a flow it gives the tensor, or None."""

    name: str
    axes: tuple[str, ...]
    doc: str = ""
    total: str | None = None
    """The field that its rows add up to, summed over the last axis: the row is checked."""
    beside: tuple[str, ...] = ()
    """Fields that count into the row's sum."""
    also: tuple[str, ...] = ()
    """Fields that count into it where they are there."""
    missing: str | None = None
    """In place of ``total``: the field that holds the error itself."""
    scale: str | None = None
    """The field that errors are relative to; None: ``total``."""
    asked: tuple[str, ...] = ()
    """Names in ``boundaries=(...)`` that give it; none: its own name."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Axes of a row's sum."""
        return self.axes[:-1]

    @property
    def checked(self) -> bool:
        """Whether rows have completeness errors."""
        return self.total is not None or self.missing is not None

    @property
    def relative_to(self) -> str | None:
        """The field that errors are relative to."""
        return self.scale or self.total

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields without which its rows cannot be checked."""
        names = (self.total, *self.beside, self.missing, self.scale)
        return tuple(name for name in names if name is not None)

    def __set_name__(self, owner: type, name: str) -> None:
        _register(self)

    @overload
    def __get__(self, flow: None, owner: type) -> Field: ...
    @overload
    def __get__(self, flow: Any, owner: type) -> Tensor | None: ...
    def __get__(self, flow: Any, owner: type) -> Field | Tensor | None:
        return self if flow is None else flow.tensors.get(self.name)


FIELDS: dict[str, Field] = {}
"""All declared fields by name."""


def _register(field: Field) -> None:
    """Check a declaration and enter it.

    Raises:
        LigError: see :func:`declare`.
    """
    known = FIELDS.get(field.name)
    if known is not None and known != field:
        raise LigError(
            f"field {field.name!r} is declared already, as {known}: choose another name."
        )
    wrong = [axis for axis in field.axes if not axis.isidentifier()]
    if wrong or field.axes[:1] != ("text",) or len(set(field.axes)) != len(field.axes):
        raise LigError(
            f"field {field.name!r} has the axes {field.axes}: name 'text' first, each axis once."
        )
    if field.total is not None and field.missing is not None:
        raise LigError(f"field {field.name!r} has total= and missing=: declare one of them.")
    if field.missing is not None and field.scale is None:
        raise LigError(f"field {field.name!r} has missing=: declare scale=, too.")
    if field.checked and not {"target"} <= set(field.rows) <= {"text", "head", "target"}:
        raise LigError(
            f"rows of {field.name!r} have the axes {field.rows}: rows that are checked belong to "
            "a text and a target, and may belong to a head; the last axis is summed over."
        )
    for name in field.needs:
        if name not in FIELDS:
            raise LigError(f"field {field.name!r} needs {name!r}: declare that first.")
        axes = FIELDS[name].axes
        fits = set(axes) <= set(field.rows) if name == field.scale else axes == field.rows
        if not fits:
            raise LigError(
                f"field {field.name!r} needs {name!r} with the axes {field.rows} of its rows, and "
                f"that has {axes}."
            )
    FIELDS[field.name] = field


def declare(field: Field) -> Field:
    """Declare a field of one's own: flows take it, check it, and it is saved and loaded.

    Raises:
        LigError: for a name that is taken, or axes or further fields that do not fit.
    """
    if not field.name.isidentifier() or field.name in _TAKEN:
        raise LigError(
            f"field {brief(field.name)}: give a name of letters that no attribute of a flow has."
        )
    _register(field)
    if field.name not in vars(Declared):
        setattr(Declared, field.name, field)
    return field


def field_of(name: str) -> Field:
    """The declaration of a field.

    Raises:
        LigError: if there is none.
    """
    if not isinstance(name, str) or name not in FIELDS:
        raise LigError(
            f"field {brief(name)} is not declared: use one of {', '.join(FIELDS)}, or declare it "
            "with captum_lig.flow.axes.declare."
        )
    return FIELDS[name]


def aligned(values: Tensor, axes: tuple[str, ...], to: tuple[str, ...]) -> Tensor:
    """``values`` with the axes ``axes``, as a view that broadcasts against the axes ``to``."""
    there = [axis for axis in to if axis in axes]
    values = values.permute([axes.index(axis) for axis in there])
    return values[tuple(slice(None) if axis in axes else None for axis in to)]


def check_shape(
    name: str, shape: tuple[int, ...], axes: tuple[str, ...], sizes: Mapping[str, int]
) -> None:
    """Check a tensor's shape against its axes; axes of no known size may have any.

    Raises:
        LigError: if it does not fit.
    """
    wanted = tuple(sizes.get(axis, -1) for axis in axes)
    if len(shape) != len(axes) or any(
        size not in (-1, got) for size, got in zip(wanted, shape, strict=True)
    ):
        said = ", ".join(f"{axis} {sizes[axis]}" if axis in sizes else axis for axis in axes)
        raise LigError(f"{name} has the shape {tuple(shape)}, and its axes are ({said}).")


def stacked(
    texts: Sequence[Mapping[str, Tensor]], rows: Sequence[Tensor], targets: int
) -> dict[str, Tensor]:
    """Results of several texts as the fields of a flow, zeros for targets that are padding.

    Args:
        texts: for each text its results by name, targets first; empty if it has none. What one of
            the others lacks is left out.
        rows: for each text which of the targets they are.
        targets: how many targets there are, padding included.
    """
    fields, some = {}, [found for found in texts if found]
    for name, like in some[0].items():
        if not all(name in found for found in some):
            continue  # attention weights, hidden in one of the texts
        whole = like.new_zeros(len(texts), targets, *like.shape[1:])
        for text, found in enumerate(texts):
            if found:
                whole[text, rows[text]] = found[name]
        fields[name] = whole.movedim(1, field_of(name).axes.index("target")).contiguous()
    return fields


_BY_HEAD = ("text", "head", "target")
_BY_TARGET = ("text", "target")
_MAP = ("text", "target", "source")
_MAPS = ("text", "head", "target", "source")


_TAKEN: set[str] = {"tensors"}


class Declared:
    """The fields of the library's own boundaries; totals stand before what adds up to them."""

    def __init_subclass__(cls) -> None:
        _TAKEN.update(vars(cls), vars(cls).get("__annotations__", ()))

    attention_total = Field(
        "attention_total", _BY_HEAD, "What a row of attention adds up to.", asked=("attention",)
    )
    attention = Field(
        "attention",
        _MAPS,
        "z -> u: per-head attention outputs, before the output projection.",
        total="attention_total",
    )
    residual = Field(
        "residual",
        _BY_TARGET,
        "z -> z': what reaches a token past the attention heads, from itself.",
        asked=("mlp",),
    )
    mlp_total = Field(
        "mlp_total",
        _BY_TARGET,
        "What a row of mlp with residual adds up to: layer_total, except if the mlp boundary "
        "starts at zero. With a target, the relevance of the token leaving.",
        asked=("mlp",),
    )
    feed_forward_token = Field(
        "feed_forward_token",
        _BY_TARGET,
        "z -> m: what reaches the MLP's output past the attention heads, from the token itself.",
        asked=("feed_forward",),
    )
    mlp = Field(
        "mlp",
        ("text", "target", "head"),
        "u -> z': everything after the attention core, by head; what goes through the MLP, too.",
        total="mlp_total",
        beside=("residual",),
        also=("feed_forward_token", "cross_token", "cross_sum"),
    )
    feed_forward_cross = Field(
        "feed_forward_cross",
        _BY_TARGET,
        "u_cross -> m: what of the MLP's output comes from the heads of the cross-attention.",
        asked=("feed_forward",),
    )
    feed_forward = Field(
        "feed_forward",
        _BY_TARGET,
        "m -> z': what comes out of the MLP, the relevance of its output.",
    )
    feed_forward_heads = Field(
        "feed_forward_heads",
        ("text", "target", "head"),
        "u -> m: what of the MLP's output comes from each head.",
        total="feed_forward",
        scale="mlp_total",
        beside=("feed_forward_token",),
        also=("feed_forward_cross",),
        asked=("feed_forward",),
    )
    layer_total = Field("layer_total", _BY_TARGET, "What a row of layer adds up to.",
                        asked=("layer",))  # fmt: skip
    layer = Field("layer", _MAP, "z -> z' in one go.", total="layer_total")
    chain_total = Field(
        "chain_total",
        _BY_HEAD,
        "What a row of chain adds up to, <gbar, u(1) - u(0)>: mlp, except if the mlp boundary "
        "starts at zero.",
        asked=("attention", "mlp"),
    )
    chain = Field(
        "chain",
        _MAPS,
        "z -> u with the cotangent that the mlp boundary hands down; there with attention and mlp.",
        total="chain_total",
        scale="mlp_total",
        asked=("attention", "mlp"),
    )
    influence_missing = Field(
        "influence_missing",
        _BY_TARGET,
        "Length of what the sum of a row's vectors misses of the change of the output.",
        asked=("influence",),
    )
    influence = Field(
        "influence",
        _MAP,
        "z -> z': length of each source's vector, the integral of (dy_j / dz_i) (z_i - z0_i): how "
        "much, without a sign.",
        missing="influence_missing",
        scale="layer_total",
    )
    attention_influence_missing = Field(
        "attention_influence_missing", _BY_HEAD, "The same by head.", asked=("influence",)
    )
    attention_influence = Field(
        "attention_influence",
        _MAPS,
        "z -> u: influence by head.",
        missing="attention_influence_missing",
        scale="attention_total",
        asked=("influence",),
    )
    cross_total = Field("cross_total", _BY_HEAD, "What a row of cross adds up to.",
                        asked=("cross",))  # fmt: skip
    cross_query = Field(
        "cross_query",
        _BY_HEAD,
        "What the queries of the cross-attention bring to its heads, in flows with a target.",
        asked=("cross",),
    )
    cross = Field(
        "cross",
        ("text", "head", "target", "encoder"),
        "e -> u_cross: the encoder's tokens to the heads of the cross-attention, with the queries "
        "held where they are; with a target they move, and stand apart in cross_query.",
        total="cross_total",
        also=("cross_query",),
    )
    cross_token = Field(
        "cross_token",
        _BY_TARGET,
        "z -> u_cross: what of the queries comes from the token itself, past the attention heads.",
        asked=("cross",),
    )
    cross_heads = Field(
        "cross_heads",
        ("text", "target", "head"),
        "u -> u_cross: what of the queries comes from each head of the block's own attention.",
        asked=("cross",),
    )
    cross_sum = Field(
        "cross_sum",
        _BY_TARGET,
        "What comes from the encoder's tokens, over all heads.",
        asked=("cross",),
    )
    attention_value = Field(
        "attention_value",
        _MAPS,
        "z -> u: the part of attention that comes through the values; the rest of it comes through "
        "the pattern, by the keys and, at the target's own place, the query.",
        asked=("attention",),
    )
    entering = Field(
        "entering", ("text", "source"), "Relevance of the tokens entering the layer to the target."
    )
    elsewhere = Field(
        "elsewhere",
        ("text",),
        "Relevance that at this depth belongs to tokens of the other stream of an encoder-decoder: "
        "with what enters it adds up to the change.",
    )
    change = Field("change", ("text",), "The target of the inputs less that of the baselines.")
    scale = Field(
        "scale",
        ("text",),
        "What the errors of a flow with a target are relative to: the size of the change, or the "
        "sum of the sizes of what adds up to it where that cancels to less than a tenth.",
    )
    self_weight = Field(
        "self_weight",
        _BY_HEAD,
        "Attention weight of each target on itself; there with attention, except if weights are "
        "hidden in the block's own code.",
        asked=("attention",),
    )

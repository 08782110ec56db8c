"""Columns of tables, and flows in long form: a row for each attribution.

Columns are arrays, whatever the number of rows. Words are categories: each is kept once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_lig._arguments import fraction, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS, Field, aligned
from captum_lig.flow.tokens import readable_token

__all__ = ["flow_frame", "frame", "integers", "token_words", "word", "words"]

ITSELF = ("residual", "feed_forward_token", "cross_token")
"""Fields of what comes from the target's own token."""
NONE = -1
"""What stands for no head and no token, among whole numbers."""


class TabledFlow(Protocol):
    """What of a :class:`~captum_lig.LayerFlow` is in a table."""

    @property
    def index(self) -> int:
        """Of the layer."""

    @property
    def targets(self) -> Tensor:
        """``(T,)``."""

    @property
    def valid(self) -> Tensor:
        """``(B, S)``."""

    @property
    def target(self) -> str | None:
        """The number, or None for lengths."""

    @property
    def tokens(self) -> tuple[tuple[str, ...], ...] | None:
        """For each text."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Fields by name."""

    @property
    def checked(self) -> tuple[str, ...]:
        """The fields whose rows have a completeness error."""

    @property
    def converged(self) -> dict[str, Tensor]:
        """Which rows are within the tolerance."""

    def need(self, name: str) -> Tensor:
        """A field, or a LigError."""


def frame(columns: Mapping[str, Any]) -> Any:
    """A ``pandas.DataFrame`` of these columns.

    Raises:
        LigError: if pandas is not installed.
    """
    return _pandas().DataFrame(dict(columns))


def integers(values: Any) -> Any:
    """A column of whole numbers; -1 is none."""
    array = np.asarray(values, dtype=np.int64)
    return _pandas().arrays.IntegerArray(array, array == NONE)


def words(codes: Any, names: Sequence[str]) -> Any:
    """A column of categories, by their numbers among ``names``; -1 is none."""
    return _pandas().Categorical.from_codes(np.asarray(codes, dtype=np.int64), list(names))


def word(token: str) -> str:
    """A token as it stands in a table: with a space where its tokenizer has a mark for one."""
    return readable_token(token).replace("␣", " ")


def token_words(positions: Any, tokens: Sequence[str]) -> Any:
    """A column of tokens by their positions; -1 is none."""
    names = [word(token) for token in tokens]
    known = {name: code for code, name in enumerate(dict.fromkeys(names))}
    codes = np.array([known[name] for name in names] + [NONE])
    return words(codes[np.asarray(positions, dtype=np.int64)], list(known))


def flow_frame(
    flows: Sequence[TabledFlow],
    boundaries: Sequence[str] | None,
    threshold: float | None,
    top_k: int | None,
) -> Any:
    """See :meth:`captum_lig.flow.flows.Flows.to_pandas`."""
    _pandas()
    if threshold is not None:
        fraction("threshold", threshold)
    if top_k is not None:
        whole_number("top_k", top_k, 1)
    vocabulary: dict[str, int] = {}
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
    for flow in flows:
        names = _codes(flow, vocabulary)
        for field, owner in _fields(flow, boundaries):
            for name, column in _rows(flow, field, owner, names, threshold, top_k).items():
                parts[name].append(column)
    found = {
        name: np.concatenate(column) if column else np.zeros(0, dtype=COLUMNS[name])
        for name, column in parts.items()
    }
    kinds = list(FIELDS)
    converged = found["converged"]
    known = list(vocabulary)
    made = {
        "boundary": words(found["boundary"], kinds).remove_unused_categories(),
        "target": words(found["target"], known),
        "source": words(found["source"], known),
        "converged": _pandas().arrays.BooleanArray(converged == 1, converged == NONE),
    }
    numbers = ("head", "source_position")
    return frame(
        {
            name: made[name] if name in made else integers(column) if name in numbers else column
            for name, column in found.items()
        }
    )


COLUMNS: dict[str, type] = {
    "text": np.int64,
    "layer": np.int64,
    "boundary": np.int64,
    "head": np.int64,
    "target_position": np.int64,
    "target": np.int64,
    "source_position": np.int64,
    "source": np.int64,
    "value": np.float64,
    "share": np.float64,
    "converged": np.int64,
}
"""Columns of a table of flows, and in what they are collected."""


def _codes(flow: TabledFlow, vocabulary: dict[str, int]) -> Tensor:
    """The number of each source's word ``(B, S)``, which enters the vocabulary."""
    if flow.tokens is None:
        return torch.full(flow.valid.shape, NONE)
    return torch.tensor(
        [[vocabulary.setdefault(word(t), len(vocabulary)) for t in text] for text in flow.tokens]
    )


def _fields(flow: TabledFlow, boundaries: Sequence[str] | None) -> list[tuple[Field, Field]]:
    """The fields that add up to a total, each with the one that its rows belong to."""
    names = flow.checked if boundaries is None else _checked(flow, boundaries)
    found: dict[str, Field] = {}
    for name in names:
        owner = FIELDS[name]
        for one in (name, *owner.beside, *owner.also):
            if one in flow.tensors:
                found.setdefault(one, owner)
    return [(FIELDS[name], owner) for name, owner in found.items()]


def _checked(flow: TabledFlow, boundaries: Sequence[str]) -> list[str]:
    names = [boundaries] if isinstance(boundaries, str) else list(boundaries)
    for name in names:
        flow.need(name)
        if name not in flow.checked:
            raise LigError(
                f"rows of {name!r} add up to no total: use some of {', '.join(flow.checked)}."
            )
    return names


def _rows(
    flow: TabledFlow,
    field: Field,
    owner: Field,
    names: Tensor,
    threshold: float | None,
    top_k: int | None,
) -> dict[str, NDArray[Any]]:
    """The columns of one field of a flow."""
    values = flow.tensors[field.name]
    total = FIELDS["change" if flow.target is not None else owner.total or str(owner.scale)]
    whole = aligned(flow.need(total.name), total.axes, field.axes)
    share = values / whole
    kept = values != 0
    if threshold is not None:
        kept &= share.abs() >= threshold
    if top_k is not None and field.axes[-1] != "target" and top_k < values.shape[-1]:
        best = values.abs().topk(top_k, -1).indices
        kept &= torch.zeros_like(kept).scatter_(-1, best, True)
    where = dict(zip(field.axes, kept.nonzero(as_tuple=True), strict=True))
    text, target = where["text"].cpu(), flow.targets[where["target"]].cpu()
    nothing = torch.full_like(text, NONE)
    of_encoder = "encoder" in where
    own = target if field.name in ITSELF else nothing
    source = where.get("source", where.get("encoder", own)).cpu()
    converged = flow.converged.get(owner.name)
    rows = None if converged is None else aligned(converged, owner.rows, field.axes)
    found = {
        "text": text,
        "layer": torch.full_like(text, flow.index),
        "boundary": torch.full_like(text, list(FIELDS).index(field.name)),
        "head": where.get("head", nothing),
        "target_position": target,
        "target": names[text, target],
        "source_position": source,
        "source": nothing if of_encoder or source is nothing else names[text, source],
        "value": values[kept],
        "share": share[kept],
        "converged": nothing if rows is None else rows.expand_as(kept)[kept].long(),
    }
    return {name: column.detach().cpu().numpy() for name, column in found.items()}


def _pandas() -> Any:
    """The module.

    Raises:
        LigError: if it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise LigError(
            "pandas is not installed: install it with pip install 'captum-lig[notebook]'."
        ) from error
    return pandas

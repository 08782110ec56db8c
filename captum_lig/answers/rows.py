"""The parts of an answer as rows of one table, with what patching found of them."""

from __future__ import annotations

from typing import Any, Protocol

from captum_lig.answers.parts import Part, node_of
from captum_lig.patching import Check

__all__ = ["COLUMNS", "Parted", "part_rows"]

COLUMNS: dict[str, type] = {
    "text": str,
    "against": str,
    "target": str,
    "change": float,
    "kind": str,
    "layer": int,
    "head": int,
    "position": int,
    "token": str,
    "source": int,
    "part": float,
    "share": float,
    "taken_out": float,
    "put_in": float,
}
"""Of the rows, with what they hold; any may be None but the first, and from the third to the fifth.
"""


class Parted(Protocol):
    """What rows are made of: an :class:`Answer`."""

    text: str
    against: str | None
    target: str
    change: float
    checked: Check | None

    def strongest_tokens(self, count: int) -> list[Part]:
        """See :class:`Answer`."""

    def strongest_heads(self, count: int) -> list[Part]:
        """See :class:`Answer`."""

    def strongest_mlps(self, count: int) -> list[Part]:
        """See :class:`Answer`."""


def part_rows(answer: Any, count: int = 20) -> list[dict[str, Any]]:
    """One row a part: so many of tokens, heads and MLPs each, largest first.

    ``taken_out`` and ``put_in`` are None where nothing was patched.
    """
    a: Parted = answer
    effects = {row.node: row for row in a.checked.rows} if a.checked else {}
    found = []
    for part in (*a.strongest_tokens(count), *a.strongest_heads(count), *a.strongest_mlps(count)):
        effect = effects.get(node_of(part))
        asked = (a.text, a.against, a.target, a.change)
        where = (part.kind, part.layer, part.head, part.position, part.token, part.source)
        patched = (None, None) if effect is None else (effect.out, effect.into)
        row = (*asked, *where, part.value, part.share, *patched)
        found.append(dict(zip(COLUMNS, row, strict=True)))
    return found

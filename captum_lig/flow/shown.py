"""How results show themselves: a short ``repr``, and tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from captum_lig._arguments import brief

__all__ = ["Short", "html_list", "html_table"]


class Short:
    """A dataclass with a ``repr`` of a few lines: of tensors the shapes, of long lists the length.

    Give it to ``@dataclass(repr=False)``. What is None, or a function, is left out.
    """

    def __repr__(self) -> str:
        """Names and short values of the fields."""
        found = []
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if one.repr and value is not None and not callable(value):
                found.append(f"{one.name}={_short(value)}")
        return f"{type(self).__name__}({', '.join(found)})"


def html_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for a notebook, of texts that may hold anything."""

    def row(cells: Sequence[object], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{row(header, 'th')}</tr>{body}</table>"


def html_list(facts: Sequence[str]) -> str:
    """Sentences for a notebook."""
    return f"<ul>{''.join(f'<li>{html.escape(fact)}</li>' for fact in facts)}</ul>"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, (list, tuple, dict, set)) and len(value) > 4:
        return f"<{len(value)}>"
    return brief(value)

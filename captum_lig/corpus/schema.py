"""The tables of the data set: which columns each has, for the measures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from captum_lig.corpus.measures import MEASURES, find_measure
from captum_lig.corpus.measures.base import GRIDS, KEYS, NUMBER, Column, Measure
from captum_lig.corpus.packages import need
from captum_lig.errors import LigError

__all__ = [
    "FORMAT",
    "VERSION",
    "arrow_schema",
    "arrow_table",
    "columns_of",
    "schema_markdown",
]

FORMAT, VERSION = "captum_lig.corpus", 1
"""The version changes when a column's name, type or meaning does."""

ABOUT = (
    NUMBER,
    Column("id", "string", "", "What the corpus calls it, or its number."),
    Column("status", "string", "", "done, skipped (it was not run) or failed (it raised)."),
    Column("reason", "string", "", "Why it was skipped or failed."),
    Column("text", "string", "", "The text."),
    Column("tokens", "list<string>", "", "Its tokens, as `Answer.tokens` has them; positions in "
           "other tables count these."),
    Column("maps", "string", "", "The file that its maps are in; missing if none were kept."),
)  # fmt: skip
"""Columns of ``texts`` that are there whatever is measured."""


def columns_of(measures: Sequence[Measure]) -> dict[str, tuple[Column, ...]]:
    """The tables of some measures, by name.

    Raises:
        LigError: if two of them have a table or a column of the same name.
    """
    tables: dict[str, tuple[Column, ...]] = {"texts": ABOUT}
    for measure in measures:
        for table, columns in measure.tables.items():
            if table in GRIDS:
                there = tables.get(table, KEYS[table])
            elif table in tables:
                raise LigError(f"two measures have the table {table!r}: leave one of them out.")
            else:
                there = (NUMBER,)
            names = [one.name for one in (*there, *columns)]
            if len(set(names)) < len(names):
                raise LigError(f"two columns of the table {table!r} have the same name: {names}.")
            tables[table] = (*there, *columns)
    return tables


def arrow_schema(columns: Sequence[Column]) -> Any:
    """Of one table, a ``pyarrow.Schema``."""
    pyarrow = need("pyarrow")
    strings = pyarrow.list_(pyarrow.string())
    return pyarrow.schema(
        [
            (one.name, strings if one.type == "list<string>" else pyarrow.type_for_alias(one.type))
            for one in columns
        ]
    )


def arrow_table(columns: Sequence[Column], values: Mapping[str, Any]) -> Any:
    """One table, a ``pyarrow.Table``; NaN are missing values, columns that are not given all are.

    Args:
        columns: of the table.
        values: tensors, arrays or lists by column, all of one length.
    """
    pyarrow = need("pyarrow")
    schema = arrow_schema(columns)
    length = max((len(column) for column in values.values()), default=0)
    arrays = []
    for field in schema:
        given = values.get(field.name)
        if given is None:
            arrays.append(pyarrow.nulls(length, field.type))
            continue
        if isinstance(given, Tensor):
            given = given.detach().cpu().numpy()
        if isinstance(given, np.ndarray) and pyarrow.types.is_floating(field.type):
            given = given.astype(np.float32)
        arrays.append(pyarrow.array(given, field.type, from_pandas=True))
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def schema_markdown() -> str:
    """The schema with all measures of the library, for ``docs/corpus.md``."""
    lines = [f"Format `{FORMAT}`, version {VERSION}.", ""]
    owners = {
        (table, column.name): name
        for name, measure in MEASURES.items()
        for table, columns in measure.tables.items()
        for column in columns
    }
    tables = columns_of([find_measure(name) for name in MEASURES])
    for table, columns in tables.items():
        lines += [f"### `{table}`", "", "| column | type | unit | meaning | measure |"]
        lines += ["| :-- | :-- | :-- | :-- | :-- |"]
        for one in columns:
            owner = owners.get((table, one.name), "")
            cells = (f"`{one.name}`", one.type, one.unit, one.meaning, owner)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)

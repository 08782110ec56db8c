"""The classes that :func:`captum_lig.inspect_model` fills in.

**JSON** of :meth:`ModelReport.to_json`, ``"format": "captum_lig.model"``, ``"version": 1``: the
fields below under their names, with ``class`` for ``class_name`` and, of the model, a list
``not_supported`` for ``unreachable``; it is empty if everything can be attributed.

What was not found out, because the block could not be looked at so far, is null; ``norm`` is null
also where no closed form reproduces the keys, and so is an error that is not finite.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from captum_lig.flow.shown import Short
from captum_lig.io.codec import writing
from captum_lig.paths.norm import Norm

__all__ = ["FORMAT", "VERSION", "AttentionReport", "BlockReport", "ModelReport", "ModuleList"]

FORMAT = "captum_lig.model"
VERSION = 1


@dataclass(frozen=True, repr=False)
class AttentionReport(Short):
    """What a block's attention function gets. None: hidden in the block's code."""

    site: str
    """Where the block is split: ``"interface"`` (of transformers), ``"sdpa"`` (torch's function),
    ``"projection"`` (the input of the output projection; queries and keys are hidden) or
    ``"parts"`` (functions of the caller)."""
    heads: int
    """Query heads."""
    value_width: int
    key_value_heads: int | None = None
    """Fewer than ``heads`` if heads share keys and values."""
    head_width: int | None = None
    """Width of a query and of a key."""
    scaling: float | None = None
    """Factor of the scalar products of queries and keys."""
    mask: str | None = None
    """``"full"``, ``"causal"`` or ``"other"``: which sources the mask leaves to each target."""
    reach: int | None = None
    """Furthest source that a target sees, in tokens (0: itself); None: as far as the text goes."""
    bias: bool | None = None
    """Whether the mask adds something to logits that it leaves, such as a position bias."""
    arguments: dict[str, str] = field(default_factory=dict)
    """``softcap`` (of the logits) and ``sinks`` (logits without a value), where there are some."""


@dataclass(frozen=True, repr=False)
class BlockReport(Short):
    """What was found in one block. A None says that it was not found out."""

    index: int
    """Position in the order in which the blocks ran."""
    name: str
    class_name: str
    parameters: int
    tokens: int | None = None
    """Length ``S`` of what enters the block, padding included."""
    width: int | None = None
    """Width ``D`` of the residual stream."""
    dtype: str | None = None
    """Precision that paths are computed in: the model's, or float32 if that is half precision."""
    boundaries: tuple[str, ...] = ()
    """Boundaries that can be attributed."""
    not_supported: str | None = None
    """Why the other boundaries cannot, in a sentence."""
    attention: AttentionReport | None = None
    feed_forward: str | None = None
    """Name inside the block of the module whose output is the MLP's, a node of its own with a
    target; ``""``: none was found."""
    norm: Norm | None = None
    """Of the residual stream before the attention; None: no closed form reproduces the keys."""
    keys_know_position: bool | None = None
    """Whether a token's key depends on its position, as with rotary encodings."""
    values_know_position: bool | None = None
    paths: dict[str, str] | None = None
    """By baseline: how the attention is had along the path, ``"closed_form"`` from tables at its
    two ends, ``"run_block"`` by running the block up to its attention core at each point,
    ``"autograd"`` by running its attention, too: the first that is what the block does there."""
    forward_error: dict[str, float] | None = None
    """Largest difference between the split block and the block, as part of the largest entry:
    ``attention``, our attention arithmetic at the ends of both paths against the model's;
    ``block``, the block's output when it is fed its attention output."""


@dataclass(frozen=True)
class ModuleList:
    """A list of modules that may be blocks."""

    name: str
    class_name: str
    """Classes, comma-separated, if there are several."""
    count: int
    reached: int
    """How many of them are blocks."""


@dataclass(frozen=True, repr=False)
class ModelReport:
    """What was found in a model, on one text."""

    class_name: str
    parameters: int
    """Entries of all parameters, shared ones once."""
    dtype: str
    """Of the parameters, comma-separated if there are several."""
    tokens: int | None
    """Length of the text that was looked at, as the first block gets it."""
    module_lists: tuple[ModuleList, ...]
    """Where blocks were looked for."""
    blocks: tuple[BlockReport, ...]
    """In the order they ran."""
    unreachable: str | None = None
    """Why no block could be looked at, in a sentence; None if some were."""
    left_out: tuple[str, ...] = ()
    """Stacks of modules that may be blocks too and that ``layer=None`` leaves out, and why."""
    name: str = ""
    """What the user calls the model."""
    text: str = ""
    """What it was run on; empty if it has no tokenizer."""
    made_up: str = ""
    """What it was run on instead, in words."""

    @property
    def not_supported(self) -> tuple[str, ...]:
        """What cannot be attributed and why, a sentence each; empty if everything can."""
        blocks = [b for b in self.blocks if b.not_supported is not None]
        return (*self.of_the_model, *(f"block {b.index}: {b.not_supported}" for b in blocks))

    @property
    def of_the_model(self) -> tuple[str, ...]:
        """Those of :attr:`not_supported` that are not about a block."""
        found = [] if self.unreachable is None else [self.unreachable]
        found += self.left_out
        found += (
            f"{some.count - some.reached} of the {some.count} modules in {some.name!r} "
            f"({some.class_name}) were not reached as blocks: they do not map tokens to tokens, or "
            "did not run on this text."
            for some in self.module_lists
            if 0 < some.reached < some.count
        )
        return tuple(found)

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        missing = len(self.not_supported)
        said = f"{missing} cannot be attributed or only in part" if missing else "all attributable"
        return (
            f"ModelReport({self.class_name}{name}: {self.parameters:,} parameters, "
            f"{len(self.blocks)} blocks, {said})"
        )

    def _repr_html_(self) -> str:
        """The table of the terminal, for notebooks."""
        from captum_lig.views.model_table import model_table
        from captum_lig.views.notebook import rich_html

        return rich_html(model_table(self))

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's types, as described at the top of this module."""
        found = asdict(self, dict_factory=_in_json)
        del found["unreachable"]
        found["not_supported"] = list(self.not_supported)
        return {"format": FORMAT, "version": VERSION, "name": self.name, **found}

    def save(self, path: str | Path) -> None:
        """Write the report as JSON; missing folders are made."""
        document = json.dumps(self.to_json(), indent=2, allow_nan=False)
        with writing(Path(path)) as beside:
            beside.write_text(document + "\n", encoding="utf-8")


def _in_json(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of one dataclass; ``class_name`` is ``class``, which Python has no field for."""

    def value(given: Any) -> Any:
        if isinstance(given, dict):
            return {name: value(one) for name, one in given.items()}
        if isinstance(given, float) and not math.isfinite(given):
            return None
        return list(given) if isinstance(given, tuple) else given

    return {name.removesuffix("_name"): value(one) for name, one in fields}

"""What a run over a corpus does: one frozen object, for every worker and for the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from captum_lig._arguments import brief, fraction, whole_number
from captum_lig.errors import LigError
from captum_lig.integrals.scalarization import check

__all__ = ["DEFAULT", "MAPS", "Settings"]

DEFAULT = (
    "totals",
    "completeness",
    "consistency",
    "shares",
    "links",
    "nodes",
    "treebank",
    "answer",
    "erasure",
)
"""Measures that are taken if none are named."""

MAPS = ("layer", "composed", "attention", "mlp", "chain")
"""Maps that can be kept: fields of a flow, and the composed map."""


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers of a run depend on; what does not change them is not in it.

    Two runs with equal settings give the same rows. JSON, and picklable.
    """

    model: str | None = None
    """A folder, a name on the hub, ``"minilm"`` (None) or ``"smollm2"``; of a model that was given
    as a module, the name of its class."""
    dtype: str | None = None
    """``"float32"`` (None) or ``"float64"``."""
    device: str | None = None
    """Such as ``"cuda"``; None is the CPU."""
    threads: int = 1
    """Of torch on a CPU, in each worker: other threads round otherwise."""
    measures: tuple[str, ...] = DEFAULT
    """Names of ``captum_lig.corpus.measures.MEASURES``, or ``"package.module:Class"``."""
    layers: tuple[int, ...] | None = None
    """None: all."""
    scalarization: str = "l2"
    baselines: str | float = "target_token"
    """Of the layers: ``"target_token"``, ``"zero"`` or a number."""
    n_steps: int = 16
    tolerance: float | None = 1e-3
    max_steps: int = 1024
    answer_tolerance: float = 1e-2
    """Of the parts of a number, relative to its change, as in :func:`captum_lig.why`."""
    strongest: int = 5
    """Links and nodes kept of each layer, and parts of each kind of a text."""
    maps: tuple[str, ...] = ()
    """Whole maps to keep, see ``MAPS``."""
    limit: int | None = None
    """Texts of the corpus, from its first; None: all."""
    max_tokens: int | None = None
    """Longer texts are skipped; None: those that the model does not take."""
    window: int = 64
    """Texts that are sorted by length together."""
    batch_size: int = 16
    """Most texts in a batch."""
    corpus: str | None = None
    """Digest of the corpus; None if it has none before it is read."""
    weights: str | None = None
    """Digest of the model's configuration, weights and hooks; a worker refuses others."""
    tokenizer: str | None = None
    """Digest of what decides on a text's tokens; a worker refuses another."""
    versions: Mapping[str, str] | None = None
    """Of torch, transformers and captum_lig's schema."""

    def check(self) -> Settings:
        """The settings, if they can be worked with.

        Raises:
            LigError: if they cannot; the message says which and why.
        """
        for name in ("threads", "n_steps", "max_steps", "strongest", "window", "batch_size"):
            whole_number(name, getattr(self, name), 1)
        for name in ("limit", "max_tokens"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1)
        check(self.scalarization)
        for name in ("model", "dtype", "device", "corpus", "weights", "tokenizer"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise LigError(f"{name}={brief(value)}: give a text, or None.")
        for name in ("measures", "maps"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
                raise LigError(f"{name}={brief(value)}: give a tuple of names.")
        if self.layers is not None:
            if not isinstance(self.layers, tuple):
                raise LigError(f"layers={brief(self.layers)}: give a tuple of numbers, or None.")
            for one in self.layers:
                whole_number("layers", one, -(2**31))
        if self.tolerance is not None:
            fraction("tolerance", self.tolerance)
        fraction("answer_tolerance", self.answer_tolerance)
        if not self.measures:
            raise LigError("measures=(): name at least one.")
        unknown = [name for name in self.maps if name not in MAPS]
        if unknown:
            raise LigError(f"maps={brief(self.maps)}: use some of {', '.join(MAPS)}.")
        return self

    def to_json(self) -> dict[str, Any]:
        """As JSON has it: lists in place of tuples."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Settings:
        """The settings that :meth:`to_json` gave.

        Raises:
            LigError: for other keys.
        """
        known = {one.name for one in fields(cls)}
        if set(found) - known:
            raise LigError(f"{brief(sorted(set(found) - known))} are no settings of a corpus run.")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in found.items()
        }
        return replace(cls(), **values)

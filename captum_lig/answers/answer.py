"""``Answer``: why a model says what it says of a text."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from captum_lig._restore import restoring
from captum_lig.answers.page import answer_page, write_answer
from captum_lig.answers.parts import (
    Held,
    Part,
    held_at,
    strongest_heads,
    strongest_mlps,
    strongest_tokens,
    worst_sum_error,
)
from captum_lig.answers.says import Said, is_likeliest
from captum_lig.answers.screen import Section, as_html, as_rich, as_text, sections
from captum_lig.errors import LigError
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.tokens import readable_text, readable_token
from captum_lig.graph import FlowGraph, Trace
from captum_lig.io.codec import writing
from captum_lig.patching import Check, check
from captum_lig.prediction.targets import TargetLike
from captum_lig.views.notebook import show_page

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FILES", "Answer", "Run"]

FILES = ("why.html", "why.png", "why.json")
"""What :meth:`Answer.save` writes to a folder: the page, the picture and the numbers."""
PICTURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Run:
    """What the answer was made of, and is checked with."""

    model: nn.Module
    inputs: dict[str, Tensor]
    other: dict[str, Tensor]
    target: TargetLike
    tokenizer: PreTrainedTokenizerBase | None
    position: int = -1
    """Where a token is predicted; negative ones count from the end."""


@dataclass(repr=False)
class Answer:
    """Why a model says what it says of a text, against another. Printed, it is one screen."""

    text: str
    against: str | None
    """The text that it is compared with; None for padding."""
    model: str
    target: str
    """The number that is explained, in words."""
    tokens: list[str]
    """As the tokenizer writes them, byte-level ones as text (" cat"); special ones included."""
    other_tokens: list[str]
    """Those that they are compared with."""
    says: Said
    """What the model says of the text."""
    would_say: Said
    """What it says of the other text."""
    change: float
    """The number of the text, less that of the other text."""
    flows: list[LayerFlow]
    graph: FlowGraph
    seconds: float
    """That all took, loading the model included."""
    attribution_seconds: float
    run: Run
    favours: tuple[str, str] | None = None
    """Where the number is of one thing less another: what speaks for it, and for the other."""
    continuation: str | None = None
    """What the text was continued with, if that is what is explained."""
    hints: list[str] = field(default_factory=list)
    """What may be meant in another way."""
    checked: Check | None = None
    """What :meth:`check` found."""

    @cached_property
    def trace(self) -> Trace:
        """The parts of all tokens, heads and MLPs."""
        return self.graph.relevance()

    @cached_property
    def sum_error(self) -> float:
        """How far the parts of all tokens are off the change at the worst depth, as a share of it.

        Of a change of 0: as a share of the sum of the parts' sizes.
        """
        return worst_sum_error(self.flows)

    def strongest_tokens(self, count: int = 5) -> list[Part]:
        """The tokens of the text that carry the change, largest first."""
        return strongest_tokens(self.trace, self.change, count)

    def strongest_heads(self, count: int = 5) -> list[Part]:
        """The heads that carry the change, each at a token, largest first."""
        return strongest_heads(self.graph, self.trace, count)

    def strongest_mlps(self, count: int = 5) -> list[Part]:
        """The MLPs that carry the change, each at a token, largest first."""
        return strongest_mlps(self.graph, self.trace, count)

    def held(self) -> list[Held]:
        """The one token with more than half of the change, from the lowest layer to the end."""
        return held_at(self.trace, self.change)

    @restoring
    def check(self, k: int = 10, **settings: Any) -> Check:
        """Patch the ``k`` strongest of each kind and as many at random; the result is kept.

        Args:
            k: how many of tokens, heads and MLPs each.
            settings: see :func:`captum_lig.patching.check`.
        """
        run = self.run
        self.checked = check(
            self.graph,
            run.model,
            run.inputs,
            run.other,
            run.target,
            k,
            tokenizer=run.tokenizer,
            **settings,
        )
        return self.checked

    def sections(self, count: int = 5) -> list[Section]:
        """What the screen shows, so many rows a table."""
        return sections(self, count)

    def numbers(self, count: int = 20) -> dict[str, Any]:
        """All that the screen shows and more rows of it, in JSON's types."""
        found: dict[str, Any] = {
            "model": self.model,
            "text": self.text,
            "against": self.against,
            "continuation": self.continuation,
            "target": self.target,
            "value": self.says.value,
            "other_value": self.would_say.value,
            "change": self.change,
            "tokens": self.tokens,
            "other_tokens": self.other_tokens,
            "says": [asdict(one) for one in self.says.options],
            "would_say": [asdict(one) for one in self.would_say.options],
            "strongest_tokens": [asdict(one) for one in self.strongest_tokens(count)],
            "strongest_heads": [asdict(one) for one in self.strongest_heads(count)],
            "strongest_mlps": [asdict(one) for one in self.strongest_mlps(count)],
            "held": [asdict(one) for one in self.held()],
            "sum_error": self.sum_error,
            "seconds": self.seconds,
            "attribution_seconds": self.attribution_seconds,
            "check": None,
        }
        if self.checked is not None:
            found["check"] = [
                {
                    **asdict(row.node),
                    "strongest": row.strongest,
                    "attributed": row.attributed,
                    "out": row.out,
                    "into": row.into,
                }
                for row in self.checked.rows
            ]
        return found

    def save(self, path: str | Path) -> list[Path]:
        """Write the page, the picture and the numbers to a folder, or one of them to a file.

        Args:
            path: a file whose suffix is ``.html``, ``.json``, or that of a picture, ``.png``,
                ``.pdf`` or ``.svg``; a name without a suffix is a folder for :data:`FILES`, which
                is made if the one that it lies in is there. What is there is replaced.

        Returns:
            The paths of what was written.

        Raises:
            LigError: if that cannot be written, or for another suffix.
        """
        path = Path(path)
        folder = not path.suffix or path.is_dir()
        paths = [path / name for name in FILES] if folder else [path]
        try:
            if folder:
                path.mkdir(exist_ok=True)
            elif not path.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            for one in paths:
                self._write(one)
        except OSError as error:
            raise LigError(
                f"{str(path)!r} cannot be written to ({error.strerror}): choose another place, in "
                "a folder that is there."
            ) from error
        return paths

    def _write(self, path: Path) -> None:
        """One file."""
        suffix = path.suffix.lower()
        asked = self.target
        if self.favours is not None:
            one, other = self.favours
            asked = f"why {one} and not {other}?"
            if not is_likeliest(self.says, self.target, self.favours):
                asked = f"what speaks for {one} rather than {other}?"
        title = f"{self.model}: “{self.text}”, {asked}"
        if suffix == ".html":
            write_answer(self, path)
        elif suffix in PICTURES:
            from captum_lig.views.plots.prediction import plot_prediction

            figure, _ = plot_prediction(self.graph, title=title)
            with writing(path) as beside:
                figure.savefig(beside, dpi=200)
        elif suffix == ".json":
            written = json.dumps(self.numbers(), ensure_ascii=False, indent=1, allow_nan=False)
            with writing(path) as beside:
                beside.write_text(written + "\n", encoding="utf-8")
        else:
            known = ", ".join((".html", ".json", *PICTURES))
            raise LigError(f"{str(path)!r} has no known suffix: use one of {known}, or none.")

    def to_pandas(self) -> Any:
        """A table (``pandas.DataFrame``), a row for each token at each depth, head and MLP.

        Columns are those of :meth:`Trace.to_pandas`, ``value`` being the part, ``share`` of the
        change, and, of nodes that were patched, ``out`` and ``into``, see :meth:`check`. What was
        patched and is no node of the graph (a head at all tokens, the attention's output) follows.
        """
        table = self.trace.to_pandas()
        if self.checked is not None:
            keys = ["kind", "layer", "head", "position"]
            found = self.checked.to_pandas()[[*keys, "token", "attributed", "out", "into"]]
            # Joined as they are, columns of unlike types would become objects.
            kinds = table["kind"].cat.categories.union(found["kind"].cat.categories, sort=False)
            for one in (table, found):
                one["kind"] = one["kind"].cat.set_categories(kinds)
                one["position"] = one["position"].astype("Int64")
                one["token"] = one["token"].astype(object)
            table["order"] = range(len(table))
            table = table.merge(found, on=keys, how="outer", suffixes=("", "_found"))
            table = table.sort_values("order", ignore_index=True).drop(columns="order")
            for name, other in (("token", "token_found"), ("value", "attributed")):
                table[name] = table[name].where(table[name].notna(), table.pop(other))
        table["share"] = table["value"] / self.change if self.change else float("nan")
        return table

    def explore(self, height: int = 720) -> Any:
        """The page inside a notebook, see :func:`captum_lig.views.notebook.show_page`."""
        return show_page(answer_page(self), height)

    def show(self, count: int = 5) -> None:
        """Print it on the terminal, as wide as that is."""
        from rich.console import Console

        Console(highlight=False).print(as_rich(self.sections(count)))

    def __repr__(self) -> str:
        against = "padding" if self.against is None else repr(readable_text(self.against, 60))
        words = ", ".join(
            f"{readable_token(part.token)} {part.value:+.3g}" for part in self.strongest_tokens(3)
        )
        return (
            f"Answer({self.model}: {readable_text(self.text, 60)!r} against {against}\n"
            f"  {self.target}: {self.change:+.3g}\n  words: {words})"
        )

    def __str__(self) -> str:
        return as_text(self.sections())

    def _repr_html_(self) -> str:
        return as_html(self.sections())

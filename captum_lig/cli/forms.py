"""What a command found of one text, in all the forms that it is printed and saved in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from captum_lig.answers import Answer
from captum_lig.answers.rows import COLUMNS, part_rows
from captum_lig.flow.explanation import Explanation
from captum_lig.graph import CannotCarryWarning, FlowGraph
from captum_lig.io.codec import writing
from captum_lig.io.flows import flows_to_json, save_flows
from captum_lig.views.flow_table import flow_table

__all__ = ["AnswerForms", "FlowForms"]


class AnswerForms:
    """Of ``why``; see :class:`captum_lig.cli.results.Result`."""

    columns = COLUMNS

    def __init__(self, answer: Answer) -> None:
        self.text, self._answer = answer.text, answer

    def show(self) -> None:
        """The screen."""
        self._answer.show()

    def document(self) -> dict[str, Any]:
        """All that the screen shows, and more rows of it."""
        return self._answer.numbers()

    def rows(self) -> list[dict[str, Any]]:
        """A part a row."""
        return part_rows(self._answer)

    def save(self, path: Path) -> None:
        """The page, the picture or the numbers."""
        self._answer.save(path)


class FlowForms:
    """Of ``explain``."""

    columns: ClassVar[dict[str, type]] = {
        "text": str,
        "layer": int,
        "target": int,
        "target_token": str,
        "source": int,
        "source_token": str,
        "total": float,
        "direct": float,
        "composed": float,
        "influence": float,
    }

    def __init__(
        self, found: Explanation, rule: str, kind: str | None, hide_first_token: bool
    ) -> None:
        self.text, self._found, self._rule = found.text, found, rule
        self._kind, self._hide = kind, hide_first_token

    def show(self) -> None:
        """A table of the layers."""
        found = self._found
        table = flow_table(
            found.flows, found.tokens, self._rule, kind=self._kind, hide_first_token=self._hide
        )
        Console(highlight=False).print(table)

    def document(self) -> dict[str, Any]:
        """What :func:`captum_lig.io.flows.load_flows` reads."""
        return flows_to_json(self._found)

    def rows(self) -> list[dict[str, Any]]:
        """What a token gets from another in a layer a row: direct, composed, and how much."""
        names, rows = self._found.tokens, []
        for flow in self._found.flows:
            totals, direct = flow.need("layer_total")[0].tolist(), flow.need("layer")[0].tolist()
            composed = flow.compose(self._rule)[0].tolist()
            influence = None if flow.influence is None else flow.influence[0].tolist()
            for n, target in enumerate(flow.targets.tolist()):
                for source, name in enumerate(names):
                    where = (flow.index, target, names[target], source, name)
                    length = None if influence is None else influence[n][source]
                    values = (totals[n], direct[n][source], composed[n][source], length)
                    row = (self._found.text, *where, *values)
                    rows.append(dict(zip(self.columns, row, strict=True)))
        return rows

    def save(self, path: Path) -> None:
        """The flows, a picture of them, or the page."""
        found, suffix = self._found, path.suffix.lower()
        title = f"{found.model}: “{found.text}”"
        if suffix in (".json", ".safetensors"):
            save_flows(found, path)
        elif suffix == ".html":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CannotCarryWarning)  # the page says it
                graph = FlowGraph(found.flows, found.tokens)
            graph.to_html(path, title, self._rule, kind=self._kind, hide_first_token=self._hide)
        else:
            from captum_lig.views.plots import plot_flow

            figure, _ = plot_flow(
                found.flows,
                found.tokens,
                self._rule,
                title,
                kind=self._kind,
                hide_first_token=self._hide,
            )
            with writing(path) as beside:
                figure.savefig(beside, dpi=200)

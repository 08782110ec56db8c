"""What circuits of growing size give, and how faithful they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_lig._arguments import whole_number
from captum_lig.circuits.order import Order, kept_by_score
from captum_lig.errors import LigError
from captum_lig.metrics.circuits import (
    SHARES,
    Scale,
    circuit_cmd,
    circuit_cpr,
    circuit_faithfulness,
)
from captum_lig.patching.two_runs import TwoRuns
from captum_lig.paths.memory import in_halves

__all__ = ["Circuits", "Curve"]

TOLERANCE = 1e-4
"""How far a circuit of everything may be from the model, as part of the change."""


@dataclass(frozen=True)
class Curve:
    """Circuits that keep the best shares of a model's edges or nodes, and what they give."""

    shares: tuple[float, ...]
    """``K`` of them."""
    kept: tuple[int, ...]
    """``(K,)`` how many edges or nodes each keeps."""
    count: int
    """How many there are."""
    values: Tensor
    """``(K,)`` float64, the number in each circuit."""
    none: float
    """The number in a circuit that keeps nothing."""
    whole: float
    """The number in one that keeps all."""
    target: str
    """What the number is, in words."""

    @property
    def faithfulness(self) -> Tensor:
        """``(K,)`` see :func:`captum_lig.metrics.circuits.circuit_faithfulness`."""
        return circuit_faithfulness(self.values, self.none, self.whole)

    def cpr(self, scale: Scale = "linear") -> float:
        """Mean faithfulness over sizes: :func:`captum_lig.metrics.circuits.circuit_cpr`."""
        return float(circuit_cpr(self.faithfulness, self.shares, scale))

    def cmd(self, scale: Scale = "linear") -> float:
        """Mean distance from 1: :func:`captum_lig.metrics.circuits.circuit_cmd`."""
        return float(circuit_cmd(self.faithfulness, self.shares, scale))

    def rows(self) -> list[dict[str, Any]]:
        """One a circuit, plain numbers: a table with ``pandas.DataFrame(curve.rows())``."""
        numbers = zip(
            self.shares, self.kept, self.values.tolist(), self.faithfulness.tolist(), strict=True
        )
        return [
            dict(zip(("share", "kept", "value", "faithfulness"), one, strict=True))
            for one in numbers
        ]

    def __str__(self) -> str:
        """A table."""
        lines = [
            f"{self.target}: {self.none:.4g} with nothing kept, {self.whole:.4g} with all",
            f"{'share':>8}  {'kept':>10}  {'value':>10}  faithfulness",
        ]
        for row in self.rows():
            lines.append(
                f"{row['share']:>8.1%}  {row['kept']:>10,}  {row['value']:>10.4g}  "
                f"{row['faithfulness']:.3f}"
            )
        with suppress(LigError):  # a single share, one of 0, or in another order: no areas
            lines.append(
                f"CPR / CMD over k {self.cpr():.3f} / {self.cmd():.3f}, "
                f"over log k {self.cpr('log'):.3f} / {self.cmd('log'):.3f}"
            )
        return "\n".join(lines)


class Circuits(ABC):
    """Circuits of one model on one text, beside a counterfactual.

    Args:
        question: the two runs.
        at_once: how many circuits run in one pass.
    """

    def __init__(self, question: TwoRuns, at_once: int) -> None:
        assert question.baseline is not None
        assert question.baseline_value is not None
        # A model that takes one patched copy at a time takes one circuit, too.
        self.question, self.at_once = question, at_once if question.at_once > 1 else 1
        self.value = question.value
        """``F(input)``"""
        self.baseline_value = question.baseline_value
        """``F(baseline)``"""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many edges or nodes ``M`` can be kept."""

    @abstractmethod
    def _run(self, kept: Tensor) -> Tensor:
        """The number in circuits ``(C, M)``, few enough for one pass: ``(C,)``."""

    def values(self, kept: Tensor, show_progress: bool = False) -> Tensor:
        """What circuits give.

        Args:
            kept: ``(C, M)`` True for what each circuit keeps, or ``(M,)``.
            show_progress: show a bar over circuits.

        Returns:
            ``(C,)`` float64.

        Raises:
            LigError: for another shape.
        """
        kept = torch.atleast_2d(torch.as_tensor(kept, dtype=torch.bool)).cpu()
        if kept.dim() != 2 or kept.shape[1] != self.count:
            raise LigError(
                f"kept has the shape {tuple(kept.shape)}: give (C, {self.count:,}), for C circuits."
            )
        self.question.check_open()
        found = []
        with tqdm(total=len(kept), desc="circuits", disable=not show_progress) as bar:
            for some in kept.split(self.at_once):
                with torch.no_grad():
                    found += in_halves(self._run, some)
                bar.update(len(some))
        self.question.check_open()
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def curve_of(
        self,
        scores: Tensor,
        shares: Sequence[float] = SHARES,
        order: Order = "size",
        show_progress: bool = False,
    ) -> Curve:
        """Keep the best shares by their scores ``(M,)``; see :func:`kept_by_score`.

        Raises:
            LigError: for scores, shares or an order that do not fit, if a circuit that keeps
                everything does not give what the model gives, and if one that keeps nothing does.
        """
        if scores.shape != (self.count,):
            raise LigError(f"scores have the shape {tuple(scores.shape)}: give ({self.count:,},).")
        kept = kept_by_score(scores, shares, order)
        # Each circuit holds all smaller ones: those of one size are the same.
        none_and_all = torch.tensor([[False], [True]]).expand(-1, self.count)
        asked = torch.cat([none_and_all, kept])
        sizes, which = asked.sum(1).unique(return_inverse=True)
        first = torch.stack([(which == n).nonzero()[0, 0] for n in range(len(sizes))])
        values = self.values(asked[first], show_progress)[which]
        none, whole = values[:2].tolist()
        if whole == none or self.value == self.baseline_value:
            raise LigError(
                f"{self.question.target} is {whole:.6g} with everything kept and the same without: "
                "no part of the model carries a change. Give a counterfactual that changes it."
            )
        self._check("all", whole, self.value)
        self._check_none(none)
        return Curve(
            tuple(shares),
            tuple(kept.sum(1).tolist()),
            self.count,
            values[2:],
            none,
            whole,
            self.question.target,
        )

    @abstractmethod
    def _check_none(self, none: float) -> None:
        """An empty circuit gives what it has to give, if that is known."""

    def _check(self, kept: str, found: float, expected: float) -> None:
        change = abs(self.value - self.baseline_value)
        if not abs(found - expected) <= TOLERANCE * max(change, 1e-30):
            raise LigError(
                f"with {kept} kept {self.question.target} is {found:.6g}, and the model gives "
                f"{expected:.6g}, more than {TOLERANCE:g} of the change ({change:.4g}) off: the "
                "circuit does not run as the model does. In half precision, load the model with "
                "dtype=torch.float32; else give texts between which the number changes more."
            )


def circuits_at_once(given: int | None, most: int) -> int:
    """How many circuits run in one pass: those asked for, or as many as there is room for.

    Raises:
        LigError: for less than 1.
    """
    if given is None:
        return max(1, most)
    return whole_number("internal_batch_size", given, 1)

"""Derivatives of rows along many tangents each, beside one derivative at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import LigError
from captum_lig.paths.jvp import jvp, jvp_of_many


@pytest.mark.parametrize(("rows", "many"), [(1, 1), (1, 9), (4, 9), (5, 9), (8, 9), (9, 9), (7, 3)])
def test_tangents_of_many_rows(rows: int, many: int) -> None:
    """Whichever way rows and tangents fill the sequences; rows come with what is theirs."""
    generator = torch.Generator().manual_seed(0)
    x, own = torch.randn(2, rows, 3, generator=generator).double()
    tangents = torch.randn(rows, many, 3, generator=generator).double()
    ran: list[int] = []

    def function(z: Tensor) -> Tensor:
        ran.append(len(z))
        return torch.tanh(z * own.repeat_interleave(len(z) // rows, 0)).cumsum(-1)

    found = jvp_of_many(function, (x,), (tangents,))
    assert found.shape == (rows, many, 3)
    for row in range(rows):
        for which in range(many):
            wanted = torch.autograd.functional.jvp(
                lambda z, row=row: torch.tanh(z * own[row]).cumsum(-1), x[row], tangents[row, which]
            )[1]
            torch.testing.assert_close(found[row, which], wanted, rtol=1e-12, atol=1e-14)


def test_tangents_share_a_forward_pass() -> None:
    """What the work is for: 18 rows of 64 sources need not run 18 times 64 tokens forward."""
    ran: list[int] = []

    def function(z: Tensor) -> Tensor:
        ran.append(len(z))
        return z.sin()

    x = torch.linspace(0, 1, 18 * 2).view(18, 2)
    jvp_of_many(function, (x,), (x[:, None].repeat(1, 64, 1),))
    assert len(ran) == 1
    assert ran[0] <= 2 * 64  # sequences that are full


class DetachedBackward(torch.autograd.Function):
    """An operation whose backward pass cannot be differentiated, and does not say so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        return (outer[0] * 3 * ctx.saved_tensors[0] ** 2).detach()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_two_backward_passes_in_every_precision(dtype: torch.dtype, seed: int) -> None:
    """What is rounded is told from what cannot be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    x, along = (torch.randn(2, 64, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(64, 64, generator=generator).to(dtype) / 8

    def rate(x: Tensor, along: Tensor, weight: Tensor) -> Tensor:
        found: Tensor = jvp(lambda z: torch.tanh(z @ weight) @ weight, (x,), (along,), False)[1]
        return found

    wanted = rate(x.double(), along.double(), weight.double())
    found = rate(x, along, weight)
    assert found.dtype == dtype
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error <= 8 * torch.finfo(dtype).eps
    with pytest.raises(LigError, match="neither in forward mode nor by two backward"):
        jvp(DetachedBackward.apply, (x,), (along,), False)

r"""What a target owes to itself, estimated where a target-token path gives exactly 0.

On the path of target ``j`` every source starts as ``z_j``, so source ``j`` does not move and its
attribution ``c_j`` is 0. The LIG paper (Suzuki et al. 2026) fills it in after integration. With
``s`` the sum of the other attributions,

- ``zero_ratio``: ``c_j <- s * zero_j / (sum of zero without j)``, ``zero`` the same row with the
  zero baseline;
- ``map_ratio``: ``c_j <- s * p_jj / (1 - p_jj)``, ``p`` the attention weights of the head;

and then all of ``c`` is rescaled so that its sum is ``s`` again. With the target's share
``p_jj``, or ``zero_j / sum(zero)``, both are: ``c_j <- s * share``, the others times
``1 - share``. In this form a share of 1 (a token that sees only itself) is no division by 0.

Rows of ``zero`` are signed: where they nearly cancel, a share can be far outside of 0 to 1.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError

__all__ = ["ESTIMATES", "check_estimate", "with_self_share", "zero_share"]

ESTIMATES = ("map_ratio", "zero_ratio")


def zero_share(zero: Tensor, targets: Tensor) -> Tensor:
    """Share of each target in its own row, from attributions with the zero baseline.

    Args:
        zero: ``(..., T, S)``
        targets: ``(T,)`` positions of the targets among the sources.

    Returns:
        ``(..., T)``; NaN, no estimate, where a row of ``zero`` adds up to exactly 0.
    """
    total = zero.sum(-1)
    return torch.where(total != 0, _own(zero, targets) / total, torch.nan)


def with_self_share(attributions: Tensor, share: Tensor, targets: Tensor) -> Tensor:
    """Give each target its share of its own row, and the other sources the rest.

    Args:
        attributions: ``(..., T, S)``; the targets' own entries are not looked at.
        share: ``(..., T)``; rows where it is NaN stay as they are.
        targets: ``(T,)`` positions of the targets among the sources.

    Returns:
        ``(..., T, S)``, whose rows add up to what the other sources did.
    """
    rows = torch.arange(len(targets), device=targets.device)
    others = attributions.clone()
    others[..., rows, targets] = 0
    filled = others * (1 - share).unsqueeze(-1)
    filled[..., rows, targets] = share * others.sum(-1)
    return torch.where(share.isnan().unsqueeze(-1), attributions, filled)


def _own(attributions: Tensor, targets: Tensor) -> Tensor:
    rows = torch.arange(len(targets), device=targets.device)
    return attributions[..., rows, targets]


def check_estimate(self_term: str, baselines: object, boundaries: Collection[str]) -> None:
    """Refuse an estimate that does not fit what is going to be attributed.

    Args:
        self_term: the estimate.
        baselines: what the paths start from, one or one for each layer.
        boundaries: what is asked for.

    Raises:
        LigError: for an unknown estimate, another baseline, or boundaries without self terms.
    """
    if self_term not in ESTIMATES:
        raise LigError(f"self_term={brief(self_term)} is unknown: use {' or '.join(ESTIMATES)}.")
    for one in baselines if isinstance(baselines, (list, tuple)) else [baselines]:
        if not isinstance(one, str) or one != "target_token":
            raise LigError(
                f"self_term={self_term!r} with the baseline {brief(one)}: self terms are estimated "
                "for the baseline 'target_token', where they are 0."
            )
    estimated = {"attention"} if self_term == "map_ratio" else {"attention", "layer"}
    if not estimated & set(boundaries):
        names = " or ".join(map(repr, sorted(estimated)))
        raise LigError(
            f"self_term={self_term!r} has nothing to estimate in boundaries="
            f"{tuple(sorted(boundaries))}: name {names}, too."
        )

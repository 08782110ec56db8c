"""What heads and the MLP of a block write to the residual stream, if that is a sum.

In a pre-norm model the tokens leaving a block are those entering it, and what its heads and its MLP
add. Whether it is so is seen from two runs: the parts' changes have to add up to the whole one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.model.call import BlockCall
from captum_lig.model.compare import deviation, nearly_equal
from captum_lig.model.stages import Stages

__all__ = [
    "Written",
    "no_direct_edges",
    "reads_heads",
    "written",
    "written_by_feed_forward",
    "written_by_heads",
]


@dataclass(frozen=True)
class Written:
    """What a block's parts change in the tokens leaving it, from one run to another."""

    heads: Tensor
    """``(H, S, D)`` of each head; H is 0 in a block without attention."""
    feed_forward: Tensor | None
    """``(S, D)`` of the MLP; None if there is none."""


def written(
    stages: Stages, own: Mapping[str, Tensor], other: Mapping[str, Tensor], valid: Tensor
) -> Written:
    """What heads and the MLP change.

    Args:
        stages: the block.
        own: its nodes in one run, ``z (S, D)``, ``u (S, H, e)``, ``m`` if it has an MLP, and ``y``.
        other: the same in another.
        valid: ``(S,)`` False for padding.

    Raises:
        LigError: if that does not add up to what changes.
    """
    call = stages.split.call
    if stages.is_whole:
        raise no_direct_edges(call, "it mixes tokens by other means than heads that are reached")
    step = {name: own[name] - other[name] for name in own}
    outside = ~valid[:, None]
    heads = written_by_heads(stages, step["u"][None])[0].masked_fill(outside, 0.0)
    m = None
    if "m" in step:
        m = written_by_feed_forward(stages, step["m"][None])[0].masked_fill(outside, 0.0)
    total = other["y"] + step["z"] + heads.sum(0) + (0.0 if m is None else m)
    if not nearly_equal(total[valid], own["y"][valid]):
        raise no_direct_edges(
            call,
            "what its heads, its MLP and the tokens entering change does not add up to what "
            "changes in the tokens leaving (off by "
            f"{deviation(total[valid], own['y'][valid]):.1e}), there is a norm or a gate after "
            "them, most likely",
        )
    return Written(heads, m)


# A sum is the same wherever it begins. From zero nothing is lost in rounding: some entries of the
# stream are thousands of times larger than what is added to them.


def written_by_heads(stages: Stages, step: Tensor) -> Tensor:
    """What changes of heads' outputs ``(N, S, H, e)`` change in the stream, ``(N, H, S, D)``."""
    heads = step.shape[2]
    u = step.new_zeros(len(step), heads, *step.shape[1:])
    for head in range(heads):
        u[:, head, :, head] = step[:, :, head]
    found: Tensor = _from_zero(stages, u.flatten(0, 1), None).unflatten(0, (len(step), heads))
    return found


def written_by_feed_forward(stages: Stages, step: Tensor) -> Tensor:
    """What changes of the MLP's output ``(N, S, D)`` change in the stream, ``(N, S, D)``."""
    split = stages.split
    shape = split.own.shape if stages.has_heads else (len(split.z), 0, split.z.shape[-1])
    return _from_zero(stages, step.new_zeros(len(step), *shape), step)


def _from_zero(stages: Stages, u: Tensor, m: Tensor | None) -> Tensor:
    """What heads ``(N, S, H, e)`` and an MLP add to the tokens leaving, ``(N, S, D)``."""
    z = u.new_zeros(len(u) + 1, *stages.split.z.shape)
    u = torch.cat([u, u.new_zeros(1, *u.shape[1:])])
    if stages.has_feed_forward:
        m = torch.zeros_like(z) if m is None else torch.cat([m, torch.zeros_like(z[:1])])
    with torch.no_grad():
        outputs = stages.output(z=z, u=u, m=m)
    return outputs[:-1] - outputs[-1]


def reads_heads(stages: Stages, own: Mapping[str, Tensor]) -> bool:
    """Whether the MLP of a block reads what its heads write; not in parallel blocks.

    Args:
        stages: the block.
        own: its nodes in one run, as :func:`written` takes them.
    """
    if "m" not in own or not own["u"].shape[1]:
        return False
    moved = own["u"] + own["u"].std().clamp_min(1e-3)
    with torch.no_grad():
        found = stages.feed_forward(z=own["z"][None], u=moved[None])[0]
    return not nearly_equal(found, own["m"])


def no_direct_edges(call: BlockCall, why: str) -> LigError:
    """A block that has none, and why."""
    return LigError(
        f"{call.describe()} has no direct edges through it: {why}. They are for models whose "
        "residual stream is the sum of what heads and MLPs write (pre-norm). Ask for nodes: "
        "relevances, or the effects of patching."
    )

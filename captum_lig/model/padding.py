"""Which tokens of a block are padding.

A length does not tell whose a mask is: an image may have as many patches as its caption has tokens,
a decoder's text may be as long as its encoder's. So a token is padding

1. if the mask that the block's own attention got hides it from every target, itself included; or
2. if the caller's ``attention_mask`` says so, and it is about the block's tokens: with other tokens
   put where that mask is 0, the block gets and gives something else there and nowhere else. Where
   a model multiplies what is masked by zero, that cannot be seen; then the block, which does not
   read those positions, has to read them as soon as the model is called without the mask.

Whatever the model reads as text is text, whatever a mask says of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from captum_lig.cost import Meter
from captum_lig.errors import LigError, out_of_memory
from captum_lig.model.attention_call import read_sources, reads_nothing
from captum_lig.model.call import BlockCall
from captum_lig.model.inputs import Masked, ModelCall
from captum_lig.model.split import SplitBlock

__all__ = ["differ", "reads_own_tokens", "with_padding"]


def with_padding(
    model: ModelCall, blocks: list[BlockCall], record: Callable[[ModelCall], list[BlockCall]]
) -> list[BlockCall]:
    """The recorded blocks with which of their tokens are padding.

    Args:
        model: the model's call.
        blocks: what was recorded.
        record: records the same blocks of another call.

    Raises:
        LigError: if a token that is no padding may read no token at all.
    """
    found: dict[int, Tensor] = {}
    for number, block in enumerate(blocks):
        hidden = _hidden(block)
        if hidden is not None:
            found[number] = hidden
    for masked in model.masked:
        undecided = {
            number: block
            for number, block in enumerate(blocks)
            if number not in found and block.hidden.shape[:2] == masked.padding.shape
        }
        if undecided:
            for number in _about(model, masked, record, undecided):
                found[number] = masked.padding.to(undecided[number].hidden.device)
    result = [replace(block, padding=found.get(number)) for number, block in enumerate(blocks)]
    for block in result:
        _check_targets(block)
    return result


# --- the block's own mask ---


def _hidden(block: BlockCall) -> Tensor | None:
    """``(B, S)`` tokens that no target reads by the block's own mask; None if it hides none."""
    mask = _own_mask(block)
    if mask is None:
        return None
    hidden = ~read_sources(mask).expand(block.hidden.shape[:2])
    if not bool(hidden.any()) or not reads_own_tokens(SplitBlock(block, 0, Meter())):
        return None
    return hidden


def _own_mask(block: BlockCall) -> Tensor | None:
    """The mask of an attention over as many sources and targets as the block has tokens."""
    attention, (batch, length, _) = block.attention, block.hidden.shape
    if attention is None or attention.sizes != (batch, length, length):
        return None
    return attention.mask


def reads_own_tokens(block: SplitBlock) -> bool:
    """Whether keys or values depend on the block's tokens: else they are another model's states."""
    split = block.some
    try:
        with torch.no_grad():
            own, other = split.pre(split.z[None]), split.pre(_moved(split.z)[None])
    except Exception as error:  # what is wrong with it is for its validation to say
        if out_of_memory(error):
            raise
        return True
    return any(not torch.equal(a, b) for a, b in zip(own[1:], other[1:], strict=True))


def _check_targets(block: BlockCall) -> None:
    if not bool(block.valid.any()):
        raise LigError(
            f"{block.describe()}: every token of every text is padding, its attention mask lets no "
            "token be read. Leave it out, with layer=[...]."
        )
    mask = _own_mask(block)
    if mask is None:
        return
    silent = (reads_nothing(mask) & block.valid).nonzero()
    if len(silent):
        text, target = silent[0].tolist()
        raise LigError(
            f"{block.describe()}: the attention mask forbids target {target} of text {text} every "
            "source, itself too, and others read it, so that it is no padding. What attention "
            "makes of such a row differs between implementations: let it read itself."
        )


# --- the caller's mask ---


def _about(
    model: ModelCall,
    masked: Masked,
    record: Callable[[ModelCall], list[BlockCall]],
    blocks: dict[int, BlockCall],
) -> list[int]:
    """Which of the blocks have the tokens that a mask of the caller's is about."""
    others = record(model.with_instead(masked.tokens, masked.other_tokens()))
    found: list[int] = []
    untouched: list[int] = []
    for number, block in blocks.items():
        padding = masked.padding.to(block.hidden.device)
        changed = differ(block.hidden, others[number].hidden)
        if not bool(changed.any()):
            if block.attention is None or block.attention.sizes is None:
                untouched.append(number)
        else:
            changed |= differ(block.output, others[number].output)
            if not bool((changed & ~padding).any()):
                found.append(number)
    if untouched:
        bare = record(model.with_instead(masked.mask, torch.ones_like(masked.mask)))
        for number in untouched:
            block, padding = blocks[number], masked.padding.to(blocks[number].hidden.device)
            text = int(padding.any(-1).nonzero()[0])
            z = block.hidden[text].detach()
            if not _reads(block, text, z, padding) and _reads(bare[number], text, z, padding):
                found.append(number)
    return found


def _reads(block: BlockCall, text: int, z: Tensor, padding: Tensor) -> bool:
    """Whether tokens of a text ``z (S, D)`` depend, through the block, on those of the padding."""
    one = SplitBlock(block, text, Meter())
    other = torch.where(padding[text, :, None], _moved(z), z)
    with torch.no_grad():
        outputs = [one.whole(x[None]) for x in (z, other)]
    return bool((differ(*outputs)[0] & ~padding[text]).any())


def _moved(z: Tensor) -> Tensor:
    """Other vectors, about as large, in place of ``z (S, D)``."""
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    return z + noise * z[torch.isfinite(z).all(-1)].std().clamp_min(1e-3)


def differ(before: Tensor, after: Tensor) -> Tensor:
    """``(B, S)`` tokens ``(B, S, D)`` that are not the same up to rounding."""
    half = before.dtype not in (torch.float32, torch.float64)
    size = torch.linalg.vector_norm(before.float(), dim=-1).clamp_min(1e-6)
    difference = torch.linalg.vector_norm(after.float() - before.float(), dim=-1)
    same: Tensor = difference <= (3e-2 if half else 1e-3) * size
    return ~same  # what is NaN has changed

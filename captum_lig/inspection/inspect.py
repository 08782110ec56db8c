"""What a model is made of and what of it can be attributed, without attributing anything.

The model runs on one text and its blocks are split as for an attribution. The report says the
attention function's arguments and mask, the norm that was recognised, the kinds of path, and how
exactly the split block reproduces the block. No list of families is consulted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig._restore import restoring
from captum_lig.cost import Meter
from captum_lig.errors import LigError, out_of_memory
from captum_lig.inspection.report import AttentionReport, BlockReport, ModelReport, ModuleList
from captum_lig.model.attention_call import forbidden
from captum_lig.model.call import BlockCall
from captum_lig.model.find_blocks import elements
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.model.split import SplitBlock
from captum_lig.model.validate import tokens_first
from captum_lig.paths.baselines import Start
from captum_lig.paths.choose import choose_structure, inspect_structure, make_path
from captum_lig.pretrained.load import Checkpoint, check_place, find_model, load_network
from captum_lig.pretrained.made_up import made_up_inputs

__all__ = ["inspect_model", "inspect_pretrained"]

MOST_ROWS = 16
"""Tokens at which the split block is compared, whatever the length of the text."""


@restoring
def inspect_model(
    model: nn.Module, inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any]
) -> ModelReport:
    """Find out what a model's blocks are and what of them can be attributed.

    Args:
        model: any module, in evaluation mode. It is not changed.
        inputs: what it is called with: token ids ``(B, S)``, a tuple of tensors, or a tokenizer's
            mapping. The first text is used; it needs two tokens or more.

    Returns:
        The report. A model that is not supported is no error: the report says why.

    Raises:
        LigError: if the model is in training mode, or cannot be called with these inputs.

    Example::

        >>> report = inspect_model(model, tokenizer("The cat sat.", return_tensors="pt"))
        >>> report.blocks[0].norm, report.not_supported
        (Norm(kind='identity', eps=0.0), ())
    """
    if not isinstance(model, nn.Module):
        raise LigError(f"model is a {type(model).__name__}: give a torch.nn.Module.")
    call = ModelCall.of(model, inputs)
    with torch.no_grad():
        call.run()  # unmodified: an error here is the caller's
    finder, unreachable = Finder(model), None
    blocks: tuple[BlockReport, ...] = ()
    seen = None
    try:
        with finder.recorded(call) as calls:
            blocks = tuple(_inspect_block(finder, b) for b in calls)
            if calls and not tokens_first(calls[0]):
                seen = int(calls[0].valid[0].sum())
    except Exception as error:  # an unknown model may raise anything
        if out_of_memory(error):
            raise
        unreachable = _sentence(error)
    if seen is not None and seen < 2:
        raise LigError("the text has one token, which attends to itself alone: give a longer text.")
    return ModelReport(
        class_name=type(model).__name__,
        parameters=_size(model),
        dtype=", ".join(sorted({_dtype(p.dtype) for p in model.parameters()})),
        tokens=blocks[0].tokens if blocks else None,
        module_lists=_module_lists(elements(model), {block.name for block in blocks}),
        blocks=blocks,
        unreachable=unreachable,
        left_out=tuple(finder.left_out),
    )


@restoring
def inspect_pretrained(
    model: str | Path | None, text: str, dtype: str | None = None, device: str | None = None
) -> ModelReport:
    """Load a model and inspect it.

    Args:
        model: a model on the Hugging Face hub or a folder; None is the embedded model. Of an
            encoder-decoder the encoder is inspected. One without a tokenizer runs on made-up
            inputs, and the report says on which.
        text: what it is run on.
        dtype: ``"float32"`` (None) or ``"float64"``.
        device: such as ``"cuda"``.

    Raises:
        LigError: if the model cannot be loaded, or if the text has less than two tokens or more
            than the model takes.
    """
    check_place(dtype, device)
    found = find_model(model, without_tokenizer=True)
    if isinstance(found, Checkpoint):
        inputs, made_up = found.encode(text), ""
    else:
        inputs, made_up = made_up_inputs(found)
    loaded = load_network(found, dtype, device)
    report = inspect_model(loaded, {name: x.to(device or "cpu") for name, x in inputs.items()})
    return replace(report, name=found.name, text="" if made_up else text, made_up=made_up)


def _inspect_block(finder: Finder, call: BlockCall) -> BlockReport:
    """All there is to know of one block, from the first text of a run."""
    z = call.hidden
    report = BlockReport(
        index=call.index,
        name=call.name,
        class_name=type(call.module).__name__,
        parameters=_size(call.module),
        tokens=z.shape[1],
        width=z.shape[-1],
    )
    try:
        whole = z.dtype in (torch.float32, torch.float64)
        call = finder.attached(call)
        split = SplitBlock(call.in_dtype(z.dtype if whole else torch.float32), 0, Meter())
        z, kept = split.z, call.valid[0].to(z.device).nonzero().squeeze(-1)
        report = replace(report, dtype=_dtype(z.dtype))
        attended = split.attend(z[None], fused=True)[0]
        if not split.has_attention:
            return replace(
                report,
                boundaries=("layer", "influence"),
                feed_forward=_feed_forward(finder, call),
                forward_error={"block": _gap(attended[kept][:, 0], split.output[kept])},
                not_supported="no attention was reached in it, so it has no attention and mlp "
                "boundaries.",
            )
        structure = inspect_structure(split, split.epsilons, len(kept))
        report = replace(
            report,
            attention=_attention(split, kept, attended),
            norm=structure.norm,
            keys_know_position=structure.keys_know_position,
            values_know_position=structure.values_know_position,
        )
        rows = kept[torch.linspace(0, len(kept) - 1, min(len(kept), MOST_ROWS)).round().long()]
        starts = {"zero": Start(shared=torch.zeros_like(z)), "target_token": Start()}
        chosen = {
            baseline: choose_structure(split, start, kept, with_output=False)
            for baseline, start in starts.items()
        }
        end = torch.ones(1, device=z.device, dtype=torch.float64)
        ends = [make_path(split, chosen[name], starts[name], rows).at(end).u[0] for name in starts]
        errors = {"attention": max(_gap(u, attended[rows]) for u in ends)}
        report = replace(
            report,
            paths={name: chosen[name].path(start) for name, start in starts.items()},
            forward_error=errors,
        )
        for u in ends:
            split.check(rows, u)
        report = replace(report, boundaries=("attention",))
        # Reversed: what follows the attention must not depend on other tokens or on positions.
        back = rows.flip(0)
        output = split.post(attended[back], z[back], back).flip(0)
        errors["block"] = _gap(output, split.output[rows])
        split.check(rows, attended[rows], output)
        for start in starts.values():
            choose_structure(split, start, kept)
    except Exception as error:  # an unknown block may raise anything when called again
        if out_of_memory(error):
            raise
        return replace(report, not_supported=_sentence(error, call))
    boundaries = ("attention", "mlp", "layer", "influence")
    return replace(report, boundaries=boundaries, feed_forward=_feed_forward(finder, call))


def _feed_forward(finder: Finder, call: BlockCall) -> str | None:
    """Name of a block's MLP in it; empty if none is found, None if that could not be seen."""
    try:
        found = finder.feed_forward(call)
    except Exception as error:  # an unknown block may raise anything when called again
        if out_of_memory(error):
            raise
        return None
    return "" if found is None else found.name


def _attention(split: SplitBlock, kept: Tensor, attended: Tensor) -> AttentionReport:
    """What a block's attention function gets, as far as it can be seen."""
    arguments = {}  # what makes the row function another one than the softmax
    if split.softcap is not None:
        arguments["softcap"] = f"{split.softcap:g}"
    if split.sinks is not None:
        arguments["sinks"] = f"{len(split.sinks)}, one a head"
    seen: dict[str, Any] = {}
    if split.opens:
        q, k, _ = split.pre(split.z[None])
        mask = None if split.mask is None else split.mask[:, kept][..., kept]
        seen = dict(zip(("mask", "reach", "bias"), mask_kind(mask), strict=True))
        seen |= {"key_value_heads": k.shape[1], "head_width": q.shape[-1]}
        seen["scaling"] = float(split.scaling)
    return AttentionReport(
        site=split.call.site,
        heads=split.heads,
        value_width=attended.shape[-1],
        arguments=arguments,
        **seen,
    )


def mask_kind(mask: Tensor | None) -> tuple[str, int | None, bool]:
    """What a mask ``(1 or H, n, n)`` leaves to each target: kind, reach, and whether it adds."""
    if mask is None:
        return "full", None, False
    by_head = ~forbidden(mask)
    bias = bool((mask[by_head] != 0).any())
    allowed = by_head[0]
    if not bool((by_head == allowed).all()):
        return "other", None, bias
    position = torch.arange(len(allowed), device=mask.device)
    back = position[:, None] - position  # by how much a source precedes its target
    causal = not bool(allowed[back < 0].any())
    distance = back if causal else back.abs()
    reach = int(distance[allowed].max())
    inside = distance <= reach
    if not torch.equal(allowed, inside & (back >= 0) if causal else inside):
        return "other", None, bias
    return "causal" if causal else "full", reach if reach < len(allowed) - 1 else None, bias


def _gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as part of the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _module_lists(found: Mapping[str, nn.Module], reached: set[str]) -> tuple[ModuleList, ...]:
    """The outermost lists of modules."""
    lists: dict[str, dict[str, nn.Module]] = {}
    for name, module in found.items():
        if not any(name.startswith(f"{other}.") for other in found):
            lists.setdefault(name.rpartition(".")[0], {})[name] = module
    return tuple(
        ModuleList(
            name=name,
            class_name=", ".join(sorted({type(module).__name__ for module in modules.values()})),
            count=len(modules),
            reached=len(modules.keys() & reached),
        )
        for name, modules in lists.items()
    )


def _sentence(error: Exception, call: BlockCall | None = None) -> str:
    """What went wrong, in one line; without the block's name, which stands beside it."""
    text = " ".join(str(error).split())
    if not isinstance(error, LigError):
        reason = f"{type(error).__name__}: {text[:200]}"
        return f"it fails when its attention is replaced by ours ({reason})."
    return text if call is None else text.replace(call.describe(), "it")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

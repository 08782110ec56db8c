"""The terminal table of what was found in a model: equal blocks share a column."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from captum_lig.inspection.report import AttentionReport, BlockReport, ModelReport

__all__ = ["model_table"]

Kind = Sequence[BlockReport]
"""Blocks that differ in name and rounding only."""

SIDE_BY_SIDE = 2
"""Columns that stay readable in 80 characters."""

NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}
PATHS = {
    "closed_form": "closed form",
    "run_block": "by running what precedes the attention",
    "autograd": "by autograd through the block",
}
SITES = {
    "interface": "transformers' attention interface",
    "sdpa": "torch's scaled_dot_product_attention",
    "projection": "its output projection",
    "parts": "the functions given",
}
HIDDEN = "hidden in the block"


def model_table(report: ModelReport) -> Group:
    """What was found in a model, for a rich console.

    Args:
        report: what :func:`captum_lig.inspection.inspect.inspect_model` returned.

    Returns:
        A rich renderable: ``rich.print(model_table(report))``. It fits 80 columns.
    """
    kinds = _together(report.blocks, _looks)
    parts: list[Table | Text] = [_heading(report)]
    for some in (kinds[i : i + SIDE_BY_SIDE] for i in range(0, len(kinds), SIDE_BY_SIDE)):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
        table.add_column("blocks")
        for kind in some:
            table.add_column(_ranges(kind), overflow="fold")
        for what, tell in _ROWS:
            table.add_row(what, *(tell(kind) for kind in some))
        parts += [Text(), table]
    parts += [Text(), *_verdict(report)]
    if kinds:
        parts.append(
            Text(
                "forward error: largest difference between the split block and the unmodified one "
                "on this text, as part of the largest entry; of the worst block.",
                style="dim",
            )
        )
    return Group(*parts)


def _looks(block: BlockReport) -> str:
    """What blocks of one kind have in common."""
    reason = _without_numbers(block)
    own: dict[str, Any] = {"index": 0, "name": "", "parameters": 0, "forward_error": None}
    return str(asdict(replace(block, **own, not_supported=reason)))


def _together(blocks: Kind, key: Callable[[BlockReport], object]) -> list[Kind]:
    found: dict[object, list[BlockReport]] = {}
    for block in blocks:
        found.setdefault(key(block), []).append(block)
    return list(found.values())


def _without_numbers(block: BlockReport) -> str:
    return re.sub(r"\d\S*", "#", block.not_supported or "")


def _ranges(kind: Kind) -> str:
    """The blocks' numbers, as ``--layers`` of the command line takes them: ``0,2,4-6``."""
    runs: list[list[int]] = []
    for block in kind:
        if runs and block.index == runs[-1][1] + 1:
            runs[-1][1] = block.index
        else:
            runs.append([block.index, block.index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _heading(report: ModelReport) -> Text:
    name = f"{report.name}: " if report.name else ""
    text = Text(f"{name}{report.class_name}", style="bold")
    text.append(f", {report.parameters:,} parameters, {report.dtype}", style="not bold")
    if report.tokens:
        text.append(f", looked at on {report.tokens} tokens", style="not bold")
    if report.made_up:
        text.append(f". No tokenizer is beside it: it ran on {report.made_up}.", style="not bold")
    return text


def _verdict(report: ModelReport) -> list[Text]:
    """What can be attributed and what cannot."""
    lines = []
    if not report.blocks:
        seen = [f"{some.name}, {some.count} × {some.class_name}" for some in report.module_lists]
        found = "; ".join(seen) or "nothing, there is no list of modules (nn.ModuleList) in it"
        lines.append(Text(f"looked at: {found}"))
    for kind in _together(report.blocks, lambda block: block.boundaries):
        if kind[0].boundaries:
            supported = f"supported: {_these(kind)}: {', '.join(kind[0].boundaries)}"
            lines.append(Text(supported, style="green"))
    reasons = list(report.of_the_model)
    for kind in _together(report.blocks, _without_numbers):
        if kind[0].not_supported is not None:
            reasons.append(f"{_these(kind)}: {kind[0].not_supported}")
    return lines + [Text(f"not supported: {reason}", style="bold red") for reason in reasons]


def _these(kind: Kind) -> str:
    return f"block{'s' if len(kind) > 1 else ''} {_ranges(kind)}"


# --- the rows of the table ----------------------------------------------------------------------


def _module(kind: Kind) -> str:
    first, last = kind[0].name, kind[-1].name
    return first if first == last else f"{first} to {last}"


def _parameters(kind: Kind) -> str:
    least, most = min(b.parameters for b in kind), max(b.parameters for b in kind)
    return f"{least:,} each" if least == most else f"{least:,} to {most:,}"


def _attention(attention: AttentionReport) -> str:
    if attention.mask is None:
        return HIDDEN
    parts = ["a mask of another kind" if attention.mask == "other" else attention.mask]
    if attention.reach is not None and attention.mask == "causal":
        parts.append(f"sliding window of {attention.reach + 1}")
    elif attention.reach is not None:
        parts.append(f"window of {attention.reach} on either side")
    if attention.bias:
        parts.append("bias in the mask")
    parts += [f"{name} ({value})" for name, value in attention.arguments.items()]
    return ", ".join(parts)


def _heads(attention: AttentionReport) -> str:
    shared = attention.key_value_heads
    if shared is None or shared == attention.heads:
        return str(attention.heads)
    return f"{attention.heads} of queries, {shared} of keys and values"


def _head_width(attention: AttentionReport) -> str:
    value = attention.value_width
    if attention.head_width is None:
        return f"values {value}"
    values = "" if value == attention.head_width else f", values {value}"
    return f"{attention.head_width}{values}"


def _scaling(attention: AttentionReport) -> str:
    if attention.scaling is None or attention.head_width is None:
        return HIDDEN
    usual = math.isclose(attention.scaling, attention.head_width**-0.5, rel_tol=1e-6)
    note = f" (1/√{attention.head_width})" if usual else ""
    return f"{attention.scaling:.4g}{note}"


def _norm(block: BlockReport) -> str:
    if block.norm is None:
        return "none that a closed form knows"
    if block.norm.kind == "identity":
        return "none (identity)"
    return f"{NORMS[block.norm.kind]}, eps {block.norm.eps:g}"


def _position(block: BlockReport) -> str:
    known = {"keys": block.keys_know_position, "values": block.values_know_position}
    return " and ".join(what for what, knows in known.items() if knows) or "neither keys nor values"


def _paths(kind: Kind) -> str:
    paths = kind[0].paths or {}
    return "\n".join(f"{baseline}: {PATHS[how]}" for baseline, how in paths.items()) or "?"


def _error(kind: Kind) -> str:
    """The worst block's."""
    errors = [block.forward_error for block in kind if block.forward_error is not None]
    names = dict.fromkeys(name for error in errors for name in error)
    worst = {name: max(error.get(name, 0.0) for error in errors) for name in names}
    shown = [f"{name} {error:.0e}" if error else f"{name} 0" for name, error in worst.items()]
    return ", ".join(shown) or "?"


def _feed_forward(kind: Kind) -> str:
    name = kind[0].feed_forward
    return "?" if name is None else f"the output of {name}" if name else "none found"


def _of_attention(tell: Callable[[AttentionReport], str]) -> Callable[[Kind], str]:
    return lambda kind: tell(kind[0].attention) if kind[0].attention else "?"


def _if_seen(tell: Callable[[BlockReport], str]) -> Callable[[Kind], str]:
    """Of what stands before the attention, if its code does not hide it."""

    def cell(kind: Kind) -> str:
        block = kind[0]
        if block.keys_know_position is None:  # nothing was found out
            return "?"
        hidden = block.attention is not None and block.attention.mask is None
        return HIDDEN if hidden else tell(block)

    return cell


_ROWS: tuple[tuple[str, Callable[[Kind], str]], ...] = (
    ("module", _module),
    ("class", lambda kind: kind[0].class_name),
    ("parameters", _parameters),
    ("residual width", lambda kind: str(kind[0].width or "?")),
    ("split at", _of_attention(lambda attention: SITES[attention.site])),
    ("heads", _of_attention(_heads)),
    ("head width", _of_attention(_head_width)),
    ("attention", _of_attention(_attention)),
    ("logits scaled by", _of_attention(_scaling)),
    ("norm before it", _if_seen(_norm)),
    ("position is in", _if_seen(_position)),
    ("paths", _paths),
    ("path precision", lambda kind: kind[0].dtype or "?"),
    ("MLP node", _feed_forward),
    ("boundaries", lambda kind: ", ".join(kind[0].boundaries) or "none"),
    ("forward error", _error),
)

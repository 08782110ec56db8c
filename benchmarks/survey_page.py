"""The tables of docs/families.md, from what `benchmarks.survey` found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from tests.helpers.families import FAMILIES

if TYPE_CHECKING:
    from benchmarks.survey import Found

KINDS = ("text", "text to text", "pictures", "sound", "text with pictures or sound", "other")


def text(everything: Sequence[Found], stamp: str) -> str:
    """All of them."""
    return "\n\n".join([stamp, *_sections(everything)])


def _sections(everything: Sequence[Found]) -> list[str]:
    of = {name: [f for f in everything if f.outcome == name] for name in _OUTCOMES}
    counts = "\n".join(
        f"| {name} | {len(found)} | {_OUTCOMES[name]} |" for name, found in of.items()
    )
    sections = [
        f"{len(everything)} families.",
        f"| outcome | families | what it says |\n|---|---|---|\n{counts}",
        "## In the test suite",
        _tested(everything),
    ]
    tested = {family.name for family in FAMILIES}
    right = [f for f in of["right"] if f.name not in tested]
    if right:
        sections += ["## Right, beyond those", _by_kind(right)]
    part = [f for f in everything if f.boundaries and f.refused]
    if part:
        sections += [
            "## Right in part",
            "Blocks or boundaries of these that are refused, or that do not run as blocks, and "
            "why. What is compared of them is in the tables above.",
            _by_reason(part, lambda f: f.refused),
        ]
    faults = [*of["WRONG"], *of["raw error"]]
    if faults:
        rows = [[f.name, f.outcome, f.reason.replace("|", "/")] for f in faults]
        sections += [
            "## Wrong, or an error of its own",
            _table(["family", "outcome", "what"], rows),
        ]
    for name, title in (("flagged", "Flagged"), ("undecided", "Undecided"), ("refused", "Refused")):
        if of[name]:
            sections += [f"## {title}", _by_reason(of[name], lambda f: [f.reason])]
    if of["not built"]:
        sections += [
            "## Not built",
            "`python -m benchmarks.survey --only NAME` says more.",
            _by_reason(of["not built"], lambda f: [_not_built(f.reason)]),
        ]
    return sections


_OUTCOMES = {
    "right": "every entry that was compared agrees with the block's own integral",
    "flagged": "a row did not converge, and is named in a warning and in `flow.converged`",
    "undecided": "the literal integral did not converge, or there was no time",
    "refused": "nothing is attributed; an error says why",
    "raw error": "an error that is not a `LigError`: a fault of ours",
    "WRONG": "an entry is off: a fault of ours",
    "not built": "no small model was made of it, or it ran on no inputs that were tried",
}


def _tested(everything: Sequence[Found]) -> str:
    found = {f.name: f for f in everything}
    rows = []
    for family in FAMILIES:
        one = found.get(family.name)
        if one is None:
            continue
        rows.append([family.name, family.what, _sites(one), one.outcome, _error(one)])
    return _table(["family", "what is special", "split", "outcome", "largest error"], rows)


def _by_kind(found: Sequence[Found]) -> str:
    groups: dict[tuple[str, str, str], list[Found]] = {}
    for f in found:
        boundaries = ", ".join(n for n in ("attention", "mlp", "layer") if n in f.boundaries)
        groups.setdefault((_kind(f), _sites(f), boundaries), []).append(f)
    rows = []
    for key in sorted(groups, key=lambda key: (KINDS.index(key[0]), key[1:])):
        some = groups[key]
        worst = max(some, key=lambda f: f.worst or 0)
        names = ", ".join(f.name + ("*" if f.unfinished else "") for f in some)
        rows.append([*key, names, _error(worst)])
    note = "\n\nAn asterisk: there was no time for all of its blocks and baselines."
    head = ["input", "split", "boundaries", "families", "largest error"]
    return _table(head, rows) + (note if any(f.unfinished for f in found) else "")


def _by_reason(found: Iterable[Found], reasons: Callable[[Found], Sequence[str]]) -> str:
    groups: dict[str, list[str]] = {}
    for f in found:
        for reason in dict.fromkeys(_plain(text) for text in reasons(f)):
            groups.setdefault(reason, []).append(f.name)
    rows = [
        [reason, ", ".join(names)]
        for reason, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return _table(["reason", "families"], rows)


def _plain(reason: str) -> str:
    """A reason without what differs from family to family."""
    rules = (
        (r"^blocks? \d+: ", ""),
        (
            r"no blocks were found in \w+: none of its lists of modules \(.*?\)( holds)?",
            "no blocks: no list of modules holds",
        ),
        (r" Name its blocks in layer=.*", ""),
        (r"block '[^']*' \(\w+ of \w+\)", "a block"),
        (r"\d+ of the \d+ modules in '[^']*' \([^)]*\) were", "some modules of a list were"),
        (r" \(off by [^)]*\)", ""),
        (r"the \d+ modules in '[^']*' \(\w+\) are", "a list of modules is"),
        (r"beside those in '[^']*'(, '[^']*')*, ", "beside others, "),
        (r"(they reach no|no module of the model reaches) attention at .*", r"\1 attention there."),
        (r"\d+\.\d+e[+-]\d+ from softmax", "that much from softmax"),
        (r"[.:;,]? [Aa]sk for its layer boundary alone.*", "."),
        (r" Load the model with attn_implementation.*", ""),
        (r"transformers' ", "transformers "),
        (r"torch's ", "torch "),
        (r"'[^']*'", "'...'"),
        (r" \((?:\w+\.)*\d*[^()]*, (?:zero|target_token)\)", ""),
        (r"\b\d+(\.\d+)?(e-?\d+)?\b", "n"),
        (r"\|", "/"),
        (r"\s+", " "),
    )
    for pattern, by in rules:
        reason = re.sub(pattern, by, reason)
    return reason.strip()[:240]


def _not_built(reason: str) -> str:
    library = re.search(r"requires the (\w+) library", reason)
    if library is not None:
        return f"needs the library {library[1]}"
    if reason.startswith("runs on no inputs"):
        return "made, but runs on none of the inputs that were tried"
    if "million parameters" in reason or "in time" in reason:
        return "not small enough when its sizes are made small by their names"
    return "transformers refuses its configuration of small sizes, or its base model"


def _kind(found: Found) -> str:
    names = set(found.inputs)
    text = "input_ids" in names
    seen = any("pixel" in n or "grid" in n for n in names)
    heard = any(
        "features" in n or ("values" in n and "pixel" not in n) or "audio" in n for n in names
    )
    if text and (seen or heard):
        return "text with pictures or sound"
    if seen:
        return "pictures"
    if heard:
        return "sound"
    if "decoder_input_ids" in names:
        return "text to text"
    return "text" if text else "other"


def _sites(found: Found) -> str:
    return ", ".join(sorted(set(found.sites)))


def _error(found: Found) -> str:
    return "" if found.worst is None else f"{found.worst:.0e}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

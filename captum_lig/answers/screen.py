"""An answer as one screen of tables and sentences, for the terminal and for notebooks."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from captum_lig.answers.parts import Held, Part, node_of
from captum_lig.answers.says import Said, is_likeliest
from captum_lig.answers.words import (
    at,
    error_percent,
    padding_for,
    part_of,
    percent,
    probability,
    quoted,
    signed,
)
from captum_lig.flow.tokens import readable_text
from captum_lig.patching import Check

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = [
    "Screened",
    "Section",
    "agreement",
    "as_html",
    "as_rich",
    "as_text",
    "rather",
    "sections",
]

WIDTH = 80
MOST_HELD = 4
"""Where it goes to and fro more often than this, nobody is said to hold it."""
SAID = 3
"""So many of the most likely of each text are shown."""
HALF = 0.5
"""Of its part, what a head reads from one token says little of where the whole came from."""
AGREE = 0.5
"""Where the two effects of nodes correlate less, no one number can be both."""


@dataclass(frozen=True)
class Section:
    """A heading, a table, and sentences below it; each may be empty."""

    title: str
    header: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    notes: list[str] = field(default_factory=list)
    left: int = 1
    """So many columns of words; the others are numbers."""


class Screened(Protocol):
    """What is shown of an :class:`Answer`."""

    text: str
    against: str | None
    model: str
    target: str
    tokens: list[str]
    other_tokens: list[str]
    says: Said
    would_say: Said
    change: float
    seconds: float
    attribution_seconds: float
    favours: tuple[str, str] | None
    continuation: str | None
    checked: Check | None
    hints: list[str]

    @property
    def sum_error(self) -> float:
        """See :class:`Answer`."""

    def strongest_tokens(self, count: int) -> list[Part]:
        """See :class:`Answer`."""

    def strongest_heads(self, count: int) -> list[Part]:
        """See :class:`Answer`."""

    def strongest_mlps(self, count: int) -> list[Part]:
        """See :class:`Answer`."""

    def held(self) -> list[Held]:
        """See :class:`Answer`."""


def sections(answer: Any, count: int) -> list[Section]:
    """What there is to see, from the prediction down to how far it can be trusted."""
    a: Screened = answer
    found = [_question(a), _predictions(a), _explained(a)]
    if a.hints:
        found.append(Section("", notes=[f"Note: {hint}" for hint in a.hints]))
    if a.change:
        found += [_tokens(a, count), _heads(a, count), _mlps(a, count)]
    notes = _trust(a) if a.change else []
    if a.checked is not None:
        notes += _checked(a, a.checked)
    notes.append(f"{a.seconds:.1f} s, {a.attribution_seconds:.1f} s of them for the parts.")
    found.append(Section("", notes=notes))
    return [one for one in found if one.rows or one.notes]


def _question(a: Screened) -> Section:
    other = padding_for(a.tokens, a.other_tokens)
    if a.against is not None:
        other = f'"{_line(a.against)}"'
    rows = [("the text", f'"{_line(a.text)}"'), ("compared with", other)]
    if a.continuation is not None:
        rows.append(("continued with", quoted(a.continuation, 200)))
    verb = "say that" if a.says.options else "give that number"
    title = f"Why does {_line(a.model)} {verb}?"
    if not is_likeliest(a.says, a.target, a.favours):
        title = f"What speaks for {_line(a.target)} in {_line(a.model)}?"
        if a.favours is not None:
            title = rather(a.model, a.favours)
    return Section(title, rows=rows, left=2)


def rather(model: str, favours: tuple[str, str]) -> str:
    """The question of a token that the model does not say itself."""
    return f"What speaks for {favours[0]} rather than {favours[1]} in {_line(model)}?"


def _predictions(a: Screened) -> Section:
    """What is most likely for either text, and what the question is about."""
    rows = []
    kept = {one.number for said in (a.says, a.would_say) for one in said.options[:SAID]}
    for one in a.says.options:
        there = a.would_say.of(one.number)
        assert there is not None
        if one.number in kept or one.words in (a.favours or ()):
            both = (probability(each.probability, each.logit) for each in (one, there))
            rows.append((one.words, *both))
    what = "The model says" if a.continuation is None else "Before it, the model says"
    return Section("", (what, "after the text", f"after {_other(a)}"), rows)


def _other(a: Screened) -> str:
    return "padding" if a.against is None else "the other text"


def _explained(a: Screened) -> Section:
    values = f"{signed(a.says.value)} for the text, {signed(a.would_say.value)} for {_other(a)}"
    said = f"Explained: {a.target}: {values}, a change of {signed(a.change)}."
    if not a.change:
        said += " So there is nothing to explain."
    elif a.favours is not None:
        said += f" + speaks for {a.favours[0]}, - for {a.favours[1]}."
    else:
        said += " + makes it larger, - smaller."
    return Section("", notes=[said])


def _tokens(a: Screened, count: int) -> Section:
    rows = []
    for part in a.strongest_tokens(count):
        other = a.other_tokens[part.position]
        same = other == a.tokens[part.position]
        instead = "" if same else quoted(other)
        rows.append((at(part.token, part.position), instead, *_numbers(a, part)))
    held = a.held()
    parts = [
        f"{_holder(one)} " + (f"until layer {one.last}" if n < len(held) - 1 else "to the end")
        for n, one in enumerate(held)
    ]
    notes = []
    if 1 < len(held) <= MOST_HELD:
        notes.append(f"More than half of it is held by {', then by '.join(parts)}.")
    return Section("", ("Words it came from", "instead of", "part", "share"), rows, notes, left=2)


def _holder(held: Held) -> str:
    """Who holds more than half of the change at some depths."""
    if held.token is None:
        return "each of several tokens" if held.several else "no one token"
    return f"{quoted(held.token)} ({held.position})"


def _heads(a: Screened, count: int) -> Section:
    rows, parts = [], a.strongest_heads(count)
    names = _effect_names(a, parts)
    for part in parts:
        where = (part.name, at(part.token, part.position), _source(a, part))
        rows.append((*where, *_numbers(a, part), *(_effects(a, part) if names else ())))
    header = ("Heads", "writing at", "reading most from", "part", "share", *names)
    notes = []
    if any(_from_there(part) <= HALF for part in parts):
        notes.append("Where a head reads at most half of its part from a token, it says how much.")
    return Section("", header, rows, notes, left=3)


def _from_there(part: Part) -> float:
    """The share of a head's part that came from its source; above 1 where others work against."""
    assert part.source_value is not None
    return part.source_value / part.value


def _source(a: Screened, part: Part) -> str:
    """The token that a head reads most from, and how much where that is not most of all."""
    assert part.source is not None
    share = _from_there(part)
    return at(a.tokens[part.source], part.source) + (f": {share:.0%}" if share <= HALF else "")


def _mlps(a: Screened, count: int) -> Section:
    parts = a.strongest_mlps(count)
    names = _effect_names(a, parts)
    rows = [
        (
            *(part.name, at(part.token, part.position), *_numbers(a, part)),
            *(_effects(a, part) if names else ()),
        )
        for part in parts
    ]
    return Section("", ("MLPs", "at", "part", "share", *names), rows, left=2)


def _effect_names(a: Screened, parts: Sequence[Part]) -> tuple[str, ...]:
    """Of the columns of what patching found; none where it patched none of the parts."""
    patched = set() if a.checked is None else {row.node for row in a.checked.rows}
    return ("taken out", "put in") if patched & set(map(node_of, parts)) else ()


def _effects(a: Screened, part: Part) -> tuple[str, ...]:
    """What patching found of a part; empty where it was not patched."""
    assert a.checked is not None
    row = next((one for one in a.checked.rows if one.node == node_of(part)), None)
    if row is None:
        return "", ""
    return part_of(row.out, a.change), part_of(row.into, a.change)


def _trust(a: Screened) -> list[str]:
    notes = [
        f"The words' parts add up to the change, to within {error_percent(a.sum_error)} at every "
        "depth. Those of heads and MLPs overlap: one reads what another wrote. (3) is a position, "
        "head 2.1 is head 1 of layer 2; all count from 0."
    ]
    if a.against is None and a.checked is None:
        notes.append(
            "Compared with padding, taking a part out of the text and putting it into the padding "
            "can have little to do with each other, and no one number is both: --check, or check() "
            "in Python, shows them. A second text (--against) says more."
        )
    return notes


def _checked(a: Screened, check: Check) -> list[str]:
    return [
        f"taken out: what the number loses if this alone is as with {_other(a)}. put in: what "
        f"the number of {_other(a)} gains if this alone is as with the text.",
        *agreement(check),
    ]


def agreement(check: Check) -> list[str]:
    """How far what was attributed is what patching finds, in sentences."""
    names = {"tokens": "tokens", "heads": "heads", "feed_forward": "MLPs", "attention": "attention"}
    notes: list[str] = []
    means, counts, apart = [], [], []
    for kind in check.kinds:
        one = check.correlation(kind)
        if math.isnan(one.mean):
            notes.append(f"{names[kind]}: {one.reason}, so nothing can be correlated.")
            continue
        strongest = sum(row.strongest for row in check.rows if row.node.kind == kind)
        means.append(f"{names[kind]} {one.mean:.2f} ({one.agreement:.2f})")
        counts.append(f"over the {strongest} strongest and {one.nodes - strongest} at random")
        if one.agreement < AGREE:
            apart.append(
                f"For {names[kind]} taking out and putting in have little to do with each other, "
                f"and no one number is both: parts correlate at {one.out:.2f} with taking out, at "
                f"{one.into:.2f} with putting in."
            )
    if means:
        same = f", {counts[0]} of each" if len(set(counts)) == 1 else ""
        if not same:  # fewer are left of one kind
            means = [f"{mean} {over}" for mean, over in zip(means, counts, strict=True)]
        notes.append(
            f"Parts correlate with the mean of both effects (and these with each other){same}: "
            f"{', '.join(means)}."
        )
    return [*notes, *apart]


def _numbers(a: Screened, part: Part) -> tuple[str, str]:
    return part_of(part.value, a.change), percent(part.share)


def _line(text: str) -> str:
    """The text as it is, on one line: line breaks and the like as escapes."""
    return readable_text(text, 200)


# --- drawn ----------------------------------------------------------------------------------------

_JOINED = "\ue000"
"""Stands for a space at which no line ends."""


def as_rich(found: Sequence[Section]) -> RenderableType:
    """For a rich console of 80 columns or more."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[Any] = []
    for section in found:
        if section.title:
            shown.append(Text(section.title, style="bold"))
        if section.rows:
            table = Table(
                box=box.SIMPLE_HEAD if section.header else None,
                show_header=bool(section.header),
                padding=(0, 1, 0, 0),
                pad_edge=False,
                show_edge=False,
            )
            columns = section.header or ("",) * len(section.rows[0])
            for number, name in enumerate(columns):
                right = number >= section.left
                table.add_column(name, justify="right" if right else "left", no_wrap=right)
            for row in section.rows:
                table.add_row(*(Text(cell, overflow="fold") for cell in row))
            shown.append(table)
        shown += [_Note(note) for note in section.notes]
        shown.append(Text())
    return Group(*shown[:-1])


class _Note:
    """A sentence, wrapped; the space that a token begins with stays with it."""

    def __init__(self, words: str) -> None:
        self._words = re.sub(r'(?<!\S)" (?=\S)', f'"{_JOINED}', words)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for line in Text(self._words).wrap(console, options.max_width):
            yield Text(line.plain.rstrip().replace(_JOINED, " "))


def as_text(found: Sequence[Section], width: int = WIDTH) -> str:
    """Plain text."""
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width, highlight=False, color_system=None).print(as_rich(found))
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def as_html(found: Sequence[Section]) -> str:
    """For notebooks."""

    def cells(row: Sequence[str], tag: str, left: int) -> str:
        sides = ("left" if n < left else "right" for n in range(len(row)))
        each = zip(sides, row, strict=True)
        return "".join(
            f'<{tag} style="text-align:{side};white-space:pre-wrap">{html.escape(cell)}</{tag}>'
            for side, cell in each
        )

    parts = []
    for section in found:
        if section.title:
            parts.append(f"<p><strong>{html.escape(section.title)}</strong></p>")
        if section.rows:
            head = f"<tr>{cells(section.header, 'th', section.left)}</tr>" if section.header else ""
            body = "".join(f"<tr>{cells(row, 'td', section.left)}</tr>" for row in section.rows)
            parts.append(f"<table>{head}{body}</table>")
        parts += [f"<p>{html.escape(note)}</p>" for note in section.notes]
    return "".join(parts)

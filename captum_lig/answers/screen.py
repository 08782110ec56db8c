"""An answer as one screen of tables and sentences, for the terminal and for notebooks."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from captum_lig.answers.parts import Held, Part
from captum_lig.answers.says import Said
from captum_lig.answers.words import at, error_percent, percent, probability, quoted, signed
from captum_lig.flow.tokens import readable_text
from captum_lig.patching import Check

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "Screened",
    "Section",
    "as_html",
    "as_rich",
    "as_text",
    "checked_section",
    "sections",
]

WIDTH = 80
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
        found += [_tokens(a, count), _heads(a, count), _mlps(a, count), _trust(a)]
    if a.checked is not None:
        found.append(checked_section(a.checked, count))
    return [one for one in found if one.rows or one.notes]


def _question(a: Screened) -> Section:
    other = "padding in place of its words" if a.against is None else f'"{_line(a.against)}"'
    rows = [("the text", f'"{_line(a.text)}"'), ("compared with", other)]
    if a.continuation is not None:
        rows.append(("continued with", f'"{_line(a.continuation)}"'))
    verb = "say that" if a.says.options else "give that number"
    return Section(f"Why does {_line(a.model)} {verb}?", rows=rows, left=2)


def _predictions(a: Screened) -> Section:
    if not a.says.options:
        return Section("")
    rows = []
    for one in a.says.options:
        there = a.would_say.of(one.number)
        assert there is not None
        rows.append((one.words, probability(one.probability), probability(there.probability)))
    what = "The model says" if a.continuation is None else "Before it, the model says"
    other = "after the padding" if a.against is None else "after the other text"
    return Section("", (what, "after the text", other), rows)


def _explained(a: Screened) -> Section:
    other = "padding" if a.against is None else "the other text"
    notes = [
        f"Explained: {a.target}. It is {signed(a.says.value)} for the text and "
        f"{signed(a.would_say.value)} for {other}, a change of {signed(a.change)}."
    ]
    if not a.change:
        notes.append("It is the same for both, so there is nothing to explain.")
    elif a.favours is not None:
        notes.append(f"Below, + speaks for {a.favours[0]} and - for {a.favours[1]}.")
    else:
        notes.append("Below, + makes it larger and - makes it smaller.")
    return Section("", notes=notes)


def _tokens(a: Screened, count: int) -> Section:
    rows = []
    for part in a.strongest_tokens(count):
        other = a.other_tokens[part.position]
        same = other == a.tokens[part.position]
        instead = "" if same else quoted(other)
        rows.append((at(part.token, part.position), instead, *_numbers(part)))
    held = a.held()
    parts = [
        f"{quoted(one.token)} ({one.position}) "
        + (f"until layer {one.last}" if n < len(held) - 1 else "to the end")
        for n, one in enumerate(held[:4])
    ]
    more = ", ..." if len(held) > 4 else ""
    notes = [f"Most of it is held by {', then by '.join(parts)}{more}."] if len(held) > 1 else []
    header = ("Words it came from", "instead of", "part", "of the change")
    return Section("", header, rows, notes, left=2)


def _heads(a: Screened, count: int) -> Section:
    rows = []
    for part in a.strongest_heads(count):
        assert part.source is not None
        source = at(a.tokens[part.source], part.source)
        rows.append((part.name, at(part.token, part.position), source, *_numbers(part)))
    header = ("Attention heads", "writing at", "reading from", "part", "of the change")
    return Section("", header, rows, left=3)


def _mlps(a: Screened, count: int) -> Section:
    rows = [
        (part.name, at(part.token, part.position), *_numbers(part))
        for part in a.strongest_mlps(count)
    ]
    return Section("", ("MLPs", "writing at", "part", "of the change"), rows, left=2)


def _trust(a: Screened) -> Section:
    notes = [
        "A head takes something from one token to another, an MLP works on one. (3): the token's "
        "position in the text. head 23.4: head 4 of layer 23. All count from 0.",
        "A part is how much of the change comes through it, in the unit of the number that is "
        "explained. The parts of the words add up to the change. Those of heads and MLPs do not: "
        "what goes through one head may go on through others and through MLPs.",
        f"How well it adds up: at each depth the tokens' parts add up to the change to within "
        f"{error_percent(a.sum_error)} of it.",
    ]
    if a.against is None:
        notes.append(
            "Without another text the comparison is with padding. Then what taking a head out of "
            "the text does can have little to do with what putting it into the padding does, and "
            "no one number can be both. "
            + (
                "Compare with another text (against), or check, which shows both."
                if a.checked is None
                else "Below are both. A comparison with another text (against) says more."
            )
        )
    notes.append(f"{a.seconds:.1f} s, {a.attribution_seconds:.1f} s of them for the parts.")
    return Section("", notes=notes)


def checked_section(check: Check, count: int) -> Section:
    """What patching showed."""
    rows = []
    notes = []
    names = {"tokens": "tokens", "heads": "heads", "feed_forward": "MLPs", "attention": "attention"}
    for kind in check.kinds:
        best = [row for row in check.rows if row.node.kind == kind and row.strongest]
        if kind == "tokens":  # a token is nearly the same at many depths
            best = list({row.node.token: row for row in reversed(best)}.values())[::-1]
        for row in best[:count]:
            numbers = (row.attributed, row.out, row.into)
            position = row.node.token
            where = "" if position is None else at(check.labels[position], position)
            named = {
                "tokens": f"token into layer {row.node.layer}",
                "heads": f"head {row.node.layer}.{row.node.head}",
                "attention": f"attention {row.node.layer}",
                "feed_forward": f"MLP {row.node.layer}",
            }[kind]
            rows.append((named, where, *map(signed, numbers)))
        one = check.correlation(kind)
        if math.isnan(one.mean):
            notes.append(f"{names[kind]}: {one.reason}, so nothing can be correlated.")
            continue
        said = (
            f"{names[kind]}: parts correlate with the mean of both effects at {one.mean:.2f}, the "
            f"two effects with each other at {one.agreement:.2f} ({one.nodes} of them: the "
            "strongest, and as many at random)"
        )
        if one.agreement < AGREE:
            said += (
                f". So no one number can be both: parts correlate at {one.out:.2f} with taking out "
                f"and at {one.into:.2f} with putting in"
            )
        notes.append(said + ".")
    header = ("Checked by patching", "at", "part", "taken out", "put in")
    explained = (
        "taken out: what the number loses if this alone is set to its value in the other text. put "
        "in: what the other text's number gains if this alone is set to its value in the text."
    )
    return Section("", header, rows, [explained, *notes], left=2)


def _numbers(part: Part) -> tuple[str, str]:
    return signed(part.value), percent(part.share)


def _line(text: str) -> str:
    return readable_text(" ".join(text.split()), 200)


# --- drawn ----------------------------------------------------------------------------------------


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
                padding=(0, 1),
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
        shown += [Text(note) for note in section.notes]
        shown.append(Text())
    return Group(*shown[:-1])


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
            f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>' for side, cell in each
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

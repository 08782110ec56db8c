"""Tables of a file of sentences: means over them, with intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.records import stamp_of
from benchmarks.within_layer.maps import OURS
from benchmarks.within_layer.measure import LATER
from captum_lig.metrics import Interval, interval

LEADING = {"signed mean": "chain", "size mean": "influence"}
"""By question, the map that is chosen for it in advance."""


class Sentences:
    """The numbers of a file."""

    def __init__(self, path: Path) -> None:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        self.settings: dict[str, Any] = json.loads(first)
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    @property
    def layers(self) -> list[str]:
        """Indices."""
        return [str(layer) for layer in self.settings["layers"]]

    def maps(self, baseline: str) -> list[str]:
        """Names, ours first."""
        return list(self.rows[0]["numbers"][baseline][self.layers[0]])

    def values(
        self, baseline: str, name: str, number: str, layer: str | None = None, which: str = "all"
    ) -> list[float]:
        """Of each sentence, in one layer, or the mean over layers."""
        at = self.settings["numbers"].index(number)
        found = []
        for row in self.rows:
            by_layer = row["numbers"][baseline]
            some = self.layers if layer is None else [layer]
            values = [by_layer[one][name][which][at] for one in some]
            there = [value for value in values if value is not None]
            found.append(sum(there) / len(there) if there else math.nan)
        return found


def text(path: Path) -> str:
    """The tables of a file, in Markdown."""
    read = Sentences(path)
    if not read.rows:
        return "No sentence yet."
    lengths = [row["tokens"] for row in read.rows]
    parts = [
        stamp_of(read.rows),
        f"{len(lengths)} sentences of {min(lengths)} to {max(lengths)} tokens, layers "
        f"{', '.join(read.layers)}.",
    ]
    for baseline in read.settings["baselines"]:
        missed, rows = (sum(row["rows"][baseline][n] for row in read.rows) for n in (0, 1))
        checked = f"{missed} of {rows} checked rows are not within tolerance."
        parts += [f"### Baseline {baseline}", checked, all_layers(read, baseline)]
        parts += [f"The same {LATER}:", all_layers(read, baseline, LATER)]
        for question in LEADING:
            parts += [f"**{question}, layer by layer**", by_layer(read, baseline, question)]
    return "\n\n".join(parts)


def all_layers(read: Sentences, baseline: str, which: str = "all") -> str:
    """Maps down, questions across; the best of each question in bold."""
    questions = [f"{m} {d}" for m in ("size", "signed") for d in ("out", "into", "mean")]
    columns = []
    for question in questions:
        found = {
            name: interval(read.values(baseline, name, f"{question} spearman", which=which))
            for name in read.maps(baseline)
        }
        best = max((one.mean for one in found.values() if one.texts), default=math.nan)
        columns.append({name: shown(one, one.mean == best) for name, one in found.items()})
    rows = [[name, *(column[name] for column in columns)] for name in read.maps(baseline)]
    return table(["", *questions], rows)


def by_layer(read: Sentences, baseline: str, question: str) -> str:
    """The map chosen in advance, the best other of ours and the best rival in each layer."""
    leading, lines, first, clearly = LEADING[question], [], 0, 0
    for layer in read.layers:
        values = {
            name: read.values(baseline, name, f"{question} spearman", layer)
            for name in read.maps(baseline)
        }
        means = {name: interval(x) for name, x in values.items()}

        there = sorted((means[n].mean, n) for n in means if n != leading and means[n].texts)
        others, rivals = ([n for _, n in there if (n in OURS) == ours] for ours in (True, False))
        if not means[leading].texts or not rivals:
            lines.append([layer, "", "", "", ""])
            continue
        ahead = interval([a - b for a, b in zip(values[leading], values[rivals[-1]], strict=True)])
        first, clearly = first + (ahead.mean > 0), clearly + (ahead.low > 0)
        cells = [" ".join(f"{n} {shown(means[n])}" for n in some[-1:]) for some in (others, rivals)]
        lines.append([layer, shown(means[leading]), *cells, shown(ahead, ahead.low > 0)])
    header = ["layer", leading, "best other of ours", "best rival", "ahead of the rival by"]
    return (
        f"{leading} is ahead of every rival in {first} of {len(read.layers)} layers, in {clearly} "
        f"with an interval above 0.\n\n{table(header, lines)}"
    )


def shown(one: Interval, strong: bool = False) -> str:
    """Two digits, mean and ends."""
    found = f"{one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]"
    return f"**{found}**" if strong else found

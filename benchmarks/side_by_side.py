"""The same work by this library, by a loop with Captum, and by the paper authors' package.

    python -m benchmarks.side_by_side [--authors .venv-lig/bin/python] [--layer 3]

One layer of the embedded model and one sentence. Each contender is a process of its own for each
map; they take turns. Completeness errors are those of the rows that came back, against totals
that are computed apart, in float64.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import GIB, ratio, say, short, stamp, table, use_threads
from benchmarks.contenders import Bert
from benchmarks.worker import ROOT, STEPS, Answer, Case, Done, Worker, started
from captum_lig.pretrained.minilm import EMBEDDED_MODEL, embedded_model_path

TITLE = "Side by side"
SENTENCE = (
    "When the keys to the old cabinet were found on the kitchen table, nobody in the house could "
    "say who had left them there, or why the drawer below had been locked for so many years."
)
BOUNDARIES = ("layer", "attention", "mlp")
BASELINES = ("zero", "target_token")
AUTHORS = ROOT / ".venv-lig" / "bin" / "python"
CONTENDERS = {
    "ours": "captum_lig",
    "same points": f"captum_lig, {STEPS} points",
    "captum": f"loop with Captum, {STEPS} points",
    "authors": f"authors' package, {STEPS} points",
}
PATIENCE = 45.0
"""Seconds after which a case has no further round."""


@dataclass(frozen=True)
class Line:
    """One contender at one case."""

    who: str
    answers: list[Answer]
    """The first is a warm-up."""
    errors: Tensor

    @property
    def times(self) -> list[float]:
        return [answer.whole for answer in self.answers[1:]]

    def cells(self, reference: Line) -> list[str]:
        done = self.answers[0].done
        about = "" if done.share == 1 else "≈ "
        rows = round(len(done.rows) / done.share)
        return [
            CONTENDERS[self.who],
            f"{about}{short(ratio(self.times, reference.times))}",
            f"{about}{short(median(self.times))}",
            f"{float(self.errors.max()):.1e}",
            f"{float(self.errors.median()):.1e}",
            f"{self.answers[0].peak / GIB * 1024:.0f} MiB",
            f"{len(done.rows)} of {rows}",
        ]


def totals(bert: Bert, case: Case) -> Tensor:
    """``(T,)``, or ``(H, T)`` at the attention boundary: what the rows have to add up to."""
    found = []
    with torch.no_grad():
        for target in range(bert.z.shape[1]):
            ends = torch.cat([bert.start(case.baseline, target), bert.z])
            if case.boundary == "attention":
                ends = _authors_states(bert, ends, case.layer) if case.who == "authors" else ends
                y = bert.attention(ends)[:, target]
            elif case.boundary == "mlp" and case.who == "authors":
                y = _authors_mlp(bert, ends[:, target], bert.attention(ends)[:, target], case)
            else:
                y = bert.layer(ends)[:, target]
            found.append(torch.linalg.vector_norm(y[1] - y[0], dim=-1))
    return torch.stack(found, dim=-1)


def _authors_mlp(bert: Bert, z: Tensor, u: Tensor, case: Case) -> Tensor:
    """Their mlp boundary starts after attention's norm, from zeros or from what is there."""
    between = bert.block.attention.output(u.flatten(1), z)
    if case.baseline == "zero":
        between = torch.stack([torch.zeros_like(between[1]), between[1]])
    out: Tensor = bert.block.output(bert.block.intermediate(between), between)
    return out


def _authors_states(bert: Bert, z: Tensor, layer: int) -> Tensor:
    """Their attention map takes a layer's input for what is embedded, and runs to the layer."""
    states = bert.model.embeddings(inputs_embeds=z)
    for block in bert.model.encoder.layer[:layer]:
        out = block(states)
        states = out if isinstance(out, Tensor) else out[0]
    return states


def errors(bert: Bert, case: Case, done: Done) -> Tensor:
    """Completeness error of each row, relative to its total."""
    total = totals(bert, case)[tuple(torch.tensor(done.rows).T)]
    return (torch.tensor(done.sums, dtype=total.dtype) - total).abs() / total


def compare(bert: Bert, case: Case, authors: Path, rounds: int) -> list[Line | str]:
    """All contenders at one case; of one that did not run, its name."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(started(python, module, replace(case, who=who)))
            for who, python, module in _processes(authors)
        ]
        answers = _in_turns([worker for worker in workers if worker.ready()], rounds)
    return [
        Line(who, answers[who], errors(bert, replace(case, who=who), answers[who][0].done))
        if who in answers
        else who
        for who in CONTENDERS
    ]


def _processes(authors: Path) -> list[tuple[str, Path, str]]:
    here = [
        (who, Path(sys.executable), "benchmarks.contenders")
        for who in CONTENDERS
        if who != "authors"
    ]
    return [*here, ("authors", authors, "benchmarks.authors")] if authors.exists() else here


def _in_turns(workers: list[Worker], rounds: int) -> dict[str, list[Answer]]:
    """Answers of each worker that gave them all, a warm-up first."""
    answers: dict[str, list[Answer]] = {worker.name: [] for worker in workers}
    spent = 0.0
    for number in range(1 + rounds):
        if number > 1 and spent > PATIENCE:
            break
        for worker in workers:
            answer = worker.run() if worker.name in answers else None
            if answer is None:
                answers.pop(worker.name, None)
                continue
            answers[worker.name].append(answer)
            spent += answer.seconds
    return answers


HEADER = ["", "ratio", "seconds", "worst error", "median error", "peak memory", "rows"]


def _section(bert: Bert, case: Case, authors: Path, rounds: int) -> str:
    lines = compare(bert, case, authors, rounds)
    reference = lines[0]
    if isinstance(reference, str):
        raise RuntimeError("captum_lig itself did not run")
    rows = [
        [CONTENDERS[line], "did not run", "", "", "", "", ""]
        if isinstance(line, str)
        else line.cells(reference)
        for line in lines
    ]
    for row in rows:
        say(f"{case.boundary}, {case.baseline}: {', '.join(row)}")
    return f"### {case.boundary}, {case.baseline}\n\n{table(HEADER, rows)}"


def run(
    authors: Path = AUTHORS, layer: int = 3, rounds: int = 3, threads: int = 1
) -> tuple[str, list[str]]:
    """The section; there are no bounds here."""
    use_threads(threads)
    folder = str(embedded_model_path())
    case = Case("ours", "layer", "zero", layer, SENTENCE, folder, threads)
    bert = Bert.load(case).double()
    sections = [
        _section(bert, replace(case, boundary=boundary, baseline=baseline), authors, rounds)
        for boundary in BOUNDARIES
        for baseline in BASELINES
    ]
    return "\n\n".join([*_preamble(bert, layer), *sections]), []


def _preamble(bert: Bert, layer: int) -> list[str]:
    return [
        f"## {TITLE}",
        f"`python -m benchmarks.side_by_side`. {stamp()}",
        f"Maps of all targets of layer {layer} of {EMBEDDED_MODEL}, one sentence of "
        f"{bert.z.shape[1]} tokens. *captum_lig* is `LayerFlowIG` as it comes (16 path points, "
        "then every row refined until its completeness error is within 1e-3), and once more with "
        f"{STEPS} plain path points. The *loop with Captum* calls `IntegratedGradients` as it "
        "comes for each target (and head). The *authors' package* is "
        "`layer-wise-integrated-gradients` 0.1.0, called by `lig.explain` without its compiling, "
        "which is slower here. Loading a model is in no figure. *ratio* and *seconds*: lower is "
        "better, medians of turns; ≈ where they were taken on the rows named last and multiplied. "
        "*error*: |sum of a row − its total| / total, the totals in float64. *peak memory*: beyond "
        "the loaded model.",
        "The authors' maps are not all of the same function, and are held against totals of their "
        "own. Their mlp boundary starts after attention's residual and norm, with the baselines "
        "`zero` and `att_itb_a0`. Their attention map takes what enters the layer for what enters "
        "the embedding's norm, runs the layers below, and gives norms over the features of an "
        "attribution.",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--authors", type=Path, default=AUTHORS, help="python that has the authors' package"
    )
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print(run(given.authors, given.layer, given.rounds, given.threads)[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())

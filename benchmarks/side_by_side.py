"""The same work by this library, by a loop with Captum, and by the paper authors' package.

    python -m benchmarks.side_by_side [--authors .venv-lig/bin/python] [--layer 3]

One layer of the embedded model and one sentence. Each contender is a process of its own for each
map; they take turns. Completeness errors are those of the rows that came back, against totals
that are computed apart, in float64.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.common import GIB, command, ratio, say, section, short, table
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


def compare(bert: Bert, case: Case, authors: Path, rounds: int) -> list[list[str]]:
    """All contenders at one case: rows of the table."""
    with ExitStack() as stack:
        workers = []
        for who in CONTENDERS:
            here = Path(sys.executable), "benchmarks.contenders"
            python, module = (authors, "benchmarks.authors") if who == "authors" else here
            if python.exists():
                process = started(python, module, replace(case, who=who))
                workers.append(stack.enter_context(process))
        answers = _in_turns([worker for worker in workers if worker.ready()], rounds)
    if "ours" not in answers:
        raise RuntimeError("captum_lig itself did not run")
    return [
        _row(bert, replace(case, who=who), answers[who], answers["ours"])
        if who in answers
        else [name, "did not run", "", "", "", "", ""]
        for who, name in CONTENDERS.items()
    ]


def _row(bert: Bert, case: Case, answers: list[Answer], reference: list[Answer]) -> list[str]:
    """Of the answers the first is a warm-up."""
    done, error = answers[0].done, errors(bert, case, answers[0].done)
    times, other = ([answer.whole for answer in some[1:]] for some in (answers, reference))
    about = "" if done.share == 1 else "≈ "
    return [
        CONTENDERS[case.who],
        f"{about}{short(ratio(times, other))}",
        f"{about}{short(median(times))}",
        f"{float(error.max()):.1e}",
        f"{float(error.median()):.1e}",
        f"{answers[0].peak / GIB * 1024:.0f} MiB",
        f"{len(done.rows)} of {round(len(done.rows) / done.share)}",
    ]


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
    rows = compare(bert, case, authors, rounds)
    for row in rows:
        say(f"{case.boundary}, {case.baseline}: {', '.join(row)}")
    return f"### {case.boundary}, {case.baseline}\n\n{table(HEADER, rows)}"


def run(authors: Path = AUTHORS, layer: int = 3, rounds: int = 3) -> tuple[str, list[str]]:
    """The section; there are no bounds here."""
    folder, threads = str(embedded_model_path()), torch.get_num_threads()
    case = Case("ours", "layer", "zero", layer, SENTENCE, folder, threads)
    bert = Bert.load(case).double()
    sections = [
        _section(bert, replace(case, boundary=boundary, baseline=baseline), authors, rounds)
        for boundary in BOUNDARIES
        for baseline in BASELINES
    ]
    text = section(
        TITLE,
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
        *sections,
    )
    return text, []


OPTIONS = {
    "authors": {"type": Path, "default": AUTHORS, "help": "python that has the authors' package"},
    "layer": {"type": int, "default": 3},
    "rounds": {"type": int, "default": 3},
}

if __name__ == "__main__":
    sys.exit(command(__doc__, run, OPTIONS))

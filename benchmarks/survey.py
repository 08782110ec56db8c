"""Every family in transformers against the block's own integrals: `python -m benchmarks.survey`.

Each family is built small and random, run on inputs that suit it, and what `LayerFlowIG` attributes
is compared entry by entry with `benchmarks.survey_literal`. `--page` prints the tables of
docs/families.md. A family runs in a process of its own, and what breaks or hangs there is a result.
With `--out` a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from benchmarks import survey_literal as literal
from benchmarks import survey_page
from benchmarks.common import say
from benchmarks.records import Record, stamp_of
from benchmarks.survey_inputs import NotBuilt
from benchmarks.survey_models import small_model
from captum_lig import Block, LayerFlow, LayerFlowIG, LigError, inspect_model
from tests.helpers.families import FAMILIES
from tests.helpers.twins import panels

BOUND = 3e-3
"""Largest difference of an entry, relative to its row's total, that counts as right."""
MOST_BLOCKS = 5
MEMORY = 8 << 30

OUTCOMES = ("right", "flagged", "undecided", "refused", "raw error", "WRONG", "not built")


@dataclass
class Found:
    """What was found of a family."""

    name: str
    outcome: str
    reason: str = ""
    """A sentence, if it is not right."""
    worst: float | None = None
    """Largest difference of an entry, as part of its row's total."""
    where: str = ""
    """The block, boundary and baseline of that."""
    blocks: str = ""
    """Blocks by class."""
    sites: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """What of it is refused, a sentence each."""
    boundaries: list[str] = field(default_factory=list)
    """That were compared."""
    inputs: list[str] = field(default_factory=list)
    unfinished: bool = False
    """Whether there was no time for all blocks and baselines."""
    seconds: float = 0.0


def survey(found: Found) -> None:
    """Build a family, attribute it, compare, and note in `found` what comes of it."""
    own = next((family for family in FAMILIES if family.name == found.name), None)
    try:
        if own is None:
            model, inputs = small_model(found.name)
        else:
            model = own.build()
            inputs = own.inputs(model)
    except NotBuilt as error:
        found.reason = str(error)
        return
    found.outcome, found.reason, found.inputs = "right", "", list(inputs)
    report = inspect_model(model, inputs)
    found.refused = [_sentence(text) for text in report.not_supported]
    if not report.blocks:
        found.outcome, found.reason = "refused", found.refused[0]
        return
    found.blocks = ", ".join(dict.fromkeys(block.class_name for block in report.blocks))
    found.sites = [b.attention.site if b.attention else "whole" for b in report.blocks]
    some = _representative(report.blocks)
    for baseline, chosen in (("target_token", some), ("zero", some[-1:])):
        for block in chosen:
            _compare_block(model, inputs, block, baseline, found)
            if found.outcome in ("WRONG", "raw error"):
                return
    if not found.boundaries:
        found.outcome = "refused"
        found.reason = found.reason or next(iter(found.refused), "")


def _representative(blocks: Sequence[Any]) -> list[Any]:
    """The last block of each kind in each list."""
    kinds = {}
    for block in blocks:
        stack = ".".join(part for part in block.name.split(".") if not part.isdigit())
        attention = block.attention
        seen = attention and (attention.site, attention.reach, attention.bias, attention.mask)
        kinds[stack, block.class_name, block.parameters, seen] = block
    return list(kinds.values())[-MOST_BLOCKS:]


def _compare_block(
    model: nn.Module, inputs: dict[str, Any], block: Any, baseline: str, found: Found
) -> None:
    """The last target of a block; if its attention is refused, the layer boundary alone."""
    names = tuple(name for name in ("attention", "mlp", "layer") if name in block.boundaries)
    module = model.get_submodule(block.name)
    j = block.tokens - 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flows = LayerFlowIG(model, block.name if names else Block(module)).attribute(
                inputs, baseline, boundaries=names or ("layer",), output_indices=[j]
            )
    except LigError as error:
        sentence = _sentence(str(error))
        if sentence not in found.refused:
            found.refused.append(sentence)
        return
    except Exception as error:
        found.outcome = "raw error"
        found.reason = f"{_short(error)} ({block.name}, {baseline})"
        return
    every = flows if isinstance(flows, list) else [flows]
    calls = literal.record(model, inputs, [block.name])[block.name]
    _compare_flow(every[-1], calls[-1], j, baseline, found)


def _compare_flow(
    flow: LayerFlow, block: literal.LiteralBlock, j: int, baseline: str, found: Found
) -> None:
    start = literal.start(block, baseline, j)

    def check(boundary: str, actual: Tensor, converged: Tensor, row: Any) -> None:
        where = f"{flow.name}, {boundary}, {baseline}"
        flagged, before = not bool(converged), None
        error = doubt = float("inf")
        for edges, nodes in literal.RULES[baseline]:
            entries, total = row(panels(edges, nodes))
            if total < 1e-7 * (1 + float(block.z.norm())):
                return  # nothing moves but by rounding
            error = float((actual - entries).abs().max()) / total
            if before is not None:
                doubt = float((entries - before).abs().max()) / total
                doubt = max(doubt, abs(float(entries.sum()) - total) / total)
            before = entries
            if error < BOUND / 2 or doubt < BOUND / 4 or flagged:
                break
        if boundary not in found.boundaries:
            found.boundaries.append(boundary)
        if flagged:
            _note(found, "flagged", error, where, f"a row did not converge ({where})")
        elif error <= BOUND:
            _note(found, "right", error, where, "")
        elif doubt > BOUND / 2:
            _note(found, "undecided", error, where, f"literal integral not converged ({where})")
        else:
            _note(found, "WRONG", error, where, f"off by {error:.1e} ({where})")

    if flow.layer is not None:
        check(
            "layer",
            flow.layer[0, 0],
            flow.converged["layer"][0, 0],
            lambda rule: literal.layer_row(block, j, start, rule),
        )
    if flow.attention is None and flow.mlp is None:
        return
    heads = (flow.attention if flow.attention is not None else flow.mlp.transpose(1, 2)).shape[1]  # type: ignore[union-attr]
    if not block.find_attention(heads):
        return
    if flow.attention is not None:
        check(
            "attention",
            flow.attention[0, -1, 0],
            flow.converged["attention"][0, -1, 0],
            lambda rule: literal.attention_row(block, heads - 1, j, start, rule),
        )
    if flow.mlp is not None and flow.residual is not None:
        check(
            "mlp",
            torch.cat([flow.mlp[0, 0], flow.residual[0, :1]]),
            flow.converged["mlp"][0, 0],
            lambda rule: literal.mlp_row(block, j, start, rule),
        )


def _note(found: Found, outcome: str, error: float, where: str, reason: str) -> None:
    """Keep the worst outcome, and the largest error of those that converged."""
    order = ("right", "undecided", "flagged", "WRONG")
    if order.index(outcome) > order.index(found.outcome):
        found.outcome, found.reason = outcome, reason
    if outcome in ("right", "WRONG") and (found.worst is None or error > found.worst):
        found.worst, found.where = error, where
        if outcome == "WRONG":
            found.reason = reason


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {_sentence(str(error))[:300]}"


# ---- a process for each ----------------------------------------------------------------------


class Late(BaseException):
    """The time of a family is over; no `except Exception` of a model's keeps it."""


def _late(*_: object) -> None:
    raise Late


def _child(name: str, limit: float, queue: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    begun = time.monotonic()
    found = Found(name, "not built", "its model was not made in time")
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        survey(found)
    except Late:
        if found.boundaries:
            found.unfinished = True
        elif found.blocks:
            found.outcome, found.reason = "undecided", f"not done in {limit:.0f} seconds"
    except LigError as error:
        found.outcome, found.reason = "refused", _sentence(str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
        found.outcome, found.reason = "raw error", f"{_short(error)} ({where})"
    found.seconds = round(time.monotonic() - begun, 1)
    queue.put(json.dumps(dataclasses.asdict(found)))


def survey_apart(name: str, limit: float) -> Found:
    """The same in a process of its own, for so many seconds at most."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(name, limit, queue))
    process.start()
    process.join(limit + 20)
    if process.is_alive():
        process.kill()
        process.join()
        return Found(name, "raw error", f"hung for {limit + 20:.0f} seconds", seconds=limit + 20)
    if queue.empty():
        return Found(name, "raw error", f"its process ended with {process.exitcode}")
    return Found(**json.loads(queue.get()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Survey the families, say what was found, and print the tables if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=None, help="names of families")
    parser.add_argument("--limit", type=float, default=40, help="seconds for a family")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON lines, a family each, gone on with")
    parser.add_argument("--page", action="store_true", help="print the tables of docs/families.md")
    parser.add_argument("--check", action="store_true", help="fail if one is wrong or breaks")
    asked = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tested = [family.name for family in FAMILIES]
    names = asked.only or [*tested, *sorted(set(MODEL_MAPPING_NAMES) - set(tested))]
    limits = {"limit": asked.limit, "transformers": transformers.__version__}
    record = Record(asked.out, limits)
    done = {row["name"] for row in record.rows} - set(asked.only or ())  # named: once more
    begun, keeping = time.monotonic(), Lock()

    def one(name: str) -> None:
        found = survey_apart(name, asked.limit)
        worst = "" if found.worst is None else f"{found.worst:.0e}"
        say(f"{name:32} {found.outcome:10} {worst:6} {found.seconds:5} {found.reason}")
        with keeping:
            # Families run side by side: of each worker's share.
            record.add(dataclasses.asdict(found), found.seconds / asked.workers)

    with ThreadPoolExecutor(asked.workers) as pool:
        list(pool.map(one, [name for name in names if name not in done]))
    last = {row["name"]: row for row in record.rows}
    everything = [
        Found(**{key: value for key, value in row.items() if key not in ("commit", "took")})
        for row in last.values()
    ]
    everything.sort(key=lambda found: (found.name not in tested, found.name))
    for outcome in OUTCOMES:
        say(f"{sum(found.outcome == outcome for found in everything):4} {outcome}")
    say(f"in {time.monotonic() - begun:.0f} seconds")
    if asked.page:
        print(survey_page.text(everything, stamp_of(list(last.values()))))
    if asked.check and any(found.outcome in ("WRONG", "raw error") for found in everything):
        sys.exit(1)


if __name__ == "__main__":
    main()

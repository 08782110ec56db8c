"""How faithful circuits are that attributions find, ours beside rivals, in one resumable run.

    python -m benchmarks.circuits --model smollm2 --tasks objects agreement --out circuits.json

Each prompt stands against a counterfactual of as many tokens. Prints Markdown; the JSON file of
``--out`` is written after each prompt, and a run that finds it goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.circuits import report, tasks
from benchmarks.circuits.measure import measured
from benchmarks.common import COMMIT, say, use_threads
from benchmarks.patching.cases import Dropped
from benchmarks.patching.net import Net
from benchmarks.texts import load

KINDS = ("edges", "nodes", "edges by position", "nodes by position")


def run(model: str, asked: argparse.Namespace, found: dict[str, Any]) -> None:
    """Measure what is not there yet; ``found`` is filled, and written if there is a file."""
    tokenizer, loaded = load(model, causal=True)
    net = Net(loaded)
    for task in asked.tasks:
        there = [one for one in found["texts"] if one["task"] == task]
        dropped = Dropped()
        cases = tasks.asked(loaded, tokenizer, task, asked.prompts, dropped)
        for number, case in enumerate(islice(cases, len(there), None), len(there) + 1):
            began = time.perf_counter()
            one = measured(net, case, tuple(asked.kinds), tuple(asked.orders))
            took = time.perf_counter() - began
            found["texts"].append({"commit": COMMIT, "took": round(took, 3), **one})
            found["dropped"][task] = vars(dropped)
            if asked.out is not None:
                beside = asked.out.with_suffix(".part")
                beside.write_text(json.dumps(found))
                beside.replace(asked.out)
            say(f"{task} {number}: {one['tokens']} tokens, {took:.0f} s")


def settings(asked: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    return {"model": asked.model, "kinds": list(asked.kinds), "orders": list(asked.orders)}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help='a folder with a Llama, or "smollm2"')
    parser.add_argument("--tasks", nargs="+", choices=tasks.TASKS, default=list(tasks.TASKS[:3]))
    parser.add_argument("--prompts", type=int, default=6, help="of each task")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS[:2]))
    parser.add_argument("--orders", nargs="+", choices=("size", "signed"), default=["size"])
    parser.add_argument("--out", type=Path, default=None, help="a JSON file, gone on with")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    use_threads(asked.threads)
    warnings.filterwarnings("ignore", message=".*within tolerance.*|.*more than tolerance.*")
    found: dict[str, Any] = {"settings": settings(asked), "dropped": {}, "texts": []}
    if asked.out is not None and asked.out.exists():
        earlier = json.loads(asked.out.read_text())
        if earlier["settings"] != settings(asked):
            parser.error(
                f"{asked.out} holds a run with {earlier['settings']}, and this one has "
                f"{settings(asked)}: name another file, or the same settings."
            )
        found = earlier
    run(asked.model, asked, found)
    print(report.text(found))


if __name__ == "__main__":
    main()

"""What an explanation from the command line costs, beside a bare script.

The bare script imports transformers, loads the model and runs it on the text. The command does the
same and attributes; what the attribution itself takes is measured inside the command and taken off.
Processor seconds of whole processes, one thread, one after the other in turns; the median of some
rounds, and of the ratio of a round.

    python -m benchmarks.command_line [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import say, stamp

__all__ = ["CASES", "Case", "measure", "table"]

BARE = """
import torch
from transformers import {auto}, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({path!r})
model = {auto}.from_pretrained({path!r}, dtype=torch.float32).eval()
with torch.no_grad():
    model(**tokenizer({text!r}, return_tensors="pt"))
"""
COMMAND = """
import sys, time
from captum_lig import LayerFlowIG
own, spent = LayerFlowIG.attribute, []
def timed(*args, **kwargs):
    began = time.process_time()
    try:
        return own(*args, **kwargs)
    finally:
        spent.append(time.process_time() - began)
LayerFlowIG.attribute = timed
from captum_lig.cli import main
sys.argv = ["captum-lig", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
print(sum(spent), file=sys.stderr)
"""
BEGIN = """
from captum_lig.cli import collector
collector.begin()
"""


@dataclass(frozen=True)
class Case:
    """One command, and what the bare script loads for it."""

    name: str
    model: str
    auto: str
    text: str
    arguments: tuple[str, ...]


FRANCE, ITALY = "The capital of France is", "The capital of Italy is"
DOCTOR, LAWYER = "The doctor examined my knee.", "The lawyer examined my case."
CASES = (
    Case("why", "smollm2", "AutoModelForCausalLM", FRANCE, ("why", FRANCE, "--against", ITALY)),
    Case(
        "why, alike",
        "minilm",
        "AutoModel",
        DOCTOR,
        ("why", DOCTOR, "--against", LAWYER, "--similar-to", "A physician looked at my leg."),
    ),
    Case("explain", "smollm2", "AutoModel", FRANCE, ("explain", FRANCE, "--model", "smollm2")),
    Case("explain", "minilm", "AutoModel", DOCTOR, ("explain", DOCTOR, "--model", "minilm")),
)


def measure(case: Case) -> tuple[float, float, float]:
    """Processor seconds of the bare script, of the command, and of its attribution."""
    bare, _ = _spent(BARE.format(auto=case.auto, path=_path(case.model), text=case.text))
    # The class is imported by the measurement, as the command imports it: without collection.
    whole, said = _spent(BEGIN + COMMAND.format(arguments=case.arguments))
    return bare, whole, float(said.splitlines()[-1])


def _path(model: str) -> str:
    from captum_lig.pretrained.minilm import embedded_model_path
    from captum_lig.pretrained.smollm2 import smollm2_path

    return str(smollm2_path() if model == "smollm2" else embedded_model_path())


def _spent(program: str) -> tuple[float, str]:
    """Processor seconds of a process, its user's and the system's, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, done.stderr


def table(found: Sequence[tuple[Case, list[tuple[float, float, float]]]]) -> str:
    """The table of the documentation."""
    lines = [
        "| command | model | bare script | command | of it the attribution | rest / bare |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    for case, rounds in found:
        bare, whole, own = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median((w - o) / b for b, w, o in rounds)
        seconds = " | ".join(f"{value:.1f} s" for value in (bare, whole, own))
        lines.append(f"| `{case.name}` | {case.model} | {seconds} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: list[tuple[Case, list[tuple[float, float, float]]]] = [(case, []) for case in CASES]
    for number in range(rounds + 1):
        for case, measured in found:
            numbers = measure(case)
            say(f"{case.name}, {case.model}: {', '.join(f'{x:.1f} s' for x in numbers)}")
            if number:  # the first round reads files that later ones find in memory
                measured.append(numbers)
    print(f"{stamp()}\n\n{table(found)}")


if __name__ == "__main__":
    main()

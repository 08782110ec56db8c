"""The command line with hostile arguments and files, up to where a model's weights are loaded."""

from __future__ import annotations

import io
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import typer.main

from captum_lig import LigError
from captum_lig.cli import app
from captum_lig.pretrained.load import Checkpoint, find_model
from tests.helpers.fuzz.mutate import HOSTILE_TEXTS, mutate_lines
from tests.helpers.fuzz.readers import READERS
from tests.helpers.fuzz.run import LONGEST, WARM, Findings, peak_megabytes, where
from tests.helpers.saved import save_tiny_gpt2

__all__ = ["NAME", "run_commands"]

NAME = "command line"
LOADED = "the weights are not loaded here"
TEXTS = ["the cat sat on the mat", "the dog sat on the mat", "the", "-", "", "--", "-1", "a " * 200]
TEXTS += [one for one in HOSTILE_TEXTS if "\x00" not in one]  # no argument can hold one
NUMBERS = ["0", "1", "-1", "16", "1e3", "1e-3", "0.5", "nan", "inf", "-inf", "9" * 400, "1" * 5000]
NUMBERS += ["2" * 19, "0x10", "1_000", "\u0661", " 3 ", "", "three", "1e999", "-0.0", "1.5"]
LISTS = [
    "all",
    "0",
    "0,2,4-5",
    "3-1",
    "-1",
    "0-9999",
    "99999",
    ",",
    "0,,1",
    "a",
    "0-",
    " 1 , 2 ",
    "\u0661",
]
WORDS = ["table", "json", "jsonl", "csv", "parquet", "TABLE", "yaml", "l2", "projection", "chain"]
WORDS += ["conserve", "product", "target_token", "zero", "padding", "map_ratio", "zero_ratio"]
WORDS += ["composed", "direct", "influence", "gausslegendre", "riemann_trapezoid", "local", "ray"]
WORDS += ["float32", "float64", "float16", "cpu", "cuda", "cuda:99", "meta", "totals", "links"]
WORDS += ["totals,links", "a.b:C", "os:system", ":", "json:loads", "layer,composed", "minilm"]
COMMANDS = ["why", "explain", "inspect", "corpus", "consistency"]
SUFFIXES = ["", ".html", ".json", ".jsonl", ".csv", ".png", ".safetensors", ".parquet", ".xyz", "."]
NAMES = [
    "a b",
    "ünïcode 中",
    "-x",
    "x" * 300,
    "..",
    "'\"`$(x)",
    "no/such/folder",
    "\u202ex",
    "a\nb",
]


class WithoutWeights(Checkpoint):
    """A tokenizer and a configuration."""

    def load(self, kind: Any = None, dtype: torch.dtype = torch.float32) -> Any:
        """Always a LigError."""
        raise LigError(LOADED)


@contextmanager
def without_weights(folder: Path) -> Iterator[None]:
    """Every model is a small one in ``folder``, of which the weights cannot be loaded."""
    save_tiny_gpt2(folder)
    found = find_model(folder)
    small = WithoutWeights(found.name, found.config, found.source, found.tokenizer)

    def find(model: Any = None, without_tokenizer: bool = False) -> Checkpoint:
        if model is not None and len(str(model)) > 30:
            raise LigError(f"model {str(model)[:30]!r} cannot be loaded.")
        return small

    places = ("pretrained.load", "answers.subject", "inspection.inspect")
    with (
        patch(f"captum_lig.{places[0]}.find_model", find),
        patch(f"captum_lig.{places[1]}.find_model", find),
        patch(f"captum_lig.{places[2]}.find_model", find),
    ):
        yield


def run_commands(folder: Path, cases: int, seed: int) -> Findings:
    """Run commands one after another, drawn from ``seed`` and their number.

    A run ends with exit code 0, 1 or 2; with 2, standard error has a line that says why and
    standard output is empty.
    """
    model, work = folder / "model", folder / "work"
    model.mkdir()
    work.mkdir()
    files = [reader for reader in READERS if reader.name.startswith(("corpus,", "why"))]
    valid = {}
    for reader in files:
        reader.write(work / reader.file)
        valid[work / reader.file] = (work / reader.file).read_bytes()
    options = {
        command: [name for one in given.params for name in one.opts if name.startswith("--")]
        for command, given in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    main = typer.main.get_command(app)
    found, began, peak = Findings(NAME), time.perf_counter(), peak_megabytes()
    with without_weights(model):
        for number in range(cases):
            rng = random.Random(f"{NAME} {seed} {number}")
            if rng.random() < 0.3:
                path = rng.choice(list(valid))
                path.write_bytes(mutate_lines(rng, valid[path]))
            given = arguments(rng, options, work)
            start = time.process_time()
            said = case(main, given, rng.choice(TEXTS), found, f"case {number}: {given!r:.300}")
            taken = time.process_time() - start
            if said.rstrip().endswith(LOADED):
                found.accepted += 1
            else:
                found.refused += 1
            if taken > LONGEST:
                found.fail(
                    f"takes over {LONGEST} s", f"case {number}: {taken:.2f} s {given!r:.300}"
                )
            found.slowest = max(found.slowest, taken)
            found.cases += 1
            if number < WARM:
                peak = peak_megabytes()
    found.grown, found.seconds = peak_megabytes() - peak, time.perf_counter() - began
    return found


def case(main: Any, given: list[str], stdin: str, found: Findings, example: str) -> str:
    """Run one command; what it said on standard error."""
    streams = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogatepass")), "utf-8")
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdout = io.TextIOWrapper(out, "utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True)
    code: Any = 0
    try:
        main(args=given, prog_name="captum-lig", standalone_mode=True)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        found.fail(where(error), example)
        code = 2
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            stream.detach()  # or it closes what is read below
        sys.stdin, sys.stdout, sys.stderr = streams
    shown, said = out.getvalue().decode(), err.getvalue().decode()
    if code not in (0, 1, 2):
        found.fail(f"exit code {code!r}", example)
    if "Traceback" in said or "Traceback" in shown:
        found.fail("a traceback", example)
    helped = [one for one in given if one != "--"] in ([], *([one] for one in COMMANDS))
    if code == 2 and shown and not helped:
        found.fail("exit code 2 with results", example)
    ours = [line for line in said.split("\n") if line.startswith("captum-lig: ")]
    if code == 2 and not ours and not helped and "Error" not in said:
        found.fail("exit code 2 without a reason", f"{example}: {said!r:.200}")
    if any((c < " " and c != "\n") or c == "\x7f" for c in said):
        found.fail("control characters on standard error", f"{example}: {said!r:.200}")
    if code == 2 and ours and not expected_lines(said):
        found.fail("more than a line", f"{example}: {said!r:.400}")
    return said


def expected_lines(said: str) -> bool:
    """Whether an error is one line, beside what was said before it; unequal texts are shown."""
    before = ("captum-lig: ",)
    lines = said.rstrip("\n").split("\n")
    told = (" will be made.", " will be replaced.")
    return "each token needs one" in said or all(
        line.startswith(before) or line.endswith(told) for line in lines
    )


def arguments(rng: random.Random, options: dict[str, list[str]], work: Path) -> list[str]:
    """A command, a text or a file, and options that it knows, as a rule."""
    if rng.random() < 0.03:
        return [value(rng, work) for _ in range(rng.randrange(4))]
    command = rng.choice(COMMANDS)
    given = [command]
    kind = rng.random()
    if command in ("corpus", "consistency"):
        given.append(some_file(rng, work) if kind < 0.9 else value(rng, work))
        given += ["--out", str(work / "out")] if rng.random() < 0.8 else []
    elif command == "inspect":
        given += ["some/model"] if kind < 0.5 else []
    elif kind < 0.4:
        given.append(rng.choice(TEXTS))
    elif kind < 0.8:
        given += ["--file", some_file(rng, work) if kind < 0.75 else "-"]
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        name = rng.choice(options[command])
        if rng.random() < 0.02:
            name = rng.choice((name[:-1], name + "x", "--no" + name[1:], "--", "-"))
        given.append(name)
        if rng.random() < 0.95 and name not in ("--check", "--chat", "--hide-first-token"):
            given.append(fitting(rng, name, work) if rng.random() < 0.7 else value(rng, work))
    if rng.random() < 0.05:
        rng.shuffle(given)
    return given


def fitting(rng: random.Random, name: str, work: Path) -> str:
    """A value of the kind that an option takes."""
    if name in ("--out",):
        return str(work / (rng.choice(NAMES) + rng.choice(SUFFIXES)))
    if name in ("--file",):
        return some_file(rng, work)
    if name in ("--layers", "--measures", "--maps"):
        return rng.choice(LISTS)
    if name in ("--tolerance", "--steps", "--limit", "--generate", "--workers", "--position"):
        return rng.choice(NUMBERS)
    if name in ("--against", "--target", "--foil", "--answer", "--similar-to", "--text", "--label"):
        return rng.choice(TEXTS)
    return rng.choice(WORDS)


def some_file(rng: random.Random, work: Path) -> str:
    there = rng.random()
    if there < 0.8:
        return str(rng.choice([path for path in sorted(work.iterdir()) if path.is_file()]))
    return str(work / rng.choice(NAMES)) + rng.choice(SUFFIXES)


def value(rng: random.Random, work: Path) -> str:
    """Anything."""
    return rng.choice((rng.choice(TEXTS), rng.choice(NUMBERS), rng.choice(LISTS), rng.choice(WORDS),
                       some_file(rng, work)))  # fmt: skip

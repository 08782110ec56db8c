"""Attributions over and over, for an hour: what memory, objects, files and threads do meanwhile.

    python -m benchmarks.soak [--minutes 60] [--out FILE] [--check]

Calls take turns: set to set, lengths (a padded batch), a number's graph, patching,
circuits, and files that are saved and opened, on texts of varied lengths drawn at random. Every
minute the same calls run on a fixed input, and have to give the same bits; then a line says what
the process holds. ``--out`` gets the lines as JSON. At the end the slopes over the last half, with
intervals of 95 %, are held against the bounds. safetensors does not free the two numbers that say
where in its file a tensor lies: what a tensor leaves is measured first, without this package.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import linregress, t
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.common import command, say, section, table
from benchmarks.texts import load
from captum_lig import FlowGraph, LayerFlowIG, SetToSetIG, circuits
from captum_lig.flow.explanation import Explanation
from captum_lig.flow.flows import Flows
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.io.flows import load_flows, save_flows
from captum_lig.patching import effects

TITLE = "An hour of calls"
MIB = 2**20
PER_HOUR = {"own": 16 * MIB, "allocated": 16 * MIB, "objects": 2000}
"""Most growth in an hour, as the upper end of the interval; a run makes thousands of calls."""
CONSTANT = ("files", "threads")
"""What is the same at the end as in the middle."""
LONGEST = 24
"""Tokens of a text."""


@dataclass(frozen=True)
class Line:
    """What the process holds at some time."""

    minutes: float
    calls: int
    resident: int
    """Bytes of its own in memory, after malloc has given back the pages that it keeps free. Pages
    of mapped files (libraries, weights) are not among them, where the system counts these: it drops
    them and reads them again as it likes."""
    left: int
    """Bytes of them that safetensors has left behind."""
    allocated: int
    """Bytes of them that malloc has given out (0 where it cannot be asked)."""
    objects: int
    """That Python's collector tracks, after it has run."""
    files: int
    threads: int
    bits: str
    """SHA-256 of what the fixed inputs gave."""

    @property
    def own(self) -> int:
        """Bytes in memory without those that safetensors has left behind."""
        return self.resident - self.left


class _Allocated(ctypes.Structure):
    """What glibc's ``mallinfo2`` gives."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated() -> int:
    """Bytes that malloc has given out; 0 without glibc."""
    try:
        ask = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return 0
    ask.restype = _Allocated
    found = ask()
    return int(found.uordblks + found.hblkhd)


def give_back() -> None:
    """Let malloc give back the pages that it keeps free; nothing without glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident(process: psutil.Process) -> int:
    """Bytes in memory, without those of files and of what is shared where these are known."""
    found = process.memory_info()
    return int(found.rss - getattr(found, "shared", 0))


def left_by_safetensors(folder: Path) -> float:
    """Bytes that stay behind for each tensor that safetensors reads for torch."""
    block = 32  # of Python's small objects; a whole number takes one
    many = {f"tensor {n}": torch.zeros(64) for n in range(200)}
    file = folder / "many.safetensors"
    save_file(many, file)

    def read(times: int) -> int:
        for _ in range(times):
            with safe_open(file, "pt") as opened:
                for name in many:
                    opened.get_tensor(name)
        gc.collect()
        return sys.getallocatedblocks()

    before = read(10)
    return max(0, read(100) - before) * block / (100 * len(many))


class Calls:
    """The calls; each takes a generator of random numbers and gives tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read = 0
        """Tensors that were read from safetensors files."""
        _, self.encoder = load(None)
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=1000, n_embd=64, n_layer=2, n_head=4, bos_token_id=1)
        self.decoder = GPT2LMHeadModel(config).eval()
        self.layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
        self.all: dict[str, Callable[[torch.Generator], list[Tensor]]] = {
            "set to set": self.sets,
            "lengths": self.lengths,
            "a number": self.number,
            "files": self.files,
            "patching": self.patching,
            "circuits": self.circuits,
        }

    def bits(self) -> str:
        """Of all calls on a fixed input."""
        digest = hashlib.sha256()
        for call in self.all.values():
            for tensor in call(torch.Generator().manual_seed(0)):
                digest.update(tensor.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def sets(self, generator: torch.Generator) -> list[Tensor]:
        tokens = drawn(1, LONGEST, generator)
        x = torch.randn(2, tokens, 32, generator=generator)
        found = SetToSetIG(self.layer).attribute(x, n_steps=8)
        return [found] if isinstance(found, Tensor) else list(found)

    def lengths(self, generator: torch.Generator) -> list[Tensor]:
        flows = LayerFlowIG(self.encoder, [5]).attribute(padded(generator), n_steps=6)
        return [x for flow in of_layers(flows) for x in flow.tensors.values()]

    def number(self, generator: torch.Generator) -> list[Tensor]:
        found = self._graph(generator).relevance()
        return [found.tokens, found.heads]

    def files(self, generator: torch.Generator) -> list[Tensor]:
        found: list[Tensor] = []
        graph = self._graph(generator)
        for end in ("json", "safetensors"):
            opened = FlowGraph.load(graph.save(self.folder / f"graph.{end}"))
            found.append(opened.relevance().tokens)
        self.read += tensors(self.folder / "graph.safetensors")
        ids = text(generator)
        flows = of_layers(LayerFlowIG(self.decoder).attribute(ids, n_steps=4))
        names = [str(token) for token in ids[0].tolist()]
        for end in ("json", "safetensors"):
            file = save_flows(Explanation(flows, names), self.folder / f"flows.{end}")
            found += [x for flow in load_flows(file).flows for x in flow.tensors.values()]
        self.read += tensors(self.folder / "flows.safetensors")
        return found

    def patching(self, generator: torch.Generator) -> list[Tensor]:
        ids = text(generator)
        kinds = ("heads", "feed_forward", "tokens")
        found = effects(self.decoder, ids, other(ids, generator), (-1, 5), kinds)
        return [x for x in (found.out.heads, found.into.heads, found.out.tokens) if x is not None]

    def circuits(self, generator: torch.Generator) -> list[Tensor]:
        ids = text(generator)
        with circuits.of_nodes(self.decoder, ids, other(ids, generator), (-1, 5)) as found:
            return [found.values(torch.eye(found.count, dtype=torch.bool)[:16])]

    def _graph(self, generator: torch.Generator) -> FlowGraph:
        ids = text(generator)
        flows = LayerFlowIG(self.decoder).attribute(ids, other(ids, generator), (-1, 5))
        return FlowGraph(flows)


def tensors(file: Path) -> int:
    """How many a file holds."""
    with safe_open(file, "pt") as opened:
        return len(opened.keys())


def of_layers(flows: LayerFlow | Flows) -> list[LayerFlow]:
    """Of a model, of which all layers were asked for."""
    assert not isinstance(flows, LayerFlow)
    return list(flows)


def drawn(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number, both ends among them."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def text(generator: torch.Generator) -> Tensor:
    """Token ids ``(1, S)``."""
    return torch.randint(10, 1000, (1, drawn(2, LONGEST, generator)), generator=generator)


def other(ids: Tensor, generator: torch.Generator) -> Tensor:
    """The text with one token changed."""
    found = ids.clone()
    found[0, drawn(0, ids.shape[1] - 1, generator)] = drawn(3, 9, generator)
    return found


def padded(generator: torch.Generator) -> dict[str, Tensor]:
    """A batch of one to three texts."""
    texts = [text(generator)[0] for _ in range(drawn(1, 3, generator))]
    masks = [torch.ones_like(ids) for ids in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(texts, batch_first=True),
        "attention_mask": pad(masks, batch_first=True),
    }


def soak(minutes: float, out: TextIO | None) -> list[Line]:
    """The lines of a run, one a minute (ten in all if it is shorter than that)."""
    every = min(60.0, minutes * 6)
    process, lines, done = psutil.Process(), list[Line](), 0
    generator = torch.Generator().manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        calls = Calls(Path(folder))
        calls.bits()  # what is loaded once and kept
        each = left_by_safetensors(Path(folder))
        calls.read = 0
        began = time.monotonic()
        while True:
            # The hash first: what it leaves for the collector is counted each time.
            bits = calls.bits()
            gc.collect()
            give_back()
            line = Line(
                minutes=(time.monotonic() - began) / 60,
                calls=done,
                resident=resident(process),
                left=round(each * calls.read),
                allocated=allocated(),
                objects=len(gc.get_objects()),
                files=process.num_fds(),
                threads=process.num_threads(),
                bits=bits,
            )
            lines.append(line)
            say(" ".join(row(line)))
            if out is not None:
                print(json.dumps(asdict(line)), file=out, flush=True)
            if line.minutes >= minutes:
                return lines
            until = time.monotonic() + every  # after the hash, which takes its time, too
            for call in cycle(calls.all.values()):
                if time.monotonic() >= until:
                    break
                call(generator)
                done += 1


LABELS = {"left": "left by safetensors", "own": "resident without that"}
HEADER = ["minute", "calls", "resident", LABELS["left"], "allocated"]
HEADER += ["objects", "files", "threads", "bits"]


def row(line: Line) -> list[str]:
    sizes = [f"{size / MIB:.1f} MiB" for size in (line.resident, line.left, line.allocated)]
    counts = [f"{line.objects:,}", str(line.files), str(line.threads), line.bits[:8]]
    return [f"{line.minutes:.1f}", f"{line.calls:,}", *sizes, *counts]


def slope(lines: Sequence[Line], name: str) -> tuple[float, float]:
    """Growth in an hour over some lines, and half of its interval of 95 %."""
    values = [float(getattr(line, name)) for line in lines]
    if len(set(values)) == 1:  # whose interval would be 0 / 0
        return 0.0, 0.0
    fit = linregress([line.minutes / 60 for line in lines], values)
    return float(fit.slope), float(fit.stderr * t.ppf(0.975, len(lines) - 2))


def judged(lines: Sequence[Line]) -> tuple[list[list[str]], list[str]]:
    """Rows of what grew in the last half, and the bounds that were missed."""
    half = lines[len(lines) // 2 :]
    rows, missed = [], []
    for name in ("resident", "left"):
        grows, around = slope(half, name)
        said = f"{grows / MIB:+.1f} ± {around / MIB:.1f} MiB"
        rows.append([LABELS.get(name, name), said, ""])
    for name, most in PER_HOUR.items():
        label = LABELS.get(name, name)
        grows, around = slope(half, name)
        unit, of = (" MiB", MIB) if most >= MIB else ("", 1)
        said = f"{grows / of:+.1f} ± {around / of:.1f}{unit}"
        rows.append([label, said, f"{most / of:,.0f}{unit}"])
        if not grows + around <= most:
            missed.append(f"{label}: {said} an hour (at most {most / of:,.0f}{unit})")
    for name in CONSTANT:
        first, last = getattr(half[0], name), getattr(half[-1], name)
        rows.append([name, f"{last - first:+d}", "0"])
        if last > first:
            missed.append(f"{name}: {first}, at the end {last}")
    different = len({line.bits for line in lines}) - 1
    rows.append(["other bits", str(different), "0"])
    if different:
        missed.append(f"bits of the fixed inputs changed: {different} other hashes")
    return rows, missed


def run(minutes: float = 60.0, out: str | None = None) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    with warnings.catch_warnings(), open(out or "/dev/null", "w", encoding="utf-8") as file:
        warnings.simplefilter("ignore")  # of texts of random tokens
        lines = soak(minutes, file)
    rows, missed = judged(lines)
    few = [line for line in lines if (line is lines[-1]) or lines.index(line) % 5 == 0]
    return section(
        TITLE,
        "Growth over the last half, in an hour, with intervals of 95 %:",
        table(["", "growth", "at most"], rows),
        table(HEADER, [row(line) for line in few]),
    ), missed


OPTIONS: dict[str, dict[str, Any]] = {
    "minutes": {"type": float, "default": 60.0},
    "out": {"help": "file for the lines, as JSON"},
}

if __name__ == "__main__":
    sys.exit(command(__doc__, run, OPTIONS))

"""The same inputs give the same bits, and growth over a run of calls is found."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open

from benchmarks.soak import MIB, Calls, Line, judged, left_by_safetensors, resident

HASH = """
import pathlib, sys, torch
from benchmarks.soak import Calls
torch.set_num_threads(1)
print(Calls(pathlib.Path(sys.argv[1])).bits())
"""


@pytest.mark.filterwarnings("ignore::UserWarning")  # of texts of random tokens
def test_same_inputs_same_bits(tmp_path: Path) -> None:
    """Of sets, lengths, a number, files, patching, circuits: again, after others, elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = Calls(tmp_path)
        first = calls.bits()
        for call in calls.all.values():
            call(torch.Generator().manual_seed(3))
        assert calls.bits() == first
    finally:
        torch.set_num_threads(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", HASH, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert other.stdout.split()[-1] == first


LINES = [
    Line(
        minutes=n,
        calls=100 * n,
        resident=500 * MIB + n % 2 * 4096,
        left=0,
        allocated=100 * MIB,
        objects=1000,
        files=5,
        threads=2,
        bits="a",
    )
    for n in range(61)
]
"""Of an hour without growth."""


def test_no_growth() -> None:
    assert judged(LINES)[1] == []


@pytest.mark.parametrize(
    ("name", "each"), [("resident", MIB), ("allocated", MIB), ("objects", 50), ("files", 1)]
)
def test_growth(name: str, each: int) -> None:
    lines = [
        replace(line, **{name: getattr(line, name) + n * each}) for n, line in enumerate(LINES)
    ]
    (missed,) = judged(lines)[1]
    assert missed.startswith(name)


def test_what_safetensors_leaves_is_taken_off() -> None:
    lines = [
        replace(line, resident=line.resident + n * MIB, left=n * MIB)
        for n, line in enumerate(LINES)
    ]
    rows, missed = judged(lines)
    assert missed == []
    assert [row[1][:5] for row in rows[:3]] == ["+60.0", "+60.0", "+0.0 "]


def test_what_safetensors_leaves(tmp_path: Path) -> None:
    """As much as Python's own account of what it gave out, whose blocks are a little smaller."""
    each = left_by_safetensors(tmp_path)
    tracemalloc.start()
    try:
        with safe_open(tmp_path / "many.safetensors", "pt") as opened:
            names = opened.keys()
            before = tracemalloc.get_traced_memory()[0]
            for name in names:
                opened.get_tensor(name)
            left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert each == pytest.approx(left / len(names), abs=12)


def test_growth_that_ended_is_none() -> None:
    """What fills in the first half, caches say, is not growth."""
    lines = [
        replace(line, resident=line.resident + min(n, 20) * MIB) for n, line in enumerate(LINES)
    ]
    assert judged(lines)[1] == []


def test_other_bits() -> None:
    (missed,) = judged([*LINES[:-1], replace(LINES[-1], bits="b")])[1]
    assert "bits" in missed


@pytest.mark.skipif(sys.platform != "linux", reason="pages of files are not counted elsewhere")
def test_pages_of_files_are_not_the_process_own(tmp_path: Path) -> None:
    """The system drops them and reads them again as it likes: they say nothing of growth."""
    file = tmp_path / "file"
    file.write_bytes(bytes(32 * MIB))
    process = psutil.Process()
    before, own = process.memory_info().rss, resident(process)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert process.memory_info().rss - before > 16 * MIB
        assert abs(resident(process) - own) < 4 * MIB
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # malloc may have as much left over
    with mmap.mmap(-1, 32 * MIB, flags=private) as held:
        held[:: mmap.PAGESIZE] = b"1" * (32 * MIB // mmap.PAGESIZE)
        assert resident(process) - own > 24 * MIB

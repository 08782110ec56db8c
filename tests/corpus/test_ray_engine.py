"""The engine over Ray, on a real Ray of two cores: every batch once, whatever ends.

A worker imports torch and transformers in its own process, seconds of a core each: few are started.
The tests without a Ray come first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from captum_lig import LigError
from captum_lig.corpus import ray_engine as module
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.ray_engine import ray_engine
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.texts import Text
from captum_lig.corpus.worker import Worker

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'captum-lig[ray]'")

from tests.helpers import ray_workers  # noqa: E402

# Ray's workers give way to all other processes if they are not told otherwise.
os.environ.setdefault("RAY_worker_niceness", "0")

ROOT = Path(__file__).parents[2]
BATCHES, SIZE = 12, 3
POISONED = 13
"""The text that ends its worker, in batch 4."""


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    """A Ray that the user started."""
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture
def joined(two_cores: None) -> Iterator[None]:
    """It is there before and after, and the engine leaves no worker in it."""
    yield
    assert ray.is_initialized()
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.05)


def batches(poison: str | None = None) -> list[Batch]:
    """Texts of three to seven words; one is ``poison``, or as others if it is None."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "another", "cat"]
    texts = [Text(i, str(i), " ".join(words[i % 3 : 3 + i % 5])) for i in range(BATCHES * SIZE)]
    texts[POISONED] = Text(POISONED, "13", poison or "a cat")
    return [Batch(i, 0, tuple(texts[i * SIZE : (i + 1) * SIZE])) for i in range(BATCHES)]


def process(part: Part) -> int:
    return int(part.tables["process"]["process"][0].as_py())


def assert_same_rows(parts: dict[int, Part], others: dict[int, Part]) -> None:
    """Every table, column for column: floats to rounding, all else as it is."""
    for number, part in parts.items():
        assert set(part.tables) == set(others[number].tables) - {"process"}
        for name, table in part.tables.items():
            other = others[number].tables[name]
            assert other.schema == table.schema
            assert other.num_rows == table.num_rows
            for column in table.column_names:
                for value, found in zip(
                    table[column].to_pylist(), other[column].to_pylist(), strict=True
                ):
                    if isinstance(value, float):
                        assert found == pytest.approx(value, rel=1e-4, abs=1e-6), (name, column)
                    else:
                        assert found == value, (name, column)


def test_an_address_where_nothing_is_is_said_at_once() -> None:
    run = ray_engine(Settings(), iter(batches()), 1, "127.0.0.1:1", ray_workers.empty)
    began = time.monotonic()
    with pytest.raises(LigError, match=r"no Ray was found at address='127\.0\.0\.1:1'"):
        next(run)
    assert time.monotonic() - began < 20


ALONE = """
import signal
from itertools import count
from captum_lig.corpus.batches import Batch
from captum_lig.corpus.ray_engine import ray_engine
from captum_lig.corpus.settings import Settings
from tests.helpers import ray_workers

if __name__ == "__main__":
    # Started in the background of a script, a process would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    endless = (Batch(number, 0, ()) for number in count())
    try:
        for part in ray_engine(Settings(), endless, 1, load=ray_workers.empty):
            print(part.number, flush=True)
    finally:
        import ray
        print("connected:", ray.is_initialized(), flush=True)
"""


def test_after_an_interrupt_a_ray_that_it_started_is_gone(tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to all processes of its group."""
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    run = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "0\n"
    started = psutil.Process(run.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in started)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=240)
    assert run.returncode != 0
    assert out.endswith("connected: False\n")
    assert err.startswith("Traceback"), "Ray says things of its own"
    assert err.rstrip().endswith("KeyboardInterrupt")
    _, alive = psutil.wait_procs(started, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.usefixtures("joined")
def test_every_text_once_as_without_ray_though_workers_end(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker is killed, and one text ends each of its workers."""
    monkeypatch.setattr(module, "TRIES", 1)
    settings = Settings(model=str(tiny), n_steps=4)
    taken = 0

    def counted() -> Iterator[Batch]:
        nonlocal taken
        for batch in batches(ray_workers.POISON):
            taken += 1
            yield batch

    def run() -> list[Part]:
        parts = []
        for part in ray_engine(settings, counted(), 2, load=ray_workers.telling):
            parts.append(part)
            assert taken <= len(parts) + 3, "it reads ahead of its workers"
            if len(parts) == 1:  # this worker has had its next batch by now
                os.kill(process(part), signal.SIGKILL)
        return parts

    with pytest.warns(UserWarning, match="a worker ended while it had batch .* is done again"):
        parts = run()
    assert Counter(part.number for part in parts) == Counter(range(BATCHES))
    assert os.getpid() not in {process(part) for part in parts}
    assert len({process(part) for part in parts}) >= 3

    worker = Worker(settings)
    there = {part.number: part for part in parts}
    for batch in batches(ray_workers.POISON):
        assert there[batch.number].digest == batch.digest
    number = POISONED // SIZE
    poisoned = there[number].tables["texts"].to_pylist()
    assert [row["number"] for row in poisoned] == [12, 13, 14]
    assert [row["status"] for row in poisoned] == ["done", "skipped", "done"]
    assert "it ended its worker" in poisoned[1]["reason"]
    here = {batch.number: worker(batch) for batch in batches()}
    del here[number], there[number]
    assert_same_rows(here, there)


@pytest.mark.usefixtures("joined")
def test_a_model_that_cannot_be_loaded_is_said_at_once() -> None:
    settings = Settings(model="nothing")
    with pytest.raises(LigError, match=r"^model 'nothing' is not here\.$"):
        list(ray_engine(settings, iter(batches()), 1, load=ray_workers.without_a_model))


@pytest.mark.usefixtures("joined")
def test_workers_that_end_while_they_load_are_not_started_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TRIES", 1)
    with pytest.raises(LigError, match=r"1 workers ended while they loaded the model"):
        list(ray_engine(Settings(), iter(batches()), 1, load=ray_workers.ends_at_once))


@pytest.mark.usefixtures("joined")
def test_what_cannot_be_worked_with_is_refused() -> None:
    def run(settings: Settings, workers: int = 1, address: str | None = None) -> None:
        list(ray_engine(settings, iter(batches()), workers, address, ray_workers.empty))

    with pytest.raises(LigError, match=r"workers=0: give a whole number"):
        run(Settings(), workers=0)
    with pytest.raises(LigError, match=r"address='auto': this process is connected to a Ray"):
        run(Settings(), address="auto")
    with pytest.raises(LigError, match=r"device='cuda:1': Ray gives each worker a GPU of its own"):
        run(Settings(device="cuda:1"))

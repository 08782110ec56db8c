"""Files and command lines of strangers: one clear error, bounded memory, nothing half written."""

from __future__ import annotations

import ast
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import captum_lig
from captum_lig import FlowGraph, LigError
from captum_lig.cli.outputs import Outputs
from captum_lig.cli.results import Results as cli_results
from captum_lig.corpus.run import Results
from captum_lig.corpus.texts import open_corpus
from captum_lig.integrals.quadrature import nodes_and_weights
from captum_lig.io.codec import JSON_FACTOR, document_from_json
from captum_lig.io.direct_edges import load_direct_edges
from captum_lig.io.flows import load_flows
from captum_lig.io.graphs import load_graph
from captum_lig.pretrained.load import load_model
from tests.helpers.fuzz.command_line import run_commands
from tests.helpers.fuzz.readers import READERS, Fuzzed
from tests.helpers.fuzz.run import run_reader
from tests.helpers.ids import words
from tests.helpers.saved import save_tiny_gpt2

PACKAGE = Path(captum_lig.__file__).parent


def fuzzed(name: str, folder: Path) -> Path:
    """The valid file of a reader."""
    (reader,) = (reader for reader in READERS if reader.name == name)
    path = folder / reader.file
    reader.write(path)
    return path


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_sample_of_the_files(reader: Fuzzed, tmp_path: Path) -> None:
    found = run_reader(reader, tmp_path, 150, seed=7)
    assert found.failures == {}, found.example
    assert found.cases == 150
    assert found.accepted < 150 or reader.name.startswith("corpus,")  # these name bad lines


def test_a_sample_of_the_commands(tmp_path: Path) -> None:
    found = run_commands(tmp_path, 250, seed=7)
    assert found.failures == {}, found.example
    assert found.accepted > 10
    assert found.refused > 100


def test_what_is_found_is_told(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        if path.read_bytes() != b"whole":
            raise IndexError("of a list")

    def write(path: Path) -> None:
        path.write_bytes(b"whole")

    wrong = Fuzzed("wrong", "a.bin", write, read, lambda rng, data: data[: rng.randrange(9)])
    found = run_reader(wrong, tmp_path, 50, seed=0)
    ((what, count),) = found.failures.items()
    assert what.startswith("IndexError at ")
    assert 10 < count == 50 - found.accepted < 50


# ---- memory ----------------------------------------------------------------------------------


def large(path: Path, name: str = "residual") -> None:
    """Change a graph's file so that a few bytes stand for a tensor of many zeros."""
    document = json.loads(path.read_text())
    tensor = document["layers"][0]["tensors"][name]
    axes = tensor["axes"]
    tensor |= {"shape": [2**30] * len(axes), "index": [], "values": []}
    path.write_text(json.dumps(document))


def test_a_small_file_that_stands_for_much_is_refused(tmp_path: Path) -> None:
    path = fuzzed("graph, JSON", tmp_path)
    large(path)
    with pytest.raises(LigError, match=r"may take more than 4,295 MB to read.*most_bytes"):
        load_graph(path)


@pytest.mark.parametrize("name", ["flows, safetensors", "graph, safetensors", "direct edges"])
def test_a_size_of_more_than_63_bits_is_damage(name: str, tmp_path: Path) -> None:
    path = fuzzed(name, tmp_path)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    numbers = [about for key, about in header.items() if key != "__metadata__"]
    last = max(numbers, key=lambda about: int(about["data_offsets"][1]))
    end = last["data_offsets"][0]
    last |= {"shape": [0, 2**63], "data_offsets": [end, end]}
    data = data[: 8 + length + end]
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    load = {"flows": load_flows, "graph": load_graph}.get(name.split(",")[0], load_direct_edges)
    with pytest.raises(LigError, match="Overflow") as caught:
        load(path)
    assert "frame #" not in str(caught.value)


@pytest.mark.parametrize("name", ["flows, JSON", "flows, safetensors", "graph, safetensors"])
def test_memory_is_counted_before_it_is_taken(name: str, tmp_path: Path) -> None:
    path = fuzzed(name, tmp_path)
    load: Callable[..., object] = load_flows if name.startswith("flows") else FlowGraph.load
    load(path, most_bytes=1_000_000)
    with pytest.raises(LigError, match="may take more than 0 MB to read"):
        load(path, most_bytes=1000)


def test_direct_edges_are_counted_too(tmp_path: Path) -> None:
    path = fuzzed("direct edges", tmp_path)
    with pytest.raises(LigError, match="may take more than 0 MB to read: give keep"):
        load_direct_edges(path, most_bytes=1000)
    assert len(load_direct_edges(path, 2, most_bytes=1000)) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("writers", [["embedding", None, None]]),
        ("readers", [["query", 0, "0"], ["feed_forward", 0, None], ["output", None, None]]),
        ("readers", [["eval", 0, 0], ["feed_forward", 0, None], ["output", None, None]]),
        ("labels", ["a"]),
        ("labels", ["a", 3]),
        ("change", float("nan")),
        ("change", 10**30),
        ("target", None),
    ],
    ids=words,
)
def test_what_direct_edges_say_has_to_fit(key: str, value: Any, tmp_path: Path) -> None:
    path = fuzzed("direct edges", tmp_path)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["captum_lig"])
    header["__metadata__"]["captum_lig"] = json.dumps(about | {key: value})
    made = json.dumps(header).encode()
    path.unlink()
    path.write_bytes(struct.pack("<Q", len(made)) + made + data[8 + length :])
    with pytest.raises(LigError, match="is damaged"):
        load_direct_edges(path)


def test_a_line_that_is_a_whole_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captum_lig.corpus.texts.MOST_LINE", 1000)
    path = tmp_path / "texts.txt"
    path.write_text("a\n" + "b" * 2000)
    with pytest.raises(LigError, match="in line 2: give a text a line"):
        open_corpus(path)


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left"])
def test_so_many_steps_take_gigabytes(method: str) -> None:
    with pytest.raises(LigError, match="give 10000 at most"):
        nodes_and_weights(method, 10**18)


@pytest.mark.parametrize("part", ["{}", "[]", "0", "0.5", "1e9", '"é"', '"😀"', "[[]]", '{"":[]}'])
def test_json_takes_no_more_memory_than_it_is_counted_with(part: str) -> None:
    text = "[" + ",".join([part] * 20_000) + ', "😀"]'
    tracemalloc.start()
    try:
        document_from_json(text.encode().decode())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (JSON_FACTOR - 1) * len(text.encode())


# ---- what is written -------------------------------------------------------------------------


def test_every_file_is_written_beside_and_renamed() -> None:
    writes = ("write_text", "write_bytes", "savefig", "save_file", "dump")
    # A folder that is renamed when all is in it; bytes in memory.
    others = {"pretrained/smollm2.py": "folder / ", "views/notebook/pictures.py": "drawn"}
    found = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            opens = name.endswith("open") and any(f"'{mode}" in ast.unparse(node) for mode in "wax")
            if name.rpartition(".")[2] not in writes and not opens:
                continue
            found += 1
            own = str(path.relative_to(PACKAGE))
            assert others.get(own, "beside") in ast.unparse(node), own
    assert found > 12


def test_a_file_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all.csv"
    path.write_text("old")
    results = cli_results("table", Outputs([path], {None: []}), False, {"a": int})

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="the disk is full"):
        results.close()
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["all.csv"]


# ---- nothing runs, nothing leads elsewhere ---------------------------------------------------


def test_nothing_here_reads_pickles_or_runs_text() -> None:
    modules = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "yaml"}
    calls = {"eval", "exec", "torch.load", "compile", "__import__"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not modules & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in modules, path
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in calls, (path, name)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("trust_remote_code", "False") == "False", path
                assert given.get("allow_pickle", "False") == "False", path
                if name.endswith("from_pretrained"):
                    assert "trust_remote_code" in given, path


def test_weights_in_a_pickle_are_refused(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    whole = tmp_path / "model.safetensors"
    load_model(tmp_path)
    torch.save(load_file(whole), tmp_path / "pytorch_model.bin")
    whole.unlink()
    with pytest.raises(LigError, match=r"no file named model\.safetensors"):
        load_model(tmp_path)


def test_maps_of_a_run_lie_in_its_folder(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "texts").mkdir()
    rows = [{"number": 0, "maps": "../secret.safetensors"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "texts" / "0.parquet")
    with pytest.raises(LigError, match=r"is damaged: maps '\.\./secret"):
        Results(tmp_path, {}, {}).maps(0)

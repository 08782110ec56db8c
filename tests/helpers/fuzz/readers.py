"""Every reader of files: a valid file, how it is made invalid, and what reading it is."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from captum_lig import FlowGraph
from captum_lig.cli.texts import read_lines
from captum_lig.corpus.run import load
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.store import FINISHED, SETTINGS
from captum_lig.corpus.texts import open_corpus
from captum_lig.flow.explanation import Explanation
from captum_lig.flow.flows import Flows
from captum_lig.graph.direct_edges import Reader, Writer
from captum_lig.io.attribution_graph import read_index
from captum_lig.io.direct_edges import load_direct_edges, writing_direct_edges
from captum_lig.io.flows import load_flows, save_flows
from captum_lig.io.graphs import load_graph, save_graph
from tests.helpers.fuzz.mutate import mutate_bytes, mutate_json, mutate_lines, mutate_safetensors
from tests.helpers.synthetic import layer_flow

__all__ = ["READERS", "Fuzzed"]

Mutate = Callable[[random.Random, bytes], bytes]
MOST = 2**24
"""Bytes that reading may take here: so little that a file that takes more would be seen."""
TREE = """# sent_id = a
# text = The cat sat.
1\tThe\tthe\tDET\t_\t_\t2\tdet\t_\t_
2\tcat\tcat\tNOUN\t_\t_\t3\tnsubj\t_\t_
3\tsat\tsit\tVERB\t_\t_\t0\troot\t_\tSpaceAfter=No
4\t.\t.\tPUNCT\t_\t_\t3\tpunct\t_\t_

# sent_id = b
1-2\tau\t_\t_\t_\t_\t_\t_\t_\t_
1\tà\tà\tADP\t_\t_\t3\tcase\t_\t_
2\tle\tle\tDET\t_\t_\t3\tdet\t_\t_
3\tchat\tchat\tNOUN\t_\t_\t0\troot\t_\t_
"""
ROW = {"text": "the cat", "id": "a", "against": "a dog", "target": " sat", "foil": 3}
KEYS: dict[str, type] = {"against": str, "target": str, "generate": int, "chat": bool}


@dataclass(frozen=True)
class Fuzzed:
    """A reader of one kind of file."""

    name: str
    file: str
    """What the file is called."""
    write: Callable[[Path], object]
    """Write a valid one."""
    read: Callable[[Path], object]
    """Read it, and use what was read."""
    mutate: Mutate


def _flows() -> Explanation:
    made = Flows([layer_flow(index, 3, 2) for index in range(2)])
    return Explanation(made, list("abc"), "a b c", "a model", {"n_steps": 4})


def _graph() -> FlowGraph:
    flows = [replace(flow, attention=_few(flow.attention)) for flow in _flows().flows]
    return FlowGraph(flows, ["[CLS]", "Ġcat", "##s"])


def _few(values: torch.Tensor) -> torch.Tensor:
    """So few numbers that they are stored with their positions."""
    return torch.where(torch.arange(values.numel()).reshape(values.shape) % 9 == 4, values, 0.0)


def _read_flows(path: Path) -> None:
    found = load_flows(path, most_bytes=MOST)
    repr(found)
    save_flows(found, path.with_name("again.json"))


def _read_graph(path: Path) -> None:
    found = load_graph(path, most_bytes=MOST)
    repr(found)
    save_graph(found, path.with_name("again.json"))


def _write_edges(path: Path) -> None:
    writers = [Writer("embedding"), Writer("heads", 0, 0), Writer("feed_forward", 0)]
    readers = [Reader("query", 0, 0), Reader("feed_forward", 0), Reader("output")]
    facts = {"change": 1.5, "target": "logit of a", "labels": ["a", "b"]}
    shapes = {0: (1, 1, 2), 1: (3, 2, 2)}
    with writing_direct_edges(path, writers, readers, shapes, facts) as add:
        for first, shape in shapes.items():
            add(first, torch.randn(shape, generator=torch.Generator().manual_seed(first)))


def _read_edges(path: Path) -> None:
    found = load_direct_edges(path)
    str(found), repr(found), found.words(), found.rows(), found.summed()


def _write_index(path: Path) -> None:
    graphs = [{"slug": "one", "scan": "m", "prompt_tokens": ["a"]}, {"slug": "two"}]
    path.write_text(json.dumps({"graphs": graphs}))


def _write_run(path: Path) -> None:
    about = {"format": "captum_lig.corpus", "version": 1, "settings": Settings().to_json()}
    path.write_text(json.dumps(about))
    path.with_name(FINISHED).write_text('{"texts": {"done": 3}}')


def _read_run(path: Path) -> None:
    found = load(path.parent)
    Settings.from_json(found.settings).check()


def _write_counts(path: Path) -> None:
    _write_run(path.with_name(SETTINGS))


def _read_texts(path: Path) -> None:
    for text in open_corpus(path):
        text.id.encode("utf-8", "backslashreplace")
        if text.problem is None:
            text.text.encode()


def _write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{**ROW, "foil": "b"}] * 3), path)


def _lines(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


ROWS = "".join(json.dumps(row) + "\n" for row in (ROW, {"text": "b"}, ROW))
ASKED = "".join(json.dumps(one) + "\n" for one in ({"text": "a", "chat": True}, {"text": "b"}))
TABLE = 'text,id,against,target\n"the ""cat"", sat",a,"b\nc", d\nx,,,\n'

READERS = [
    Fuzzed(
        "flows, JSON", "a b ü.json", lambda p: save_flows(_flows(), p), _read_flows, mutate_json
    ),
    Fuzzed(
        "flows, safetensors",
        "flows.safetensors",
        lambda p: save_flows(_flows(), p),
        _read_flows,
        mutate_safetensors,
    ),
    Fuzzed(
        "graph, JSON", "graph.json", lambda p: save_graph(_graph(), p), _read_graph, mutate_json
    ),
    Fuzzed(
        "graph, safetensors",
        "graph.safetensors",
        lambda p: save_graph(_graph(), p),
        _read_graph,
        mutate_safetensors,
    ),
    Fuzzed("direct edges", "edges.safetensors", _write_edges, _read_edges, mutate_safetensors),
    Fuzzed("list of graphs", "graph-metadata.json", _write_index, read_index, mutate_json),
    Fuzzed("corpus run, settings", SETTINGS, _write_run, _read_run, mutate_json),
    Fuzzed("corpus run, counts", FINISHED, _write_counts, _read_run, mutate_json),
    Fuzzed("corpus, lines", "texts.txt", _lines("the cat\nsat\n\non"), _read_texts, mutate_lines),
    Fuzzed("corpus, JSONL", "texts.jsonl", _lines(ROWS), _read_texts, mutate_lines),
    Fuzzed("corpus, CSV", "texts.csv", _lines(TABLE), _read_texts, mutate_lines),
    Fuzzed("corpus, TSV", "texts.tsv", _lines(TABLE.replace(",", "\t")), _read_texts, mutate_lines),
    Fuzzed("corpus, CoNLL-U", "texts.conllu", _lines(TREE), _read_texts, mutate_lines),
    Fuzzed("corpus, Parquet", "texts.parquet", _write_parquet, _read_texts, mutate_bytes),
    Fuzzed(
        "why --file",
        "asked.jsonl",
        _lines(ASKED),
        lambda path: read_lines(None, path, {}, KEYS),
        mutate_lines,
    ),
]
warnings.filterwarnings("ignore", module="captum_lig")

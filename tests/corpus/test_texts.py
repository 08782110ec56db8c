"""What is read from files and data sets, and what a bad line does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from captum_lig import LigError
from captum_lig.corpus.texts import Text, open_corpus

ROWS: list[dict[str, Any]] = [
    {"id": "first", "text": "the cat", "target": " sat", "foil": " ran"},
    {"id": "second", "text": "a, b\nand ü", "counterfactual": "c, d\nand e"},
]
CONLLU = """\
# sent_id = a-1
# text = Don't  stop.
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\tSpacesAfter=\\s\\s
1\tDo\tdo\tAUX\t_\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_
3\tstop\tstop\tVERB\t_\t_\t0\troot\t_\tSpaceAfter=No
4\t.\t.\tPUNCT\t_\t_\t3\tpunct\t_\t_

the cat sat

1-2\tCan't\t_\t_\t_\t_\t_\t_\t_\t_
1\tCa\tcan\tAUX\t_\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\t_\t_\t0\troot\t_\t_
3.1\tgone\tgo\tVERB\t_\t_\t_\t_\t_\t_
4\t(\t(\tPUNCT\t_\t_\t3\tpunct\t_\tSpaceAfter=No
5\tyet\tyet\tADV\t_\t_\t3\tadvmod\t_\tSpaceAfter=No
6\t)\t)\tPUNCT\t_\t_\t3\tpunct\t_\t_
"""


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[Text]:
    corpus = open_corpus(path)
    found = list(corpus)
    assert [one.number for one in found] == list(range(len(found)))
    assert corpus.count in (None, len(found))
    assert list(corpus) == found, "it can be read again"
    return found


def test_lines(tmp_path: Path) -> None:
    found = read(written(tmp_path / "a.txt", "\ufeffthe cat\r\n\nsat\x85on\n".encode()))
    assert [one.text for one in found] == ["the cat", "", "sat\x85on"]
    assert [one.problem for one in found] == [None, "the line is empty", None]
    assert [one.id for one in found] == ["0", "1", "2"]


def expected() -> list[Text]:
    return [
        Text(0, "first", "the cat", target=" sat", foil=" ran"),
        Text(1, "second", "a, b\nand ü", counterfactual="c, d\nand e"),
    ]


def test_jsonl(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS]
    lines += ["{", "[1]", '{"text": 3}', '{"text": "x", "target": 7, "more": {}}']
    lines += [
        '{"text": "x", "target": [7]}',
        '{"text": "\\ud800"}',
        '{"text": "a", "against": "b"}',
    ]
    found = read(written(tmp_path / "a.jsonl", "\n".join(lines)))
    assert found[:2] == expected()
    good = [one.number for one in found if one.problem is None]
    assert good == [0, 1, 5, 8]
    assert found[5].target == 7
    assert found[8].counterfactual == "b"
    assert "is no UTF-8" in str(found[7].problem)


@pytest.mark.parametrize(("suffix", "between"), [(".csv", ","), (".tsv", "\t")])
def test_csv(tmp_path: Path, suffix: str, between: str) -> None:
    rows = [
        ["id", "text", "counterfactual", "target", "foil", "year"],
        ["first", "the cat", "", " sat", " ran", "1"],
        ["second", '"a, b\nand ü"', '"c, d\nand e"', "", "", "2"],
        ["third", "", "", "", "", "3"],
    ]
    found = read(written(tmp_path / f"a{suffix}", "\n".join(map(between.join, rows))))
    assert found[:2] == expected()
    assert found[2].problem is not None


@pytest.mark.parametrize(("suffix", "between"), [(".csv", ","), (".tsv", "\t")])
def test_rows_of_other_lengths_than_the_header(tmp_path: Path, suffix: str, between: str) -> None:
    """What is over was dropped, and what is not there was taken for empty."""
    rows = ["id,text,target,year", "a,the cat, sat,1", "b,sat, on,the mat,2", "c,x", "d,x,sat"]
    found = read(written(tmp_path / f"a{suffix}", "\n".join(rows).replace(",", between)))
    assert [(one.id, one.text) for one in found] == [
        ("a", "the cat"),
        ("b", "sat"),
        ("c", "x"),
        ("d", "x"),
    ]
    assert [one.problem for one in found] == [
        None,
        "the line has 5 fields and the header 4",
        "the line has 2 fields and the header 4: none for 'target'",
        None,  # no year: it is not read
    ]
    assert [one.asked for one in found] == [True, False, False, True]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_blank_lines_count(tmp_path: Path, suffix: str) -> None:
    header = "" if suffix == ".txt" else "text\n"
    found = read(written(tmp_path / f"a{suffix}", f"{header}the cat\n\nsat\n\n"))
    assert [(one.number, one.text, one.problem) for one in found] == [
        (0, "the cat", None),
        (1, "", "the line is empty"),
        (2, "sat", None),
        (3, "", "the line is empty"),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_counterfactual_under_two_names(tmp_path: Path, suffix: str) -> None:
    """The one that is there; two that are not the same are a question nobody asked."""
    given = [("", "a"), ("a", ""), ("a", "a"), ("a", "b")]
    rows = [{"text": "x", "counterfactual": one, "against": two} for one, two in given]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        written(path, "\n".join(map(json.dumps, rows)))
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        between = "," if suffix == ".csv" else "\t"
        written(path, "\n".join(map(between.join, lines)))
    found = read(path)
    assert [one.counterfactual for one in found] == ["a", "a", "a", None]
    assert [one.problem for one in found[:3]] == [None] * 3
    said = "the line has the counterfactual 'a' and against 'b': give one of them"
    assert found[3].problem == said
    nothing = open_corpus([{"text": "x", "counterfactual": None, "against": "a"}])
    assert [one.counterfactual for one in nothing] == ["a"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 2), tmp_path / "a.parquet")
    # A file's columns are those of its first row.
    assert [one.text for one in read(tmp_path / "a.parquet")] == ["the cat", "a, b\nand ü"] * 2


def test_conllu(tmp_path: Path) -> None:
    found = read(written(tmp_path / "bank.conllu", CONLLU))
    assert [one.id for one in found] == ["a-1", "1", "2"]
    assert "is no CoNLL-U" in str(found[1].problem)
    # The text that is there, and else that of the words: no empty nodes, no parts of a token.
    assert found[0].text == "Don't  stop."
    assert found[2].text == "Can't go (yet)"
    assert found[2].tree is not None
    assert found[2].tree.heads == (2, 2, -1, 2, 2, 2)


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    found = read(written(tmp_path / "a.txt", b"the cat\n\xff\xfe\nsat\n"))
    assert [one.problem for one in found] == [None, "the line is no UTF-8", None]
    assert found[1].text.encode()  # it can be written to a file


class Streamed:
    """As ``datasets.IterableDataset``: no length, rows as they come."""

    column_names = ("text", "label")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"text": "the cat", "label": 1}
        yield {"text": None, "label": 2}


def test_rows_of_a_data_set() -> None:
    corpus = open_corpus(Streamed())
    assert corpus.count is None
    assert corpus.digest is None
    assert [one.problem is None for one in corpus] == [True, False]
    assert [one.text for one in open_corpus(["a", {"text": "b"}])] == ["a", "b"]


def test_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"text": "the cat"}, {"text": "sat"}])
    corpus = open_corpus(data)
    assert corpus.count == 2
    assert corpus.digest is None
    for one in (corpus, open_corpus(data.to_iterable_dataset())):
        assert [text.text for text in one] == ["the cat", "sat"]
    with pytest.raises(LigError, match="has no column 'text': it has words"):
        open_corpus(data.rename_column("text", "words"))
    with pytest.raises(LigError, match="has the splits train: give one"):
        open_corpus(datasets.DatasetDict({"train": data}))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("a.csv", "id,words\n1,a\n", "no column 'text' in its first line: it has '?id, words"),
     ("a.csv", "text,text\na,b\n", "has the column 'text' 2 times in its first line"),
     ("a.tsv", "", "no column 'text'")],
)  # fmt: skip
def test_files_without_texts(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(LigError, match=said):
        open_corpus(written(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", 'text,id\r\n"the cat,1\r\nsat on,2\r\n'),
     ("a.tsv", 'text\tid\n"the cat\t1\nsat on\t2\nmat" x\t3\n')],
)  # fmt: skip
def test_a_quotation_mark_that_nobody_closes(tmp_path: Path, name: str, content: str) -> None:
    """What it swallows is no text."""
    found = read(written(tmp_path / name, content))
    assert found
    assert all("is no CSV" in str(one.problem) for one in found if "\n" in one.text or not one.text)
    assert all(one.text in ("", "sat on") for one in found)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    found = read(written(tmp_path / "a.jsonl", '{"text": "the cat", "id": "\\ud800"}'))
    assert "is no UTF-8" in str(found[0].problem)
    assert found[0].id.encode() == b"\\ud800"


def test_a_table_is_not_its_column_names() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(ROWS)
    with pytest.raises(LigError, match=r"is a DataFrame: give its rows, .*to_dict\('records'\)"):
        open_corpus(table)
    assert [one.text for one in open_corpus(table["text"])] == ["the cat", "a, b\nand ü"]


@pytest.mark.parametrize("given", [3, None, {"text": "a"}])
def test_what_is_no_corpus(given: Any) -> None:
    with pytest.raises(LigError, match="give a file, a data set, or a list of texts"):
        open_corpus(given)


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "conllu", None)
    with pytest.raises(LigError, match=r"pip install 'captum-lig\[corpus\]'"):
        open_corpus(written(tmp_path / "a.conllu", CONLLU))

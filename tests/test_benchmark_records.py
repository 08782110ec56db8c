"""Files of what was measured, with which a benchmark that was cut off goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.records import Record


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    record = Record(path, {"model": "one"})
    record.add({"sentence": 3}, took=1.5)
    record.add({"sentence": 7}, took=2)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1  # where the row of sentence 7 starts
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        again = Record(path, {"model": "one"})
        assert [row["sentence"] for row in again.rows] == [3]
        again.add({"sentence": 7}, took=2)
        assert path.read_bytes() == whole
    again = Record(path, {"model": "one"})
    assert [row["sentence"] for row in again.rows] == [3, 7]
    assert again.stamp().endswith("; took 4 s.")
    with pytest.raises(SystemExit, match="other settings"):
        Record(path, {"model": "other"})


def test_a_record_says_of_which_commits_it_is(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{}\n{"commit": "1234567", "took": 1}\n{}\n')
    said = Record(path, {}).stamp()
    assert ", of 1234567, an unknown commit: " in said
    assert "took" not in said, "of one row it is not known"


def test_without_a_file_nothing_is_kept() -> None:
    record = Record(None, {})
    record.add({"text": 1}, took=0.5)
    assert [row["text"] for row in record.rows] == [1]

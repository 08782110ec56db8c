"""Consistency over a corpus: one record for each sentence, layer and pairing, in a file.

Finished sentences are parts in the folder ``FILE.parts``; when the last is there, they become
``FILE``. Beside it, ``FILE.json`` holds the settings. A run that was cut off goes on where it
stopped, and gives the same rows as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm

from captum_lig._arguments import brief, whole_number
from captum_lig.errors import LigError
from captum_lig.experiments.consistency.corpus import Sentence, need, read_sentences
from captum_lig.experiments.consistency.pairings import Record, measure_text
from captum_lig.flow.words import word_groups
from captum_lig.layer_flow_ig import LayerFlowIG
from captum_lig.pretrained.load import Pretrained, load_model

__all__ = ["SUFFIXES", "Corpus", "run_corpus"]

SUFFIXES = (".parquet", ".csv")
FORMAT, VERSION = "captum_lig.consistency", 1


@dataclass(frozen=True)
class Corpus:
    """What a run over a corpus left."""

    path: Path
    """File of records."""
    sentences: int
    """How many sentences were attributed."""
    skipped: dict[str, int]
    """How many were not, by the reason in words."""

    def records(self) -> Iterator[dict[str, Any]]:
        """The records, sentence by sentence."""
        if self.path.suffix.lower() == ".csv":
            csv = need("pyarrow.csv")
            options = csv.ConvertOptions(
                column_types=_schema(), strings_can_be_null=True, quoted_strings_can_be_null=False
            )
            batches = csv.open_csv(self.path, convert_options=options)
        else:
            batches = need("pyarrow.parquet").ParquetFile(self.path).iter_batches()
        for batch in batches:
            yield from batch.to_pylist()


def run_corpus(
    corpus: str | Path,
    out: str | Path,
    model: str | Path | None = None,
    *,
    layers: Sequence[int] | None = None,
    scalarization: str = "l2",
    n_steps: int = 16,
    tolerance: float = 1e-3,
    limit: int | None = None,
    max_tokens: int | None = None,
    merge_words: bool = False,
    show_progress: bool = False,
) -> Corpus:
    """Compare composed and direct maps of a corpus' sentences, and write the records to a file.

    Args:
        corpus: plain text with one sentence a line, or CoNLL-U (suffix ``.conllu``).
        out: file to write, ``.parquet`` or ``.csv``.
        model: a model on the Hugging Face hub or a folder; None is the embedded model.
        layers: indices of the layers, None for all.
        scalarization: ``"l2"`` or ``"projection"``.
        n_steps: first nodes of the quadrature.
        tolerance: largest completeness error of a row, which rows are refined to.
        limit: stop after so many sentences; skipped ones do not count.
        max_tokens: skip sentences with more tokens, special ones included.
        merge_words: compare maps between words instead of tokens.
        show_progress: show a progress bar over sentences.

    Raises:
        LigError: for anything that cannot be worked with; if ``out`` holds something else, or
            records of other settings, another corpus or another model.
        OSError: if a file cannot be read or written.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise LigError(f"out={str(out)!r} has no known suffix: use one of {', '.join(SUFFIXES)}.")
    for name, value in (("limit", limit), ("max_tokens", max_tokens)):
        if value is not None:
            whole_number(name, value, 1)
    need("pyarrow")
    corpus_hash = hashlib.sha256(Path(corpus).read_bytes()).hexdigest()
    layers = None if layers is None else list(layers)
    loaded = load_model(model)
    if merge_words and not loaded.tokenizer.is_fast:
        raise LigError(
            f"the tokenizer of model {loaded.name!r} does not say where tokens stand in the text: "
            "words cannot be merged without a fast tokenizer."
        )
    settings = {
        "corpus_sha256": corpus_hash,
        "model": loaded.name,
        "model_sha256": _fingerprint_of(loaded.network),
        "layers": layers,
        "scalarization": scalarization,
        "n_steps": n_steps,
        "tolerance": tolerance,
        "limit": limit,
        "max_tokens": max_tokens,
        "merge_words": merge_words,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    work = _Work(out, settings)
    work.open()
    engine = LayerFlowIG(loaded.network, layers, scalarization=scalarization)
    taken: list[int] = []
    skipped: Counter[str] = Counter()
    with tqdm(total=limit, desc="sentences", unit="sentence", disable=not show_progress) as bar:
        for sentence in read_sentences(corpus):
            if len(taken) == limit:
                break
            why = _reason_to_skip(loaded, sentence.text, max_tokens)
            if why is not None:
                skipped[why] += 1
                continue
            taken.append(sentence.number)
            if not work.has(sentence):
                encoding, words = loaded.encode(sentence.text), None
                if merge_words:
                    words = word_groups(offsets=loaded.offsets(sentence.text), text=sentence.text)
                found = measure_text(engine, encoding, words, n_steps=n_steps, tolerance=tolerance)
                work.keep(sentence, encoding["input_ids"].shape[1], found)
            bar.update()
    if not taken:
        reasons = "; ".join(f"{count} {why}" for why, count in skipped.items())
        raise LigError(
            f"corpus {str(corpus)!r} has no sentence that can be attributed"
            + (f" ({reasons})." if reasons else ": it is empty.")
        )
    work.finish(taken)
    return Corpus(out, len(taken), dict(skipped))


def _reason_to_skip(loaded: Pretrained, text: str, max_tokens: int | None) -> str | None:
    """Why a sentence cannot be attributed or should not be, in words; None if it is attributed."""
    count, most = loaded.count_tokens(text), loaded.most_tokens
    if count <= loaded.tokenizer.num_special_tokens_to_add(pair=False):
        return "without a token of its own"
    if most is not None and count > most:
        return f"too long for the model ({most} tokens at most)"
    if max_tokens is not None and count > max_tokens:
        return f"longer than {max_tokens} tokens"
    return None


class _Work:
    """The parts of a run, and the file that they become."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.parts = out.with_name(out.name + ".parts")
        self.about = out.with_name(out.name + ".json")
        self.settings = {"format": FORMAT, "version": VERSION, **settings}

    def open(self) -> None:
        """Begin, or go on if the settings are those of the parts that are there."""
        if self.about.exists():
            self._check()
            return
        for there in (self.out, self.parts):
            if there.exists():
                raise LigError(
                    f"{str(there)!r} exists, and there is no {self.about.name!r} beside it that "
                    "says what it holds: choose another file, or remove it."
                )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(self.about) as path:
            path.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    def _check(self) -> None:
        try:
            found = json.loads(self.about.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise LigError(
                f"{str(self.about)!r} holds no settings of a consistency run: choose another "
                "file, or remove it."
            )
        changes = ", ".join(
            f"{name} {brief(found.get(name))} there and {brief(self.settings.get(name))} now"
            for name in sorted(self.settings.keys() | found.keys())
            if found.get(name) != self.settings.get(name)
        )
        if changes:
            raise LigError(
                f"{str(self.out)!r} belongs to a run with other settings ({changes}): give the "
                "same, or choose another file."
            )

    def has(self, sentence: Sentence) -> bool:
        """Whether its records are there."""
        return self.out.exists() or self._part(sentence.number).exists()

    def keep(self, sentence: Sentence, tokens: int, records: Sequence[Record]) -> None:
        """Write the records of a finished sentence."""
        about = {"sentence": sentence.number, "sentence_id": sentence.name, "tokens": tokens}
        rows = [about | vars(record) for record in records]
        table = need("pyarrow").Table.from_pylist(rows, schema=_schema())
        self.parts.mkdir(exist_ok=True)
        with _replacing(self._part(sentence.number)) as path:
            need("pyarrow.parquet").write_table(table, path)

    def finish(self, numbers: Sequence[int]) -> None:
        """Put the parts together, in the order of the corpus."""
        parts = [self._part(number) for number in numbers]
        parquet = need("pyarrow.parquet")
        if not self.out.exists():
            csv = self.out.suffix.lower() == ".csv"
            writer = need("pyarrow.csv").CSVWriter if csv else parquet.ParquetWriter
            with _replacing(self.out) as path, writer(path, _schema()) as file:
                for part in parts:
                    file.write_table(parquet.read_table(part))
        for part in parts:
            part.unlink(missing_ok=True)
        if self.parts.is_dir() and not any(self.parts.iterdir()):
            self.parts.rmdir()

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:08d}.parquet"


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside the one wanted, which replaces it when everything is written."""
    beside = path.with_name(path.name + ".unfinished")
    yield beside
    os.replace(beside, path)


def _schema() -> Any:
    """Columns: the sentence's, and those of a record under their field names."""
    pyarrow = need("pyarrow")
    kinds = {"int": pyarrow.int64(), "str": pyarrow.string(), "float": pyarrow.float64()}
    columns = {"sentence": "int", "sentence_id": "str", "tokens": "int"}
    columns |= {one.name: str(one.type).removesuffix(" | None") for one in fields_of(Record)}
    return pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])


def _fingerprint_of(model: nn.Module) -> str:
    """Hash of a model's configuration and of all its numbers."""
    config = getattr(model, "config", None)
    digest = hashlib.sha256(config.to_json_string().encode() if config is not None else b"")
    for name, values in model.state_dict().items():
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

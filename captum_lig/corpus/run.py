"""A corpus x a model x measures: one call that can be cut off and goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_lig._arguments import brief, whole_number
from captum_lig.answers.subject import subject_of
from captum_lig.corpus.batches import Batch, batches_of
from captum_lig.corpus.engines import Engine, find_engine, local
from captum_lig.corpus.packages import need
from captum_lig.corpus.settings import DEFAULT, Settings
from captum_lig.corpus.store import MAPS, SETTINGS, Store, check_folder, read_counts, read_settings
from captum_lig.corpus.texts import Corpus, open_corpus
from captum_lig.corpus.worker import Worker
from captum_lig.errors import LigError
from captum_lig.io.codec import own_version
from captum_lig.model.hooks import places_said, users_hooks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Results", "load", "run"]


@dataclass(frozen=True)
class Results:
    """The data set of a finished run: a folder of Parquet files for each table."""

    path: Path
    settings: dict[str, Any]
    """Of the run, as ``settings.json`` has them."""
    counts: dict[str, int]
    """Texts by status: ``done``, ``skipped``, ``failed``."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(
            sorted(path.name for path in self.path.iterdir() if any(path.glob("*.parquet")))
        )

    def dataset(self, table: str) -> Any:
        """A table as a ``pyarrow.dataset.Dataset``, of which nothing is read yet.

        Raises:
            LigError: if there is none of that name.
        """
        if table not in self.tables:
            raise LigError(f"there is no table {brief(table)}: use {', '.join(self.tables)}.")
        return need("pyarrow.dataset").dataset(self.path / table)

    def to_pandas(self, table: str) -> Any:
        """A table as a ``pandas.DataFrame``.

        Raises:
            LigError: if there is none of that name.
        """
        return self.dataset(table).to_table().to_pandas()

    def maps(self, number: int) -> dict[str, Tensor]:
        """The maps of one text that were kept, by ``"LAYER.MAP"``.

        Raises:
            LigError: if it has none.
        """
        field = need("pyarrow.dataset").field("number")
        rows = self.dataset("texts").to_table(columns=["maps"], filter=field == number)
        file = next(iter(rows.column("maps").to_pylist()), None)
        if file is None:
            raise LigError(f"no maps of text {brief(number)} were kept: maps=('composed',).")
        if Path(file) != Path(MAPS, Path(file).name):
            raise LigError(f"the table 'texts' of {str(self.path)!r} is damaged: maps {file!r}.")
        try:
            with safe_open(self.path / file, "pt") as tensors:
                keys = [key for key in tensors.keys() if key.split(".")[0] == str(number)]  # noqa: SIM118
                return {key.partition(".")[2]: tensors.get_tensor(key) for key in keys}
        except (SafetensorError, TypeError) as error:  # torch's of a size of more than 63 bits
            said = str(error).partition("\n")[0]
            raise LigError(f"{str(self.path / file)!r} is damaged: {said}.") from error


def load(path: str | Path) -> Results:
    """The results of a finished run, from its folder.

    Raises:
        LigError: if the folder holds none.
    """
    path = Path(path)
    return Results(path, read_settings(path), read_counts(path))


def run(
    corpus: Any,
    model: str | Path | nn.Module | None = None,
    *,
    out: str | Path,
    measures: Sequence[str] = DEFAULT,
    engine: str | Engine = "local",
    workers: int | None = None,
    address: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    show_progress: bool = False,
    **settings: Any,
) -> Results:
    """Measure every text of a corpus, and write a data set; a run that was cut off goes on.

    Args:
        corpus: see :func:`captum_lig.corpus.texts.open_corpus`.
        model: ``"minilm"`` (None), ``"smollm2"``, a name on the hub, a folder, or a model that is
            there already: then in this process alone.
        out: folder to write, see ``docs/corpus.md``.
        measures: names of ``captum_lig.corpus.measures.MEASURES``, or of your own
            ``"package.module:Class"``.
        engine: ``"local"``, ``"ray"``, or a function like them.
        workers: processes, or actors; None is one for each core that this process may use, at most
            eight (on a GPU, and with a model that is there already, one).
        address: of a Ray cluster, see :func:`captum_lig.corpus.ray_engine.ray_engine`.
        tokenizer: of a model that is there already, instead of the one beside it.
        show_progress: show texts done, their rate and the time that is left.
        settings: the other fields of :class:`Settings`.

    Raises:
        LigError: for anything that cannot be worked with; if ``out`` holds something else, or a
            run with other settings, another corpus, model or tokenizer; if it holds a run and
            there are forward hooks on the model, which may do something else now.
        OSError: if a file cannot be read or written.
    """
    need("pyarrow")
    unknown = set(settings) - set(Settings.__dataclass_fields__)
    if unknown:
        raise LigError(f"{brief(sorted(unknown))} are no settings of a corpus run.")
    check_folder(Path(out))  # before a model is loaded
    source = open_corpus(corpus)
    if source.count == 0:
        raise _empty(source)
    is_module = isinstance(model, nn.Module)
    if is_module and engine == "ray":
        raise LigError(
            "engine='ray' loads the model by its name in each worker, and this one is there "
            "already: give its folder."
        )
    if isinstance(model, nn.Module):
        _check_hooks(Path(out), model)
    elif tokenizer is not None:
        raise LigError(
            f"tokenizer={brief(tokenizer)} is of a model that is there already: of one by name, "
            "put it into the model's folder."
        )
    others: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in settings.items()
    }
    chosen = Settings(
        model=type(model).__name__ if is_module else (None if model is None else str(model)),
        measures=tuple(measures),
        corpus=source.digest,
        versions={"captum_lig": own_version()}
        | {name: version(name) for name in ("torch", "transformers", "captum")},
        **others,
    ).check()
    workers = _workers(workers, chosen, is_module)
    subject = subject_of(model, False, tokenizer, None, None) if is_module else None
    worker = Worker(chosen, subject)
    chosen = replace(chosen, weights=worker.weights, tokenizer=worker.tokenizer)
    length = worker.model.subject.count_tokens
    with Store(Path(out), chosen, worker.columns) as store:
        if not store.finished:
            runs = _engine(engine, address, workers, worker)
            del worker  # other engines load their own
            _work(source, chosen, store, runs, workers, length, show_progress)
        elif source.digest is None:
            store.check_finished(_batches(source, chosen, length))
        counts = store.finish()
    return Results(Path(out), chosen.to_json(), counts)


def _check_hooks(out: Path, model: nn.Module) -> None:
    """Refuse to go on with a model that there are hooks on: their names do not say what they do."""
    hooks = users_hooks(model)
    if hooks and (out / SETTINGS).exists():
        raise LigError(
            f"{str(out)!r} holds a run, and this model has forward hooks on {places_said(hooks)}: "
            "nothing says whether they do what was done there. Choose another folder, or read a "
            "finished run with captum_lig.corpus.load."
        )


def _engine(engine: str | Engine, address: str | None, workers: int, worker: Worker) -> Engine:
    if not isinstance(engine, str):
        return engine
    found = find_engine(engine, address)
    if found is local and workers == 1:
        return partial(local, worker=worker)
    return found


def _workers(given: int | None, settings: Settings, is_module: bool) -> int:
    if given is not None:
        whole_number("workers", given, 1)
        if is_module and given > 1:
            raise LigError(
                f"workers={given} load the model by its name, and this one is there already: give "
                "its folder, or workers=1."
            )
        return given
    if is_module or settings.device not in (None, "cpu"):
        return 1
    # Linux alone says which cores this process may use.
    every = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(8, every // settings.threads))


def _work(
    source: Corpus,
    settings: Settings,
    store: Store,
    engine: Engine,
    workers: int,
    length: Callable[[str], int],
    show_progress: bool,
) -> None:
    """Run the batches that are not there yet; each part is kept as it comes."""
    total = source.count
    if settings.limit is not None:
        total = settings.limit if total is None else min(total, settings.limit)
    texts = batches = 0
    with tqdm(total=total, desc="texts", unit="text", disable=not show_progress) as bar:

        def missing() -> Iterator[Batch]:
            nonlocal texts, batches
            for batch in _batches(source, settings, length):
                texts, batches = texts + len(batch.texts), batches + 1
                if store.has(batch):
                    if not bar.disable:
                        bar.initial += len(batch.texts)  # they say nothing of the rate
                    bar.update(len(batch.texts))
                else:
                    yield batch

        todo = missing()
        for part in engine(settings, todo, workers):
            store.keep(part)
            bar.update(part.tables["texts"].num_rows)
        for _ in todo:  # what the engine left, to be counted
            pass
    if store.count > batches:
        raise LigError(
            f"{str(store.path)!r} belongs to another corpus, of more texts. Give the same corpus, "
            "or choose another folder."
        )
    if store.count < batches:
        raise LigError(
            f"the engine gave {store.count} parts of {batches}: run the same again, and it goes on."
        )
    if not texts:
        raise _empty(source)


def _batches(source: Corpus, settings: Settings, length: Callable[[str], int]) -> Iterator[Batch]:
    texts = islice(source, settings.limit)
    return batches_of(texts, length, settings.window, settings.batch_size)


def _empty(source: Corpus) -> LigError:
    return LigError(f"corpus {source.name!r} is empty: it has no text.")

"""The worker: a model loaded once, and what a batch of texts gives with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.answers.asker import Asker
from captum_lig.answers.subject import Subject, subject_of
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.digests import digest_of_model, digest_of_tokenizer
from captum_lig.corpus.measures import find_measure
from captum_lig.corpus.measures.base import GRIDS
from captum_lig.corpus.packages import need
from captum_lig.corpus.schema import arrow_table, columns_of
from captum_lig.corpus.seen import Model, Seen
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.texts import Text
from captum_lig.errors import LigError
from captum_lig.layer_flow_ig import LayerFlowIG

__all__ = ["Worker"]

PROBE = "a"
"""A text that is run before all others, so that settings which no text can be run with are seen."""


class Worker:
    """Loads the model of ``settings``; called with a batch, gives its part. Knows no engine.

    A text that raises has its reason in the table ``texts``, and the others of its batch go on; a
    batch for which memory does not suffice is halved.

    Args:
        settings: of the run.
        subject: a model that is there already; None: ``settings.model`` is loaded.

    Raises:
        LigError: if the model cannot be loaded, has other weights than ``settings.weights`` or
            another tokenizer than ``settings.tokenizer``, or cannot be attributed with these
            settings.
    """

    def __init__(self, settings: Settings, subject: Subject | None = None) -> None:
        need("pyarrow")
        self.settings = settings.check()
        self.measures = [find_measure(name) for name in settings.measures]
        self.columns = columns_of(self.measures)
        with _threads(settings):
            self.model = self._model(subject)

    def __call__(self, batch: Batch) -> Part:
        """The rows of a batch's texts. Raises nothing that a text is the cause of."""
        with _threads(self.settings):
            found = list(self._measured(batch.texts))
        pyarrow = need("pyarrow")
        tables = {
            name: pyarrow.concat_tables([tables[name] for tables, _ in found]).combine_chunks()
            for name in self.columns
        }
        maps: dict[str, Tensor] = {}
        for _, some in found:
            maps.update(some)
        return Part(batch.number, batch.window, batch.digest, tables, maps or None)

    def _model(self, subject: Subject | None) -> Model:
        settings = self.settings
        if subject is None:
            subject = subject_of(
                settings.model or "minilm", True, None, settings.dtype, settings.device
            )
        kind = subject.kind or "sentence"
        if getattr(subject.config, "is_encoder_decoder", False):
            kind = "sentence"
        network = subject.load(kind, settings.dtype, settings.device)
        self.weights = digest_of_model(network)
        if settings.weights not in (None, self.weights):
            raise LigError(
                f"model {subject.name!r} has other weights here than where the run began: give "
                "each worker the same files."
            )
        self.tokenizer = digest_of_tokenizer(subject.tokenizer)
        if settings.tokenizer not in (None, self.tokenizer):
            raise LigError(
                f"model {subject.name!r} has another tokenizer here than where the run began: give "
                "each worker the same files."
            )
        layers = None if settings.layers is None else list(settings.layers)
        lig = LayerFlowIG(network, layers, settings.scalarization)
        wanted = {one for measure in self.measures for one in measure.boundaries}
        if settings.maps:
            wanted |= {"attention", "mlp", "layer"}
        has_mlp = "feed_forward" in wanted and self._runs(lig, subject, ("mlp", "feed_forward"))
        if not has_mlp:
            wanted -= {"feed_forward"}
            if wanted and (reason := self._refused(lig, subject, tuple(sorted(wanted)))):
                raise reason
        asker = Asker(network, subject.tokenizer)
        return Model(subject, network, lig, asker, tuple(sorted(wanted)), has_mlp)

    def _runs(self, lig: LayerFlowIG, subject: Subject, boundaries: tuple[str, ...]) -> bool:
        return self._refused(lig, subject, boundaries) is None

    def _refused(
        self, lig: LayerFlowIG, subject: Subject, boundaries: tuple[str, ...]
    ) -> LigError | None:
        """Why no text can be run, from one text and one path point."""
        inputs = {name: x.to(_device(lig)) for name, x in subject.encode(PROBE).items()}
        try:
            found: Any = lig.attribute(
                inputs,
                baselines=self.settings.baselines,
                boundaries=boundaries,
                n_steps=1,
                tolerance=None,
            )
        except LigError as error:
            return error
        layers = [flow.index for flow in found]
        twice = next((layer for layer in layers if layers.count(layer) > 1), None)
        if twice is not None:
            return LigError(
                f"layers={brief(self.settings.layers)} name layer {twice} twice: name each once."
            )
        return None

    # ---- a batch -----------------------------------------------------------------------------

    def _measured(self, texts: Sequence[Text]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Tables and maps: of what is not run, and of what is, in one piece or in several."""
        ready, encodings = [], []
        for text in texts:
            reason = text.problem
            if reason is None:
                try:
                    encoding = self._encode(text)
                except LigError as error:
                    reason = " ".join(str(error).split())
            if reason is None:
                ready.append(text)
                encodings.append(encoding)
            else:
                yield self._without(text, "skipped", reason), {}
        if ready:
            yield from self._run(ready, encodings)

    def _encode(self, text: Text) -> dict[str, Tensor]:
        subject, most = self.model.subject, self.settings.max_tokens
        encoding = subject.encode(text.text)
        count = encoding["input_ids"].shape[1]
        if most is not None and count > most:
            raise LigError(f"the text has {count} tokens, more than max_tokens={most}.")
        return {name: x.to(_device(self.model.lig)) for name, x in encoding.items()}

    def _run(
        self, texts: Sequence[Text], encodings: Sequence[dict[str, Tensor]]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        try:
            found = self._rows(Seen(texts, encodings, self.model, self.settings))
        except Exception as error:
            # Out of memory, or a text that raises: halves, until it stands alone.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            yield found
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(texts) == 1:
            yield self._without(texts[0], "failed", reason), {}
            return
        half = len(texts) // 2
        yield from self._run(texts[:half], encodings[:half])
        yield from self._run(texts[half:], encodings[half:])

    def _rows(self, seen: Seen) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tables and the maps of texts that are run together."""
        numbers = torch.tensor([text.number for text in seen.texts])
        maps = self._maps(seen)
        columns: dict[str, dict[str, Any]] = {
            "texts": {
                "number": numbers,
                "id": [text.id for text in seen.texts],
                "status": ["done"] * len(seen.texts),
                "text": [text.text for text in seen.texts],
                "tokens": seen.tokens,
            }
        }
        for measure in self.measures:
            for table, rows in measure.rows(seen).items():
                there = columns.setdefault(table, {})
                if table == "layers":
                    there |= _by_layer(numbers, seen)
                    there |= {name: _flat(values) for name, values in rows.items()}
                elif table in GRIDS:
                    there |= rows
                else:
                    text = torch.as_tensor(rows.get("text", []), dtype=torch.long)
                    there |= rows
                    there["number"] = numbers[text]
        tables = {
            name: arrow_table(self.columns[name], columns.get(name, {})) for name in self.columns
        }
        return tables, maps

    def _maps(self, seen: Seen) -> dict[str, Tensor]:
        found = {}
        for name in self.settings.maps:
            for layer, flow in enumerate(seen.flows):
                rule_map = name == "composed"
                whole = seen.compose(layer, "chain") if rule_map else flow.need(name)
                for text, size in enumerate(seen.lengths.tolist()):
                    ends = (slice(size), slice(None) if name == "mlp" else slice(size))
                    key = f"{seen.texts[text].number}.{flow.index}.{name}"
                    found[key] = whole[(text, ..., *ends)].detach().cpu().contiguous().clone()
        return found

    def _without(self, text: Text, status: str, reason: str) -> dict[str, Any]:
        row = {"number": [text.number], "id": [text.id], "status": [status], "reason": [reason]}
        row["text"] = [text.text]
        return {
            name: arrow_table(columns, row if name == "texts" else {})
            for name, columns in self.columns.items()
        }


def _by_layer(numbers: Tensor, seen: Seen) -> Mapping[str, Tensor]:
    layers = torch.tensor([flow.index for flow in seen.flows])
    return {
        "number": numbers.repeat_interleave(len(layers)),
        "layer": layers.repeat(len(numbers)),
    }


def _flat(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.flatten()
    return [one for row in values for one in row]


def _device(lig: LayerFlowIG) -> torch.device:
    return next((p.device for p in lig.forward_func.parameters()), torch.device("cpu"))


@contextmanager
def _threads(settings: Settings) -> Iterator[None]:
    """As many threads of torch as the settings say: another number rounds otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

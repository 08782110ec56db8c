"""Questions to a model, one after another: each is checked, then the model is loaded once."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig.answers.answer import Answer, Run
from captum_lig.answers.named import Asked, asked, class_number, token_of
from captum_lig.answers.says import AMONG, Said, both_said, both_scores, most_changed
from captum_lig.answers.subject import Subject, subject_of
from captum_lig.answers.texts import Texts, read_texts
from captum_lig.answers.wanted import Kind, Wanted
from captum_lig.answers.words import quoted
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import token_texts
from captum_lig.flow.tokens import find_token
from captum_lig.graph import FlowGraph
from captum_lig.layer_flow_ig import LayerFlowIG
from captum_lig.model.inputs import ModelCall
from captum_lig.prediction.baselines import input_baseline
from captum_lig.prediction.bound_target import named_output
from captum_lig.prediction.targets import Target, target_value
from captum_lig.prediction.words import token_ids
from captum_lig.pretrained.load import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TOLERANCE", "Asker", "Prepared"]

TOLERANCE = 1e-2
"""The parts are shown with three digits, of sums that are as a rule ten times nearer than this."""
LITTLE = 0.05
"""Of what the texts change most: a smaller change is told, with what they do change."""


@dataclass(frozen=True)
class Prepared:
    """A question that has been checked, of a model that may not be loaded yet."""

    wanted: Wanted
    subject: Subject
    kind: Kind | None
    texts: Texts
    seconds: float
    """That this took."""


class Asker:
    """Asks a model; of a model by name, what a question needs is loaded once.

    Args:
        model: see :func:`captum_lig.why`.
        tokenizer: of a model that has none beside it.
        dtype: ``"float32"`` or ``"float64"``.
        device: such as ``"cuda"``.
    """

    def __init__(
        self,
        model: str | Path | nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._dtype, self._device = dtype, device
        self._subjects: dict[bool, Subject] = {}
        self._networks: dict[tuple[str, Kind], nn.Module] = {}

    def prepare(self, wanted: Wanted) -> Prepared:
        """Check a question, as far as that goes without the model's weights.

        Raises:
            LigError: if it makes no sense, or not of this model.
        """
        began = time.perf_counter()
        wanted.check()
        alike = wanted.similar_to is not None
        if alike not in self._subjects:
            self._subjects[alike] = subject_of(
                self._model, alike, self._tokenizer, self._dtype, self._device
            )
        subject = self._subjects[alike]
        kind = wanted.kind(subject.kind, subject.name)
        texts = read_texts(wanted, subject.tokenizer, subject.name, subject.most_tokens)
        tokens = token_texts(subject.tokenizer, texts.ids)
        wanted = replace(wanted, position=find_token(wanted.position, tokens, "position"))
        if kind in ("causal", "masked"):
            _check_tokens(wanted, texts, subject.tokenizer)
        if kind == "masked":
            _position(wanted, kind, texts, subject.tokenizer)
        if wanted.label is not None and subject.class_names:
            class_number(wanted.label, subject.class_names, len(subject.class_names))
        return Prepared(wanted, subject, kind, texts, time.perf_counter() - began)

    def _network(self, subject: Subject, kind: Kind) -> nn.Module:
        if (subject.name, kind) not in self._networks:
            self._networks[subject.name, kind] = subject.load(kind, self._dtype, self._device)
        return self._networks[subject.name, kind]

    def load(self, prepared: Prepared) -> None:
        """Load what a question needs, which :meth:`answer` does otherwise.

        Raises:
            LigError: if it cannot be loaded.
        """
        self._network(prepared.subject, prepared.kind or "sentence")

    def answer(
        self,
        prepared: Prepared,
        tolerance: float | None = TOLERANCE,
        show_progress: bool = False,
        **settings: Any,
    ) -> Answer:
        """Run the model, and attribute.

        Args:
            prepared: a question of this asker's.
            tolerance: see :func:`captum_lig.why`, and so for the others.
            show_progress: show a bar.
            settings: of the quadrature.

        Raises:
            LigError: for what only the model's run shows.
        """
        began = time.perf_counter() - prepared.seconds
        wanted, subject, kind = prepared.wanted, prepared.subject, prepared.kind
        network = self._network(subject, kind or "sentence")
        device_of = next((p.device for p in network.parameters()), torch.device("cpu"))
        texts = prepared.texts.to(device_of)
        if isinstance(wanted.target, Target):
            call = ModelCall.of(network, texts.encoding)
            wanted = replace(wanted, target=wanted.target.placed(call, subject.tokenizer))
        if kind is None:
            kind = wanted.kind(_kind_when_run(network, texts), subject.name)
            assert kind is not None
        where = _position(wanted, kind, texts, subject.tokenizer)

        continuation = _continuation(wanted, network, texts, subject)
        if continuation is not None:
            texts = texts.followed_by(continuation)
            where = -len(continuation) - 1
        other = _other(network, texts, subject.tokenizer, len(continuation or ()))
        if wanted.against is None and wanted.position is not None and kind == "causal":
            _check_padded(where, texts, other)
        scores = None
        if kind != "sentence":
            scores = both_scores(network, kind, texts.encoding, other["input_ids"], where)
        names = subject.class_names
        hints = _hints(wanted, scores, subject.tokenizer)
        filled = kind == "masked" and texts.ids[where] == subject.tokenizer.mask_token_id
        about = asked(
            wanted, kind, where, scores, continuation, names, network, subject.tokenizer, filled
        )
        says, would_say = _said(
            scores, kind, about, names, network, texts, other, subject.tokenizer
        )
        if scores is not None and about.favours is not None and wanted.against is not None:
            change = says.value - would_say.value
            hints += _other_question(change, scores, subject.tokenizer)

        start = time.perf_counter()
        result: Any = LayerFlowIG(network).attribute(
            texts.encoding,
            other,
            about.target,
            tokenizer=subject.tokenizer,
            show_progress=show_progress,
            tolerance=tolerance,
            **settings,
        )
        tokens = token_texts(subject.tokenizer, texts.ids)
        graph = FlowGraph(result, tokens)
        done = time.perf_counter()
        assert graph.change is not None
        return Answer(
            text=wanted.text,
            against=wanted.against,
            model=subject.name,
            target=about.target.words,
            tokens=list(tokens),
            other_tokens=token_texts(subject.tokenizer, other["input_ids"][0].tolist()),
            says=says,
            would_say=would_say,
            change=graph.change,
            flows=result,
            graph=graph,
            seconds=done - began,
            attribution_seconds=done - start,
            run=Run(network, texts.encoding, other, about.target, subject.tokenizer, where),
            favours=about.favours,
            continuation=None if continuation is None else subject.tokenizer.decode(continuation),
            hints=hints,
        )


def _check_tokens(wanted: Wanted, texts: Texts, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether tokens and positions exist, before the model is loaded."""
    for value in (wanted.target, wanted.foil):
        if isinstance(value, str):
            token_of(value, tokenizer)
    count = len(texts.ids)
    if isinstance(wanted.position, int) and not -count <= wanted.position < count:
        raise LigError(
            f"position {wanted.position} does not exist: the text has {count} tokens, 0 to "
            f"{count - 1}."
        )


def _position(wanted: Wanted, kind: Kind, texts: Texts, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where a token is predicted; of a model that fills in masks, from 0."""
    if kind != "masked":
        return -1 if wanted.position is None else int(wanted.position)
    masks = [n for n, i in enumerate(texts.ids) if i == tokenizer.mask_token_id]
    if wanted.position is not None:
        place = int(wanted.position) % len(texts.ids)
        _check_mask(place, texts, tokenizer)
        return place
    if len(masks) != 1:
        raise LigError(
            f"the text has {len(masks)} masks: write one {tokenizer.mask_token} where a token is "
            "to be filled in, or give position."
        )
    _check_mask(masks[0], texts, tokenizer)
    return masks[0]


def _check_mask(place: int, texts: Texts, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether the text and the other one have a mask there, or neither.

    Raises:
        LigError: if only one has.
    """
    if texts.other is None:
        return
    found = [int(ids[place]) for ids in (texts.encoding["input_ids"][0], texts.other[0])]
    if (found[0] == tokenizer.mask_token_id) != (found[1] == tokenizer.mask_token_id):
        here, there = (quoted(str(one)) for one in tokenizer.convert_ids_to_tokens(found))
        raise LigError(
            f"at position {place} the text has {here} and the one it is compared with {there}: "
            f"write {tokenizer.mask_token} at that place of both, or of neither."
        )


def _kind_when_run(network: nn.Module, texts: Texts) -> Kind:
    """What a model is for, seen from what it gives."""
    call = ModelCall.of(network, texts.encoding)
    args, kwargs = call.arguments()
    with torch.no_grad():
        output = network(*args, **kwargs)
    logits = output if isinstance(output, Tensor) else named_output(output, "logits")
    if not isinstance(logits, Tensor):
        return "sentence"
    return "causal" if logits.dim() == 3 else "classes"


def _continuation(wanted: Wanted, network: Any, texts: Texts, subject: Subject) -> list[int] | None:
    """The tokens at the end that are explained: given, or what the model goes on with."""
    if wanted.answer is not None:
        return token_ids(wanted.answer, network, subject.tokenizer)
    if wanted.generate is None:
        return None
    if not callable(getattr(network, "generate", None)):
        raise LigError(f"{subject.name} has no generate(): give answer, what it goes on with.")
    # Its forward may swallow what its generate refuses, such as token types.
    known = inspect.signature(network.forward).parameters
    given = {name: x for name, x in texts.encoding.items() if name in known}
    with quiet(), torch.no_grad():
        whole = network.generate(**given, max_new_tokens=wanted.generate, do_sample=False)
    new = whole[0, len(texts.ids) :].tolist()
    special = set(subject.tokenizer.all_special_ids)
    while new and new[-1] in special:
        new.pop()
    if not new:
        raise LigError(f"{subject.name} ends the text at once: there is nothing to explain.")
    return [int(i) for i in new]


def _other(
    network: nn.Module, texts: Texts, tokenizer: PreTrainedTokenizerBase, fixed: int
) -> dict[str, Tensor]:
    """What the model is called with for the other text, or for padding."""
    start: Any = texts.other
    filled: Any = input_baseline(network, texts.encoding, start, tokenizer=tokenizer, fixed=fixed)
    if torch.equal(filled["input_ids"], texts.encoding["input_ids"]):
        raise LigError(
            "padding in place of the text's words leaves it as it is: give a text of more tokens, "
            "or another text to compare with."
        )
    return dict(filled)


def _check_padded(position: int, texts: Texts, other: dict[str, Tensor]) -> None:
    """Whether padding is among what is read at a position.

    Raises:
        LigError: if it is not.
    """
    count = range(len(texts.ids))[position] + 1
    if torch.equal(texts.encoding["input_ids"][:, :count], other["input_ids"][:, :count]):
        raise LigError(
            f"position {count - 1} comes before all that padding stands for (the first token "
            "stays), so nothing differs there: give a later position, or another text to compare "
            "with."
        )


def _hints(wanted: Wanted, scores: Tensor | None, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens that were given without a space, where the one with it is the likelier one."""
    found = []
    for value in (wanted.target, wanted.foil):
        if scores is None or not isinstance(value, str) or value[:1].isspace():
            continue
        try:
            given, spaced = token_of(value, tokenizer), token_of(f" {value}", tokenizer)
        except LigError:
            continue
        if given != spaced and bool(scores[0, spaced] > scores[0, given]):
            found.append(
                f'"{value}" is another token than " {value}", with a space, which the model finds '
                "more likely."
            )
    return found


def _other_question(change: float, scores: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the texts do tell apart, where they hardly change the number that is explained."""
    gains, loses, most = most_changed(scores)
    if not abs(change) < LITTLE * most:
        return []
    one, other = (quoted(name) for name in token_texts(tokenizer, (gains, loses)))
    return [
        "the two texts hardly change this number, so parts cancel, and shares of the change say "
        f"little. Of the {AMONG} tokens that are likeliest after each, what they change most is "
        f"how the model prefers {one} to {other}, by {most:.3g}: --target {one} --foil {other}."
    ]


def _said(
    scores: Tensor | None,
    kind: Kind,
    about: Asked,
    names: Any,
    network: nn.Module,
    texts: Texts,
    other: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Said]:
    """What the model says of both texts."""
    with torch.no_grad():
        values = [
            float(target_value(network, about.target, inputs, tokenizer=tokenizer)[0])
            for inputs in (texts.encoding, other)
        ]
    if scores is None:
        return [Said((), value) for value in values]
    return both_said(network, scores, kind, about.options, values, names, tokenizer)

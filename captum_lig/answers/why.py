"""Ask a model why it says what it says of a text, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig.answers.answer import Answer, Run
from captum_lig.answers.named import Asked, asked, token_of
from captum_lig.answers.says import Said, both_said, both_scores
from captum_lig.answers.subject import Subject, subject_of
from captum_lig.answers.texts import Texts, read_texts
from captum_lig.answers.wanted import Kind, Wanted
from captum_lig.errors import LigError
from captum_lig.flow.tokens import TokenIndex, find_token
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

__all__ = ["TOLERANCE", "why"]

TOLERANCE = 1e-2
"""The parts are shown with three digits, of sums that are as a rule ten times nearer than this."""


def why(
    text: str,
    model: str | Path | nn.Module | None = None,
    against: str | None = None,
    *,
    target: str | int | Sequence[int] | Tensor | Target | Callable[[Any], Tensor] | None = None,
    foil: str | int | None = None,
    label: str | int | None = None,
    similar_to: str | None = None,
    answer: str | None = None,
    generate: int | None = None,
    position: TokenIndex | None = None,
    chat: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str | None = None,
    device: str | None = None,
    tolerance: float | None = TOLERANCE,
    show_progress: bool = False,
    **settings: Any,
) -> Answer:
    """Why a model says what it says of a text, and not what it says of another.

    Both texts are run. The number that is explained is, of a model that says what comes next, the
    logit of its most likely next token less that of its most likely one for the other text (or,
    where that is the same or there is no other text, of the second most likely); of a classifier
    the logit of the most likely class; of a sentence encoder the cosine with ``similar_to``. Its
    change from the other text to this one is shared out to tokens, heads and MLPs.

    Args:
        text: the text.
        model: ``"smollm2"``, ``"minilm"``, a name on the Hugging Face hub, a folder, or a model
            that is there already, in evaluation mode. None is ``"smollm2"``, and with
            ``similar_to`` ``"minilm"``.
        against: another text of as many tokens. None: padding in place of the text's words.
        target: the token to explain, as a string that is one token (``" Paris"``) or its id; or a
            target as :meth:`LayerFlowIG.attribute` takes it.
        foil: the token that it is explained against.
        label: the class to explain, its number or its name.
        similar_to: explain how alike the text is to this one.
        answer: explain how likely it is that the text goes on like this.
        generate: explain so many tokens that the model itself goes on with.
        position: at which token a next token is predicted, of both texts: a number, negative ones
            from the end, or what the token says. None is the last one, and the mask of a model
            that fills in masks.
        chat: the texts are what a user says in a chat, in the model's own template.
        tokenizer: of a model that has none beside it.
        dtype: ``"float32"`` (None) or ``"float64"``, of a model by name.
        device: such as ``"cuda"``, of a model by name.
        tolerance: largest error of the sum of the parts at any depth, relative to the change. It
            is wider than that of :meth:`LayerFlowIG.attribute`, which can take ten times as long.
        show_progress: show a bar.
        settings: of the quadrature, see :meth:`LayerFlowIG.attribute`: ``n_steps``, ``max_steps``,
            ``method``, ``internal_batch_size``.

    Raises:
        LigError: for anything that cannot be worked with; the message says what to do.

    Example::

        >>> answer = why(
        ...     "She plays the guitar.",
        ...     against="She plays the piano.",
        ...     similar_to="He is a guitarist.",
        ... )
        >>> answer.strongest_tokens(1)[0].token
        'guitar'
    """
    began = time.perf_counter()
    wanted = Wanted(
        text, against, target, foil, label, similar_to, answer, generate, position, chat
    )
    wanted.check()
    subject = subject_of(model, similar_to is not None, tokenizer, dtype, device)
    kind = wanted.kind(subject.kind, subject.name)
    texts = read_texts(wanted, subject.tokenizer, subject.name, subject.most_tokens)
    tokens = subject.tokenizer.convert_ids_to_tokens(texts.ids)
    wanted = replace(wanted, position=find_token(wanted.position, tokens, "position"))
    if kind in ("causal", "masked"):
        _check_tokens(wanted, texts, subject.tokenizer)
    network = subject.load(kind or "sentence", dtype, device)
    device_of = next((p.device for p in network.parameters()), torch.device("cpu"))
    texts = texts.to(device_of)
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
    scores = None
    if kind != "sentence":
        scores = both_scores(network, kind, texts.encoding, other["input_ids"], where)
    names = subject.class_names
    hints = _hints(wanted, scores, subject.tokenizer)
    about = asked(wanted, kind, where, scores, continuation, names, network, subject.tokenizer)
    says, would_say = _said(scores, kind, about, names, network, texts, other, subject.tokenizer)

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
    tokens = subject.tokenizer.convert_ids_to_tokens(texts.ids)
    graph = FlowGraph(result, tokens)
    done = time.perf_counter()
    assert graph.change is not None
    return Answer(
        text=text,
        against=against,
        model=subject.name,
        target=about.target.words,
        tokens=list(tokens),
        other_tokens=subject.tokenizer.convert_ids_to_tokens(other["input_ids"][0].tolist()),
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
    """Where a token is predicted."""
    if wanted.position is not None or kind != "masked":
        return -1 if wanted.position is None else int(wanted.position)
    masks = [n for n, i in enumerate(texts.ids) if i == tokenizer.mask_token_id]
    if len(masks) != 1:
        raise LigError(
            f"the text has {len(masks)} masks: write one {tokenizer.mask_token} where a token is "
            "to be filled in, or give position."
        )
    return masks[0]


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
    with quiet(), torch.no_grad():
        whole = network.generate(**texts.encoding, max_new_tokens=wanted.generate, do_sample=False)
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
    return both_said(scores, kind, about.options, values, names, tokenizer)

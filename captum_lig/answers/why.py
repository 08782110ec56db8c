"""Ask a model why it says what it says of a text, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from captum_lig._restore import restoring
from captum_lig.answers.answer import Answer
from captum_lig.answers.asker import TOLERANCE, Asker
from captum_lig.answers.wanted import Wanted
from captum_lig.flow.tokens import TokenIndex
from captum_lig.prediction.targets import Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["why"]


@restoring
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
        tolerance: largest error of the sum of the parts at any depth, relative to the change (to
            the sum of their sizes, where they cancel to less than a tenth of it). It is wider than
            that of :meth:`LayerFlowIG.attribute`, which can take ten times as long.
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
    asker = Asker(model, tokenizer, dtype, device)
    wanted = Wanted(
        text, against, target, foil, label, similar_to, answer, generate, position, chat
    )
    return asker.answer(asker.prepare(wanted), tolerance, show_progress, **settings)

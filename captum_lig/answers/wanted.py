"""What is asked about a prediction, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from captum_lig._arguments import brief, check_utf8, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.tokens import TokenIndex
from captum_lig.prediction.positions import whole_position
from captum_lig.prediction.targets import Target

__all__ = ["Kind", "Wanted", "kind_of"]

Kind = Literal["causal", "masked", "classes", "sentence"]
KINDS: dict[Kind, str] = {
    "causal": "a model that says what comes next",
    "masked": "a model that fills in a mask",
    "classes": "a model that sorts texts into classes",
    "sentence": "a model that gives vectors and predicts nothing",
}
_ENDINGS: dict[str, Kind] = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "LMHead": "causal",
    "ForMaskedLM": "masked",
    "ForSequenceClassification": "classes",
    "Model": "sentence",
    "Encoder": "sentence",
}


def kind_of(architecture: str) -> Kind | None:
    """What a model of this class says; None if the name does not tell."""
    return next((kind for end, kind in _ENDINGS.items() if architecture.endswith(end)), None)


@dataclass(frozen=True)
class Wanted:
    """The question: the arguments of ``why`` of these names."""

    text: str
    against: str | None = None
    target: str | int | Sequence[int] | Tensor | Target | Callable[[Any], Tensor] | None = None
    foil: str | int | None = None
    label: str | int | None = None
    similar_to: str | None = None
    answer: str | None = None
    generate: int | None = None
    position: TokenIndex | None = None
    chat: bool = False

    def check(self) -> None:
        """Whether the parts of the question go together.

        Raises:
            LigError: if they do not; the message says which to leave out.
        """
        for name in ("text", "against", "similar_to", "answer"):
            value = getattr(self, name)
            if value is None and name != "text":
                continue
            if not isinstance(value, str):
                raise LigError(f"{_written(name)}={brief(value)}: give a text.")
            if not value.strip():
                raise LigError(f"{_written(name)} {value!r} is empty: give at least one word.")
            check_utf8(_written(name), value)
        if self.against == self.text:
            raise LigError(
                f"the text and the one it is compared with are both {self.text!r}: nothing differs "
                "between them. Give another text to compare with, or none."
            )
        if self.generate is not None:
            whole_number("generate", self.generate, 1)
        numbers = [name for name in ("target", "label", "similar_to", "answer", "generate")
                   if getattr(self, name) is not None]  # fmt: skip
        if len(numbers) > 1:
            raise LigError(
                f"{' and '.join(map(_written, numbers))} are different questions: give one of them."
            )
        if self.foil is not None and numbers not in ([], ["target"]):
            raise LigError(
                f"a foil is another next token than the target, and goes without "
                f"{_written(numbers[0])}: leave one of them out."
            )
        if self.position is not None:
            whole_position(self.position)
            if numbers and numbers != ["target"]:
                raise LigError(
                    f"a position is where a token is predicted, and goes without "
                    f"{_written(numbers[0])}: leave one of them out."
                )
        if isinstance(self.foil, str) and self.foil == self.target:
            raise LigError(f"target and foil are both {self.foil!r}: give two different tokens.")

    def kind(self, own: Kind | None, name: str) -> Kind | None:
        """How the model is to be used: what it is for, or as an encoder for ``similar_to``.

        Args:
            own: what the model is for.
            name: of the model.

        Raises:
            LigError: if it does not answer this question.
        """
        if self.similar_to is not None:
            if self.chat:
                raise LigError(
                    "chat is for next tokens, and goes without similar_to: leave it out."
                )
            return "sentence"
        if own is None:
            return None
        needed: list[tuple[str, tuple[Kind, ...]]] = [
            ("label", ("classes",)),
            ("answer", ("causal",)),
            ("generate", ("causal",)),
            ("chat", ("causal",)),
            ("foil", ("causal", "masked")),
            ("position", ("causal", "masked")),
        ]
        for what, kinds in needed:
            given = getattr(self, what)
            if given is not None and given is not False and own not in kinds:
                raise LigError(
                    f"{what} is for {' or '.join(KINDS[kind] for kind in kinds)}, and {name} is "
                    f"{KINDS[own]}: leave it out, or give another model."
                )
        if isinstance(self.target, str) and own not in ("causal", "masked"):
            instead = "label" if own == "classes" else "similar_to"
            raise LigError(
                f"target {self.target!r} is a token, and {name} is {KINDS[own]}: give {instead}."
            )
        if own == "sentence" and self.target is None:
            raise LigError(
                f"{name} is {KINDS[own]}: give similar_to, another text, to explain how alike the "
                "two are; or a model with a head."
            )
        return own


def kind_of_module(model: nn.Module) -> Kind | None:
    """What a loaded model is for; None if its name does not tell."""
    return kind_of(type(getattr(model, "_orig_mod", model)).__name__)


def _written(name: str) -> str:
    return "the text" if name == "text" else name

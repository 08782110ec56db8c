"""The baseline of an input: what the model is called with where a path begins."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig._restore import restoring
from captum_lig.errors import LigError
from captum_lig.model.inputs import ModelCall
from captum_lig.prediction.positions import named_arguments
from captum_lig.prediction.words import pieces
from captum_lig.pretrained.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["InputBaseline", "Inputs", "input_baseline", "main_input"]

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Any]
InputBaseline = (
    float | Tensor | str | Sequence[str] | Mapping[str, Any] | tuple[float | Tensor, ...] | None
)
"""See :func:`input_baseline`."""

SPECIAL = ("bos", "eos", "pad", "cls", "sep", "decoder_start")
NEUTRAL = {"attention_mask": 1, "token_type_ids": 0}
"""What a tokenizer may add to a text without saying anything with it."""


@restoring
def input_baseline(
    model: nn.Module,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    fixed: int = 0,
) -> Inputs:
    """What the model is called with in place of ``inputs``, in the same form and shapes.

    Of a tokenizer's mapping the main input (token ids, vectors, pixels) has a baseline, and
    ``decoder_input_ids`` if the baseline is a mapping that gives them. All else is the inputs' own,
    the very objects.

    Args:
        model: the model.
        inputs: a tensor, a tuple of tensors or a tokenizer's mapping.
        baselines: a tensor of the shape of the input, or of one text for all of a batch; a number
            that stands everywhere; a tokenizer's mapping; a text, or a list of texts, of as many
            tokens as the input; of a tuple of inputs, a tuple. None, or ``"padding"``, is 0 for
            vectors and pixels; for token ids it is padding (the end-of-text token, if there is no
            padding token) in place of all but special tokens, and the first token of each text. A
            decoder needs its first token: tokens that are all the same get all the same vectors,
            each as large as that of the first, and integrals from there do not converge.
        additional_forward_args: further arguments after ``inputs``, without baselines.
        tokenizer: of the text; None is the one beside the model, if it is needed.
        fixed: so many of a text's last tokens stay where ``baselines`` is None, see
            ``BoundTarget.fixed``.

    Raises:
        LigError: for a baseline that does not fit the inputs.
    """
    baselines = _unless_padding(baselines)
    call = ModelCall.of(model, inputs, additional_forward_args)
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        fixed = 0  # the decoder's text is the one that ends with them, and stays as it is
    filler = _Filler(call, tokenizer, fixed)
    if isinstance(inputs, Mapping):
        main = main_input(model, inputs)
        own = baselines if isinstance(baselines, Mapping) else {main: baselines}
        return {**inputs, **dict(filler.of_mapping(inputs, own, main))}
    values = inputs if isinstance(inputs, tuple) else (inputs,)
    starts = _one_each(values, baselines, _main_of(call, values))
    filled = tuple(filler.of(x, start) for x, start in zip(values, starts, strict=True))
    return filled if isinstance(inputs, tuple) else filled[0]


def main_input(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """Name of what has a baseline in a tokenizer's mapping.

    Raises:
        LigError: if it holds none.
    """
    names = [getattr(model, "main_input_name", "input_ids"), "input_ids", "inputs_embeds"]
    for name in names:
        if isinstance(inputs.get(name), Tensor):
            return str(name)
    others = [name for name, x in inputs.items() if isinstance(x, Tensor) and "mask" not in name]
    if len(others) == 1:
        return others[0]
    raise LigError(
        f"inputs hold {', '.join(map(repr, inputs))}, and none of {', '.join(map(repr, names))}: "
        "give what has a baseline as a tensor, and the rest as additional_forward_args."
    )


OF_MAPS = ("target_token", "zero")
"""Where the paths of maps without a target start; not where an input does."""


def _unless_padding(baseline: Any) -> Any:
    """A baseline of an input, None for padding.

    Raises:
        LigError: for the name of a baseline of maps.
    """
    if isinstance(baseline, str) and baseline in OF_MAPS:
        raise LigError(
            f"baseline {baseline!r} is for maps without a target. Here it is another input of the "
            "model: leave it out for padding (0 for vectors and pixels), or give a text of as many "
            f"tokens, ids or a number; {[baseline]!r} is the text {baseline!r}."
        )
    return None if isinstance(baseline, str) and baseline == "padding" else baseline


_OWN = object()
"""The input itself, unchanged."""


def _main_of(call: ModelCall, values: tuple[Tensor, ...]) -> int:
    """Which of several positional inputs is the main one."""
    named = {name: x for name, x in named_arguments(call).items() if isinstance(x, Tensor)}
    try:
        main = named[main_input(call.model, named)]
    except LigError:
        return 0
    return next((n for n, x in enumerate(call.args[: len(values)]) if x is main), 0)


def _one_each(values: tuple[Tensor, ...], baselines: Any, main: int) -> tuple[Any, ...]:
    """A baseline for each of several inputs."""
    if isinstance(baselines, tuple):
        if len(baselines) != len(values):
            raise LigError(
                f"{len(baselines)} baselines for {len(values)} inputs: give one for each."
            )
        return baselines
    if len(values) > 1 and isinstance(baselines, (int, float, Tensor)):
        raise LigError(f"1 baseline for {len(values)} inputs: give one for each, in a tuple.")
    # None, a text or a mapping says nothing of masks and other whole numbers.
    return tuple(
        baselines if n == main else None if baselines is None and x.is_floating_point() else _OWN
        for n, x in enumerate(values)
    )


@dataclass(frozen=True)
class _Filler:
    """Makes the baselines of one call's inputs."""

    call: ModelCall
    tokenizer: PreTrainedTokenizerBase | None
    fixed: int

    def of_mapping(
        self, inputs: Mapping[str, Any], baselines: Mapping[str, Any], main: str
    ) -> Iterator[tuple[str, Tensor]]:
        """What is not the inputs' own, by name."""
        if main not in baselines:
            raise LigError(
                f"baselines hold {', '.join(map(repr, baselines))}, and not {main!r}: give it."
            )
        for name, start in baselines.items():
            if name == main or (
                name == "decoder_input_ids" and isinstance(inputs.get(name), Tensor)
            ):
                yield name, self.of(inputs[name], start)
            else:
                self._check_same(name, inputs.get(name), start, inputs[main], baselines[main])

    def _check_same(self, name: str, own: Any, start: Any, x: Tensor, other: Any) -> None:
        """Whether an entry without a baseline is the same for both."""
        if isinstance(start, Tensor):
            if own is None and name in NEUTRAL and bool((start == NEUTRAL[name]).all()):
                return
            if isinstance(own, Tensor):
                if start.shape[1:] != own.shape[1:] and isinstance(other, Tensor):
                    self.of(x, other)  # says which lengths they have
                fits = start.shape[1:] == own.shape[1:] and len(start) in (1, len(own))
                if fits and bool((own == start.to(own)).all()):
                    return
        elif not isinstance(own, Tensor) and own == start:
            return
        reason = (
            "the path would lead from padding to a token, in a text that grows on the way"
            if name.endswith("attention_mask")
            else "only the main input has a baseline"
        )
        raise LigError(
            f"the baseline's {name}, {brief(start)}, is not that of the inputs, {brief(own)}: "
            f"{reason}. Give a baseline of as many tokens, padded alike, or its ids alone."
        )

    def of(self, x: Tensor, start: Any) -> Tensor:
        """The baseline of one input ``(B, ...)``, of its shape and type."""
        if start is _OWN:
            return x
        if isinstance(start, Mapping):
            name = main_input(self.call.model, start)
            mask = start.get("attention_mask")
            if isinstance(mask, Tensor):
                own = self._kept(x).long()
                self._check_same("attention_mask", own, mask, x, start[name])
            start = start[name]
        start = _unless_padding(start)
        texts = [start] if isinstance(start, str) else start
        if isinstance(texts, (list, tuple)) and texts and all(isinstance(t, str) for t in texts):
            return self._of_texts(x, texts)
        if start is None:
            return torch.zeros_like(x) if x.is_floating_point() else self._padding(x)
        if isinstance(start, (int, float)) and not isinstance(start, bool):
            if isinstance(start, float) and not x.is_floating_point():
                raise LigError(f"baseline={start}, and the input holds token ids: give a token id.")
            return torch.full_like(x, start)
        if not isinstance(start, Tensor):
            raise LigError(
                f"baseline {brief(start)} is a {type(start).__name__}: give a tensor of shape "
                f"{tuple(x.shape)}, a number, a tokenizer's mapping, a text, or None."
            )
        if start.is_floating_point() != x.is_floating_point():
            held = "vectors or pixels" if x.is_floating_point() else "token ids"
            raise LigError(f"baseline is a {start.dtype} tensor, and the input holds {held}.")
        self._check_shape(x, start)
        return start.to(x).expand_as(x).clone()

    def _check_shape(self, x: Tensor, start: Tensor) -> None:
        if start.shape[1:] == x.shape[1:] and len(start) in (1, len(x)):
            return
        given = f"baseline of shape {tuple(start.shape)} does not fit an input of {tuple(x.shape)}"
        ids = x.dim() == start.dim() == 2 and not x.is_floating_point()
        if ids and start.shape[1] != x.shape[1]:
            raise self._other_length(0, x[0].tolist(), start[0].tolist(), given)
        raise LigError(f"{given}: give one of that shape, or of one text for the batch.")

    def _other_length(self, text: int, own: list[int], other: list[int], what: str) -> LigError:
        model = self.call.model
        return LigError(
            f"{what}: text {text} has {len(own)} tokens, its baseline {len(other)}. "
            f"{pieces(own, model, self.tokenizer)} against {pieces(other, model, self.tokenizer)}. "
            "Each token needs one that it is compared with: exchange words for others of as many "
            "tokens, or leave baselines=None, which puts padding in."
        )

    def _kept(self, x: Tensor) -> Tensor:
        """``(B, S)`` False at the padding of token ids ``(B, S)``."""
        for masked in self.call.masked:
            if masked.tokens.shape == x.shape and torch.equal(masked.tokens.to(x), x):
                return ~masked.padding.to(x.device)
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)

    def _of_texts(self, x: Tensor, texts: Sequence[str]) -> Tensor:
        """The ids ``(B, S)`` of texts, where the input has its own tokens."""
        if x.is_floating_point():
            raise LigError(
                f"baseline {brief(texts[0])} is a text, and the input holds vectors or pixels: "
                "give a tensor, a number or None."
            )
        if len(texts) not in (1, len(x)):
            raise LigError(f"{len(texts)} baselines for {len(x)} texts: give one, or one for each.")
        read = self.tokenizer or tokenizer_of(self.call.model)
        filled, kept = x.clone(), self._kept(x)
        for number in range(len(x)):
            text = texts[number if len(texts) > 1 else 0]
            ids, own = list(read(text)["input_ids"]), x[number, kept[number]].tolist()
            if len(ids) != len(own):
                raise self._other_length(number, own, ids, f"baseline {text!r} does not fit")
            filled[number, kept[number]] = torch.tensor(ids).to(x)
        return filled

    def _padding(self, x: Tensor) -> Tensor:
        """Token ids ``(B, S)`` with padding in place of what is said."""
        if x.dim() != 2:
            raise LigError(
                f"the input holds whole numbers of shape {tuple(x.shape)}, and is no text (B, S): "
                "give baselines=."
            )
        token, special = self._special()
        kept = self._kept(x)
        stays = torch.isin(x, torch.tensor(sorted(special)).to(x)) | ~kept
        stays |= kept & (kept.cumsum(-1) == 1)
        if self.fixed:
            from_end = kept.flip(-1).cumsum(-1).flip(-1)
            stays |= kept & (from_end <= self.fixed)
        return torch.where(stays, x, token)

    def _special(self) -> tuple[int, set[int]]:
        """The id that is put in, and those that stay."""
        model, tokenizer = self.call.model, self.tokenizer
        if tokenizer is None:
            # Without one the model's configuration says less, and enough for the padding.
            with contextlib.suppress(LigError):
                tokenizer = tokenizer_of(model)
        if tokenizer is not None:
            found = [tokenizer.pad_token_id, tokenizer.eos_token_id]
            special = set(tokenizer.all_special_ids)
        else:
            configs = [getattr(model, name, None) for name in ("generation_config", "config")]
            each = {
                name: [
                    i
                    for config in configs
                    for i in _whole_numbers(getattr(config, f"{name}_token_id", None))
                ]
                for name in SPECIAL
            }
            found = [*each["pad"], *each["eos"]]
            special = {i for ids in each.values() for i in ids}
        token = next((i for i in found if i is not None), None)
        if token is None:
            raise LigError(
                f"{type(model).__name__} has no padding and no end-of-text token to put in place "
                "of the text's: give tokenizer=, or baselines= (a token id, ids or a text)."
            )
        return int(token), special


def _whole_numbers(value: Any) -> list[int]:
    """A token id, several, or none, of a configuration."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool)]

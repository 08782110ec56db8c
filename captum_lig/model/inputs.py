"""Calling a model on what the caller gave, in Captum's way or a tokenizer's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from captum_lig._captum import format_additional_forward_args
from captum_lig.errors import LigError, out_of_memory
from captum_lig.model.check_inputs import (
    check_mask,
    check_not_packed,
    check_tokens,
    warn_of_padding,
)
from captum_lig.model.few_bits import is_quantised
from captum_lig.model.not_embedded import why_not_embedded

__all__ = ["Masked", "ModelCall"]

CACHES = (
    "past_key_values",
    "past_key_value",
    "layer_past",
    "past_buckets_states",
    "cache",
    "cache_params",
)
"""Names of what models keep of earlier tokens, and add to when they are called."""

SUFFIX = "attention_mask"
KEEP = "logits_to_keep"
"""Argument of transformers' decoders: positions ``(K,)`` whose logits are worked out, or how many
of the last."""
OF_TOKENS = (KEEP, "cache_position", "position_ids", "token_type_ids")
"""Arguments that count tokens, and not texts, where they have one axis."""
OF_AXES = "position_ids"
"""Argument that counts a position's coordinates first ``(3, B, S)`` where it has three axes."""


@dataclass(frozen=True)
class Masked:
    """A mask of the caller's that leaves out some of the tokens that it came with."""

    mask: Tensor
    """``(B, S)`` as given."""
    tokens: Tensor
    """``(B, S, ...)`` as given: ids, vectors, samples."""

    @property
    def padding(self) -> Tensor:
        """``(B, S)`` True where the mask leaves a token out."""
        return left_out(self.mask)

    def other_tokens(self) -> Tensor:
        """The tokens with others in place of the padding: of the same text, known to the model."""
        padding, tokens = self.padding, self.tokens
        if tokens.is_floating_point():
            noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)).to(tokens)
            where = padding.view(*padding.shape, *[1] * (tokens.dim() - 2))
            return torch.where(where, tokens + (1 + tokens.std()) * noise, tokens)
        first, *rest = torch.cat([tokens[~padding].unique(), torch.arange(2).to(tokens)]).tolist()
        second = next(token for token in rest if token != first)
        return torch.where(padding, torch.where(tokens == first, second, first), tokens)


def left_out(mask: Tensor) -> Tensor:
    """What a mask ``(B, S)`` leaves out: 0 or False, or below 0 where it is added to logits."""
    if mask.is_floating_point() and bool((mask < 0).any()):
        return mask < 0
    return ~mask.bool()


@dataclass(frozen=True)
class ModelCall:
    """A model with its inputs."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    masked: tuple[Masked, ...] = ()
    """The masks that the model gets, of those that leave something out."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
        additional_forward_args: object = None,
    ) -> ModelCall:
        """Check the inputs and find the padding.

        Args:
            model: the model to call.
            inputs: a tensor, a tuple of tensors, or a tokenizer's mapping of names to tensors.
            additional_forward_args: positional arguments after ``inputs``, as in Captum.

        Raises:
            LigError: inputs of another kind, or without tokens; a model in training mode, or one
                that was traced; or under autocast.
        """
        if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            raise LigError(
                f"the model is a {type(model).__name__}, traced, scripted or exported: its "
                "attention cannot be reached there. Give the torch.nn.Module that it was made of."
            )
        device = _device_of(model)
        for kind in {parameter.device.type for parameter in model.parameters()}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                raise LigError(
                    f"torch.autocast is on ({torch.get_autocast_dtype(kind)}): the model would "
                    "round to another precision than its own along the paths. Attribute outside "
                    "of it, or load the model in that precision."
                )
        training = [name for name, m in model.named_modules() if m.training and not is_quantised(m)]
        if training:
            raise LigError(
                f"the model is in training mode ({training[0] or type(model).__name__}): call "
                "model.eval() first, dropout makes attributions random."
            )
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(inputs, Mapping):
            if additional_forward_args is not None:
                raise LigError(
                    "additional_forward_args go with a tensor or a tuple of tensors: inputs is a "
                    "mapping, put them into it by name."
                )
            kwargs = dict(inputs)
        elif isinstance(inputs, Tensor):
            args = (inputs,)
        elif isinstance(inputs, tuple) and all(isinstance(x, Tensor) for x in inputs):
            args = inputs
        else:
            raise LigError(
                f"inputs is a {type(inputs).__name__}: give a tensor, a tuple of tensors, or "
                "what a tokenizer returns with return_tensors='pt'."
            )
        args += format_additional_forward_args(additional_forward_args) or ()
        args = tuple(_moved(value, device) for value in args)
        kwargs = {name: _moved(value, device) for name, value in kwargs.items()}
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.numel() == 0:
                raise LigError(
                    f"inputs hold an empty tensor of shape {tuple(value.shape)}: there is no "
                    "token to attribute to, give a text that is not empty."
                )
        parameters = inspect.signature(model.forward).parameters
        names = [*parameters][: len(args)]
        names += [""] * (len(args) - len(names))
        args = tuple(map(_without_cache, names, args))
        kwargs = {name: _without_cache(name, value) for name, value in kwargs.items()}
        cached = "use_cache" in parameters and kwargs.get("use_cache") is not False
        if "use_cache" in parameters:
            kwargs["use_cache"] = False
        try:
            named = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise LigError(
                f"{type(model).__name__} cannot be called with these inputs: {error}."
            ) from error
        named = {**named.pop("kwargs", {}), **named}
        check_tokens(model, named)
        warn_of_padding(model, named)
        if cached:
            check_not_packed(model, named)
        return cls(model, args, kwargs, tuple(_masks(model, named)))

    def with_instead(self, given: Tensor, other: Tensor) -> ModelCall:
        """The call with another tensor in place of one that was given."""
        args = tuple(other if value is given else value for value in self.args)
        kwargs = {name: other if x is given else x for name, x in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    @property
    def batch(self) -> int:
        """The number of texts: the length of the first tensor."""
        values = (*self.args, *self.kwargs.values())
        return next(len(x) for x in values if isinstance(x, Tensor) and x.dim())

    def for_text(self, text: int, batch: int) -> ModelCall:
        """The call for one text of a batch of ``batch``."""
        return self._of(slice(text, text + 1), batch) if batch > 1 else self

    def of_texts(self, texts: Tensor) -> ModelCall:
        """The call for some of its texts, ``(n,)`` in a row."""
        some = slice(int(texts[0]), int(texts[-1]) + 1)
        return self if len(texts) == self.batch else self._of(some, self.batch)

    def _of(self, texts: slice, batch: int) -> ModelCall:
        return self._with(batch, lambda x: x[texts])

    def repeated(self, copies: int) -> ModelCall:
        """The call of one text for ``copies`` of it."""

        def many(x: Tensor) -> Tensor:
            return x.expand(copies, *x.shape[1:])

        return self._with(1, many) if copies > 1 else self

    def _with(self, batch: int, change: Callable[[Tensor], Tensor]) -> ModelCall:
        """The call with what it holds of each of ``batch`` texts, first axis, changed."""
        made: dict[int, Tensor] = {}  # of one tensor one: masks are known by the tokens they are of

        def changed(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                of_tokens = name in OF_TOKENS and value.dim() == 1
                texts = 1 if name == OF_AXES and value.dim() == 3 else 0
                if value.dim() == 0 or value.shape[texts] != batch or of_tokens:
                    return value
                if id(value) not in made:
                    made[id(value)] = change(value.transpose(0, texts)).transpose(0, texts)
                return made[id(value)]
            if isinstance(value, dict):  # an encoder's output, that transformers reads by class
                return type(value)({key: changed(key, item) for key, item in value.items()})
            if type(value) in (list, tuple):
                return type(value)(changed("", item) for item in value)
            return value

        names = [*inspect.signature(self.model.forward).parameters][: len(self.args)]
        names += [""] * (len(self.args) - len(names))
        masked = tuple(Masked(changed("", m.mask), changed("", m.tokens)) for m in self.masked)
        return replace(
            self,
            args=tuple(map(changed, names, self.args)),
            kwargs={name: changed(name, value) for name, value in self.kwargs.items()},
            masked=tuple(one for one in masked if bool(one.padding.any())),
        )

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What to call the model with, its lists and mappings new: a state may be kept in them."""
        kwargs = {name: _copied(value) for name, value in self.kwargs.items()}
        return tuple(map(_copied, self.args)), kwargs

    def run_unmodified(self) -> None:
        """Call the model for what happens inside, without turning its errors into ours."""
        args, kwargs = self.arguments()
        self.model(*args, **{**kwargs, **self.few_logits()})

    def few_logits(self) -> dict[str, Any]:
        """Argument with which a decoder works out the logits of one token, if nobody needs more."""
        parameters = inspect.signature(self.model.forward).parameters
        given = inspect.signature(self.model.forward).bind_partial(*self.args, **self.kwargs)
        needed = KEEP in given.arguments or given.arguments.get("labels") is not None
        # As a position: given how many, Gemma 4's last layers drop all other tokens.
        return {} if needed or KEEP not in parameters else {KEEP: torch.tensor([-1])}

    def run(self) -> None:
        """Call the model, see :meth:`explained`."""
        with self.explained():
            self.run_unmodified()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the errors of a run of the model inside into ours.

        Raises:
            LigError: if it cannot embed the tokens (too many, or unknown).
        """
        try:
            yield
        except (TypeError, ValueError) as error:
            if isinstance(error, LigError):
                raise
            raise LigError(
                f"{type(self.model).__name__} cannot be called with these inputs, "
                f"{self._describe()}: {error}"
            ) from error
        except (IndexError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            most = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
            long = most is not None and any(
                x.dim() >= 2 and x.shape[1] > most
                for x in (*self.args, *self.kwargs.values())
                if isinstance(x, Tensor)
            )
            mask = self.kwargs.get(SUFFIX)
            if isinstance(mask, Tensor) and mask.dim() not in (2, 4):
                raise LigError(
                    f"{type(self.model).__name__} cannot be called with {SUFFIX} of shape "
                    f"{tuple(mask.shape)}: {error}. Give (B, S), or (B, 1, S, S) to be added to "
                    "the logits."
                ) from error
            if not long and not isinstance(error, IndexError):
                raise  # not about the inputs
            forward = inspect.signature(self.model.forward)
            named = forward.bind_partial(*self.args, **self.kwargs).arguments
            reason = why_not_embedded(self.model, named, most, long)
            raise LigError(
                f"{type(self.model).__name__} cannot embed these inputs, {self._describe()}: "
                f"{reason}"
            ) from error

    def _describe(self) -> str:
        shapes = [tuple(value.shape) for value in self.args if isinstance(value, Tensor)]
        named = {k: tuple(v.shape) for k, v in self.kwargs.items() if isinstance(v, Tensor)}
        return ", ".join([*map(str, shapes), *(f"{name} {shape}" for name, shape in named.items())])


def _masks(model: nn.Module, named: dict[str, Any]) -> Iterator[Masked]:
    """The masks ``(B, S)`` among the inputs that leave tokens out, with those tokens."""
    main = getattr(model, "main_input_name", "input_ids")
    for name, mask in named.items():
        if not name.endswith(SUFFIX) or not isinstance(mask, Tensor) or mask.dim() != 2:
            continue
        check_mask(model, name, mask)
        padding = left_out(mask)
        if bool(padding.all(-1).any()):
            empty = int(padding.all(-1).nonzero()[0])
            raise LigError(f"text {empty} of the batch is empty: its {name} is 0 at every token.")
        prefix = name.removesuffix(SUFFIX)
        names = [
            f"{prefix}input_ids",
            f"{prefix}inputs_embeds",
            *([] if prefix else [main, *named]),
        ]
        tokens = (value for value in map(named.get, names) if isinstance(value, Tensor))
        its = [x for x in tokens if x.shape[:2] == mask.shape and x is not mask]
        if its and bool(padding.any()):
            yield Masked(mask, its[0])


def _device_of(model: nn.Module) -> torch.device | None:
    """Where inputs have to be, or None if the model sees to that itself."""
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return None  # sharded or offloaded: its hooks move what they get
    devices = {parameter.device for parameter in model.parameters()}
    return devices.pop() if len(devices) == 1 else None


def _moved(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _without_cache(name: str, value: Any) -> Any:
    """None for an empty cache of keys and values, that the model would fill; other values as is.

    Raises:
        LigError: if there is something in it.
    """
    if not isinstance(value, Cache) and name not in CACHES:
        return value
    if not any(x.numel() for x in _tensors(value)):
        return None
    count = value.get_seq_length() if isinstance(value, Cache) else 0
    raise LigError(
        f"{name or type(value).__name__} holds what the model kept of "
        + (f"{count} tokens" if count else "an earlier call")
        + ": these have no vectors in this run that could be attributed to. Leave it out, and give "
        "the whole text at once."
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a cache, whatever it is made of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def _copied(value: Any) -> Any:
    """New lists and mappings with new tensors in them; a tensor by itself is the caller's."""

    def inside(item: Any) -> Any:
        return item.clone() if isinstance(item, Tensor) else _copied(item)

    if isinstance(value, dict):
        return type(value)({name: inside(item) for name, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(map(inside, value))
    return value

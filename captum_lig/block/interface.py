"""Our place at transformers' attention interface: one registered function, many handlers.

transformers lets a library register an attention function under a name, and there is no way to
take it back. So ours is registered once and does nothing by itself: what happens to a call is
decided by the handler that is active in the current context.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

__all__ = ["AttentionCall", "Handler", "handle_with", "use_interface"]

NAME = "captum_lig"


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function, after position encodings and q/k norms."""

    module: nn.Module
    query: Tensor
    """``(B, H, T, d)``"""
    key: Tensor
    """``(B, Hkv, S, d)``, before key heads are repeated."""
    value: Tensor
    """``(B, Hkv, S, d)``"""
    mask: Tensor | None
    """``(B, 1, T, S)`` or ``(1, H, T, S)``, added to the logits."""
    scaling: float
    kwargs: dict[str, Any]

    def eager(self) -> Tensor:
        """The model family's own attention output, ``(B, T, H, d)``."""
        output: Tensor = _eager_function(self.module)(
            self.module,
            self.query,
            self.key,
            self.value,
            self.mask,
            scaling=self.scaling,
            dropout=0.0,
            **self.kwargs,
        )[0]
        return output


Handler = Callable[[AttentionCall], Tensor]
"""Takes a call, returns the attention output ``(B, T, H, d)``."""

_handler: ContextVar[Handler] = ContextVar("captum_lig_handler", default=AttentionCall.eager)


def _eager_function(module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    return _plain_attention


def _plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention for families that have no eager function of their own."""
    groups = query.shape[1] // key.shape[1]
    logits = scaling * query @ key.repeat_interleave(groups, 1).transpose(-1, -2)
    if mask is not None:
        logits = logits + mask
    output = torch.softmax(logits, -1) @ value.repeat_interleave(groups, 1)
    return output.transpose(1, 2), None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    call = AttentionCall(module, query, key, value, attention_mask, scaling, kwargs)
    return _handler.get()(call), None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The eager mask, a float tensor to add to the logits.

    Not below what float32 can hold: some families take their softmax in float32, whatever the
    dtype of the model, and a row of infinities would be NaN there.
    """
    mask: Tensor | None = eager_mask(*args, **kwargs)
    if mask is None:
        return None
    return mask.clamp_min(max(torch.finfo(d).min for d in (mask.dtype, torch.float32)))


# The mask function belongs to it: without one causality is lost without a word.
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def handle_with(handler: Handler) -> Iterator[None]:
    """Send the attention calls made inside to ``handler``."""
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


@contextmanager
def use_interface(model: nn.Module) -> Iterator[None]:
    """Route every attention of ``model`` that uses transformers' interface through ours.

    Sets the implementation name on the configs that the modules read it from, and puts the old
    names back, whatever happens inside.
    """
    attribute = "_attn_implementation_internal"
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(c, getattr(c, attribute)) for c in configs.values() if hasattr(c, attribute)]
    try:
        for config, _ in before:
            setattr(config, attribute, NAME)
        yield
    finally:
        for config, implementation in before:
            setattr(config, attribute, implementation)

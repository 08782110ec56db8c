"""Our function at ``torch.nn.functional.scaled_dot_product_attention``, for code that calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, added, current_handler
from captum_lig.model.hooks import only_here

__all__ = ["use_sdpa"]

_own = functional.scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The signature of torch's function; key heads are shared whether ``enable_gqa`` or not."""
    if dropout_p > 0.0:
        raise LigError(
            f"scaled_dot_product_attention is called with dropout_p={dropout_p} although the "
            "model is in evaluation mode: dropout makes attributions random, pass 0.0 there "
            "(self.dropout if self.training else 0.0)."
        )
    one_head = query.dim() == 3  # (B, T, d): there is no axis of heads
    if one_head:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unsqueeze(1)
    if is_causal:
        shape = query.shape[-2], key.shape[-2]
        causal = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
        attn_mask = causal if attn_mask is None else attn_mask
    call = AttentionCall(
        query,
        key,
        value,
        added(attn_mask, query, key),
        query.shape[-1] ** -0.5 if scale is None else scale,
        by_sdpa=True,
    )
    output = current_handler()(call).contiguous().transpose(1, 2)  # as torch lays it out
    return output.squeeze(1) if one_head else output


class _Intercept(TorchFunctionMode):
    """Sees torch's function however it was imported, in this thread alone."""

    def __init__(self, here: Callable[[], bool]) -> None:
        super().__init__()
        self._here = here

    def __exit__(self, *_: object) -> None:
        # Not what is on top: torch takes modes off for a time, and may be interrupted there.
        while any(mode is self for mode in _get_current_function_mode_stack()):
            super().__exit__(None, None, None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._here():
            if func is _own:
                func = _attention
            elif func is functional.multi_head_attention_forward:
                func = _multi_head_attention()
        return func(*args, **(kwargs or {}))


def _multi_head_attention() -> Callable[..., Any]:
    """Torch's multi-head attention with our function in place of the one that it calls.

    Modes are off inside of torch's own Python functions, and it is the only one that attends.
    """
    own: Any = functional.multi_head_attention_forward
    names = vars(functional) | {
        "scaled_dot_product_attention": _attention,
        "has_torch_function": lambda _: False,  # it asked, and was sent here
    }
    return FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)


@contextmanager
def use_sdpa() -> Iterator[None]:
    """Route ``scaled_dot_product_attention`` through the current handler.

    Nothing is replaced: torch asks a mode before it calls a function, and a mode is one thread's.
    While it is active ``torch.nn.TransformerEncoderLayer`` does not take its fused path.
    """
    with only_here() as here, _Intercept(here):
        yield

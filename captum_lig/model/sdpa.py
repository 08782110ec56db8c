"""Our place at ``torch.nn.functional.scaled_dot_product_attention``, for code that calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, added, current_handler

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
    output = current_handler()(call).transpose(1, 2)
    return output.squeeze(1) if one_head else output


class _Intercept(TorchFunctionMode):
    """Sees torch's function however it was imported."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is _own:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def use_sdpa() -> Iterator[None]:
    """Route ``scaled_dot_product_attention`` through the current handler.

    A mode sees the calls made from anywhere but torch's own Python functions (multi-head
    attention), inside of which modes are off: there the name itself is replaced. While a mode is
    active ``torch.nn.TransformerEncoderLayer`` does not take its fused path.
    """
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        with _Intercept():
            yield
    finally:
        functional.scaled_dot_product_attention = before

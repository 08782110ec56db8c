"""Our place at transformers' attention interface: one registered function, many handlers.

transformers lets a library register an attention function under a name, and there is no way to
take it back. So ours is registered once and does nothing by itself: what happens to a call is
decided by the handler that is active in the current context.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from captum_lig.model.attention_call import AttentionCall, added, current_handler, lowest

__all__ = ["use_interface"]

NAME = "captum_lig"

IMPLEMENTATIONS = {
    "_attn_implementation_internal": NAME,
    "_experts_implementation_internal": "eager",
}
"""What the configs say of attention and of experts while we watch."""

SINKS = ("s_aux", "sinks")
"""Names under which families hand sinks to the attention function."""


def _family_function(module: nn.Module) -> Callable[..., tuple[Tensor, Any]] | None:
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    return None


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
    function = _family_function(module)

    mask, bias = (added(x, query, key) for x in (attention_mask, kwargs.get("position_bias")))

    def family() -> Tensor:
        assert function is not None
        # With our form of the mask: eager functions would add a boolean one as 0 and 1.
        output: Tensor = function(
            module, query, key, value, mask, scaling=scaling, dropout=0.0, **kwargs
        )[0]
        return output

    total = bias if mask is None else mask
    if mask is not None and bias is not None:
        total = (mask + bias).clamp_min(lowest(query.dtype))
    call = AttentionCall(
        query,
        key,
        value,
        total,
        scaling,
        kwargs.get("softcap"),
        next((kwargs[name] for name in SINKS if kwargs.get(name) is not None), None),
        None if function is None else family,
    )
    return current_handler()(call), None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The eager mask, a float tensor to add to the logits."""
    mask: Tensor | None = eager_mask(*args, **kwargs)
    return None if mask is None else mask.clamp_min(lowest(mask.dtype))


# The mask function belongs to it: without one causality is lost without a word.
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def use_interface(model: nn.Module) -> Iterator[None]:
    """Route every attention of ``model`` that uses transformers' interface through ours.

    Sets the implementation name on the configs that the modules read it from, and puts the old
    names back, whatever happens inside. Experts run one after another: the fused kernels know no
    float64 and no forward-mode derivatives.
    """
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [
        (config, attribute, getattr(config, attribute))
        for config in configs.values()
        for attribute in IMPLEMENTATIONS
        if hasattr(config, attribute)
    ]
    try:
        for config, attribute, _ in before:
            setattr(config, attribute, IMPLEMENTATIONS[attribute])
        yield
    finally:
        for config, attribute, implementation in before:
            setattr(config, attribute, implementation)

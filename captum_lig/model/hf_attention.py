"""Our function at transformers' attention interface: one registered function, many handlers.

transformers lets a library register an attention function under a name, and there is no way to
take it back. So ours is registered once and does nothing by itself: what happens to a call is
decided by the handler that is active in the current context.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from captum_lig._restore import changing
from captum_lig.model.attention_call import AttentionCall, added, current_handler, lowest
from captum_lig.model.hooks import only_here
from captum_lig.model.token_wise import unseen

__all__ = ["NAME", "use_interface"]

NAME = "captum_lig"

IMPLEMENTATIONS = {"_attn_implementation": NAME, "_experts_implementation": "eager"}
"""What the configs say of attention and of experts to calls made from inside."""

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

    with unseen():
        mask, bias = (added(x, query, key) for x in (attention_mask, kwargs.get("position_bias")))
        total = bias if mask is None else mask
        if mask is not None and bias is not None:
            total = (mask + bias).clamp_min(lowest(query.dtype))

    def family(call: AttentionCall) -> Tensor:
        assert function is not None
        # With our form of the mask: eager functions would add a boolean one as 0 and 1.
        own, given = mask, kwargs
        if call.rows is not None:
            own = None if mask is None else mask[:, :, call.rows]
            if bias is not None:
                given = {**kwargs, "position_bias": bias[:, :, call.rows]}
        output: Tensor = function(
            module, call.query, call.key, call.value, own, scaling=scaling, dropout=0.0, **given
        )[0]
        return output

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
    # Families' functions end with .contiguous(), and some count on it.
    return current_handler()(call).contiguous(), None


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

    No config is changed: the properties that the modules read the implementations from give ours
    to calls made from inside, and to all others what the config says. Experts run one after
    another: the fused kernels know no float64 and no forward-mode derivatives.
    """
    configs = {type(module.config) for module in model.modules() if hasattr(module, "config")}
    properties = {
        (owner, name)
        for config in configs
        for name in IMPLEMENTATIONS
        for owner in config.__mro__
        if isinstance(vars(owner).get(name), property)
    }
    with only_here() as here:
        ours = {
            (owner, name): _Seen(here, vars(owner)[name], IMPLEMENTATIONS[name])
            for owner, name in properties
        }

        def undo() -> None:
            for (owner, name), one in ours.items():
                one.ended = True
                # What another library has put there meanwhile stays.
                while isinstance(top := vars(owner)[name], _Seen) and top.ended:
                    setattr(owner, name, top.before)

        with changing(undo):
            for (owner, name), seen in ours.items():
                setattr(owner, name, seen)
            yield


class _Seen(property):
    """A property that is ``ours`` where ``here`` says so."""

    def __init__(self, here: Callable[[], bool], before: property, ours: str) -> None:
        def get(config: Any) -> Any:
            # What another thread compiles meanwhile must not have us in it.
            compiling = torch.compiler.is_compiling()
            return ours if not compiling and here() else before.__get__(config)

        super().__init__(get, before.fset, before.fdel, before.__doc__)
        self.before, self.ended = before, False

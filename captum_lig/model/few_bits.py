"""Layers whose weights a library keeps in few bits: plain ones with the same weights.

Libraries have kernels of their own for such layers, and few of them can be differentiated as often
and in such ways as is needed. What a linear layer gives for the unit vectors are its weights, and
so no library has to be known here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from captum_lig.errors import LigError

__all__ = ["check_no_rounding", "few_bit_layers", "in_full", "is_quantised"]

AT_ONCE = 1024
"""Unit vectors that a layer gets in one call."""

PACKED = frozenset(
    getattr(torch, name)
    for name in (
        *("uint8", "int8", "int16", "int32"),
        *(f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")),
    )
)

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)

SMALL = 0.4 / 255
"""Beside a number of 1, less than half a step of whole numbers in 8 bits."""


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is of those of torch that round what they get to whole numbers."""
    return type(module).__module__.startswith(
        ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
    )


def few_bit_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers in a module that keep their weights in few bits, by name."""
    for name, layer in module.named_modules():
        sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
        own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        if all(isinstance(size, int) for size in sizes) and any(map(_packed, own)):
            yield name, layer


def check_no_rounding(module: nn.Module, words: str, dtype: torch.dtype) -> None:
    """Refuse a module with layers that round the vectors that they get.

    Args:
        module: a block, or a model.
        words: what it is, for the message.
        dtype: of the vectors.

    Raises:
        LigError: if there are some.
    """
    few = dict(few_bit_layers(module))
    for name, layer in module.named_modules():
        if is_quantised(layer) or (name in few and _rounds(layer, dtype)):
            raise LigError(
                f"{words} is quantised ({name or 'it'} is a {type(layer).__module__}."
                f"{type(layer).__name__}) and rounds its vectors, not its weights alone, so it has "
                "no derivatives that say what it does. Give the model as it was, or with its "
                "weights alone in few bits."
            )


def in_full(module: nn.Module, dtype: torch.dtype, own: torch.dtype) -> nn.Module:
    """A copy in a precision, its layers in few bits plain ones with the same weights.

    Args:
        module: a block, or a model; it is not changed.
        dtype: of the copy.
        own: of the vectors that the module gets.
    """
    memo: dict[int, object] = {
        id(layer): _plain(layer, own) for _, layer in few_bit_layers(module)
    }
    # Not the model's own `to`: some of transformers' refuse because of layers that are gone now.
    return nn.Module.to(copy.deepcopy(module, memo), dtype)


def _packed(x: Tensor) -> bool:
    return x.dtype in PACKED or type(x).dequantize is not Tensor.dequantize


def _rounds(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether numbers that are small beside another one of the vector are lost."""
    x = torch.full((layer.in_features,), SMALL, dtype=dtype, device=_device(layer))
    x[1::2] *= -1
    x[0] = 0
    one = torch.zeros_like(x)
    one[0] = 1
    beside, alone, small = (_without_bias(layer, y[None])[0] for y in (x + one, one, x))
    return not float((beside - alone - small).norm()) <= 0.5 * float(small.norm())


def _plain(layer: nn.Module, own: torch.dtype) -> nn.Linear:
    device, width = _device(layer), int(layer.in_features)  # type: ignore[arg-type]
    unit = torch.eye(width, dtype=own, device=device)
    weight = torch.cat([_without_bias(layer, x) for x in unit.split(AT_ONCE)]).T
    bias = getattr(layer, "bias", None)
    found = nn.utils.skip_init(nn.Linear, *weight.T.shape, bias=isinstance(bias, Tensor))
    found.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if isinstance(bias, Tensor):
        found.bias = nn.Parameter(bias.detach().to(weight), requires_grad=False)
    for name in HOOKS:
        getattr(found, name).update(getattr(layer, name))
    return found.train(layer.training)


def _without_bias(layer: nn.Module, x: Tensor) -> Tensor:
    """What it gives for vectors ``(N, in)``: in half precision a bias would hide the weights."""
    bare = copy.copy(layer)
    for held in ("_parameters", "_buffers"):
        vars(bare)[held] = dict(vars(layer)[held])
    if isinstance(getattr(layer, "bias", None), Tensor):
        bare.bias = None  # type: ignore[assignment]
    with torch.no_grad():
        found: Tensor = bare.forward(x[None])[0]
    return found.detach().float() if found.dtype in (torch.half, torch.bfloat16) else found


def _device(layer: nn.Module) -> torch.device:
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return next(x.device for x in own if _packed(x))

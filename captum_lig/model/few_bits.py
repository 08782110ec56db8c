"""Layers whose weights a library keeps in few bits: plain ones with the same weights.

Libraries have kernels of their own for such layers, and few of them can be differentiated as often
and in such ways as is needed. What a linear layer gives for the unit vectors are its weights, and
so no library has to be known here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig.errors import LigError, out_of_memory
from captum_lig.model.hooks import called_modules

__all__ = [
    "check_no_rounding",
    "checked",
    "differentiable",
    "few_bit_layers",
    "in_full",
    "is_quantised",
    "rounding_of",
    "rounds_to_half",
]

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
    return ((name, layer) for name, layer in module.named_modules() if _in_few_bits(layer))


def check_no_rounding(
    modules: Iterable[tuple[str, nn.Module]], words: str, dtype: torch.dtype
) -> None:
    """Refuse layers that round the vectors that they get.

    Args:
        modules: all of a block, or of a model, by name.
        words: what it is, for the message.
        dtype: of the vectors.

    Raises:
        LigError: if there are some.
    """
    for name, layer in modules:
        if is_quantised(layer) or (_in_few_bits(layer) and _rounds(layer, dtype)):
            raise LigError(
                f"{words} is quantised ({_named(name, layer)}): it rounds its vectors, not its "
                "weights alone, so there are no derivatives that say what it does. Give the model "
                "as it was, or with its weights alone in few bits."
            )


@contextmanager
def checked(function: Callable[..., Any], dtype: torch.dtype) -> Iterator[None]:
    """Refuse layers that cannot be differentiated, of a function that is called inside.

    A module is not: it has been copied by :func:`differentiable`, where that was needed.

    Raises:
        LigError: if there are some.
    """
    if isinstance(function, nn.Module):
        yield
        return
    with called_modules() as called:
        yield
    for layer in called:
        check_no_rounding([("", layer)], "what forward_func calls", dtype)
        if not _in_few_bits(layer):
            continue
        x = torch.zeros(1, 1, _width(layer), dtype=dtype, device=_device(layer))
        try:
            with torch.enable_grad():
                torch.autograd.grad(layer.forward(x.requires_grad_()).sum(), x)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise LigError(
                f"what forward_func calls is quantised ({_named('', layer)}), and such a layer "
                f"has no gradients here ({str(error).splitlines()[0]}). Give a torch.nn.Module as "
                "forward_func: its layers are copied with their weights in full."
            ) from error


def differentiable(function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """A function, or a copy of it that has layers in few bits in full, if it is a module.

    Raises:
        LigError: if it rounds its vectors.
    """
    if not isinstance(function, nn.Module):
        return function
    check_no_rounding(function.named_modules(), "forward_func", dtype)
    return in_full(function, dtype, dtype) if any(few_bit_layers(function)) else function


def in_full(module: nn.Module, dtype: torch.dtype, own: torch.dtype) -> nn.Module:
    """A copy in a precision, its layers in few bits plain ones with the same weights.

    Args:
        module: a block, or a model; it is not changed.
        dtype: of the copy.
        own: of the vectors that the module gets.
    """
    memo: dict[int, object] = {id(layer): _plain(layer, own) for _, layer in few_bit_layers(module)}
    # Not the model's own `to`: some of transformers' refuse because of layers that are gone now.
    return nn.Module.to(copy.deepcopy(module, memo), dtype)


def _in_few_bits(layer: nn.Module) -> bool:
    sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return all(isinstance(size, int) for size in sizes) and any(map(_packed, own))


def _named(name: str, layer: nn.Module) -> str:
    kinds = [type(layer), *{type(x) for x in layer.parameters(recurse=False) if _of_its_own(x)}]
    words = [f"{kind.__module__}.{kind.__name__}" for kind in kinds]
    return f"{name or 'a layer'} is a {' of '.join(words)}"


def _packed(x: Tensor) -> bool:
    return x.dtype in PACKED or _of_its_own(x)


def _of_its_own(x: Tensor) -> bool:
    """Whether it is a library's own kind of tensor that stands for a wider one."""
    return type(x).dequantize is not Tensor.dequantize


def _rounds(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether numbers that are small beside another one of the vector are lost."""
    others = torch.ones(_width(layer), dtype=dtype, device=_device(layer))
    others[1::2] = -1
    others[0] = 0
    first = torch.zeros_like(others)
    first[0] = 1
    bare = _without_bias(layer)
    with torch.no_grad():  # with its hooks: some libraries round there
        given = (first + SMALL * others, first, others, torch.zeros_like(others))
        both, alone, large, zero = (_wide(bare(x[None, None])) for x in given)
    expected = SMALL * (large - zero)
    return not float((both - alone - expected).norm()) <= 0.5 * float(expected.norm())


def rounds_to_half(module: nn.Module) -> bool:
    """Whether a layer in few bits takes its vectors in half precision, whatever it gets."""
    for _, layer in few_bit_layers(module):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 1, _width(layer), generator=generator).to(_device(layer))
        with torch.no_grad():
            own = layer.forward(x)
            halves = [layer.forward(x.to(kind).float()) for kind in (torch.bfloat16, torch.half)]
        if any(torch.equal(own, one) for one in halves):
            return True
    return False


def rounding_of(model: nn.Module, exact: float) -> float:
    """About how far a model's numbers are from those of its copy in float32, in part of them.

    ``exact`` if it computes in float32 or wider.
    """
    half = any(p.dtype in (torch.half, torch.bfloat16) for p in model.parameters())
    return 5e-2 if half or rounds_to_half(model) else exact


def _plain(layer: nn.Module, own: torch.dtype) -> nn.Linear:
    bare = _without_bias(layer)
    unit = torch.eye(_width(layer), dtype=own, device=_device(layer))
    with torch.no_grad():
        weight = torch.cat([_wide(bare.forward(x[None]))[0] for x in unit.split(AT_ONCE)]).T
    bias = getattr(layer, "bias", None)
    found: nn.Linear = nn.utils.skip_init(nn.Linear, *weight.T.shape, bias=isinstance(bias, Tensor))
    found.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if isinstance(bias, Tensor):
        found.bias = nn.Parameter(bias.detach().to(weight), requires_grad=False)
    for name in HOOKS:
        getattr(found, name).update(getattr(layer, name))
    return found.train(layer.training)


def _without_bias(layer: nn.Module) -> Any:
    """The same layer without a bias: in half precision it would hide the weights."""
    bare = copy.copy(layer)
    for held in ("_parameters", "_buffers"):
        vars(bare)[held] = dict(vars(layer)[held])
    if isinstance(getattr(layer, "bias", None), Tensor):
        bare.bias = None  # type: ignore[assignment]
    return bare


def _wide(x: Tensor) -> Tensor:
    return x.detach().float() if x.dtype in (torch.half, torch.bfloat16) else x.detach()


def _width(layer: nn.Module) -> int:
    return int(layer.in_features)  # type: ignore[arg-type]


def _device(layer: nn.Module) -> torch.device:
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return next(x.device for x in own if _packed(x))

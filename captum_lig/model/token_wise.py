"""Whether a block's code, its attention aside, can do nothing but treat each token by itself.

What is found out of a block on a few tokens of a long text is true of all of them if the code has
no way to tell: no position that it counts, no token that it looks up or drops, no sum over tokens.
So the calls of torch that a run makes are looked at. Those that are known to work on each token by
itself are listed here; whatever else is called, or comes from where no call was seen (a kernel of
one's own), means that a few tokens are no proof, and the whole text has to be looked at.

The number of tokens is a prime: an axis of which it divides the size is the tokens', or holds
them, and any other axis is not.

What a block gets that is another for every token, its position or an encoding of it, may tell one
token from all others (``position_ids == 50``). What is made of it and of no token is followed: it
may be moved, scaled, added or given to a sine, as position encodings are, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from captum_lig._restore import holding, variable

__all__ = ["FEW", "TokenWise", "shown_by", "unseen"]

FEW = 31
"""How many tokens are a few."""


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


POINTWISE = _names(
    "add radd iadd sub rsub isub mul rmul imul multiply div rdiv idiv truediv rtruediv itruediv "
    "true_divide neg pow rpow square sqrt rsqrt reciprocal exp exp2 log log1p abs sign erf cos sin "
    "tanh sigmoid silu gelu relu relu6 leaky_relu elu selu celu mish hardswish hardsigmoid "
    "hardtanh softplus logsigmoid clamp clamp_min clamp_max minimum maximum where masked_fill "
    "addcmul addcdiv lerp dropout float half double bfloat16 to type type_as contiguous clone "
    "detach eq ne lt le gt ge logical_and logical_or logical_not and or invert isnan isinf "
    "isfinite nan_to_num zeros_like ones_like empty_like full_like"
)
MOVES = _names("transpose permute swapaxes swapdims movedim moveaxis T mT expand expand_as")
VIEWS = _names("view view_as reshape unsqueeze squeeze flatten unflatten")
REDUCTIONS = _names("mean sum norm vector_norm amax amin softmax log_softmax var std")
NORMS = _names("layer_norm rms_norm")
PRODUCTS = _names("linear addmm mm matmul rmatmul imatmul bmm baddbmm")
PARTS = _names("chunk split tensor_split split_with_sizes unbind narrow select")
JOINS = _names("cat concat concatenate")
ATTENTION = _names("scaled_dot_product_attention multi_head_attention_forward")
FACTS = _names(
    "size dim ndim ndimension shape device dtype numel nelement stride layout itemsize "
    "element_size get_device requires_grad grad_fn is_leaf is_cuda is_cpu is_meta is_mps is_xpu "
    "is_floating_point is_complex is_contiguous is_sparse is_quantized is_nested is_inference "
    "is_grad_enabled set_grad_enabled _set_grad_enabled is_autocast_enabled get_autocast_dtype "
    "is_autocast_available get_default_dtype __len__"
)
"""What says nothing of a tensor's entries."""
CASTS = _names("float half double bfloat16 to type type_as")
FORMS = CASTS | _names("expand_as view_as")
"""What takes a second tensor's shape or type alone, if it takes one."""
LIKE = _names("zeros_like ones_like empty_like full_like")
OF_POSITIONS = (
    FACTS | ATTENTION | MOVES | VIEWS | PRODUCTS | PARTS | JOINS | CASTS
    | _names(
        "add radd iadd sub rsub isub mul rmul imul multiply neg cos sin contiguous clone detach "
        "dropout stack repeat_interleave getitem zeros_like ones_like empty_like full_like"
    )
)  # fmt: skip
"""What cannot tell one position from the others."""

CONSTANT, POSITION, CONTENT = range(3)
"""What a tensor was made of: of several, the last of these."""


_unseen: ContextVar[bool] = variable("unseen", False)


def unseen() -> AbstractContextManager[None]:
    """Calls of torch made inside are ours, not the block's."""
    return holding(_unseen, True)


class TokenWise(TorchFunctionMode):
    """Sees the calls of torch in a run of a block on :data:`FEW` tokens, in this thread alone.

    Args:
        tokens: the vectors that the run starts from.
        arguments: what else the block gets.
        own: its parameters and buffers.
    """

    def __init__(
        self,
        tokens: Iterable[Tensor],
        arguments: Iterable[Tensor] = (),
        own: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self.found: str | None = None
        """The first call that may do something else, if there was one."""
        # Kept: the number of a tensor that is gone may be another's.
        self._known: dict[int, tuple[Tensor, int]] = {}
        self.knows(own, CONSTANT)
        for x in arguments:
            self.knows([x], POSITION if _differs_everywhere(x) else CONSTANT)
        self.knows(tokens)

    def __exit__(self, *_: object) -> None:
        # Not what is on top: torch takes modes off for a time, and may be interrupted there.
        while any(mode is self for mode in _get_current_function_mode_stack()):
            super().__exit__(None, None, None)

    def knows(self, tensors: Iterable[Tensor], made_of: int = CONTENT) -> None:
        """Tensors that came from what was seen."""
        self._known.update((id(x), (x, made_of)) for x in tensors)

    def says(self, output: object) -> bool:
        """Whether a run that gave ``output`` treats each token by itself."""
        return self.found is None and all(id(x) in self._known for x in _tensors(output))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _unseen.get() or self.found is not None:
            return func(*args, **kwargs)
        came = _tensors((args, kwargs))
        shapes = [tuple(x.shape) for x in came]  # before: some calls work in place
        found = func(*args, **kwargs)
        name, made = _name(func), _tensors(found)
        if any(id(x) not in self._known for x in came):
            self.found = name
            return found
        kinds = [self._known[id(x)][1] for x in came]
        if POSITION in kinds and not _of_positions(name, came, made):
            self.found = name
        if not _by_token(name, args, kwargs, shapes, made):
            self.found = name
        if name in LIKE:
            kinds = []
        elif name in FORMS:
            kinds = kinds[:1]
        self.knows(made, max(kinds, default=CONSTANT))
        return found


def _tensors(values: object) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    return [x for value in values for x in _tensors(value)]


def _name(func: Any) -> str:
    """``add`` of ``add``, ``add_`` and ``__add__``; of a property, its own."""
    name = str(getattr(func, "__name__", func))
    if name == "__get__":
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name if name in FACTS else name.strip("_")


def _of_tokens(size: int) -> bool:
    return size % FEW == 0 and size > 0


def _differs_everywhere(x: Tensor) -> bool:
    """Whether a tensor has another entry, or other entries, for each of the tokens."""
    if list(x.shape).count(FEW) != 1:
        return False
    rows = x.detach().movedim(x.shape.index(FEW), 0).reshape(FEW, -1)
    return len(torch.unique(rows, dim=0)) == FEW


def _of_positions(name: str, came: list[Tensor], made: list[Tensor]) -> bool:
    """Whether a call on what differs everywhere cannot single out one token."""
    if name in CASTS:  # to whole numbers or to truth values it can
        whole = {x.dtype for x in made if not x.is_floating_point()}
        return whole <= {x.dtype for x in came}
    return name in OF_POSITIONS


def _by_token(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: list[tuple[int, ...]],
    found: list[Tensor],
) -> bool:
    """Whether a call gave each token what follows from that token alone."""
    if name in FACTS:
        return not found
    if name in ATTENTION:
        return True  # what it mixes is what is looked at everywhere
    if not shapes or not found:
        return name == "tensor" and all(x.numel() == 1 for x in found)
    first: tuple[int, ...] = shapes[0]
    given: dict[Any, Any] = dict(enumerate(args)) | kwargs
    axes = max(sum(map(_of_tokens, shape)) for shape in shapes)
    if any(sum(map(_of_tokens, x.shape)) > axes for x in found):
        return False  # pairs of tokens, or the first rows of a table of positions
    if name in POINTWISE or name in MOVES:
        return True
    if name in VIEWS:
        return _before(first) == _before(tuple(found[0].shape))
    if name in REDUCTIONS:
        place = 2 if name in ("norm", "vector_norm") else 1
        dims = given.get("dim", given.get(place))
        dims = dims if isinstance(dims, (tuple, list)) else [dims]
        return all(type(n) is int and not _of_tokens(first[n]) for n in dims)
    if name in NORMS:
        return not any(map(_of_tokens, given.get("normalized_shape", given.get(1, (FEW,)))))
    if name in PRODUCTS:
        left = shapes[1] if name in ("addmm", "baddbmm") else first
        return not _of_tokens(left[-1])
    if name in PARTS:
        place = 1 if name in ("unbind", "narrow", "select") else 2
        return not _of_tokens(first[given.get("dim", given.get(place, 0))])
    if name in JOINS:
        dim = given.get("dim", given.get(1, 0))
        return not any(_of_tokens(shape[dim]) for shape in shapes)
    if name == "stack":
        return True
    if name == "repeat_interleave":
        dim = given.get("dim", given.get(2))
        return type(dim) is int and not _of_tokens(first[dim])
    return name == "getitem" and _whole_tokens(first, args[1])


def _before(shape: tuple[int, ...]) -> int:
    """How many entries stand on the axes before the tokens'."""
    return math.prod(shape[: next((n for n, x in enumerate(shape) if _of_tokens(x)), len(shape))])


def _whole_tokens(shape: tuple[int, ...], index: Any) -> bool:
    """Whether an index takes all of the tokens, where they stand."""
    index = list(index) if isinstance(index, tuple) else [index]
    if any(not (x is None or x is Ellipsis or type(x) in (int, slice, list)) for x in index):
        return False
    if Ellipsis in index:
        at, rest = index.index(Ellipsis), sum(x is not None and x is not Ellipsis for x in index)
        index[at : at + 1] = [slice(None)] * (len(shape) - rest)
    if sum(type(x) is list for x in index) > 1:
        return False
    axes = [x for x in index if x is not None]
    return all(
        one == slice(None) or not _of_tokens(size) for one, size in zip(axes, shape, strict=False)
    )


def shown_by(values: Iterable[Tensor], length: int, valid: Tensor, few: Tensor) -> bool:
    """Whether a few tokens show all that a block gets for its tokens beside their vectors.

    Args:
        values: what it gets; those that have one axis of ``length`` tokens count.
        length: number of tokens of the text.
        valid: positions ``(m,)`` of the tokens that are no padding.
        few: positions ``(n,)`` of the few.

    Returns:
        False if some token gets something that none of the few gets, unless each of these gets
        something else than the others (as position encodings are).
    """
    for x in values:
        if list(x.shape).count(length) != 1:
            continue
        rows = x.detach().movedim(x.shape.index(length), 0).reshape(length, -1)
        kinds = torch.unique(rows[few], dim=0)
        if len(kinds) < len(few):
            seen = (rows[valid][:, None] == kinds).all(-1).any(-1)
            if not bool(seen.all()):
                return False
    return True

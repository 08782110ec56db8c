"""The MLP of a block: what the block adds after its attention, found by running the block.

It is the output of a call of a module inside the block. No name and no family is looked at: a call
is the MLP's if, with its output held fixed, the block still reads its tokens and its heads, and if
its output reaches the block's token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.call import BlockCall, FeedForward, first_tensor, hidden_of
from captum_lig.model.compare import deviation, deviations, nearly_equal
from captum_lig.model.hooks import hooked, own_call, replaced_call
from captum_lig.model.output_projection import LINEAR
from captum_lig.model.split import SplitBlock, skipping

__all__ = [
    "FeedForward",
    "at_feed_forward",
    "find_feed_forward",
    "named_feed_forward",
    "with_first",
    "without_feed_forward",
]


@contextmanager
def at_feed_forward(
    found: FeedForward, handle: Callable[[Callable[[], Tensor]], Tensor]
) -> Iterator[None]:
    """Let ``handle`` say what the MLP gives, in every run of its block from inside.

    ``handle`` gets ``own``, that runs the module and returns ``(N, S, D)``, and returns what takes
    its place. What else the module returns stays. A module that returns nothing else does not run
    unless ``own`` is called.
    """
    call = own_call(found.module)
    turn, shape = 0, torch.Size()

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal turn, shape
        z = hidden_of(args, kwargs)
        assert z is not None
        turn, shape = 0, z.shape[:2]

    def instead(*args: Any, **kwargs: Any) -> Any:
        nonlocal turn
        here, turn = turn == found.turn, turn + 1
        if not here:
            return call(*args, **kwargs)
        outputs: list[Any] = []

        def own() -> Tensor:
            if not outputs:
                outputs.append(call(*args, **kwargs))
            tokens = first_tensor(outputs[0])
            return tokens.unflatten(0, shape) if found.flat else tokens

        value = handle(own)
        if found.flat:
            value = value.flatten(0, 1)
        value = value.clone()  # some blocks add the attention's output to it in place
        if not found.beside:
            return value
        own()
        return with_first(outputs[0], value)

    with hooked([found.block], enter=enter), replaced_call({found.module: instead}):
        yield


def find_feed_forward(call: BlockCall) -> FeedForward | None:
    """The MLP of a block, or None if none is found.

    It is the last call of a module inside the block, in the order in which they end, that gives
    tokens ``(N, S, D)`` and is such that, with them held at the text's own value:

    1. the block gives what it gave,
    2. its output depends on the outputs of its heads, and on its tokens past them (in a block
       without attention, on its tokens),
    3. it is they, moved at one token, that move the block's output at that token, and at no other.

    And they are not constant. So neither a norm or a sum that the residual stream goes through is
    taken, nor the attention's output projection. In a block without attention they may depend on
    other tokens.

    Args:
        call: a recorded block, validated.
    """
    if call.feed_forward is not None or call.site == "parts":
        return call.feed_forward
    with torch.no_grad():
        probe = _Probe(call)
        for candidate in probe.candidates():
            if probe.lets_through(candidate) and probe.refusal(candidate) is None:
                return probe.with_serving(candidate)
    return None


def without_feed_forward(call: BlockCall) -> LigError:
    """What to say of a block whose MLP is not found."""
    return LigError(
        f"{call.describe()} has no module inside whose output is what the block adds after its "
        "attention, token by token: its MLP is not found. Name it, "
        "layer=[captum_lig.Block(module, attention=..., heads=..., feed_forward=...)], or leave "
        "'feed_forward' out of boundaries."
    )


def named_feed_forward(call: BlockCall, module: nn.Module) -> FeedForward:
    """The MLP of a block that the caller named: the last call of ``module`` that can be it.

    Raises:
        LigError: if it is not in the block, does not run, or does not give what the block adds
            token by token.
    """
    names = {id(inside): name for name, inside in call.module.named_modules()}
    name = names.get(id(module), "")
    says = f"{call.describe()}: feed_forward={name or type(module).__name__!r}"
    if not name:
        raise LigError(f"{says} is not a module inside the block. Name one that is.")
    if call.site == "parts":
        raise LigError(
            f"{says} cannot be reached in a block of pre, core and post: leave it out, or describe "
            "the block with attention= and heads=."
        )
    with torch.no_grad():
        probe = _Probe(call)
        found = [one for one in probe.calls() if one.place.module is module]
        if not found:
            raise LigError(
                f"{says} gives no tokens {tuple(probe.split.z.shape)} (S, D) when the block runs. "
                "Name the module whose output the block adds."
            )
        reasons = [probe.refusal(one) for one in reversed(found)]
    for one, reason in zip(reversed(found), reasons, strict=True):
        if reason is None:
            return probe.with_serving(one)
    raise LigError(f"{says} {reasons[0]}. Name the module whose output the block adds.")


@dataclass(frozen=True)
class _Candidate:
    place: FeedForward
    own: Tensor
    """``(1, S, D)`` what it gives for the text."""


class _Probe:
    """Runs a block for the longest text, with what a module in it gives held or moved."""

    def __init__(self, call: BlockCall) -> None:
        longest = int(call.valid.sum(-1).argmax())
        self.split = SplitBlock(call, longest, Meter()).some
        self.block = call.module
        self.positions = self.split.call.valid[0].nonzero().squeeze(-1)
        self.z = self.split.z[None]
        self.u = self.split.own[None] if self.split.has_attention else None
        generator = torch.Generator().manual_seed(0)

        def noise(x: Tensor) -> Tensor:
            drawn = torch.randn(x.shape, generator=generator).to(x)
            return drawn * x.std().clamp_min(1e-3)

        self.moved_z = self.z + noise(self.z)
        self.moved_u = None if self.u is None else self.u + noise(self.u)
        self.middle = len(self.positions) // 2
        self.token = int(self.positions[self.middle])
        self.step = noise(self.z[0, self.token])

    def calls(self) -> list[_Candidate]:
        """Calls of modules inside that give tokens, in the order in which they end."""
        return list(self._recorded(self.u, self.z).values())

    def candidates(self) -> list[_Candidate]:
        """The calls whose tokens are not constant, the last first."""
        own = self._recorded(self.u, self.z)
        other = self._recorded(self.moved_u, self.moved_z)
        return [
            candidate
            for key, candidate in reversed(own.items())
            if key in other and self._moved(other[key].own[0], candidate.own[0]).any()
        ]

    def lets_through(self, candidate: _Candidate) -> bool:
        """Whether heads and tokens reach the block's output past it."""
        moved = [(self.u, self.moved_z)]
        if self.u is not None:
            moved.append((self.moved_u, self.z))
        return all(
            bool(self._moved(self._held(candidate, u, z), self.split.output).any())
            for u, z in moved
        )

    def refusal(self, candidate: _Candidate) -> str | None:
        """Why its output cannot be put in by hand, or None if it can."""
        own = self.split.output[self.positions]
        again = self._held(candidate, self.u, self.z)[self.positions]
        if not nearly_equal(again, own):
            return (
                "does not give the same output of the block when its own is put back (off by "
                f"{deviation(again, own):.1e})"
            )
        middle, token = self.middle, self.token
        value = candidate.own.clone()
        # As large as the stream, and as what is there.
        value[0, token] += self.step * (1 + value[0, token].std() / self.step.std())
        moved = self._moved(
            self._held(replace(candidate, own=value), self.u, self.z), self.split.output
        )
        if not bool(moved[middle]):
            return "does not reach the block's output at the same token"
        if self.u is not None:
            nothing, at = torch.zeros_like(self.u), replace(candidate, own=value)
            without = self._held(candidate, nothing, self.z), self._held(at, nothing, self.z)
            if not bool(self._moved(*without)[middle]):
                return "only acts on what the heads give, as a gate does"
        if self._grows(candidate, value):
            return "is a factor of what the block gives, as a gate is"
        moved[middle] = False
        if bool(moved.any()):
            return (
                f"reaches the block's output at other tokens: what it gives at token {token} moves "
                f"token {int(self.positions[moved.nonzero()[0]])}"
            )
        return None

    def _grows(self, candidate: _Candidate, value: Tensor) -> bool:
        """Whether putting ``value (1, S, D)`` in does more if tokens and heads are larger.

        To what is added that makes no difference, and behind a norm it does less.
        """
        far = None if self.u is None else 10 * self.u
        effects = []
        for u, z in ((self.u, self.z), (far, 10 * self.z)):
            with_own, with_value = (
                self._held(one, u, z)[self.token]
                for one in (candidate, replace(candidate, own=value))
            )
            effects.append(torch.linalg.vector_norm(with_value - with_own))
        return bool(effects[1] > 5 * effects[0])

    def with_serving(self, candidate: _Candidate) -> FeedForward:
        """Its place, with the linear maps that do not matter once it is given."""
        place, widths = candidate.place, dict[nn.Module, int]()

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                widths[module] = output.shape[-1]

        def run(skipped: dict[nn.Module, int]) -> Tensor:
            with at_feed_forward(place, lambda _: candidate.own), skipping(skipped, torch.nan):
                return self._run(self.moved_u, self.moved_z)

        linear = [m for m in self.block.modules() if isinstance(m, LINEAR)]
        with torch.no_grad(), hooked(linear, leave=note):
            own = run({})
        widths.pop(place.module, None)
        with torch.no_grad():
            found = {m: n for m, n in widths.items() if torch.equal(run({m: n}), own)}
            if not torch.equal(run(found), own):
                found = {}
        return replace(place, serving=tuple(found.items()))

    def _moved(self, output: Tensor, own: Tensor) -> Tensor:
        """Which of the text's tokens are not what they were ``(P,)``."""
        return deviations(output[self.positions], own[self.positions]) > 1e-5

    def _run(self, u: Tensor | None, z: Tensor) -> Tensor:
        """The block's output ``(S, D)``."""
        return (self.split.whole(z) if u is None else self.split.with_u(u, z))[0]

    def _held(self, candidate: _Candidate, u: Tensor | None, z: Tensor) -> Tensor:
        """The block's output ``(S, D)`` with what a candidate gives held.

        It runs all the same, so that what it contains is reached as in the block: attention.
        """

        def hold(own: Callable[[], Tensor]) -> Tensor:
            own()
            return candidate.own

        with at_feed_forward(candidate.place, hold):
            return self._run(u, z)

    def _recorded(self, u: Tensor | None, z: Tensor) -> dict[tuple[str, int], _Candidate]:
        """Calls of modules inside that give tokens, in the order in which they end."""
        found: dict[tuple[str, int], _Candidate] = {}
        turns: dict[str, int] = {}
        names = {
            module: name
            for name, module in self.block.named_modules()
            if name and not isinstance(module, torch.jit.ScriptModule)
        }
        length, width = self.split.z.shape
        shapes = (1, length, width), (length, width)

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            name = names[module]
            turn = turns[name] = turns.get(name, -1) + 1
            own = first_tensor(output)
            if not isinstance(own, Tensor) or own.shape not in shapes or own.dtype != z.dtype:
                return
            flat, beside = own.dim() == 2, not isinstance(output, Tensor)
            place = FeedForward(module, turn, name, self.block, flat, beside)
            found[name, turn] = _Candidate(place, own.detach().clone().view(shapes[0]))

        with hooked(names, leave=note):
            self._run(u, z)
        return found


def with_first(output: Any, value: Tensor) -> Any:
    """A module's output with another first tensor."""
    if isinstance(output, Tensor):
        return value
    if isinstance(output, Mapping):
        changed: Any = copy(output)
        name = next(iter(output))
        changed[name] = with_first(output[name], value)
        return changed
    first, *rest = output
    items = (with_first(first, value), *rest)
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)

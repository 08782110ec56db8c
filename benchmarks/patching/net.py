"""A Llama or a BERT run block by block, with its nodes read, replaced, and differentiated.

Nodes are the residual stream entering each block and leaving the last, the heads' outputs before
the output projection, and the output of each MLP, before it is added to the stream.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.patching.cases import Case
from captum_lig.errors import LigError

Edit = Callable[[str, int, Tensor], Tensor]
"""Gets a place's name, its layer and its value ``(B, T, ...)``; gives the value to go on with."""
PLACES = ("stream", "heads", "mlp")
Scores = dict[str, Tensor]
"""Of the nodes: ``"tokens" (L + 1, T)``, ``"attention" (L, T)``: all heads of a token,
``"mlp" (L, T)``, ``"heads" (L, H)``: a head at all tokens. What a method has no word on is absent.
"""
KINDS = ("tokens", "attention", "mlp", "heads")


@dataclass(frozen=True)
class Run:
    """What the nodes were in one run, and what the run gave."""

    stream: list[Tensor]
    """``L + 1`` of ``(B, T, D)``."""
    heads: list[Tensor]
    """``L`` of ``(B, T, H * D_head)``."""
    mlp: list[Tensor]
    """``L`` of ``(B, T, D)``."""
    value: Tensor
    """``(B,)`` the target."""

    def at(self, place: str, layer: int) -> Tensor:
        """The value of one place."""
        found: list[Tensor] = getattr(self, place)
        return found[layer]


class Net:
    """The parts of a model."""

    def __init__(self, model: Any) -> None:
        inner = getattr(model, "model", model)
        self.model, self.inner = model, inner
        self.causal = hasattr(inner, "layers")
        if self.causal:
            self.blocks = list(inner.layers)
            self.projections = [block.self_attn.o_proj for block in self.blocks]
            self.feed_forwards = [block.mlp for block in self.blocks]
        elif hasattr(inner, "encoder"):
            self.blocks = list(inner.encoder.layer)
            self.projections = [block.attention.output.dense for block in self.blocks]
            self.feed_forwards = [block.output.dropout for block in self.blocks]
        else:
            raise LigError(f"{type(model).__name__} is built neither as Llama nor as BERT.")
        self.heads = int(model.config.num_attention_heads)
        model.eval().requires_grad_(False)

    def entering(self, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """``(1, T, D)`` what enters the first block, and what it is called with besides."""
        found: list[tuple[Tensor, dict[str, Any]]] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args[0], kwargs))

        handle = self.blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
        with handle, torch.no_grad():
            self.model(**inputs, use_cache=False) if self.causal else self.model(**inputs)
        return found[0]

    def output(self, z: Tensor, words: Sequence[int]) -> Any:
        """What the model makes of the stream leaving its last block ``(B, T, D)``.

        Of a decoder the logits of some words at the last token, which is a tenth of the work; the
        others are nan.
        """
        if not self.causal:
            return SimpleNamespace(last_hidden_state=z)
        head = self.model.lm_head
        logits = z.new_full((len(z), 1, head.out_features), torch.nan)
        chosen = nn.functional.linear(self.inner.norm(z[:, -1:]), head.weight[list(words)])
        logits[..., list(words)] = chosen
        return SimpleNamespace(logits=logits)

    @contextmanager
    def edited(self, edit: Edit, start: int) -> Iterator[None]:
        """Show `edit` the heads' and MLPs' outputs from a layer on."""

        def before(layer: int) -> Callable[..., Any]:
            return lambda _, args: (edit("heads", layer, args[0]), *args[1:])

        def after(layer: int) -> Callable[..., Any]:
            return lambda _, args, output: edit("mlp", layer, output)

        with ExitStack() as stack:
            for layer in range(start, len(self.blocks)):
                projection, feed_forward = self.projections[layer], self.feed_forwards[layer]
                stack.enter_context(projection.register_forward_pre_hook(before(layer)))
                stack.enter_context(feed_forward.register_forward_hook(after(layer)))
            yield


class Keys:
    """Keys and values of the tokens that come before, in the place of transformers' cache."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Those of ``(B, H, T, D)`` after the ones held; the first ones are kept."""
        if layer not in self.held:
            self.held[layer] = k, v
            return k, v
        before = (x.expand(len(k), -1, -1, -1) for x in self.held[layer])
        k, v = (torch.cat([b, x], 2) for b, x in zip(before, (k, v), strict=True))
        return k, v

    def get_seq_length(self, *_: Any) -> int:
        """Number of tokens held."""
        return self.length


class Question:
    """A case asked of a net: the two runs, and runs with something changed in them.

    Args:
        net: the model.
        case: input, baseline and target.
        prefix: run only the tokens from the first that differs on: in a causal model those
            before have no part in any change. Their nodes are absent in ``input`` and
            ``baseline`` then, and :meth:`padded` puts zeros there.
    """

    def __init__(self, net: Net, case: Case, prefix: bool = True) -> None:
        self.net, self.case = net, case
        z, kwargs = net.entering(case.inputs)
        other, _ = net.entering(case.baseline)
        self.length = z.shape[1]
        moved = (case.inputs["input_ids"] != case.baseline["input_ids"])[0].nonzero().flatten()
        self.first = int(moved[0]) if net.causal and prefix and len(moved) else 0
        self.kwargs: dict[str, Any] = {"attention_mask": None}
        if net.causal:
            self._prepare(z, kwargs)
        start = slice(self.first, None)
        with torch.no_grad():
            self.input, self.baseline = self.recorded(z[:, start]), self.recorded(other[:, start])

    def _prepare(self, z: Tensor, kwargs: dict[str, Any]) -> None:
        names = inspect.signature(self.net.blocks[0].forward).parameters
        cache = "cache" if "cache" in names else "past_key_values"
        turns = kwargs["position_embeddings"]
        order = torch.arange(self.length)
        mask = torch.zeros(self.length, self.length, dtype=z.dtype)
        mask[order[:, None] < order] = torch.finfo(z.dtype).min

        def called(start: int, end: int, keys: Keys | None) -> dict[str, Any]:
            return {
                "position_embeddings": tuple(x[:, start:end] for x in turns),
                "attention_mask": mask[None, None, start:end, :end],
                cache: keys,
            }

        keys = None
        if self.first:
            keys = Keys(self.first)
            self.kwargs = called(0, self.first, keys)
            with torch.no_grad():
                for block in self.net.blocks:
                    z = block(z[:, : self.first], **self.kwargs)
        self.kwargs = called(self.first, self.length, keys)

    def value(self, z: Tensor, start: int = 0, edit: Edit | None = None) -> Tensor:
        """``(B,)`` the target, if `z` ``(B, T, D)`` enters block `start` (or leaves the last)."""
        count = len(self.net.blocks)
        with ExitStack() as stack:
            if edit is not None:
                stack.enter_context(self.net.edited(edit, start))
            for layer in range(start, count):
                z = z if edit is None else edit("stream", layer, z)
                z = self.net.blocks[layer](z, **self.kwargs)
            z = z if edit is None else edit("stream", count, z)
        return self.case.read(self.net.output(z, self.case.words))

    def recorded(self, z: Tensor, start: int = 0) -> Run:
        """A run with its nodes kept, from block `start` on."""
        found: dict[str, list[Tensor]] = {place: [] for place in PLACES}

        def keep(place: str, layer: int, value: Tensor) -> Tensor:
            found[place].append(value)
            return value

        value = self.value(z, start, keep)
        return Run(**found, value=value)

    @property
    def change(self) -> float:
        """F(input) - F(baseline)."""
        return float(self.input.value - self.baseline.value)

    def gradients(self, z: Tensor) -> Run:
        """The target's gradient at every node, if `z` ``(B, T, D)`` enters the first block."""
        run = self.recorded(z.detach().requires_grad_())
        nodes = [*run.stream, *run.heads, *run.mlp]
        found = list(torch.autograd.grad(run.value.sum(), nodes))
        a, b = len(run.stream), len(run.stream) + len(run.heads)
        return Run(found[:a], found[a:b], found[b:], run.value.detach())

    def scores(self, multipliers: Run) -> Scores:
        """Multipliers times changes, added up over the width of a node."""

        def times(place: str) -> Tensor:
            count = len(getattr(multipliers, place))
            each = [
                multipliers.at(place, layer)[0].double()
                * (self.input.at(place, layer) - self.baseline.at(place, layer))[0].double()
                for layer in range(count)
            ]
            return torch.stack(each)

        heads = times("heads").unflatten(-1, (self.net.heads, -1)).sum(-1)  # (L, T, H)
        return self.padded(
            {
                "tokens": times("stream").sum(-1),
                "attention": heads.sum(-1),
                "mlp": times("mlp").sum(-1),
                "heads": heads.sum(1),
            }
        )

    def padded(self, scores: Scores) -> Scores:
        """With zeros for the tokens that were not run."""
        return {
            kind: value if kind == "heads" else nn.functional.pad(value, (self.first, 0))
            for kind, value in scores.items()
        }

    def moved(self, least: float = 1e-5) -> dict[str, Tensor]:
        """Nodes that are not the same in both runs, by `least` of their length: the others
        have no effect, and that they have none tells nothing about a method."""
        split = {"heads": (self.net.heads, -1)}
        shares = {}
        for place in PLACES:
            ends = [torch.stack(getattr(run, place))[:, 0] for run in (self.input, self.baseline)]
            if place in split:
                ends = [end.unflatten(-1, split[place]) for end in ends]
            shares[place] = (ends[0] - ends[1]).norm(dim=-1) > least * ends[0].norm(dim=-1)
        found = {
            "tokens": shares["stream"],
            "attention": shares["heads"].any(-1),
            "mlp": shares["mlp"],
            "heads": shares["heads"].any(1),
        }
        return self.padded(found)

"""Interventions within a layer, beside runs of the whole model with plain forward hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LigError
from captum_lig.metrics import Interventions, edge_interventions, interventions
from captum_lig.prediction import layer_baselines
from tests.helpers import models
from tests.helpers.families import FAMILIES, Family
from tests.helpers.state import Unchanged

NAMES = (
    "bert",
    "gpt2",
    "llama",
    "gemma2",
    "gpt_oss",
    "mpnet",
    "mamba",
    "fnet",
    "modernbert",
    "bart",
)
CHOSEN = [family for family in FAMILIES if family.name in NAMES]
OPEN = [f for f in CHOSEN if f.out is not None and f.name != "mpnet"]


@dataclass
class Twin:
    """One block of a model, reached by hooks."""

    model: nn.Module
    inputs: dict[str, Any]
    name: str
    out: str | None = None
    """In the block, the module whose input is the heads side by side."""

    def run(
        self, tokens: Tensor | None, edit: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens entering, heads side by side (or tokens again) and tokens leaving, (S, ...) each.

        With other tokens ``(S, D)`` put there, and the heads edited.
        """
        seen: dict[str, Tensor] = {}
        block = self.model.get_submodule(self.name)

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            own = args[0] if args else kwargs["hidden_states"]
            z = own if tokens is None else tokens[None].to(own)
            seen["z"] = z[0].clone()
            return ((z, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": z})

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            seen["y"] = (output[0] if isinstance(output, tuple) else output)[0].clone()

        def project(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
            u = args[0][0]
            u = u if edit is None else edit(u.clone())
            seen["u"] = u.clone()
            return (u[None], *args[1:])

        handles = [
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave),
        ]
        if self.out is not None:
            handles.append(block.get_submodule(self.out).register_forward_pre_hook(project))
        try:
            with torch.no_grad():
                self.model(**self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return seen["z"], seen.get("u", seen["y"]), seen["y"]


def starts_of(z: Tensor, baseline: Tensor | str) -> list[Tensor]:
    """The baseline's tokens (S, D), for each target."""
    if isinstance(baseline, str):
        return [z[j].expand_as(z) for j in range(len(z))]
    return [baseline if baseline.dim() == 2 else baseline[j] for j in range(len(z))]


def effects(twin: Twin, baseline: Tensor | str) -> dict[str, Tensor]:
    """Pair by pair, from the definition."""
    z, _, y = twin.run(None)
    length = len(z)
    found = {
        name: torch.zeros(length, length)
        for name in ("out_signed", "out_size", "into_signed", "into_size")
    }
    for j, start in enumerate(starts_of(z, baseline)):
        change = y[j] - twin.run(start)[2][j]
        direction = change / change.norm() if change.norm() > 0 else change
        for i in range(length):
            without, alone = z.clone(), start.clone()
            without[i], alone[i] = start[i], z[i]
            out = y[j] - twin.run(without)[2][j]
            into = twin.run(alone)[2][j] - twin.run(start)[2][j]
            for name, effect in (("out", out), ("into", into)):
                found[f"{name}_signed"][j, i] = effect @ direction
                found[f"{name}_size"][j, i] = effect.norm()
    return found


def edge_effects(twin: Twin, baseline: Tensor | str, heads: int) -> dict[str, Tensor]:
    """Edges from other tokens; a head's output is had from a run with the whole source replaced."""
    z, _, y = twin.run(None)
    length = len(z)
    found = {
        name: torch.zeros(heads, length, length)
        for name in ("out_signed", "out_size", "into_signed", "into_size")
    }
    for j, start in enumerate(starts_of(z, baseline)):
        base = twin.run(start)[2]
        change = y[j] - base[j]
        direction = change / change.norm() if change.norm() > 0 else change
        for name, here, there, end, sign in (
            ("out", z, start, y, 1),
            ("into", start, z, base, -1),
        ):
            for i in set(range(length)) - {j}:
                tokens = here.clone()
                tokens[i] = there[i]
                u = twin.run(tokens)[1][j]
                width = len(u) // heads
                for head in range(heads):
                    part = slice(head * width, (head + 1) * width)

                    def edit(x: Tensor, part: slice = part, u: Tensor = u, j: int = j) -> Tensor:
                        x[j, part] = u[part]
                        return x

                    effect = sign * (end[j] - twin.run(here, edit)[2][j])
                    found[f"{name}_signed"][head, j, i] = effect @ direction
                    found[f"{name}_size"][head, j, i] = effect.norm()
    return found


def check(found: Interventions, expected: dict[str, Tensor], close: float) -> None:
    for name, values in expected.items():
        actual = getattr(found, name)[0].to(values)
        scale = values.abs().max()
        assert scale > 0
        assert (actual - values).abs().max() <= close * scale, name


def noise(shape: torch.Size, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["target_token", "tensor", "per target"])
@pytest.mark.parametrize("family", CHOSEN, ids=lambda family: family.name)
def test_sources_pair_by_pair(family: Family, kind: str) -> None:
    model = family.build()
    inputs = family.inputs(model)
    (first, *_) = interventions(model, inputs, "zero", [-1])
    twin = Twin(model, inputs, first.name)
    z, _, _ = twin.run(None)
    baseline: Tensor | str = "target_token"
    given: Any = baseline
    if kind == "tensor":
        baseline = noise(z.shape).to(z)
        given = baseline[None]
    elif kind == "per target":
        baseline = noise(torch.Size([len(z), *z.shape])).to(z)
        given = baseline[None]
    with Unchanged(model, inputs):
        (found,) = interventions(model, inputs, given, [-1])
    check(found, effects(twin, baseline), 1e-4 if z.dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("family", OPEN, ids=lambda family: family.name)
def test_edges_pair_by_pair(family: Family) -> None:
    model = family.build()
    inputs = family.inputs(model)
    (found,) = edge_interventions(model, inputs, "target_token", [0])
    twin = Twin(model, inputs, found.name, family.out)
    expected = edge_effects(twin, "target_token", found.out_size.shape[1])
    check(found, expected, 1e-4 if found.total.dtype == torch.float32 else 1e-6)


def test_edges_from_a_baseline_that_targets_share() -> None:
    model = models.tiny_bert()
    inputs = {"input_ids": models.tokens(model, 1, 5)}
    padding = torch.full_like(inputs["input_ids"], models.PADDING_ID)
    baseline = layer_baselines(model, inputs, {"input_ids": padding})
    found = edge_interventions(model, inputs, baseline)[1]
    twin = Twin(model, inputs, found.name, "attention.output.dense")
    expected = edge_effects(twin, baseline[1][0], models.HEADS)
    for name in ("out_signed", "out_size", "into_signed", "into_size"):
        actual = getattr(found, name)[0].clone()
        # The twin has no edges of a token with itself: there the whole token would change.
        actual.diagonal(dim1=-2, dim2=-1).zero_()
        assert torch.allclose(actual, expected[name].to(actual), atol=1e-6)
    assert (found.out_size[0].diagonal(dim1=-2, dim2=-1) > 0).all()


def test_texts_of_a_batch_are_as_they_are_alone() -> None:
    model = models.tiny_llama()
    batch = models.padded_batch(model, (3, 6))
    together = interventions(model, batch)
    for text, length in enumerate((3, 6)):
        one = {"input_ids": batch["input_ids"][text : text + 1, :length]}
        for both, alone in zip(together, interventions(model, one), strict=True):
            for name in ("out_signed", "out_size", "into_signed", "into_size", "moves"):
                values = getattr(both, name)[text]
                assert torch.allclose(
                    values[:length, :length].double(), getattr(alone, name)[0].double(), atol=1e-9
                )
                assert not values[length:].any()
                assert not values[:, length:].any()


def test_a_layer_costs_some_passes_and_not_one_a_pair() -> None:
    model = models.tiny_bert()
    inputs = {"input_ids": models.tokens(model, 1, 20)}
    entered = 0

    def count(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal entered
        entered += args[0].shape[0]

    handle = model.encoder.layer[0].intermediate.register_forward_pre_hook(count)
    try:
        interventions(model, inputs, "target_token", [0])
        by_target, entered = entered, 0
        interventions(model, inputs, "zero", [0])
    finally:
        handle.remove()
    # One pass is a sequence through the MLP: 2 x 20 for the effects, some to record and to check.
    assert 2 * 20 <= by_target <= 4 * 20
    assert 2 * 20 <= entered <= 4 * 20


class Shifted(nn.Module):
    """A block whose keys also see the token before: there one source reaches a target twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.queries, self.keys, self.values, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(z)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        parts = self.queries(x), self.keys(x + before), self.values(x)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
        u = nn.functional.scaled_dot_product_attention(q, k, v)
        return z + torch.tanh(self.out(u.transpose(1, 2).flatten(2)))


class ShiftedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Shifted(), Shifted()])

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


def test_tokens_that_mix_before_the_attention_are_run_pair_by_pair() -> None:
    model = ShiftedModel().double()
    models.randomise(model, 0)
    model.eval()
    inputs = {"hidden_states": noise(torch.Size([1, 5, 8]))}
    found = interventions(model, inputs)[1]
    twin = Twin(model, inputs, found.name)
    check(found, effects(twin, "target_token"), 1e-9)


def test_what_moves_can_be_seen_and_is_not_its_own_baseline() -> None:
    model = models.tiny_gpt2()
    inputs = {"input_ids": models.tokens(model, 1, 4)}
    (own, _), (zero, _) = (interventions(model, inputs, b) for b in ("target_token", "zero"))
    below = torch.ones(4, 4, dtype=torch.bool).tril()
    assert torch.equal(zero.moves[0], below)
    assert torch.equal(own.moves[0], below & ~torch.eye(4, dtype=torch.bool))
    assert torch.equal(own.out_size[0] > 0, own.moves[0])
    assert own.size[0, 3, 1] == (own.out_size[0, 3, 1] + own.into_size[0, 3, 1]) / 2
    assert torch.equal(own.truth("signed", "into"), own.into_signed)
    assert torch.equal(own.truth("size"), own.size)
    with pytest.raises(LigError, match="measure='length'"):
        own.truth("length")


def test_one_source_alone_is_the_whole_change() -> None:
    """With one token both interventions undo everything, and the effect is the change itself."""
    model = models.tiny_bert()
    (found, _) = interventions(model, {"input_ids": models.tokens(model, 1, 1)}, "zero")
    for name in ("out_signed", "out_size", "into_signed", "into_size"):
        assert torch.allclose(getattr(found, name)[0, 0], found.total[0])


def test_heads_that_cannot_be_reached_are_refused() -> None:
    family = next(family for family in FAMILIES if family.name == "mpnet")
    model = family.build()
    with pytest.raises(LigError, match="does not show its queries"):
        edge_interventions(model, family.inputs(model), "target_token", [0])


def test_half_precision_runs_in_float32() -> None:
    model = models.tiny_bert(dtype=torch.float32).bfloat16()
    inputs = {"input_ids": models.tokens(model, 1, 4)}
    (found, _) = interventions(model, inputs)
    assert found.out_size.dtype == torch.float32
    assert model.dtype == torch.bfloat16

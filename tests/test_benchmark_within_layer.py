"""Rivals within a layer, pair by pair with the models' own modules; the file of sentences."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.within_layer import report, rivals
from benchmarks.within_layer.maps import OURS, Maps
from benchmarks.within_layer.measure import LATER, NUMBERS, sentence
from captum_lig.metrics import interventions, map_agreement
from captum_lig.metrics.block import cases
from captum_lig.model.select import Finder
from tests.helpers import models

COUNT = 5
MODELS = ("bert", "llama")


class Twin:
    """The second block of a tiny model, run by itself or in the model, module by module."""

    def __init__(self, name: str) -> None:
        self.model: PreTrainedModel = models.MODELS[name]()
        self.inputs = {"input_ids": models.tokens(self.model, 1, COUNT)}
        self.block: Any = models.blocks(self.model)[1]
        self.bert = name == "bert"
        attention = self.block.attention if self.bert else self.block.self_attn
        self.value = attention.self.value if self.bert else attention.v_proj
        self.out = attention.output.dense if self.bert else attention.o_proj
        self.z, self.y = (x[0] for x in models.block_input_output(self.model, 1, **self.inputs))

    def weights(self) -> Tensor:
        """``(H, T, S)`` as the model itself gives them."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        with torch.no_grad():
            found = self.model(**self.inputs, output_attentions=True).attentions[1][0]
        self.model.set_attn_implementation(before)
        return found  # type: ignore[no-any-return]

    def values(self) -> Tensor:
        """``(S, H, e)``, key heads repeated for the heads that share them."""
        with torch.no_grad():
            x = self.z if self.bert else self.block.input_layernorm(self.z)
            v = self.value(x).view(COUNT, -1, models.WIDTH // models.HEADS)
        groups = models.HEADS // v.shape[1]
        return torch.stack([v[:, head // groups] for head in range(models.HEADS)], 1)

    def part(self, j: int, i: int) -> Tensor:
        """``(D,)`` what source i adds to target j: heads one after the other."""
        a, v, width = self.weights(), self.values(), models.WIDTH // models.HEADS
        found = torch.zeros(models.WIDTH, dtype=v.dtype)
        for head in range(models.HEADS):
            columns = self.out.weight.detach()[:, head * width : (head + 1) * width]
            found += columns @ (a[head, j, i] * v[i, head])
        return found

    def mixed(self) -> list[list[Tensor]]:
        """What each source adds to each target after residual stream and norm, ``[j][i]``."""
        rows = []
        for j in range(COUNT):
            parts = [self.part(j, i) + (self.z[i] if i == j else 0) for i in range(COUNT)]
            if self.bert:
                norm = self.block.attention.output.LayerNorm
                whole = sum(parts) + self.out.bias.detach()
                scale = math.sqrt(float(whole.var(unbiased=False)) + norm.eps)
                parts = [(p - p.mean()) / scale * norm.weight.detach() for p in parts]
            rows.append(parts)
        return rows

    def after_attention(self) -> Tensor:
        """``(T, D)`` the tokens after attention, residual stream and norm, read in the model."""
        seen: list[Tensor] = []
        if self.bert:
            handle = self.block.attention.register_forward_hook(
                lambda _, args, output: seen.append(output[0][0])
            )
        else:
            handle = self.block.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args: seen.append(args[0][0])
            )
        with torch.no_grad():
            self.model(**self.inputs)
        handle.remove()
        return seen[0]

    def leaving(self, tokens: Tensor | None = None, zeroed: int | None = None) -> Tensor:
        """``(T, D)`` with other tokens, or the values of one token 0 in all heads."""
        seen: list[Tensor] = []

        def zero(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, zeroed] = 0
            return output

        def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return ((tokens[None], *args[1:]), kwargs) if tokens is not None else None

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output)[0])

        handles = [
            self.block.register_forward_pre_hook(enter, with_kwargs=True),
            self.block.register_forward_hook(leave),
        ]
        if zeroed is not None:
            handles.append(self.value.register_forward_hook(zero))
        self.model(**self.inputs)
        for handle in handles:
            handle.remove()
        return seen[0]


@pytest.fixture(scope="module", params=MODELS)
def twin(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)


def of(twin: Twin, rival: Any, baseline: Any = "target_token") -> Tensor:
    with cases(Finder(twin.model, [1]), twin.inputs, baseline) as ((case,),):
        found: Tensor = rival(rivals.Layer(case))
    return found.detach()


def grid(entry: Any) -> Tensor:
    return torch.tensor([[float(entry(j, i)) for i in range(COUNT)] for j in range(COUNT)]).double()


def test_attention(twin: Twin) -> None:
    assert torch.allclose(of(twin, rivals.attention), twin.weights().mean(0))


def test_attention_times_value_norm(twin: Twin) -> None:
    right = grid(lambda j, i: twin.part(j, i).norm())
    assert torch.allclose(of(twin, rivals.attention_norm), right, atol=1e-6)


def test_residual_and_norm(twin: Twin) -> None:
    mixed = twin.mixed()
    assert torch.allclose(
        of(twin, rivals.residual_norm), grid(lambda j, i: mixed[j][i].norm()), atol=1e-6
    )


def test_parts_add_up_to_what_leaves_the_attention(twin: Twin) -> None:
    with cases(Finder(twin.model, [1]), twin.inputs, "zero") as ((case,),):
        parts, whole = rivals.Layer(case).with_residual()
    assert torch.allclose(whole, twin.after_attention(), atol=1e-9)
    constant = whole - parts.sum(1)
    if not twin.bert:
        assert torch.allclose(constant, twin.out.bias.expand_as(constant), atol=1e-9)


def test_alti(twin: Twin) -> None:
    mixed, whole = twin.mixed(), twin.after_attention()

    def kept(j: int, i: int) -> float:
        near = sum(abs(float(y - t)) for y, t in zip(whole[j], mixed[j][i], strict=True))
        return max(0.0, sum(abs(float(y)) for y in whole[j]) - near)

    right = grid(kept)
    found = of(twin, rivals.alti)
    assert torch.allclose(found, right / right.sum(-1, keepdim=True), atol=1e-6)
    assert (found > 0).sum() > COUNT


def test_value_zeroing(twin: Twin) -> None:
    with torch.no_grad():
        moved = [twin.leaving(zeroed=i) for i in range(COUNT)]

    def distance(j: int, i: int) -> float:
        x, y = moved[i][j], twin.y[j]
        return 1 - float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))

    right = grid(distance)
    right = right / right.sum(-1, keepdim=True)
    assert torch.allclose(of(twin, rivals.value_zeroing), right, atol=1e-6)


@pytest.mark.parametrize("baseline", ["target_token", "zero"])
def test_gradient_times_input(twin: Twin, baseline: str) -> None:
    jacobian = torch.autograd.functional.jacobian(twin.leaving, twin.z)  # (T, D, S, D)
    starts = [
        twin.z[j].expand_as(twin.z) if baseline == "target_token" else torch.zeros_like(twin.z)
        for j in range(COUNT)
    ]
    with torch.no_grad():
        changes = [twin.y[j] - twin.leaving(starts[j])[j] for j in range(COUNT)]

    def entry(j: int, i: int) -> float:
        if not changes[j].norm() > 0:
            return 0.0
        moved = jacobian[j, :, i] @ (twin.z[i] - starts[j][i])
        return float(moved @ changes[j] / changes[j].norm())

    assert torch.allclose(of(twin, rivals.gradient, baseline), grid(entry), atol=1e-6)


# ---- sentences and their file ------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    model = models.tiny_llama()
    inputs = {"input_ids": models.tokens(model, 1, COUNT)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not within tolerance.*")
        return sentence(inputs, Maps(model, [1], 0.9, 16), ["target_token", "zero"])


def test_a_sentence(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    heads, tokens = 3, 3  # fields: attention, chain, attention_influence; mlp, layer twice
    assert found["rows"]["zero"][1] == heads * 4 * COUNT + (tokens + 1) * COUNT
    for baseline in ("target_token", "zero"):
        (layer,) = found["numbers"][baseline].values()
        assert set(layer) == {*OURS, *rivals.RIVALS, *rivals.FROM_BASELINE}
        assert {len(numbers) for one in layer.values() for numbers in one.values()} == {12}
    model = models.tiny_llama()
    inputs = {"input_ids": models.tokens(model, 1, COUNT)}
    (truth,) = interventions(model, inputs, "zero", [1])
    with cases(Finder(model, [1]), inputs, "zero") as ((case,),):
        right = map_agreement(rivals.attention(rivals.Layer(case)), truth)
    numbers = found["numbers"]["zero"]["1"]["attention"]["all"]
    assert numbers == [pytest.approx(right[name], abs=1e-5) for name in NUMBERS]


def write(path: Path, rows: list[list[float | None]]) -> None:
    """A map of ours and a rival, of sentences whose "signed mean spearman" is given."""
    at = NUMBERS.index("signed mean spearman")

    def numbers(value: float | None) -> dict[str, list[float | None]]:
        every: list[float | None] = [0.0] * len(NUMBERS)
        every[at] = value
        return {"all": every, LATER: every}

    lines: list[Any] = [{"layers": [0], "numbers": NUMBERS, "baselines": ["zero"]}]
    for n, (own, other) in enumerate(rows):
        maps = {"chain": numbers(own), "influence": numbers(None), "attention": numbers(other)}
        lines.append(
            {"sentence": n, "tokens": 9 + n, "numbers": {"zero": {"0": maps}}}
            | {"rows": {"zero": [n, 5]}}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_report(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    write(path, [[0.5, 0.1], [0.7, None], [0.9, 0.2]])
    text = report.text(path)
    assert "3 sentences of 9 to 11 tokens" in text
    assert "3 of 15 checked rows" in text
    assert "| 0 | 0.70 [0.50, 0.90] |  | attention 0.15 [0.10, 0.20] | **0.55 [0.40" in text
    assert "chain is ahead of every rival in 1 of 1 layers, in 1 with" in text
    assert "influence is ahead of every rival in 0 of 1 layers, in 0 with" in text
    row = next(line for line in text.splitlines() if line.startswith("| chain"))
    assert row.endswith("| **0.70 [0.50, 0.90]** |")
    write(path, [])
    assert report.text(path) == "No sentence yet."

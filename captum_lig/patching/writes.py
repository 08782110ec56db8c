"""What nodes write to the residual stream, and what that does to the logits.

In a pre-norm model the tokens that leave the last block are a sum: the embedding, what each head
adds and what each MLP adds. With the final norm held at what it divides by in the run, logits are
linear in that sum, so each write has its own part of each logit, and the parts add up to it (direct
logit attribution; Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig._restore import restoring
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.call import first_tensor
from captum_lig.model.compare import deviation, nearly_equal
from captum_lig.model.hooks import hooked
from captum_lig.model.split import by_token
from captum_lig.model.stages import Stages
from captum_lig.model.written import no_direct_edges
from captum_lig.patching.edges import NAMES
from captum_lig.patching.nodes import Node
from captum_lig.patching.runs import Layers, Run
from captum_lig.patching.two_runs import TwoRuns, two_runs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Unembedding", "Writes", "writes"]


@dataclass(frozen=True)
class Unembedding:
    """The final norm, held at what it divides by at one token, and the logits behind it."""

    scale: Tensor
    """``(D,)`` what the norm multiplies by at that token."""
    centers: bool
    """Whether the norm takes the mean away before (LayerNorm)."""
    weight: Tensor
    """``(V, D)``"""
    constant: Tensor
    """``(V,)`` biases, which no write brings."""

    def __call__(self, write: Tensor) -> Tensor:
        """Parts ``(..., V)`` of the logits that writes ``(..., D)`` bring."""
        if self.centers:
            write = write - write.mean(-1, keepdim=True)
        return (write * self.scale) @ self.weight.T


@dataclass(frozen=True)
class Writes:
    """What nodes add to the residual stream in two runs."""

    nodes: tuple[Node, ...]
    """``M`` heads and MLPs."""
    own: Tensor
    """``(M, D)`` in the run on the text."""
    change: Tensor
    """``(M, D)`` less that in the run on the baseline."""
    unembedding: Unembedding
    """Of the run on the text."""


@restoring
def writes(
    model: nn.Module,
    inputs: Any,
    baselines: Any,
    target: Any,
    nodes: Sequence[Node],
    position: int = -1,
    *,
    layers: Layers = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Writes:
    """What heads and MLPs write, and how to read it in the vocabulary.

    Args:
        model: a pre-norm model that gives logits of a vocabulary.
        inputs: as in :func:`effects`, of one text.
        baselines: as in :func:`effects`.
        target: as in :func:`effects`.
        nodes: heads and MLPs, each at a token.
        position: the token whose final norm is held, padding not counted; negative ones from the
            end.
        layers: as in :func:`effects`; all of the model's.
        tokenizer: as in :func:`effects`.

    Raises:
        LigError: for nodes or a position that do not exist, if the residual stream is not a sum, or
            the logits do not follow from it by a norm and one matrix.
    """
    with torch.no_grad(), two_runs(
        model, inputs, baselines, target, tokenizer=tokenizer, layers=layers
    ) as question:  # fmt: skip
        if not nodes:
            raise LigError("nodes are empty: give some.")
        known = set(question.nodes(("heads", "feed_forward"), by_position=True))
        for node in nodes:
            if node not in known:
                raise LigError(
                    f"{node.describe()} is no node of the model: give heads and MLPs, each at one "
                    f"of the tokens 0 to {question.count - 1}."
                )
        if not -question.count <= position < question.count:
            raise LigError(f"position={brief(position)}: there are {question.count} tokens.")
        unembedding = _unembedding(question, int(question.runner.positions[position]))
        found = _written(question, nodes)
    own, change = (torch.stack([found[node][n] for node in nodes]) for n in range(2))
    return Writes(tuple(nodes), own, change, unembedding)


def _written(question: TwoRuns, nodes: Sequence[Node]) -> dict[Node, tuple[Tensor, Tensor]]:
    """What each node adds, and by how much it differs from the baseline's run, ``(D,)``."""
    runner, found = question.runner, {}
    assert question.baseline is not None
    below: Tensor | None = None
    for number, layer in zip(runner.chosen, question.layers, strict=True):
        block = runner.blocks[number]
        own, other = (
            {NAMES[place]: run.values[number, place][0] for place in runner.places(number)}
            for run in (question.input, question.baseline)
        )
        if "u" not in own:
            raise no_direct_edges(block, "it has no heads that can be reached")
        if below is not None and not nearly_equal(
            own["z"][runner.positions], below[runner.positions]
        ):
            raise no_direct_edges(block, "it does not get the tokens that leave the one below")
        below = own["y"]
        here = [node for node in nodes if node.layer == layer]
        # Blocks without such a node have to pass on what those below add.
        tokens = sorted({node.token or 0 for node in here} or {question.count - 1})
        at = runner.positions[tokens]
        stages = Stages(block, block.feed_forward, None, Meter())
        parts = [
            _added(stages, {name: x[at] for name, x in run.items()}, at) for run in (own, other)
        ]
        for node in here:
            row = -1 if node.head is None else node.head
            mine, its = (one[row, tokens.index(node.token or 0)] for one in parts)
            found[node] = mine, mine - its
    return found


def _added(stages: Stages, own: dict[str, Tensor], at: Tensor) -> Tensor:
    """What each head of a block, and last its MLP if it has one, adds at tokens: ``(W, P, D)``.

    Args:
        stages: the block.
        own: its nodes ``(P, ...)`` at these tokens, in one run.
        at: ``(P,)`` their positions.

    Raises:
        LigError: if the tokens leaving are not those entering and what is added.
    """
    tokens, count = own["u"].shape[:2]
    rows = count + ("m" in own) + 1  # the last one has nothing but biases
    u = own["u"].new_zeros(rows, *own["u"].shape)
    for head in range(count):
        u[head, :, head] = own["u"][:, head]
    z = own["z"].new_zeros(rows * tokens, own["z"].shape[-1])
    given = [u.flatten(0, 1), z, at.repeat(rows)]
    if "m" in own:
        m = own["m"].new_zeros(rows, *own["m"].shape)
        m[count] = own["m"]
        given.append(m.flatten(0, 1))

    def run(u: Tensor, z: Tensor, positions: Tensor, m: Tensor | None = None) -> Tensor:
        return stages.output(z, u, m, positions=positions)

    outputs = by_token(run, len(stages.split.z), *given).unflatten(0, (rows, tokens))
    parts: Tensor = outputs[:-1] - outputs[-1]
    total = own["z"] + parts.sum(0) + outputs[-1]
    if not nearly_equal(total, own["y"]):
        raise no_direct_edges(
            stages.split.call,
            "what its heads, its MLP and the tokens entering are does not add up to the tokens "
            f"leaving (off by {deviation(total, own['y']):.1e}), there is a norm or a gate after "
            "them, most likely",
        )
    return parts


def _unembedding(question: TwoRuns, at: int) -> Unembedding:
    """How the logits of a token follow from the stream that leaves the last block."""
    model, runner = question.input.call.model, question.runner
    name = type(model).__name__
    find = getattr(model, "get_output_embeddings", None)
    matrix = find() if callable(find) else None
    if not isinstance(matrix, nn.Linear):
        raise LigError(f"{name} has no matrix that makes logits of a vocabulary of its last state.")
    stream = question.input.values[runner.chosen[-1], "leaving"][0, at]
    norm, logits = _between(question.input, stream, matrix, at)
    scale, centers, bias = _held(norm, stream)
    centered = stream - stream.mean() if centers else stream
    state = centered * scale + bias
    plain = matrix(state)
    factor = (logits @ plain) / (plain @ plain)  # some models multiply all logits by a number
    if not nearly_equal((factor * plain)[None], logits[None]):
        raise LigError(f"the logits of {name} are not its last state, normed, times one matrix.")
    weight = factor * matrix.weight
    constant = bias @ weight.T
    if matrix.bias is not None:
        constant = constant + factor * matrix.bias
    return Unembedding(scale, centers, weight, constant)


def _between(run: Run, stream: Tensor, matrix: nn.Linear, at: int) -> tuple[nn.Module, Tensor]:
    """The norm between a state and the matrix, and the logits ``(V,)`` that the model gives."""
    model = run.call.model
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if len(args) != 1 or not (isinstance(args[0], Tensor) and isinstance(output, Tensor)):
            return
        if args[0].dim() == 3 and args[0].shape[1] > at:
            seen.append((module, args[0][0, at], output[0, at]))

    with hooked([one for one in model.modules() if one is not model], leave=keep):
        args, kwargs = run.call.arguments()
        output = model(*args, **kwargs)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None:
        logits = first_tensor(output)
    state = next((given for module, given, _ in seen if module is matrix), None)
    if state is not None and logits.dim() == 3:
        for module, given, got in reversed(seen):
            if module is matrix or given.shape != stream.shape or got.shape != state.shape:
                continue
            if nearly_equal(given[None], stream[None]) and nearly_equal(got[None], state[None]):
                return module, logits[0, at]
    raise LigError(
        f"{type(model).__name__} has no norm between its last block and the matrix of its logits."
    )


def _held(norm: nn.Module, state: Tensor) -> tuple[Tensor, bool, Tensor]:
    """What a norm multiplies by at a state ``(D,)``, whether it centers, and what it adds.

    Seen from what it makes of a few vectors: nothing has to be known of its class.
    """
    width = len(state)
    signs = torch.ones_like(state)
    signs[1::2] = -1
    if width % 2:
        signs[-3:] = signs.new_tensor([1.0, 1.0, -2.0])
    far = 1e4 * signs
    added, one = norm(torch.stack([torch.zeros_like(state), far])[None])[0]
    weight = (one - added) / signs * signs.square().mean().sqrt()
    level = norm(torch.full_like(state, 1e4)[None, None])[0, 0] - added
    centers = bool(level.norm() < 1e-2 * weight.norm())
    centered = state - state.mean() if centers else state
    plain, got = weight * centered, norm(state[None, None])[0, 0] - added
    by = (got @ plain) / (plain @ plain)
    if not nearly_equal((by * plain)[None], got[None]):
        raise LigError(
            f"{type(norm).__name__}, the last norm, is neither a LayerNorm nor an RMSNorm."
        )
    return by * weight, centers, added

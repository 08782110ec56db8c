"""Direct edges from writers to readers of the residual stream, for a number of one text.

In a pre-norm model the tokens entering a block are a sum: the embedding, what all heads below
write, and what all MLPs below write. The multiplier that the chain hands down is a sum, too: of
what each reader above hands down, a head's query, key or value, an MLP, or the number itself.
With ``G`` the part of a reader and ``D`` the change of a writer, the edge between them at token
``i`` is ``<G[i], D[i]>``. So edges add up to the relevance of the writer over all its readers, and
to that of the reader over all its writers.

The edges are those of edge attribution patching (Syed et al. 2023, arXiv:2310.10348; Hanna et al.
2024, arXiv:2403.17806), at each position on its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_lig._arguments import brief, users_line
from captum_lig.attribution.block import Handed, by_head, relevance
from captum_lig.attribution.chain import Chain, Top, check_runs
from captum_lig.attribution.readers import ReaderBlock
from captum_lig.attribution.towards import Finders, Prepared, Question
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import is_byte_level, token_texts
from captum_lig.graph.direct_edges import DirectEdges, Reader, Strongest, Writer
from captum_lig.integrals.settings import Settings
from captum_lig.integrals.stage import READERS
from captum_lig.io.direct_edges import writing_direct_edges
from captum_lig.model.compare import nearly_equal
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.model.written import no_direct_edges, reads_heads, written
from captum_lig.prediction.bound_target import BoundTarget
from captum_lig.prediction.positions import named_arguments
from captum_lig.prediction.vector_targets import State
from captum_lig.pretrained.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["direct_edges", "edges_towards"]

AT_ONCE = 2**23
"""Numbers of writers' changes that are multiplied in float64 at once."""


def edges_towards(
    finders: Finders, question: Question, keep: int, file: Path | None, text: int | None
) -> DirectEdges:
    """The direct edges of a text of a batch.

    Args:
        finders: finds all blocks.
        question: what is asked.
        keep: how many edges to keep.
        file: where to write all of them, or None.
        text: which text; None: the only one.

    Raises:
        LigError: for anything that cannot be worked with; the message says what to do.
    """
    finders.check_all()
    prepared = Prepared.of(finders, question)
    batch = prepared.batch
    if text is None and batch > 1:
        raise LigError(f"inputs hold {batch} texts: say which one is meant, with text=.")
    chosen = 0 if text is None else text
    if not -batch <= chosen < batch:
        raise LigError(f"text={brief(text)}: inputs hold {batch} texts.")
    chosen %= batch
    call = prepared.call.for_text(chosen, batch)
    return direct_edges(
        prepared.finder,
        call,
        prepared.baseline.for_text(chosen, batch),
        prepared.for_text(chosen),
        question.settings,
        keep,
        _labels(call, question.tokenizer),
        file,
        question.show_progress,
    )


def _labels(call: ModelCall, tokenizer: PreTrainedTokenizerBase | None) -> list[str] | None:
    """The tokens ``(S,)`` as text, if they are ids of a tokenizer."""
    ids = named_arguments(call).get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        return None
    try:
        tokenizer = tokenizer or tokenizer_of(call.model)
    except LigError:
        return None
    if is_byte_level(tokenizer):  # whose decode() makes one character of all that are in pieces
        return token_texts(tokenizer, ids[0].tolist())
    return [str(tokenizer.decode([token])) for token in ids[0].tolist()]


def direct_edges(
    finder: Finder,
    call: ModelCall,
    baseline: ModelCall,
    target: BoundTarget | State,
    settings: Settings,
    keep: int,
    labels: Sequence[str] | None = None,
    file: Path | None = None,
    show_progress: bool = False,
) -> DirectEdges:
    """The direct edges of one text.

    Args:
        finder: finds all blocks.
        call: the model's call on the text.
        baseline: its call on the baseline.
        target: the number, of one text.
        settings: how to integrate.
        keep: how many edges to keep.
        labels: the tokens, with padding.
        file: where to write all edges, part by part.
        show_progress: show a bar over layers.

    Raises:
        LigError: if the residual stream is not a sum, or the number cannot be handed down.
    """
    with finder.blocks(call) as blocks:
        others = finder.another(baseline)
        crosses = check_runs(blocks, others)
        for block, cross in zip(blocks, crosses, strict=True):
            if cross is not None:
                raise no_direct_edges(block, "it also reads the states of an encoder")
        top = Top.of(blocks, others, call, baseline, target, settings)
        chain = Chain(finder, blocks, others, crosses, top, settings, edges=False)
        streams = Streams(chain)
        strongest = Strongest(keep, streams.writers, streams.readers)
        labels = None if labels is None else [labels[n] for n in streams.positions.tolist()]
        facts = {"change": top.change, "target": target.words, "labels": labels}
        with ExitStack() as stack:
            sinks: list[Callable[[int, Tensor], None]] = [strongest.add]
            if file is not None:
                shapes = {
                    first: (writers, count, len(streams.positions))
                    for first, count, writers in streams.plan
                }
                sinks.append(
                    stack.enter_context(
                        writing_direct_edges(file, streams.writers, streams.readers, shapes, facts)
                    )
                )
            for first, values in streams.down(show_progress):
                for add in sinks:
                    add(first, values)
        found = strongest.edges(top.change, target.words, labels)
        _warn_if_off(found, float(top.scale(streams.entering)), settings)
    return found


def _warn_if_off(edges: DirectEdges, scale: float, settings: Settings) -> None:
    """Say so if one of the sums that have to be the change is not."""
    sums = {
        "the edges into it": edges.into_target,
        "those out of the embedding": edges.out_of_embedding,
    }
    tolerance = settings.tolerance
    for what, value in sums.items():
        if tolerance is not None and not abs(value - edges.change) <= tolerance * scale:
            warnings.warn(
                f"{edges.target} changes by {edges.change:.6g}, and {what} add up to {value:.6g}: "
                f"more than tolerance={tolerance:g} off. Raise max_steps or n_steps, or give "
                "dtype=torch.float64.",
                stacklevel=users_line(),
            )


class Streams:
    """What writes to the residual stream and what reads it, in two runs of one text.

    Args:
        chain: the two runs.

    Raises:
        LigError: if the stream is not a sum.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain, self.top = chain, chain.top
        self.layers = [
            ReaderBlock(
                call=call,
                other=other,
                feed_forward=chain.finder.feed_forward(call),
                cross=None,
                settings=chain.settings,
                edges=False,
                meter=Meter(),
                budget=chain.budget,
            )
            for call, other in zip(chain.blocks, chain.others, strict=True)
        ]
        self.positions = self.layers[0].valid.nonzero().squeeze(-1)
        self.writers: list[Writer] = []
        self.readers: list[Reader] = []
        self.plan: list[tuple[int, int, int]] = []
        """Of each part that comes: its first reader, how many, and how many writers they read."""
        self.changes = self._written()
        """``(N, W, D)``"""
        self.entering = self.changes.new_zeros(0)
        """``(S,)`` the tokens' relevances at the bottom, once :meth:`down` has come there."""

    def _written(self) -> Tensor:
        """What all writers change, tokens without padding first; notes writers and readers."""
        first = self.layers[0].z.step
        self.writers.append(Writer("embedding"))
        found = [first[None]]
        for number, (block, call) in enumerate(zip(self.layers, self.chain.blocks, strict=True)):
            self._check_follows(number)
            layer, nodes = call.index, block.nodes
            own, other = (
                {name: getattr(ends, end) for name, ends in (*nodes.items(), ("y", block.y))}
                for end in ("end", "start")
            )
            parts = written(block.stages, own, other, block.valid)
            if block.heads:
                self._expect(block.readers(layer))
                self.writers += [Writer("heads", layer, head) for head in range(block.heads)]
                found.append(parts.heads)
            if parts.feed_forward is not None:
                beside = reads_heads(block.stages, own)
                self._expect([Reader("feed_forward", layer)], 0 if beside else block.heads)
                self.writers.append(Writer("feed_forward", layer))
                found.append(parts.feed_forward[None])
        self._expect([Reader("output")])
        return torch.cat(found)[:, self.positions].transpose(0, 1).contiguous()

    def _expect(self, readers: list[Reader], beside: int = 0) -> None:
        """Readers of all writers so far, but those beside them."""
        self.plan.append((len(self.readers), len(readers), len(self.writers) - beside))
        self.readers += readers

    def _check_follows(self, number: int) -> None:
        """What leaves a block enters the next one."""
        if number == 0:
            return
        below, block = self.layers[number - 1].y, self.layers[number].z
        for left, entered in ((below.start, block.start), (below.end, block.end)):
            same = left.shape == entered.shape
            if not (same and nearly_equal(entered[self.positions], left[self.positions])):
                name = self.chain.blocks[number - 1].name
                raise no_direct_edges(
                    self.chain.blocks[number], f"{name!r} does not hand it its own tokens"
                )

    def down(self, show_progress: bool) -> Iterator[tuple[int, Tensor]]:
        """Edges ``(W', R', N)`` into some readers, and the number of the first, the last first."""
        plan = list(self.plan)
        g = self.top.multiplier(self.chain.budget)
        yield self._edges(plan.pop(), g[None])
        numbers = reversed(range(len(self.layers)))
        for number in tqdm(
            numbers, total=len(self.layers), desc="layers", unit="layer", disable=not show_progress
        ):
            block = self.layers[number]
            scale = self.top.finest(relevance(g, block.y))
            handed = block.down(g, scale)
            self._check_sum(number, g, handed)
            if "feed_forward" in handed.stages:
                yield self._edges(plan.pop(), handed.stages["feed_forward"]["z"][None])
            if "attention" in handed.stages:
                yield self._edges(plan.pop(), handed.stages["attention"][READERS])
            g = handed.z
        self.entering = relevance(g, self.layers[0].z)

    def _check_sum(self, number: int, g: Tensor, handed: Handed) -> None:
        """The stream passes a block unchanged, and its MLP reads heads through the stream alone."""
        call, block = self.chain.blocks[number], self.layers[number]
        past, inside = handed.stages["output"], handed.stages.get("feed_forward")
        if not nearly_equal(past["z"][self.positions], g[self.positions]):
            raise no_direct_edges(call, "the tokens entering it do not pass it unchanged")
        if inside is None or not bool((inside["u"] != 0).any()):
            return
        first = self.writers.index(Writer("heads", call.index, 0))
        changes = self.changes[:, first : first + block.heads].double()
        written = torch.einsum("nhd,nd->nh", changes, inside["z"][self.positions].double())
        through = by_head(inside["u"], block.nodes["u"])[self.positions]
        gap, size = (through - written).abs().sum(), through.abs().sum()
        if float(gap) > 1e-3 * float(size):
            raise no_direct_edges(
                call,
                "its MLP reads its heads otherwise than through the residual stream (it gets "
                f"{float(through.sum()):.4g} of them, and {float(written.sum()):.4g} of what they "
                "write)",
            )

    def _edges(self, part: tuple[int, int, int], g: Tensor) -> tuple[int, Tensor]:
        """Edges into readers with multipliers ``g (R', S, D)``."""
        first, readers, writers = part
        if len(g) != readers:
            raise LigError(f"{len(g)} readers handed something down, and {readers} were found.")
        g = g[:, self.positions].permute(1, 2, 0)  # (N, D, R')
        at_once = max(1, AT_ONCE // (writers * g.shape[1]))
        found = [
            changes[:, :writers].double() @ own.double()
            for changes, own in zip(self.changes.split(at_once), g.split(at_once), strict=True)
        ]
        return first, torch.cat(found).permute(1, 2, 0)

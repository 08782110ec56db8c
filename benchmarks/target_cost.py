"""What flows towards a number cost, beside passes of the model and Captum's at every layer.

    python -m benchmarks.target_cost [--model FOLDER] [--tokens 20 112] [--check]

Each case runs in a process of its own. ``--model`` is a folder of a causal language model; without
it there is the embedded encoder alone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.common import (
    GIB,
    command,
    forget_peak,
    now,
    peak_bytes,
    resident_bytes,
    say,
    section,
    table,
    use_threads,
)
from benchmarks.texts import load
from captum_lig import FlowGraph, LayerFlowIG
from captum_lig.model.find_blocks import elements
from captum_lig.prediction import cosine, input_baseline

TITLE = "Cost of a target"
TEXT = (
    "The keys to the old cabinet in the hall on the second floor of the house near the river,"
    " that the men of the village had built long before the first train came through the "
    "valley and the young people left for the towns on the coast to look for work in the "
    "mills, were kept for many years by a widow who lived alone with two dogs and a parrot, "
    "and who would tell anyone that asked her that she had never once opened the cabinet, "
    "although she had often wondered what was in it, and that it was now, as far as she knew,"
    " lost: "
)
OTHER = " key"
"""Stands in place of the second word in the encoder's counterfactual text."""
NAMES = ("Paris", "London")
"""A name that a decoder's text ends with, and one that the other text has in its place."""
SENTENCE = "Nobody has opened the cupboard for years."
"""The encoder's number is the cosine with it."""
PASSES, NODES = 2.5, 20.0
"""Most passes per node, and most nodes of a stage in the mean."""
LONG = 512
"""From this length on edges are kept in a graph, the strongest of them alone."""
STEPS = (8, 16, 32, 64, 128, 256)
"""Captum's nodes: the first that is within the tolerance counts."""
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Case:
    """One attribution."""

    model: str | None
    tokens: int
    baseline: str


@dataclass(frozen=True)
class Found:
    """What it took."""

    layers: int
    nodes: float
    passes: float
    seconds: float
    first: float
    """Seconds of the first call, for sums alone, in which blocks are found and validated."""
    error: float
    bytes: int
    bytes_of_sums: int
    bytes_of_model: int
    bytes_of_edges: int
    """Of one layer."""
    captum: float | None
    """Seconds of Captum at every layer over ours."""


class _Flops(TorchDispatchMode):
    """Counts floating-point operations; torch's own counter takes no ``autograd.grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(work: Callable[[], Any]) -> int:
    with _Flops() as counted:
        work()
    return counted.total


def forward_backward(model: Any, ids: Tensor) -> None:
    """One pass of the model, down to the vectors that go in."""
    given = model.get_input_embeddings()(ids).detach().requires_grad_()
    torch.autograd.grad(model(inputs_embeds=given * 1)[0].sum(), given)


def recalled(tokenizer: Any, name: str, tokens: int) -> Tensor:
    """``(1, tokens)`` a text that says a name once, and asks for it at the end."""
    begin = tokenizer(f"The capital of the old kingdom was called {name}. ").input_ids
    end = tokenizer(" The capital of the old kingdom was called").input_ids
    between = tokenizer(TEXT * (1 + tokens // 64)).input_ids[: tokens - len(begin) - len(end)]
    return torch.tensor([begin + between + end])


def measure(case: Case, threads: int) -> Found:
    """Run a case, here and now."""
    use_threads(threads)
    warnings.simplefilter("ignore")
    tokenizer, model = load(case.model, causal=case.model is not None)
    target: Any
    if case.model is None:
        target = cosine(SENTENCE)
        ids = tokenizer(TEXT * 8, return_tensors="pt").input_ids[:, : case.tokens]
        ids[0, -1] = tokenizer.sep_token_id
        other = ids.clone()
        other[0, 2] = tokenizer(OTHER, add_special_tokens=False).input_ids[0]
    else:
        # How much hangs on the word is what decides the cost: here it is 15 logits.
        ids, other = (recalled(tokenizer, name, case.tokens) for name in NAMES)
        target = (case.tokens - 1, tokenizer(f" {NAMES[0]}").input_ids[0])
    start = other if case.baseline == "counterfactual" else None
    lig = LayerFlowIG(model)
    work = partial(lig.attribute, ids, baselines=start, target=target, tolerance=TOLERANCE)
    with torch.no_grad():
        model(ids)
    forget_peak()
    held, began = resident_bytes(), now()
    work(boundaries=("mlp", "feed_forward"))
    first, of_sums = now() - began, peak_bytes() - held
    began = now()
    if case.tokens >= LONG:
        _strongest(work)
    else:
        work()
    seconds, used = now() - began, peak_bytes() - held
    counted: list[Any] = []
    passes = flops(lambda: counted.extend(work())) / flops(partial(forward_backward, model, ids))
    stages = sum(2 + (flow.feed_forward is not None) for flow in counted)
    nodes = sum(flow.cost.path_points for flow in counted) / stages
    gaps = [(flow.need("entering").sum() - flow.need("change")).abs() for flow in counted]
    error = max(
        float(gap / flow.need("scale").abs()) for gap, flow in zip(gaps, counted, strict=True)
    )
    edges = counted[0].need("attention")
    bytes_of_edges = 2 * edges.numel() * edges.element_size()
    captum = None
    if case.model is not None and case.tokens <= 32:
        begin = start if start is not None else input_baseline(model, ids, None)
        captum = _captum(model, ids, begin, target) / seconds
    of_model = sum(p.numel() * p.element_size() for p in model.parameters())
    depth = len(elements(model))
    return Found(
        depth, nodes, passes / nodes, seconds, first, error, used, of_sums, of_model,
        bytes_of_edges, captum,
    )  # fmt: skip


def _strongest(work: Callable[[], Any]) -> Any:
    """The graph of the ten strongest edges into each node."""
    return FlowGraph(work()).prune(top_k=10)


def _captum(model: Any, ids: Tensor, start: Tensor, target: tuple[int, int]) -> float:
    """Seconds at every layer for the same tolerance, from three of them.

    Only the run that is within the tolerance counts.
    """
    blocks = list(elements(model).values())
    total = []
    for block in (blocks[0], blocks[len(blocks) // 2], blocks[-1]):
        lig = LayerIntegratedGradients(lambda x: model(input_ids=x).logits, block)
        with torch.no_grad():
            change = float((model(ids).logits - model(start).logits)[(0, *target)])
        for steps in STEPS:
            began = now()
            _, delta = lig.attribute(
                ids, start, target=target, n_steps=steps, method="gausslegendre",
                internal_batch_size=8, return_convergence_delta=True,
            )  # fmt: skip
            taken = now() - began
            if abs(float(delta)) <= TOLERANCE * abs(change):
                break
        total.append(taken)
    return len(blocks) * sum(total) / len(total)


def measure_apart(case: Case) -> Found:
    """Run a case in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, case, torch.get_num_threads()).result()


HEADER = ["model", "T", "baseline", "nodes a stage", "passes per node", "seconds", "first call",
          "worst sum error", "Captum / ours", "peak", "sums alone"]  # fmt: skip


def run(
    model: str | None = None,
    tokens: Sequence[int] = (20, 112),
    baseline: Sequence[str] = ("counterfactual", "padding"),
) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    rows, missed = [], []
    for folder in [None] if model is None else [None, model]:
        for count in tokens:
            if folder is None and count >= LONG:
                continue  # more than it has positions
            for start in baseline:
                found = measure_apart(Case(folder, count, start))
                name = "MiniLM" if folder is None else "SmolLM2"
                ratio = "" if found.captum is None else f"{found.captum:.0f}"
                rows.append([
                    name, str(count), start, f"{found.nodes:.1f}", f"{found.passes:.2f}",
                    f"{found.seconds:.1f}", f"{found.first:.1f}", f"{found.error:.1e}", ratio,
                    f"{found.bytes / GIB:.2f} GiB", f"{found.bytes_of_sums / GIB:.2f} GiB",
                ])  # fmt: skip
                say(f"target_cost: {', '.join(rows[-1])}")
                missed += [f"{name}, {count} tokens, {start}: {one}" for one in over(found)]
    text = section(
        TITLE,
        "The whole graph of a text, edges included: why a decoder goes on with "
        f"{NAMES[0]} at the end of a text that names it at its beginning (*counterfactual*: "
        f"against the text with {NAMES[1]}), and an encoder's cosine with a sentence. "
        "*nodes a stage*: quadrature nodes, in the mean over the stages of all layers (at most "
        "20). *passes per node*: floating-point operations of the whole call, in forward and "
        "backward passes of the model, per node (at most 2.5). *Captum / ours*: seconds of "
        "`LayerIntegratedGradients` at every layer, from three of them, for the same tolerance "
        "(at least a third of the layers). *peak*: memory beyond the model once it has run; *sums "
        "alone*: without edges into the heads, in the first call, which also finds and validates "
        "the blocks. "
        f"From {LONG} tokens on the flows are made a graph and its ten strongest "
        "edges into each node kept.",
        table(HEADER, rows),
    )
    return text, missed


def over(found: Found) -> list[str]:
    """Bounds that a case misses."""
    # The model is counted once already.
    most = 2 * found.bytes_of_model + found.bytes_of_edges
    wrong = {
        f"{found.nodes:.1f} nodes a stage (at most {NODES:g})": found.nodes > NODES,
        f"{found.passes:.2f} passes per node (at most {PASSES})": found.passes > PASSES,
        f"sum off by {found.error:.1e} (at most {TOLERANCE:g})": found.error > TOLERANCE,
        f"{found.bytes_of_sums / GIB:.2f} GiB for sums": found.bytes_of_sums > most,
        "less than a third of the layers times faster than Captum": found.captum is not None
        and found.captum < found.layers / 3,
    }
    return [text for text, is_over in wrong.items() if is_over]


OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"default": None, "help": "folder of a causal language model"},
    "tokens": {"nargs": "+", "type": int, "default": [20, 112]},
    "baseline": {
        "nargs": "+",
        "choices": ["counterfactual", "padding"],
        "default": ["counterfactual", "padding"],
    },
}

if __name__ == "__main__":
    sys.exit(command(__doc__, run, OPTIONS))

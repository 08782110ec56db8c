"""Which tokens and heads decide "The keys to the cabinet" are/is, and does ablation say the same?

    python -m benchmarks.agreement --model FOLDER

The baseline is "The key to the cabinet": one token differs, and the target, logit(are) - logit(is),
changes its sign. Every head is then switched off in turn: its output for this text set to 0, or to
what it is for the baseline. FOLDER holds a decoder whose blocks have ``self_attn.o_proj``.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from torch import Tensor

from benchmarks.changed_inputs import entered, patched
from benchmarks.common import short, stamp, table, use_threads
from benchmarks.texts import flows_from, load
from captum_lig import FlowGraph
from captum_lig.flow.compare_maps import compare_maps
from captum_lig.graph.trace import shared_out
from captum_lig.prediction import direct_relevance, logit, target_value
from captum_lig.prediction.comparison import compare

TEXT, OTHER, MOVED, WORDS = "The keys to the cabinet", "The key to the cabinet", 1, (" are", " is")
RULES = ("conserve", "chain")
SHOWN = 10


def heads_off(model: Any, blocks: list[str], target: Any, inputs: Any, other: Any) -> list[Tensor]:
    """Two ``(L, H)``: what the target loses with a head's output 0, or as in the other text."""
    projections = [model.get_submodule(name).self_attn.o_proj for name in blocks]
    heads = torch.arange(projections[0].in_features).chunk(model.config.num_attention_heads)
    with torch.no_grad():
        outputs = entered(projections, lambda: target_value(model, target, other))
        return [
            patched(
                lambda: float(target_value(model, target, inputs)),
                projections,
                [(..., head) for head in heads],
                [factor * output for output in outputs],
            )
            for factor in (0.0, 1.0)
        ]


def place_of(values: Tensor, at: int) -> int:
    """Rank of an entry by size, 1 for the largest."""
    return 1 + int((values.abs() > values.abs()[at]).sum())


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    folder = parser.parse_args().model
    use_threads(1)
    warnings.filterwarnings("ignore", message=".*not within tolerance.*")
    tokenizer, model = load(folder, causal=True)
    inputs, other = (dict(tokenizer(text, return_tensors="pt")) for text in (TEXT, OTHER))
    target = logit(*WORDS)
    tokens = [tokenizer.decode(i) for i in inputs["input_ids"][0]]
    direct = direct_relevance(model, target, inputs, other)
    flows = flows_from(model, inputs, other)
    graphs = {name: FlowGraph(some, tokens) for name, some in flows.items()}
    blocks = [layer.name for layer in graphs["zero"].layers]
    zeroed, exchanged = heads_off(model, blocks, target, inputs, other)
    count = zeroed.shape[-1]
    with torch.no_grad():
        here, there = (float(target_value(model, target, x)) for x in (inputs, other))
    print(f"{stamp()}\n\nThe target is {here:.2f} for {TEXT!r}, {there:.2f} for {OTHER!r}.\n")
    graph = graphs["layer_baselines"]
    maps = [compare(graph, direct, rule).carried for rule in RULES] + [direct.tokens]
    chosen = [*range(0, len(blocks), 3), len(blocks) - 1, len(blocks)]
    print("Relevance of each token where it enters a layer: conserve / chain / direct\n")
    lines = [
        [
            "end" if depth == len(blocks) else str(depth),
            *(" / ".join(f"{float(m[depth, i]):.2f}" for m in maps) for i in range(len(tokens))),
        ]
        for depth in chosen
    ]
    print(table(["entering", *(token.strip() for token in tokens)], lines))
    carried = {
        (name, rule): shared_out(graph, start=direct.tokens[-1], rule=rule).by_head().flatten()
        for name, graph in graphs.items()
        for rule in RULES
    }
    flat = {"0": zeroed.flatten(), "other": exchanged.flatten()}
    print(
        "\nThe strongest heads, by what exchanging them does to the target or by what they carry\n"
    )
    order = flat["other"].abs().argsort(descending=True)[:SHOWN].tolist()
    own = carried["layer_baselines", RULES[0]].abs().argsort(descending=True).tolist()
    lines = []
    for at in dict.fromkeys(order[: SHOWN // 2] + own[: SHOWN // 2]):
        cells = [short(float(flat["other"][at])), short(float(flat["0"][at]))]
        shown = [carried[name, RULES[0]] for name in graphs]
        cells += [f"{short(float(v[at]))} ({place_of(v, at)})" for v in shown]
        lines.append([f"{at // count}.{at % count}", *cells])
    print(table(["head", "exchanged", "set to 0", *graphs], lines))
    print(f"\nRank correlation of sizes over all {len(flat['0'])} heads\n")
    lines = []
    moved = torch.stack([layer.attention_sum.sum(-1) for layer in graph.layers]).flatten()
    for name, values in (
        *((f"{name}, {rule}", v) for (name, rule), v in carried.items()),
        ("control: how far the head's output moved", moved),
        ("control: number of the layer", torch.arange(len(moved)) // count + 1.0),
    ):
        size = values.abs()[None]
        cells = [f"{float(compare_maps(d.abs()[None], size).spearman):.2f}" for d in flat.values()]
        among = values.abs().topk(SHOWN).indices.tolist()
        lines.append([name, *cells, str(len(set(among) & set(order)))])
    print(table(["", "set to 0", "exchanged", f"of the {SHOWN} strongest"], lines))
    print(f"\nStrongest routes from {tokens[MOVED]!r} to {tokens[-1]!r}\n")
    for rule in RULES:
        for route in graph.paths(MOVED, len(tokens) - 1, 3, rule=rule):
            steps = [f"{s.layer}.{s.head}" for s in route.steps if s.head is not None]
            print(f"- {rule}: {route.share:+.3f} through heads {', '.join(steps)}")


if __name__ == "__main__":
    main()

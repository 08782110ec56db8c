"""What a flow graph costs: to build, to ask, to keep. Run: python -m benchmarks.graph

The flows are random numbers of the shapes that models give: BERT-base with 128 tokens, and
SmolLM2-135M, causal, with 64.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import Work, measured, peak_bytes, resident_bytes, seconds, use_threads
from captum_lig import FlowGraph, LayerFlow
from tests.helpers.synthetic import signed_flow

MIB = 2**20


def random_flow(index: int, tokens: int, heads: int, causal: bool) -> LayerFlow:
    """Signed entries, and totals that they add up to."""
    flow = signed_flow(index, tokens, heads, dtype=torch.float32, causal=causal)
    return replace(flow, layer=flow.compose("chain"))


def measure(name: str, layers: int, tokens: int, heads: int, causal: bool) -> None:
    """Print what each step takes."""
    flows = [random_flow(index, tokens, heads, causal) for index in range(layers)]
    before = resident_bytes()
    graph, built, _ = measured(lambda: FlowGraph(flows))
    print(f"\n{name}: {layers} layers, {heads} heads, {tokens} tokens")
    print(f"  edges       {sum(graph.edge_counts.values()):,}")
    print(f"  tensors     {graph.nbytes / MIB:.0f} MiB")
    print(f"  resident    {(resident_bytes() - before) / MIB:+.0f} MiB")
    print(f"  build       {built:.2f} s")
    last = tokens - 1
    report("relevance", lambda: graph.relevance(last))
    report("rollout", graph.rollout)
    report("paths k=10", lambda: graph.paths(0, last, 10))
    report("prune", lambda: graph.prune(top_k=5))
    report("words", lambda: graph.merge_tokens([token // 2 for token in range(tokens)]))
    pruned = graph.prune(top_k=5)
    report("networkx, of the 5 strongest edges a token", pruned.to_networkx)
    report("networkx, whole", graph.to_networkx)
    with tempfile.TemporaryDirectory() as folder:
        for what, one, suffix in (
            ("whole", graph, ".safetensors"),
            ("whole", graph, ".json"),
            ("pruned", pruned, ".safetensors"),
            ("pruned", pruned, ".json"),
            ("pruned", pruned, ".graphml"),
        ):
            path = Path(folder, f"{what}{suffix}")
            report(f"save {path.name}", lambda one=one, path=path: one.save(path))
            if suffix != ".graphml":
                report(f"load {path.name}", lambda path=path: FlowGraph.load(path))
            print(f"  size of {path.name}  {path.stat().st_size / MIB:.1f} MiB")
    print(f"  most memory held  {peak_bytes() / MIB:.0f} MiB")


def report(what: str, work: Work) -> None:
    """Print the seconds of one call."""
    print(f"  {what}  {seconds(work):.3f} s", flush=True)


if __name__ == "__main__":
    use_threads(1)
    measure("BERT-base", 12, 128, 12, causal=False)
    measure("SmolLM2-135M", 30, 64, 9, causal=True)

"""What a flow graph costs: to build, to ask, to keep. Run: python -m benchmarks.graph

The flows are random numbers of the shapes that models give: BERT-base with 128 tokens, and
SmolLM2-135M, causal, with 64.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.common import forget_peak, now, peak_bytes, resident_bytes, use_threads
from captum_lig import FlowGraph, LayerFlow

MIB = 2**20


def random_flow(index: int, tokens: int, heads: int, causal: bool) -> LayerFlow:
    """Signed entries, and totals that they add up to."""
    random = torch.Generator().manual_seed(index)

    def rows(*shape: int, total: torch.Tensor | None = None) -> torch.Tensor:
        parts = torch.randn(*shape, generator=random)
        if causal and shape[-1] == tokens:
            parts = parts.tril()
        gap = parts.norm(dim=-1) if total is None else total
        parts[..., 0] += gap - parts.sum(-1)
        return parts

    attention = rows(1, heads, tokens, tokens)
    outputs = rows(1, tokens, heads + 1)
    mlp, residual = outputs[..., :-1], outputs[..., -1]
    layer = rows(1, tokens, tokens, total=outputs.sum(-1))
    return LayerFlow(
        name=f"layer.{index}",
        index=index,
        targets=torch.arange(tokens),
        valid=torch.ones(1, tokens, dtype=torch.bool),
        scalarization="l2",
        baseline="zero",
        attention=attention,
        attention_total=attention.sum(-1),
        mlp=mlp,
        residual=residual,
        layer=layer,
        layer_total=outputs.sum(-1),
        mlp_total=outputs.sum(-1),
        chain=rows(1, heads, tokens, tokens, total=mlp.transpose(1, 2)),
        chain_total=mlp.transpose(1, 2),
    )


def measure(name: str, layers: int, tokens: int, heads: int, causal: bool) -> None:
    """Print what each step takes."""
    flows = [random_flow(index, tokens, heads, causal) for index in range(layers)]
    forget_peak()
    before = resident_bytes()
    began = now()
    graph = FlowGraph(flows)
    built = now() - began
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


def report(what: str, work: object) -> None:
    """Print the seconds of one call."""
    assert callable(work)
    began = now()
    work()
    print(f"  {what}  {now() - began:.3f} s", flush=True)


if __name__ == "__main__":
    use_threads(1)
    measure("BERT-base", 12, 128, 12, causal=False)
    measure("SmolLM2-135M", 30, 64, 9, causal=True)

"""Direct edges of a prediction beside the effect of cutting each: the table of docs/relevance.md.

    python -m benchmarks.cut_edges --model smollm2

"The keys to the cabinet" against "The key to the cabinet", the logit of " are" less that of " is".
"""

from __future__ import annotations

import argparse

from benchmarks.common import stamp, table, use_threads
from benchmarks.texts import load
from captum_lig import LayerFlowIG
from captum_lig.graph import DirectEdges, Edge
from captum_lig.patching import edge_effects
from captum_lig.prediction import logit

TEXT, OTHER, WORDS = "The keys to the cabinet", "The key to the cabinet", (" are", " is")


def strongest(edges: DirectEdges) -> list[tuple[Edge, str, float]]:
    """Of each kind of writer into each kind of reader: the edge, in words, and its value, the
    strongest first."""
    found: dict[tuple[str, str], tuple[Edge, str, float]] = {}
    for edge, words, value in zip(edges, edges.words(), edges.value.tolist(), strict=True):
        found.setdefault((edge.writer.kind, edge.reader.kind), (edge, words, value))
    return list(found.values())


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a folder with a Llama, or smollm2")
    asked = parser.parse_args()
    use_threads(1)
    tokenizer, model = load(asked.model, causal=True)
    ids, other = (tokenizer(text, return_tensors="pt").input_ids for text in (TEXT, OTHER))
    target = logit(*(tokenizer(word).input_ids[0] for word in WORDS))
    edges = LayerFlowIG(model).direct_edges(ids, other, target)
    chosen = strongest(edges)[:8]
    effects = edge_effects(model, ids, other, target, [edge for edge, *_ in chosen])
    rows = [
        [f"`{words}`", *(f"{x:+.2f}" for x in (value, float(out), float(into)))]
        for (_, words, value), out, into in zip(chosen, effects.out, effects.into, strict=True)
    ]
    print(
        f"{stamp()}\n\nOf {edges.count:,} edges the strongest of a kind of writer into a kind of "
        f"reader:\n\n{table(['edge', 'attributed', 'out', 'into'], rows)}\n\nAll edges into the "
        f"number add up to {edges.into_target:.4f}, those out of the embedding to "
        f"{edges.out_of_embedding:.4f}, of {edges.change:.4f}."
    )


if __name__ == "__main__":
    main()

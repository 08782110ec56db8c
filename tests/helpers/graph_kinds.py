"""Graphs of each kind that files and networkx have to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from captum_lig import FlowGraph
from tests.helpers.synthetic import (
    flows,
    layer_flow,
    signed_flow,
    with_influence,
)


def everything() -> FlowGraph:
    """Direct maps, completeness errors, a tolerance, padding, and few targets at the end."""
    valid = [False, True, True, True, True, True, True]
    made = flows(2, 7, valid=valid)
    made += [replace(flow, index=2) for flow in flows(1, 7, valid=valid, targets=[2, 6])]
    made = [replace(flow, tolerance=1e-3) for flow in made]
    return FlowGraph(made, list("abcdefg"))


def signed(dtype: torch.dtype = torch.float64) -> FlowGraph:
    return FlowGraph([signed_flow(index, 5, 3, dtype=dtype) for index in range(4, 7)])


def mixed() -> FlowGraph:
    """Layers of different numbers of heads, with and without a chain."""
    first, second = signed_flow(0, 4, 2), signed_flow(1, 4, 3)
    return FlowGraph([replace(first, chain=None, chain_total=None), second])


def chain_alone() -> FlowGraph:
    """An attention edge of 0 through which the chain goes all the same."""
    flow = signed_flow(0, 4, 2)
    assert flow.attention is not None
    flow.attention[0, 1, 2, 3] = 0.0
    return FlowGraph([flow, signed_flow(1, 4, 2)])


def influence() -> FlowGraph:
    """Lengths beside the edges, also where there are few targets."""
    made = [*flows(2, 6, baseline="zero"), layer_flow(2, 6, baseline="zero", targets=[1, 4])]
    return FlowGraph([with_influence(flow) for flow in made], list("abcdef"))


def still() -> FlowGraph:
    """One token that nothing moves."""
    flow = signed_flow(0, 4, 2)
    for part in (flow.attention[:, :, 2], flow.attention_total[..., 2], flow.mlp[:, 2]):  # type: ignore[index]
        part.zero_()
    for part in (flow.residual[:, 2], flow.mlp_total[:, 2], flow.chain[:, :, 2]):  # type: ignore[index]
        part.zero_()
    return FlowGraph([flow, signed_flow(1, 4, 2)])


GRAPHS: dict[str, Callable[[], FlowGraph]] = {
    "everything": everything,
    "signed": signed,
    "float32": lambda: signed(torch.float32),
    "bfloat16": lambda: signed(torch.bfloat16),
    "mixed": mixed,
    "chain alone": chain_alone,
    "still": still,
    "influence": influence,
    "part of influence": lambda: influence().subgraph([3, 0], (0, 1)),
    "threshold": lambda: signed().prune(threshold=0.3),
    "top_k": lambda: everything().prune(top_k=2),
    "subgraph": lambda: signed().subgraph([3, 0, 2], (5, 6), [1, (6, 0)]),
    "words": lambda: signed().merge_tokens([0, 0, 1, 1, 2]),
    "pruned words": lambda: signed().prune(top_k=2).merge_tokens([0, 0, 1, 1, 2]),
    "one token": lambda: FlowGraph([replace(flow, chain=None) for flow in flows(2, 1)]),
}

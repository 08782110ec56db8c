"""The page's script, run in node, against numbers worked out from the definitions in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_lig.graph.length_layer import LengthLayer
from captum_lig.views.page import page
from tests.helpers.page_script import NODE, run_script
from tests.helpers.pages import graph

pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node to run the script in")
RULES = ("conserve", "chain", "product")


def golden(layer: LengthLayer, rule: str) -> dict[str, list[float]]:
    """Shares of one layer, edge by edge."""
    c, m, r = layer.attention.tolist(), layer.mlp.tolist(), layer.residual.tolist()
    u, total = layer.attention_sum.tolist(), layer.mlp_sum.tolist()
    x = layer.chain.tolist() if layer.chain is not None else []
    heads, tokens = range(len(c)), range(len(r))

    def edge(h: int, j: int, i: int) -> float:
        if rule == "chain":
            return x[h][j][i]
        if rule == "product":
            return c[h][j][i] * m[j][h]
        return c[h][j][i] / u[h][j] * m[j][h] if u[h][j] else 0.0

    size = []
    for j in tokens:
        if rule == "product":
            whole = [layer.attention_size[h, j].item() * abs(m[j][h]) for h in heads]
            size.append(sum(whole))
        else:
            size.append(layer.chain_sum[j].item() if rule == "chain" else total[j])
    by = [1 / one if one else 0.0 for one in size]
    past = [0.0 if rule == "product" else r[j] * by[j] for j in tokens]
    past = [share + float(layer.stays[j]) for j, share in enumerate(past)]
    found = [edge(h, j, i) * by[j] for h in heads for j in tokens for i in tokens]
    count = len(r)
    maps = [sum(found[h * count**2 + at] for h in heads) for at in range(count**2)]
    for j in tokens:
        maps[j * count + j] += past[j]
    return {"heads": found, "residual": past, "size": size, "maps": maps}


@pytest.mark.parametrize("kind", ["whole", "pruned", "words", "still"])
def test_the_script_gives_the_golden_numbers(tmp_path: Path, kind: str) -> None:
    given = graph()
    if kind == "still":  # a token that nothing moves, and a head that does not move
        layer = given.layers[1]
        for tensor in (layer.attention[:, 2], layer.mlp[2], layer.residual[2:3]):
            tensor.zero_()
        for tensor in (layer.chain[:, 2], layer.mlp_sum[2:3], layer.chain_sum[2:3]):
            tensor.zero_()
        layer.attention_sum[:, 2] = 0.0
        layer.attention_size[:, 2] = 0.0
        layer.stays[2] = True
        layer.attention_sum[1, 3] = 0.0
    made = {
        "whole": lambda: given,
        "still": lambda: given,
        "pruned": lambda: given.prune(top_k=2),
        "words": lambda: given.merge_tokens([0, 0, 1, 2, 2]),
    }[kind]()
    found = run_script(page(made), tmp_path, {"column": 2, "token": 1})
    for rule in RULES:
        for place, layer in enumerate(made.layers):
            for name, right in golden(layer, rule).items():
                assert found[rule][name][place] == pytest.approx(right, rel=1e-12, abs=1e-15), name
        below = made.relevance(1, rule=rule, layers=(2, 3)).tokens[0].tolist()
        assert found[rule]["carried"][0] == pytest.approx(below, rel=1e-12, abs=1e-15)
        above = made.contributions(1, rule=rule, layers=(4, 4)).tokens[-1].tolist()
        assert found[rule]["carried"][-1] == pytest.approx(above, rel=1e-12, abs=1e-15)
    for place, layer in enumerate(made.layers):
        parts = list(layer.convergence())
        rows, missed = sum(one.rows for one in parts), sum(one.missed for one in parts)
        assert found["certificates"][place] == [rows, missed, max(one.worst for one in parts)]

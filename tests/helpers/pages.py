"""What the tests of the page share: graphs with both signs, and the numbers out of a page."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import torch

from captum_lig import FlowGraph, LayerFlow
from tests.helpers.synthetic import layer_flow, with_influence


def signed(flow: LayerFlow, seed: int = 0) -> LayerFlow:
    """The flow with signs at random, totals and all; its rows miss them as much as before.

    The direct map is near the one composed by chain.
    """
    random = torch.Generator().manual_seed(100 * seed + flow.index)

    def mixed(values: torch.Tensor) -> torch.Tensor:
        signs = torch.where(torch.rand(values.shape, generator=random) < 0.3, -0.5, 1.0)
        return values * signs.to(values.dtype)

    attention, mlp, residual = mixed(flow.attention), mixed(flow.mlp), mixed(flow.residual)
    chain = mixed(flow.chain)
    chain = chain * (mlp.transpose(1, 2) / chain.sum(-1))[..., None]
    total = mlp.sum(-1) + residual - flow.delta["mlp"]
    made = replace(
        flow,
        attention=attention,
        attention_total=attention.sum(-1) - flow.delta["attention"],
        mlp=mlp,
        residual=residual,
        layer_total=total,
        mlp_total=total,
        chain=chain,
        chain_total=mlp.transpose(1, 2),
    )
    noise = torch.rand(flow.layer.shape, generator=random).to(flow.layer.dtype)
    layer = made.compose("chain") * (0.95 + 0.1 * noise)
    sums = total + flow.delta["layer"]
    return replace(made, layer=layer * (sums / layer.sum(-1))[..., None])


def graph(
    layers: int = 3,
    tokens: int = 5,
    heads: int = 3,
    seed: int = 0,
    influence: bool = False,
    **settings: Any,
) -> FlowGraph:
    """A graph of random flows in which no share is 0, and their signs are mixed."""
    flows = [
        layer_flow(2 + index, tokens, heads, baseline="zero", seed=10 * seed, **settings)
        for index in range(layers)
    ]
    flows = [signed(flow, seed) for flow in flows]
    if influence:
        flows = [with_influence(flow, seed) for flow in flows]
    return FlowGraph(flows, list("abcdefghijklmnop")[:tokens])


class Elements(HTMLParser):
    """All elements of a page: name, attributes and, of scripts and styles, what is in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside = False
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        self.inside = tag in ("script", "style", "title")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def text(self, tag: str, **attributes: str) -> str:
        """What is in the one element of that name and those attributes."""
        (found,) = [
            text
            for name, has, text in self.found
            if name == tag and all(has.get(key) == value for key, value in attributes.items())
        ]
        return found


def header(page: str) -> Any:
    return json.loads(Elements(page).text("script", id="page-header"))


def numbers(page: str) -> dict[tuple[int, str], list[float]]:
    """Every tensor of the page, number by number, from the format's description."""
    data = zlib.decompress(base64.b64decode(Elements(page).text("script", id="page-numbers")))
    letters = {"float32": "f", "float64": "d", "uint8": "B", "uint32": "I"}
    found = {}
    for tensor in header(page)["tensors"]:
        letter, size, offset = letters[tensor["type"]], tensor["size"], tensor["offset"]
        width = struct.calcsize(letter)
        values = []
        for place in range(size):
            one = bytes(data[offset + byte * size + place] for byte in range(width))
            values.append(struct.unpack(f"<{letter}", one)[0])
        found[tensor["layer"], tensor["name"]] = values
    return found

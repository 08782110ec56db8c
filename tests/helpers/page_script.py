"""The page's script run in node: what it makes of a page's own header and numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

from captum_lig.views.page.write import MODULES, QUESTION_MODULES
from tests.helpers.pages import Elements

NODE = shutil.which("node")

RUN = """
import { readFileSync } from "node:fs";
import { unpack } from "./numbers.js";
import { carried, certificate, composed, shares } from "./graph.js";

const { header, numbers, pin } = JSON.parse(readFileSync("given.json"));
const page = await unpack(header, numbers);
const tokens = page.tokens.length;
const found = {};
for (const rule of page.rules) {
  const all = page.layers.map((layer) => shares(layer, tokens, rule));
  const maps = all.map((share) => composed(share, tokens));
  found[rule.name] = {
    heads: all.map((share) => [...share.heads]),
    residual: all.map((share) => [...share.residual]),
    size: all.map((share) => [...share.size]),
    maps: maps.map((map) => [...map]),
    carried: carried(maps, tokens, pin, 0, page.layers.length - 1).map((row) => [...row]),
  };
}
found.certificates = page.layers.map((layer) => {
  const { rows, missed, worst } = certificate(layer, tokens, 1e-3);
  return [rows, missed, worst];
});
console.log(JSON.stringify(found));
"""


QUESTION = """
import { readFileSync } from "node:fs";
import { unpack } from "./numbers.js";
import { Data } from "./question/data.js";
import { arrange } from "./question/layout.js";
import {
  edgeSentence, heldSentence, nodeSentence, sumsSentence, tokenSentence,
} from "./question/said.js";
import { fromFragment, opening, thing, toFragment } from "./question/state.js";

const { header, numbers, fragments, width } = JSON.parse(readFileSync("given.json"));
const data = new Data(await unpack(header, numbers));
const last = data.layers - 1;
const depths = [...Array(data.layers + 1).keys()];
const tokens = [...Array(data.tokens).keys()];
const nodes = data.strongest(0, last);
const found = {
  tokens: depths.map((depth) => tokens.map((at) => data.relevance(depth, at))),
  nodes: nodes.map(({ index, head, at, value }) => [index, head, at, value]),
  into: nodes.map((node) => data.edgesInto(node).map((e) => [e.source, e.value, e.read])),
  from: tokens.map((at) => data.edgesFrom(at, 1e9).map((e) => [e.node.name, e.value])),
  pattern: nodes.map((node) => data.throughPattern(node)),
  held: data.held,
  held_said: heldSentence(data),
  sums_said: sumsSentence(data.page),
  said: [nodes.map((n) => nodeSentence(data, n)), tokens.map((t) => tokenSentence(data, t))],
  edges: nodes.map((n) => data.edgesInto(n).map((e) => edgeSentence(data, e))),
  fragments: fragments.map((text) => toFragment(data, fromFragment(data, text, [{ nodes: [] }]))),
  things: fragments.map((text) => thing(data, text, [])?.kind ?? null),
};
const made = arrange(data, opening(data), [], nodes, width);
found.layout = {
  columns: made.columns.map(({ at, from, to, x, width }) => ({ at, from, to, x, width })),
  nodes: made.nodes.map(({ place, head, at, x, y }) => ({ place, head, at, x, y })),
  levels: made.levels,
  left: made.left,
};
console.log(JSON.stringify(found));
"""


def run_script(page: str, folder: Path, pin: dict[str, int]) -> Any:
    """Shares, maps and what a pinned token carries by rule, and the certificates."""
    return _run(page, folder, RUN, MODULES, {"pin": pin})


def run_question(page: str, folder: Path, fragments: list[str], width: int = 800) -> Any:
    """What the page of a number makes of it: nodes, edges, sentences, fragments, and places."""
    given = {"fragments": fragments, "width": width}
    return _run(page, folder, QUESTION, QUESTION_MODULES, given)


def _run(page: str, folder: Path, script: str, modules: list[str], given: dict[str, Any]) -> Any:
    assets = files("captum_lig.views.page").joinpath("assets")
    folder.joinpath("question").mkdir(exist_ok=True)
    for name in modules:
        folder.joinpath(f"{name}.js").write_text(assets.joinpath(f"{name}.js").read_text())
    folder.joinpath("package.json").write_text('{"type": "module"}')
    folder.joinpath("run.js").write_text(script)
    elements = Elements(page)
    packed = {
        "header": json.loads(elements.text("script", id="page-header")),
        "numbers": elements.text("script", id="page-numbers"),
        **given,
    }
    folder.joinpath("given.json").write_text(json.dumps(packed))
    assert NODE is not None
    done = subprocess.run([NODE, "run.js"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

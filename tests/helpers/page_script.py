"""The page's script run in node: what it makes of a page's own header and numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

from captum_lig.views.page.write import MODULES
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


def run_script(page: str, folder: Path, pin: dict[str, int]) -> Any:
    """Shares, maps and what a pinned token carries by rule, and the certificates."""
    assets = files("captum_lig.views.page").joinpath("assets")
    for name in MODULES:
        folder.joinpath(f"{name}.js").write_text(assets.joinpath(f"{name}.js").read_text())
    folder.joinpath("package.json").write_text('{"type": "module"}')
    folder.joinpath("run.js").write_text(RUN)
    elements = Elements(page)
    packed = {
        "header": json.loads(elements.text("script", id="page-header")),
        "numbers": elements.text("script", id="page-numbers"),
        "pin": pin,
    }
    folder.joinpath("given.json").write_text(json.dumps(packed))
    assert NODE is not None
    done = subprocess.run([NODE, "run.js"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

"""Writes docs/families.md from the table that the tests run over: `python -m benchmarks.families`.

Each family's small random model is cut and attributed here again, and what is found is written.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from captum_lig import LayerFlow, LayerFlowIG
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from tests.helpers.families import FAMILIES, Family

PAGE = Path(__file__).parent.parent / "docs" / "families.md"

HEAD = """# Families that are tested

Written by `python -m benchmarks.families` from the table in `tests/helpers/families.py`, which the
tests run over; not by hand. Each family is a small random model (width 32, two layers, every bias
and norm weight drawn, float64). The tests compare the split block with the unmodified one, sample
rows with autograd through that block, look for causal zeros, and for anything left behind.

What is not here may work as well: no family has code of its own in the package, and a cut that is
not the block is refused. Where a block is cut:

- *interface*: transformers' attention interface; queries, keys and values are had.
- *sdpa*: `torch.nn.functional.scaled_dot_product_attention`; the same.
- *projection*: the input of the output projection, found by itself; attributions by autograd.
- *whole*: there is no attention, and so only the layer boundary.

The last columns are the largest completeness errors of all rows of all layers, relative to their
totals, with the default settings ("target_token" baseline, tolerance 1e-3).
"""


def line(family: Family) -> str:
    """What is found of a family, as a row of the table."""
    model = family.build()
    boundaries = ("layer",) if "whole" in family.sites else ("attention", "mlp", "layer")
    lig = LayerFlowIG(model)
    flows = lig.attribute(family.inputs(model), boundaries=boundaries, max_steps=4096)
    assert isinstance(flows, list)
    errors = [_worst(flows, name) for name in ("attention", "mlp", "layer")]
    with Finder(model).blocks(ModelCall.of(model, family.inputs(model))) as blocks:
        sites = ", ".join(dict.fromkeys(block.site for block in blocks))
    cells = [family.name, family.what, sites, str(_heads(flows)), *errors]
    return "| " + " | ".join(cells) + " |"


def _worst(flows: list[LayerFlow], boundary: str) -> str:
    if boundary not in flows[0].delta:
        return ""
    return f"{max(float(flow.completeness_error(boundary).max()) for flow in flows):.0e}"


def _heads(flows: list[LayerFlow]) -> str:
    first = flows[0].attention
    return "" if first is None else str(first.shape[1])


def main() -> None:
    """Write the page."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    title = ["family", "what is special", "cut", "heads", "attention", "mlp", "layer"]
    rows = ["| " + " | ".join(title) + " |", "|" + "---|" * len(title)]
    rows += [line(family) for family in FAMILIES]
    versions = f"\ntorch {torch.__version__}, transformers {transformers.__version__}.\n"
    PAGE.write_text(HEAD + versions + "\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()

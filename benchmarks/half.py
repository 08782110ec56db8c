"""Maps of a model in half precision beside those of the same weights in float32, for docs/gpu.md.

    python -m benchmarks.half --model smollm2

Once each model on its own tokens, and once both on those that enter the blocks of the half one.
"""

from __future__ import annotations

import argparse
import copy
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.changed_inputs import entering
from benchmarks.common import say, stamp, table, use_threads
from benchmarks.texts import load
from captum_lig import LayerFlowIG

TEXT = "The keys to the old cabinet in the hall on the second floor are on the table."
LAYERS = 6
BASELINES = ("target_token", "zero")


def rows_off(half: Any, full: Any) -> list[float]:
    """Of each row: the largest difference of an entry, as part of the row's total."""
    off = (half.layer.double() - full.layer.double()).abs().amax(-1)[0]
    total = full.layer_total[0].double()
    return (off / total)[total > 0].tolist()


def percent(worst: float, middle: list[float]) -> str:
    """The worst row, and the median row over the layers."""
    low, high = min(middle), max(middle)
    return f"{100 * worst:.2g} %, {100 * low:.1g} to {100 * high:.1g} %"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="smollm2, or a folder with a Llama")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    asked = parser.parse_args()
    use_threads(1)
    tokenizer, model = load(asked.model)
    halved = copy.deepcopy(model).to(getattr(torch, asked.dtype))
    model.load_state_dict(halved.state_dict())  # rounded as they are there
    inputs = tokenizer(TEXT, return_tensors="pt")
    names = [flow.name for flow in LayerFlowIG(model).attribute(inputs, n_steps=2, tolerance=None)]
    chosen = torch.linspace(0, len(names) - 1, LAYERS).round().int().tolist()
    # What gives a block its tokens: the block below it, or the embedding.
    places = [
        model.get_submodule(names[layer - 1]) if layer else model.get_input_embeddings()
        for layer in chosen
    ]

    def attribute(one: Any, layer: int, baseline: str) -> Any:
        lig = LayerFlowIG(one, layer=layer)
        return lig.attribute(inputs, baseline, boundaries=("layer",))

    rows = []
    for baseline in BASELINES:
        own, same = [], []
        for layer, below in zip(chosen, places, strict=True):
            seen: list[Tensor] = []
            with entering(halved.get_submodule(names[layer]), seen.append):
                half = attribute(halved, layer, baseline)
            z = seen[0]  # of the run that is recorded, the first
            own.append(rows_off(half, attribute(model, layer, baseline)))

            def replaced(_: Any, args: Any, out: Any, z: Tensor = z) -> Any:
                return z.float() if isinstance(out, Tensor) else (z.float(), *out[1:])

            def rounded(_: Any, args: Any, out: Any) -> Any:
                return tuple(x.to(halved.dtype).to(x.dtype) for x in out)

            rotary = model.get_submodule("rotary_emb")
            with below.register_forward_hook(replaced), rotary.register_forward_hook(rounded):
                same.append(rows_off(half, attribute(model, layer, baseline)))
            say(f"half: {baseline}, layer {layer}: {max(own[-1]):.1e}, {max(same[-1]):.1e}")
        cells = [percent(max(map(max, one)), [median(each) for each in one]) for one in (own, same)]
        rows.append([baseline, *cells])
    header = ["baseline", "each model's own tokens", "both blocks given the same tokens"]
    print(
        f"{stamp()}\n\n{asked.model} in {asked.dtype} beside the same weights in float32, one "
        f"sentence of {inputs['input_ids'].shape[1]} tokens, layers "
        f"{', '.join(map(str, chosen))}: the largest difference of an entry as part of its row's "
        f"total, in the worst row, and in the median row from layer to layer:\n\n"
        f"{table(header, rows)}"
    )


if __name__ == "__main__":
    main()

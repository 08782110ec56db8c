"""The paper authors' package as a worker, in an environment of its own.

It is called as its users call it, ``lig.explain``, but for the loading of the model, which is done
once and not timed. ``zero`` and ``target_token`` are ``zero`` and ``self_input_token`` there, and
``att_itb_a0`` at the mlp boundary, whose input is the token after attention's residual and norm.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from benchmarks.worker import STEPS, Case, Done, serve

# Compiling takes longer than all the rest on a processor.
os.environ.setdefault("PTB_USE_TORCH_COMPILE", "false")

TARGETS = {"attention": 1, "mlp": 4}
"""How many, spread over the text, the slow maps are measured on."""
BASELINES = {"zero": "zero", "target_token": "self_input_token"}
MLP_BASELINES = {"zero": "zero", "target_token": "att_itb_a0"}


def ready(case: Case) -> Callable[[], Done]:
    from lig import explain
    from lig.adapters.encoder import EncoderAdapter

    adapter = EncoderAdapter.from_pretrained(case.model, device="cpu")
    EncoderAdapter.from_pretrained = staticmethod(lambda *_, **__: adapter)
    inputs = adapter.tokenize(case.text)
    adapter.forward_hidden_states(inputs)
    count = int(inputs["input_ids"].shape[1])
    name = "att" if case.boundary == "attention" else case.boundary
    start = MLP_BASELINES if case.boundary == "mlp" else BASELINES
    some = TARGETS.get(case.boundary, count)
    targets = [(2 * k + 1) * count // (2 * some) for k in range(some)]
    asked: dict[str, Any] = {
        "model": case.model,
        "num_steps": STEPS,
        "layers": [case.layer],
        "granularity": name,
        f"baseline_{name}": start[case.baseline],
        "target_tokens": targets,
    }

    def work() -> Done:
        found = explain(case.text, **asked)["layers"][str(case.layer)]
        rows, sums = _rows(found, case.boundary, targets)
        return Done(rows, sums, len(targets) / count)

    return work


def _rows(
    found: dict[str, Any], boundary: str, targets: list[int]
) -> tuple[list[list[int]], list[float]]:
    """Rows, and what they add up to; its matrices are ``[source][target]``."""
    if boundary == "layer":
        columns = list(zip(*found["z2z"]["matrix"], strict=True))
        return [[j] for j in targets], [sum(columns[j]) for j in targets]
    by_target = {j: found["targets"][str(j)] for j in targets}
    if boundary == "mlp":
        return [[j] for j in targets], [sum(by_target[j]["u2z"]["contributions"]) for j in targets]
    rows, sums = [], []
    for j, entry in by_target.items():
        for head, scores in entry["z2u"]["heads"].items():
            rows.append([int(head), j])
            sums.append(float(sum(scores["contributions"])))
    return rows, sums


if __name__ == "__main__":
    serve(ready)

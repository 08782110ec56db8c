"""Records of the consistency experiment, made of numbers for each row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from captum_lig.experiments.consistency import Record


def record(rows: dict[str, list[float]], layer: int = 0, **names: Any) -> dict[str, Any]:
    """A record of rows, each a list of numbers by measure, NaN where there is none."""
    there = {name: [x for x in values if not math.isnan(x)] for name, values in rows.items()}
    numbers: dict[str, Any] = {}
    for name, values in there.items():
        numbers[f"{name}_mean"] = float(np.mean(values)) if values else None
        numbers[f"{name}_std"] = float(np.std(values)) if values else None
    made = Record(
        **{
            "layer": layer,
            "layer_baseline": "zero",
            "attention_baseline": "zero",
            "mlp_start": "attention",
            "rule": "chain",
            "rows": len(rows["l2"]),
            "unconverged_rows": 1,
            "relative_rows": len(there["relative_l2"]),
            "correlation_rows": len(there["pearson"]),
            **numbers,
            **names,
        }
    )
    return vars(made)


def constant(l2: float, correlation: float, **names: Any) -> dict[str, Any]:
    pair = [correlation, correlation]
    rows = {"l2": [l2, l2], "relative_l2": [1 / l2, 1 / l2], "pearson": pair, "spearman": pair}
    return record(rows, **names)

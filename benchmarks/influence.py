"""What influence adds to the price of `explain`: the table of docs/how-to.md.

python -m benchmarks.influence
"""

from __future__ import annotations

import argparse
import warnings

from benchmarks.common import now, say, stamp, table, use_threads
from benchmarks.target_cost import TEXT
from captum_lig.explain import explain
from captum_lig.pretrained.load import load_model

CASES = (("minilm", 12), ("minilm", 24), ("minilm", 60), ("smollm2", 12))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=60, help="tokens: longer cases are left out")
    most = parser.parse_args().most
    use_threads(1)
    rows = []
    for name, tokens in CASES:
        if tokens > most:
            continue
        model = load_model(name)
        ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        text = model.tokenizer.decode(ids[: tokens - (2 if name == "minilm" else 0)])
        warnings.simplefilter("ignore")  # of a row or two of SmolLM2
        explain(text, model)  # blocks are looked at once
        spent = []
        for influence in (False, True):
            began = now()
            found = explain(text, model, influence=influence)
            spent.append(now() - began)
        without, with_it = spent
        seconds = [f"{one:.2g}" for one in spent]
        rows.append([name, str(len(found.tokens)), *seconds, f"{with_it / without:.1f}"])
        say(f"influence: {', '.join(rows[-1])}")
    header = ["model", "tokens", "without", "with", "times"]
    print(f"{stamp()}\n\nSeconds of `explain`:\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()

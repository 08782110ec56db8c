"""Models in few bits by real libraries, each beside a plain model with the same weights in full.

    pip install bitsandbytes torchao optimum-quanto hqq termcolor
    python -m tests.helpers.quantised_libraries [KIND ...]

Prints a table of what this package makes of tiny models, and of SmolLM2 where that is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from benchmarks.common import say, stamp, table, use_threads
from captum_lig import LayerFlowIG, LigError, SetToSetIG, inspect_model, patching
from captum_lig.graph import FlowGraph
from captum_lig.prediction import logit
from captum_lig.pretrained.smollm2 import smollm2_path
from tests.helpers.models import randomise
from tests.helpers.quantised_kinds import KINDS, Kind, loaded, tokens

WIDTH, VOCABULARY, LENGTH = 64, 64, 5
"""A width that goes into groups of 32 and 64 weights, as they are quantised."""


def other_tokens() -> Tensor:
    return torch.tensor([[5, 31, 40, 9, 11]])


def save_models(folder: Path) -> None:
    """A tiny BERT, GPT-2 and Llama with all parameters drawn."""
    small = {"vocab_size": VOCABULARY, "max_position_embeddings": 16}
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
    }
    made = {
        "bert": BertForMaskedLM(BertConfig(**small, **sizes)),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=16)
        ),
        "llama": LlamaForCausalLM(
            LlamaConfig(**small, **sizes, num_key_value_heads=2, attention_bias=True, mlp_bias=True)
        ),
    }
    for name, model in made.items():
        randomise(model, 0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(0.5)
        model.float().save_pretrained(folder / name)


def in_full(few: nn.Module, family: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model of these files with the weights that ``few`` multiplies with.

    What a layer gives for the unit vectors, less what it gives for zero, is its weights.
    """
    full = loaded(family, folder, dtype)
    theirs = dict(few.named_modules())
    for name, module in full.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or isinstance(module, nn.Embedding):
            continue
        conv = type(module).__name__ == "Conv1D"
        wide = weight.shape[0] if conv else weight.shape[1]
        eye = torch.eye(wide, dtype=dtype)[None]
        with torch.no_grad():
            found = (theirs[name](eye) - theirs[name](torch.zeros_like(eye)))[0].detach().to(dtype)
        module.weight = nn.Parameter((found if conv else found.T).contiguous().clone())
    return full.eval()


NAMES = {"llama": "Llama", "bert": "BERT", "gpt2": "GPT-2", "smollm2": "SmolLM2-135M"}


def block_of(model: Any, family: str) -> nn.Module:
    blocks = {
        "bert": lambda: model.bert.encoder.layer,
        "gpt2": lambda: model.transformer.h,
        "llama": lambda: model.model.layers,
        "smollm2": lambda: model.model.layers,
    }
    found: nn.Module = blocks[family]()[1]
    return found


def sets(model: Any, family: str) -> Tensor:
    """An MLP as a map of tokens."""
    block: Any = block_of(model, family)
    mlp = block.mlp if family != "bert" else lambda x: block.output(block.intermediate(x), x)
    wide = model.config.hidden_size
    x = torch.randn(1, 3, wide, generator=torch.Generator().manual_seed(1))
    dtype = next(p.dtype for p in block.parameters() if p.is_floating_point())
    found: Tensor = SetToSetIG(mlp).attribute(
        x.to(dtype), 0.0, n_steps=16, max_steps=64, tolerance=1e-3
    )
    return found


TARGET = logit(7, minus=3)


def calls(family: str) -> dict[str, Callable[[nn.Module], list[Tensor]]]:
    """What is asked of a model, by name."""
    ids, others = tokens(), other_tokens()

    def lengths(model: nn.Module, **given: Any) -> list[Tensor]:
        return [
            x
            for flow in LayerFlowIG(model).attribute(ids, max_steps=64, **given)
            for x in parts(flow)
        ]

    def target(model: nn.Module, **given: Any) -> list[Tensor]:
        return lengths(model, baselines=others, target=TARGET, **given)

    def edges(model: nn.Module) -> list[Tensor]:
        found = LayerFlowIG(model).direct_edges(ids, others, TARGET, max_steps=64)
        return [torch.tensor([found.change, found.into_target, found.out_of_embedding])]

    def checked(model: nn.Module) -> list[Tensor]:
        graph = FlowGraph(LayerFlowIG(model).attribute(ids, others, TARGET, max_steps=64))
        found = patching.check(graph, model, ids, others, TARGET, k=3)
        rows = sorted((str(row.node), row.attributed, row.out, row.into) for row in found.rows)
        return [torch.tensor([row[1:] for row in rows])]

    def inspected(model: nn.Module) -> list[Tensor]:
        report = inspect_model(model, ids)
        refused = [b.not_supported for b in report.blocks if b.not_supported]
        if report.unreachable or refused:
            raise LigError(str(report.unreachable or refused[0]))
        return []

    every: dict[str, Callable[[nn.Module], list[Tensor]]] = {
        "sets": lambda model: [sets(model, family)],
        "lengths": lengths,
        "influence": lambda model: lengths(model, boundaries=["influence"]),
        "float64": lambda model: lengths(model, dtype=torch.float64),
        "target": target,
        "target64": lambda model: target(model, dtype=torch.float64),
        "edges": edges,
        "check": checked,
        "inspect": inspected,
    }
    if family == "bert":
        del every["edges"]  # post-norm: the residual stream is no sum
    if family == "smollm2":  # minutes for each, of what is tested with tiny models
        every = {what: every[what] for what in ("target", "inspect")}
    return every


def parts(flow: Any) -> Iterator[Tensor]:
    yield from flow.tensors.values()


def gap(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest difference, relative to the largest number."""
    worst = 0.0
    size = max((float(x.double().abs().nan_to_num().max()) for x in wanted), default=1.0)
    for one, other in zip(found, wanted, strict=True):
        off = (one.double() - other.double()).abs().nan_to_num().max() / size
        assert bool((one.isnan() == other.isnan()).all())
        worst = max(worst, float(off))
    return worst


@dataclass(frozen=True)
class Outcome:
    """What came of one call."""

    off: float | None = None
    refusal: str = ""
    fault: str = ""
    warned: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f" warned: {'; '.join(self.warned)[:300]}" if self.warned else ""
        if self.fault:
            return f"FAULT {self.fault}{said}"
        return (f"refused: {self.refusal}" if self.refusal else f"{self.off:.1e}") + said


def outcome(call: Callable[[nn.Module], list[Tensor]], few: nn.Module, full: nn.Module) -> Outcome:
    """The call of both models."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = call(few)
        except LigError as error:
            return Outcome(refusal=str(error))
        except Exception as error:
            return Outcome(fault=f"{type(error).__name__}: {str(error)[:300]}")
        said = tuple(str(w.message)[:200] for w in caught if w.category is UserWarning)
        return Outcome(off=gap(found, call(full)), warned=said)


def _changed(few: nn.Module, plain: nn.Module) -> bool:
    """Whether a library has quantised anything: not all know GPT-2's layers."""
    with torch.no_grad():
        a, b = (model(tokens()).logits for model in (few, plain))
    return gap([a], [b]) > 0


def of_model(few: nn.Module, full: nn.Module, family: str) -> dict[str, Outcome]:
    """What comes of each call."""
    found: dict[str, Outcome] = {}
    for what, call in calls(family).items():
        before = [(n, id(p), p.dtype, type(p)) for n, p in few.named_parameters()]
        found[what] = outcome(call, few, full)
        after = [(n, id(p), p.dtype, type(p)) for n, p in few.named_parameters()]
        if before != after:
            found[what] = Outcome(fault="the model was changed")
        say(f"    {what}: {found[what]}")
    return found


COLUMNS = {
    "maps": ("sets", "lengths", "influence"),
    "a number": ("target",),
    "both in float64": ("float64", "target64"),
    "edges, patching": ("edges", "check"),
}
"""Columns of the table, and the calls that they are of."""


def word(found: dict[str, Outcome]) -> str:
    """The outcome of all calls."""
    if faults := [f"{what}: {one.fault}" for what, one in found.items() if one.fault]:
        return f"fault: {'; '.join(faults)}"[:200]
    refused = [what for what, one in found.items() if one.refusal]
    if len(refused) == len(found):
        return "refused"
    return f"refused: {', '.join(refused)}" if refused else "right"


def differences(every: list[dict[str, Outcome]]) -> list[str]:
    """The largest one in each column."""
    off = [[one[c].off for one in every for c in of if c in one] for of in COLUMNS.values()]
    known = [[x for x in some if x is not None] for some in off]
    return [f"{max(some):.0e}" if some else "" for some in known]


def of_kind(kind: Kind, families: list[str], folder: Path) -> list[list[str]]:
    """Rows of the table."""
    of = [f"{kind.package} {version(kind.package).split('+')[0]}", kind.words]
    by_word: dict[str, dict[str, dict[str, Outcome]]] = {}
    for family in families:
        say(f"{' '.join(of)}, {family}")
        found: dict[str, Outcome] = {}
        try:
            few = kind.build(family, folder, torch.float32)
            said = "left in full by the library"
            if _changed(few, loaded(family, folder, torch.float32)):
                found = of_model(few, in_full(few, family, folder, torch.float32), family)
                said = word(found)
        except Exception as error:  # of another library
            said = f"not made: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
        by_word.setdefault(said, {})[NAMES[family]] = found
    return [
        [*of, ", ".join(models), said, *differences(list(models.values()))]
        for said, models in by_word.items()
    ]


def installed(kind: Kind) -> bool:
    try:
        version(kind.package)
    except PackageNotFoundError:
        return False
    return True


def main() -> int:
    """Print the table; 1 if something went wrong, or not all libraries are here to be tried."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=[], help=", ".join(KINDS))
    given = parser.parse_args()
    missing = sorted({KINDS[k].package for k in given.kinds or KINDS if not installed(KINDS[k])})
    if missing:
        say(f"Not installed: {', '.join(missing)}. Install them, or name what to try.")
        return 1
    warnings.simplefilter("ignore")
    use_threads(1)
    rows: list[list[str]] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_models(folder)
        families = ["llama", "bert", "gpt2"]
        with contextlib.suppress(LigError):
            (folder / "smollm2").symlink_to(smollm2_path())
            families.append("smollm2")
        for key in given.kinds or KINDS:
            rows += of_kind(KINDS[key], families, folder)
    header = ["library", "weights", "models", "outcome", *COLUMNS]
    print(f"{stamp()}\n\n{table(header, rows)}")
    return int(any("fault" in row[3] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

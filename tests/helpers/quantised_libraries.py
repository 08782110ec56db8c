"""Models in few bits by real libraries, each beside a plain model with the same weights in full.

``python -m tests.helpers.quantised_libraries`` prints a table of what the library makes of them.
"""

from __future__ import annotations

import argparse
import importlib
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
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
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
from tests.helpers.models import randomise

WIDTH, VOCABULARY, LENGTH = 64, 64, 5
"""A width that goes into groups of 32 and 64 weights, as they are quantised."""

Build = Callable[[str, Path, torch.dtype], nn.Module]


@dataclass(frozen=True)
class Kind:
    """A way to quantise."""

    package: str
    """As pip knows it."""
    module: str
    """As Python knows it."""
    words: str
    build: Build
    refused: bool = False
    """Whether it rounds vectors, too."""


def _loaded(family: str, folder: Path, dtype: torch.dtype, config: Any = None) -> nn.Module:
    auto: Any = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    given = {} if config is None else {"quantization_config": config, "device_map": "cpu"}
    found: nn.Module = auto.from_pretrained(folder / family, dtype=dtype, **given).eval()
    return found


def _by_transformers(make: Callable[[], Any]) -> Build:
    return lambda family, folder, dtype: _loaded(family, folder, dtype, make())


def _bitsandbytes(**given: Any) -> Build:
    def make() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**given)

    return _by_transformers(make)


def _torchao(name: str, **given: Any) -> Build:
    def make() -> Any:
        from transformers import TorchAoConfig

        return TorchAoConfig(
            getattr(importlib.import_module("torchao.quantization"), name)(**given)
        )

    return _by_transformers(make)


def _hqq(bits: int) -> Build:
    def make() -> Any:
        from transformers import HqqConfig

        return HqqConfig(nbits=bits, group_size=32)

    return _by_transformers(make)


def _quanto(weights: str) -> Build:
    def make() -> Any:
        from transformers import QuantoConfig

        return QuantoConfig(weights=weights)

    return _by_transformers(make)


def _quanto_activations(family: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    quanto: Any = importlib.import_module("optimum.quanto")
    model = _loaded(family, folder, dtype)
    quanto.quantize(model, weights=quanto.qint8, activations=quanto.qint8)
    with torch.no_grad(), quanto.Calibration():
        model(tokens())
    quanto.freeze(model)
    return model.eval()


def _dynamic(family: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    model = _loaded(family, folder, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    return found


KINDS = {
    "bnb8": Kind(
        "bitsandbytes", "bitsandbytes", "int8", _bitsandbytes(load_in_8bit=True), refused=True
    ),
    "bnb_nf4": Kind(
        "bitsandbytes",
        "bitsandbytes",
        "nf4",
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
    "bnb_fp4": Kind(
        "bitsandbytes",
        "bitsandbytes",
        "fp4, twice quantised",
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True),
    ),
    "ao8": Kind("torchao", "torchao", "int8 weights", _torchao("Int8WeightOnlyConfig")),
    "ao4": Kind(
        "torchao",
        "torchao",
        "int4 weights",
        _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    ),
    "ao4_opaque": Kind(
        "torchao",
        "torchao",
        "int4 weights, packed",
        _torchao("Int4WeightOnlyConfig", group_size=32),
    ),
    "ao_f8": Kind("torchao", "torchao", "float8 weights", _torchao("Float8WeightOnlyConfig")),
    "ao8_dynamic": Kind(
        "torchao",
        "torchao",
        "int8 weights and vectors",
        _torchao("Int8DynamicActivationInt8WeightConfig"),
        refused=True,
    ),
    "quanto8": Kind("optimum-quanto", "optimum.quanto", "int8 weights", _quanto("int8")),
    "quanto4": Kind("optimum-quanto", "optimum.quanto", "int4 weights", _quanto("int4")),
    "quanto_f8": Kind("optimum-quanto", "optimum.quanto", "float8 weights", _quanto("float8")),
    "quanto8_8": Kind(
        "optimum-quanto",
        "optimum.quanto",
        "int8 weights and vectors",
        _quanto_activations,
        refused=True,
    ),
    "hqq8": Kind("hqq", "hqq", "8 bits", _hqq(8)),
    "hqq4": Kind("hqq", "hqq", "4 bits", _hqq(4)),
    "dynamic": Kind("torch", "torch", "quantize_dynamic, int8", _dynamic, refused=True),
}


def tokens() -> Tensor:
    return torch.tensor([[5, 17, 40, 23, 11]])


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
    full = _loaded(family, folder, dtype)
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


def block_of(model: Any, family: str) -> nn.Module:
    blocks = {
        "bert": lambda: model.bert.encoder.layer,
        "gpt2": lambda: model.transformer.h,
        "llama": lambda: model.model.layers,
    }
    found: nn.Module = blocks[family]()[1]
    return found


def sets(model: Any, family: str) -> Tensor:
    """An MLP as a map of tokens."""
    block: Any = block_of(model, family)
    mlp = block.mlp if family != "bert" else lambda x: block.output(block.intermediate(x), x)
    x = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(1))
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


OF_A_NUMBER = ("target", "target64", "edges")
"""Calls that copy the whole model."""


def described(outcomes: dict[str, Outcome]) -> str:
    """What came of all calls of a model."""
    faults = [f"{name}: {one.fault}" for name, one in outcomes.items() if one.fault]
    if faults:
        return f"FAULT {faults[0]}".replace("|", "/")
    refused = [name for name, one in outcomes.items() if one.refusal]
    if not refused:
        return "right"
    return "refused" if len(refused) >= len(outcomes) - 1 else f"refused: {', '.join(refused)}"


def largest(outcomes: list[Outcome]) -> str:
    """Of the differences."""
    off = [one.off for one in outcomes if one.off]
    return f"{max(off):.0e}" if off else ""


def tried(kind: Kind, families: list[str], folder: Path, dtype: torch.dtype) -> list[list[str]]:
    """Rows of the table: models of which the same came are one."""
    found: dict[str, list[tuple[str, dict[str, Outcome]]]] = {}
    for family in families:
        try:
            few = kind.build(family, folder, dtype)
            full = in_full(few, family, folder, dtype)
        except Exception as error:
            found.setdefault(f"not built: {type(error).__name__}", []).append((family, {}))
            say(f"{kind.package} {kind.words} {family}: {str(error)[:300]}")
            continue
        outcomes = {}
        for name, call in calls(family).items():
            before = [(n, id(p), p.dtype, str(type(p))) for n, p in few.named_parameters()]
            outcomes[name] = outcome(call, few, full)
            after = [(n, id(p), p.dtype, str(type(p))) for n, p in few.named_parameters()]
            if before != after:
                outcomes[name] = Outcome(fault="the model was changed")
            say(f"{kind.package} {kind.words} {family} {name}: {outcomes[name]}")
        found.setdefault(described(outcomes), []).append((family, outcomes))
    library = f"{kind.package} {version(kind.package).split('+')[0]}"
    rows = []
    for said, some in found.items():
        every = [(name, one) for _, outcomes in some for name, one in outcomes.items()]
        off = largest([one for _, one in every])
        of_numbers = largest([one for name, one in every if name in OF_A_NUMBER])
        names = ", ".join(family for family, _ in some)
        rows.append([library, kind.words, names, said, off, of_numbers])
    return rows


def main() -> int:
    """The table; 1 if a library is not installed, or there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    loaded = [name for name, kind in KINDS.items() if kind.package != "hqq"]  # transformers cannot
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=loaded)
    parser.add_argument("--families", nargs="*", default=["bert", "gpt2", "llama"])
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    kinds = [KINDS[name] for name in given.kinds]
    missing = sorted({kind.package for kind in kinds if not installed(kind)})
    if missing:
        say(f"Not installed: {', '.join(missing)}. Install them, or choose with --kinds.")
        return 1
    use_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_models(folder)
        dtype = getattr(torch, given.dtype)
        rows = [row for kind in kinds for row in tried(kind, given.families, folder, dtype)]
    header = ["library", "weights", "models", "outcome", "largest difference", "with a target"]
    print(f"{stamp()}\n\n{table(header, rows)}")
    return int(any("FAULT" in row[3] for row in rows))


def installed(kind: Kind) -> bool:
    try:
        version(kind.package)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())

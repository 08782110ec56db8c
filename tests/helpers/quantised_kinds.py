"""Ways to quantise, of real libraries."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

BITSANDBYTES = "BitsAndBytesConfig"

Build = Callable[[str, Path, torch.dtype], nn.Module]


def tokens() -> Tensor:
    return torch.tensor([[5, 17, 40, 23, 11]])


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


def loaded(family: str, folder: Path, dtype: torch.dtype, config: Any = None) -> nn.Module:
    auto: Any = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    given = {} if config is None else {"quantization_config": config, "device_map": "cpu"}
    found: nn.Module = auto.from_pretrained(folder / family, dtype=dtype, **given).eval()
    return found


def _by_transformers(config: str, **given: Any) -> Build:
    def build(family: str, folder: Path, dtype: torch.dtype) -> nn.Module:
        made = getattr(importlib.import_module("transformers"), config)(**given)
        return loaded(family, folder, dtype, made)

    return build


def _torchao(name: str, **given: Any) -> Build:
    def build(family: str, folder: Path, dtype: torch.dtype) -> nn.Module:
        made = getattr(importlib.import_module("torchao.quantization"), name)(**given)
        return _by_transformers("TorchAoConfig", quant_type=made)(family, folder, dtype)

    return build


def _hqq(bits: int) -> Build:
    """By its own layers: transformers 5 does not load them."""

    def build(family: str, folder: Path, dtype: torch.dtype) -> nn.Module:
        hqq: Any = importlib.import_module("hqq.core.quantize")
        model = loaded(family, folder, dtype)
        config = hqq.BaseQuantizeConfig(nbits=bits, group_size=32)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                few = hqq.HQQLinear(layer, config, compute_dtype=dtype, device="cpu")
                model.set_submodule(name, few)
        return model.eval()

    return build


def _quanto(weights: str) -> Build:
    return _by_transformers("QuantoConfig", weights=weights)


def _quanto_activations(family: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    quanto: Any = importlib.import_module("optimum.quanto")
    model = loaded(family, folder, dtype)
    quanto.quantize(model, weights=quanto.qint8, activations=quanto.qint8)
    with torch.no_grad(), quanto.Calibration():
        model(tokens())
    quanto.freeze(model)
    return model.eval()


def _dynamic(family: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    model = loaded(family, folder, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    return found


KINDS = {
    "bnb8": Kind(
        "bitsandbytes",
        "bitsandbytes",
        "int8",
        _by_transformers(BITSANDBYTES, load_in_8bit=True),
        refused=True,
    ),
    "bnb_nf4": Kind(
        "bitsandbytes",
        "bitsandbytes",
        "nf4",
        _by_transformers(BITSANDBYTES, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
    "bnb_fp4": Kind(
        "bitsandbytes",
        "bitsandbytes",
        "fp4, twice quantised",
        _by_transformers(
            BITSANDBYTES,
            load_in_4bit=True,
            bnb_4bit_quant_type="fp4",
            bnb_4bit_use_double_quant=True,
        ),
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

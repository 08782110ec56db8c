"""Models and texts by name: from the hub, a folder, or the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from captum_lig._arguments import check_utf8
from captum_lig._restore import changing
from captum_lig.errors import LigError, out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DTYPES",
    "WORDS",
    "Checkpoint",
    "Pretrained",
    "Reader",
    "Stored",
    "check_place",
    "find_model",
    "is_empty",
    "load_model",
    "load_network",
    "quiet",
    "says_what_comes_next",
]

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Precisions that a model is run in, by name."""
_UNLIMITED = 10**9
"""transformers writes a tokenizer without a limit as one with a limit of about 10**30 tokens."""

WORDS = ("minilm", "smollm2")
"""Embedded models: each is one word."""


class Reader:
    """What reads a text: a tokenizer, and the configuration of its model."""

    name: str
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def most_tokens(self) -> int | None:
        """How many tokens a text may have, special ones included; None if nothing says so."""
        limits = (
            getattr(self.config, "max_position_embeddings", None),
            self.tokenizer.model_max_length,
        )
        return min((int(n) for n in limits if n is not None and 0 < n < _UNLIMITED), default=None)

    def _encoding(self, text: str, **how: Any) -> Any:
        with quiet():
            return self.tokenizer(text, truncation=False, padding=False, **how)

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has, special ones included; it may be too long for the model."""
        return len(self._encoding(text)["input_ids"])

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end in the text of each token; needs a fast tokenizer."""
        mapping = self._encoding(text, return_offsets_mapping=True)["offset_mapping"]
        return [(start, end) for start, end in mapping]

    def encode(self, text: str) -> dict[str, torch.Tensor]:
        """What the model is called with for ``text``: ``input_ids (1, S)`` and what goes with it.

        Raises:
            LigError: if the text is not UTF-8, has no token of its own, or more tokens than the
                model takes.
        """
        check_utf8("the text", text)
        encoding = dict(self._encoding(text, return_tensors="pt"))
        count = encoding["input_ids"].shape[1]
        special = self.tokenizer.num_special_tokens_to_add(pair=False)
        if count <= special:
            raise LigError(
                f"the text {text!r} gives model {self.name!r} no token of its own: give at least "
                "one word."
            )
        limit = self.most_tokens
        if limit is not None and count > limit:
            raise LigError(
                f"the text has {count} tokens, {special} special ones included, and model "
                f"{self.name!r} takes {limit} at most: shorten the text or split it."
            )
        return encoding


@dataclass(frozen=True)
class Pretrained(Reader):
    """A model in evaluation mode and its tokenizer."""

    name: str
    """As people know it: what the caller gave."""
    config: Any
    tokenizer: PreTrainedTokenizerBase
    network: nn.Module


@dataclass(frozen=True)
class Stored:
    """A model on disk or on the hub, of which the weights are not loaded yet."""

    name: str
    """As people know it: what the caller gave."""
    config: Any
    source: str
    """Where it lies."""

    @property
    def architecture(self) -> str:
        """Name of the class that wrote the weights, such as ``LlamaForCausalLM``; or empty."""
        return next(iter(getattr(self.config, "architectures", None) or ()), "")

    def load(self, kind: Any = None, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model in evaluation mode.

        Args:
            kind: one of transformers' Auto classes, which says what head it has; None for
                ``AutoModel``, which has none.
            dtype: its precision.

        Raises:
            LigError: if it cannot be loaded, or lacks some of its weights.
        """
        from transformers import AutoModel

        with _loading(self.name):
            network, info = (kind or AutoModel).from_pretrained(
                self.source,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,  # others are pickles, which can run what they like
                output_loading_info=True,
            )
        absent = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if absent:
            raise LigError(
                f"the weights of model {self.name!r} lack {len(absent)} parameters ({absent[0]}, "
                "...), which would be random numbers: give a model whose weights are complete."
            )
        network.eval()
        return network  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Checkpoint(Stored, Reader):
    """A model with its tokenizer."""

    tokenizer: PreTrainedTokenizerBase


@overload
def find_model(model: str | Path | None) -> Checkpoint: ...
@overload
def find_model(model: str | Path | None, without_tokenizer: bool) -> Checkpoint | Stored: ...
def find_model(model: str | Path | None, without_tokenizer: bool = False) -> Checkpoint | Stored:
    """A model's configuration and its tokenizer; its weights stay where they are.

    Args:
        model: ``"minilm"`` or ``"smollm2"``, a name on the Hugging Face hub or a folder; None is
            ``"minilm"``. A folder that is called like one of these words: ``"./minilm"``.
        without_tokenizer: whether a model without a tokenizer will do.

    Raises:
        LigError: if there is none, or none that has a tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer

    name, source = _located(model)
    if Path(source).is_dir() and not Path(source, "config.json").is_file():
        raise LigError(
            f"folder {name!r} has no config.json: give a folder that save_pretrained wrote a model "
            "and its tokenizer to."
        )
    with _loading(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)  # fails soonest
    try:
        with _loading(name):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except LigError:
        if without_tokenizer:
            return Stored(name, config, source)
        raise
    if not is_empty(tokenizer):
        return Checkpoint(name, config, source, tokenizer)
    if without_tokenizer:
        return Stored(name, config, source)
    raise LigError(f"model {name!r} has no tokenizer beside it: save its tokenizer there too.")


def load_model(
    model: str | Path | Checkpoint | None, dtype: str | None = None, device: str | None = None
) -> Pretrained:
    """Load a model in evaluation mode, and its tokenizer.

    Args:
        model: see :func:`find_model`, or what it found. Of an encoder-decoder the encoder is
            loaded.
        dtype: ``"float32"`` (None) or ``"float64"``.
        device: such as ``"cuda"``; None is the CPU.

    Raises:
        LigError: if it cannot be loaded, has no tokenizer, or lacks some of its weights; if there
            is no such precision or device.
    """
    check_place(dtype, device)
    found = model if isinstance(model, Checkpoint) else find_model(model)
    network = load_network(found, dtype, device)
    return Pretrained(found.name, network.config, found.tokenizer, network)


def load_network(found: Stored, dtype: str | None = None, device: str | None = None) -> Any:
    """The weights of a model, without a head, in evaluation mode; see :func:`load_model`."""
    network: Any = found.load(dtype=DTYPES[dtype or "float32"])
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    with quiet():
        return network.to(device or "cpu")


def check_place(dtype: str | None, device: str | None) -> None:
    """Whether there is such a precision and such a device.

    Raises:
        LigError: if there is not.
    """
    if dtype is not None and dtype not in DTYPES:
        raise LigError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}.")
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise LigError(
            f"device {device!r} cannot be used ({reason[:120]}): use cpu, or cuda where there is "
            "a GPU that this torch was built for."
        ) from error


def _located(model: str | Path | None) -> tuple[str, str]:
    """A model's name, and where it lies."""
    if model is None or model == "minilm":
        from captum_lig.pretrained.minilm import EMBEDDED_MODEL, embedded_model_path

        return EMBEDDED_MODEL, str(embedded_model_path())
    if model == "smollm2":
        from captum_lig.pretrained.smollm2 import SMOLLM2, smollm2_path

        return SMOLLM2, str(smollm2_path())
    return str(model), str(model)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Whatever the hub, the files or the model's configuration raise is a sentence."""
    try:
        with quiet():
            yield
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise LigError(
            f"model {name!r} cannot be loaded: give a folder that holds a model and its tokenizer, "
            f"the name of a text model on the Hugging Face hub that can be reached from here, or "
            f"one of {', '.join(WORDS)} ({type(error).__name__}: {reason[:200]})."
        ) from error


def says_what_comes_next(network: nn.Module) -> bool:
    """Whether a model's weights are those of a causal language model, whatever head it has now."""
    names = getattr(getattr(network, "config", None), "architectures", None) or ()
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def is_empty(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether transformers made the tokenizer up: it does so where it finds none."""
    return set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor progress bars of transformers and of the hub's client."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub.get_verbosity()
    bars = logging.is_progress_bar_enabled()

    def undo() -> None:
        logging.set_verbosity(verbosity)
        hub.set_verbosity(hub_verbosity)
        if bars and not logging.is_progress_bar_enabled():
            logging.enable_progress_bar()

    with changing(undo):
        logging.set_verbosity_error()
        hub.set_verbosity(ERROR)
        logging.disable_progress_bar()
        yield

"""The tokenizer that lies beside a model."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from captum_lig.errors import LigError, out_of_memory
from captum_lig.pretrained.load import is_empty, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["tokenizer_of"]

_known: WeakKeyDictionary[nn.Module, PreTrainedTokenizerBase] = WeakKeyDictionary()


def tokenizer_of(model: nn.Module) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder, or under the name, that the model was loaded from.

    Files on this machine only. It is loaded once a model.

    Raises:
        LigError: if there is none.
    """
    if model in _known:
        return _known[model]
    from transformers import AutoTokenizer

    config = getattr(model, "config", None)
    name = getattr(model, "name_or_path", "") or getattr(config, "_name_or_path", "")
    what = f"{type(model).__name__} has no tokenizer beside it"
    if not isinstance(name, str) or not name:
        raise LigError(f"{what}: it was not loaded from a folder. Give tokenizer=.")
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                name, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever the files or the model's configuration raise
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise LigError(
            f"{what}: none can be loaded from {name!r} on this machine "
            f"({type(error).__name__}: {reason[:200]}). Give tokenizer=."
        ) from error
    if is_empty(tokenizer):
        raise LigError(f"{what}: {name!r} holds none. Give tokenizer=.")
    _known[model] = tokenizer
    return tokenizer

"""Why a model cannot embed its inputs: token ids that it does not know, or too many tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["why_not_embedded"]


def why_not_embedded(
    model: nn.Module, named: Mapping[str, Any], most: int | None, long: bool
) -> str:
    """What is wrong with inputs that a model failed to look up in its tables, and what to do.

    Args:
        model: the model.
        named: what it was called with, by name.
        most: the positions that its configuration speaks of.
        long: whether there are more tokens than those.
    """
    given = {
        name: x
        for name, x in named.items()
        if isinstance(x, Tensor) and x.dim() == 2 and not x.is_floating_point()
    }
    known = _words(model)
    ids = {name: x for name, x in given.items() if name.endswith("input_ids")}
    if known is not None:
        for name, x in ids.items():
            wrong = ((x < 0) | (x >= known)).nonzero()
            if len(wrong):
                text, position = wrong[0].tolist()
                of = "" if name == "input_ids" else f" of {name}"
                more = f", the first of {len(wrong)}" if len(wrong) > 1 else ""
                return (
                    f"token id {int(x[text, position])} at position {position} of text {text}{of}"
                    f"{more}, is none of the {known} words of its embedding (0 to {known - 1}). "
                    "Use the model's own tokenizer."
                )
    length = max((x.shape[1] for x in given.values()), default=0)
    if long:
        tokens = f"{length} tokens, and " if length else ""
        return f"{tokens}it has {most} positions. Shorten the text."
    positions = "" if most is None else f" ({most})"
    if known is not None and ids:
        return (
            f"it knows all token ids, so {length} tokens are more than its positions{positions} "
            "are for, or another input is out of range. Shorten the text, or use the model's own "
            "tokenizer."
        )
    return (
        f"they are longer than its positions{positions}, or hold token ids that it does not know. "
        "Shorten the text, or use the model's own tokenizer."
    )


def _words(model: nn.Module) -> int | None:
    """How many words the embedding of a model's token ids has, if it says which that is."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        embedding = find() if callable(find) else None
    except (NotImplementedError, AttributeError):
        return None
    count = getattr(embedding, "num_embeddings", None)
    return count if isinstance(count, int) else None

"""The tokenizer that lies beside a model."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertModel

from captum_lig import LigError
from captum_lig.pretrained.tokenizer import tokenizer_of
from tests.helpers import models


def test_the_one_in_the_models_folder(tiny: Path) -> None:
    model = AutoModel.from_pretrained(tiny)
    tokenizer = tokenizer_of(model)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny).get_vocab()
    assert tokenizer_of(model) is tokenizer
    assert tokenizer_of(AutoModel.from_pretrained(tiny)) is not tokenizer


def test_the_model_is_not_kept_alive(tiny: Path) -> None:
    model = AutoModel.from_pretrained(tiny)
    tokenizer_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_there_is_none(tiny: Path, tmp_path: Path) -> None:
    BertModel.from_pretrained(tiny).save_pretrained(tmp_path)
    for model, words in (
        (models.tiny_bert(), "BertModel has no tokenizer beside it: it was not loaded"),
        (nn.Linear(2, 2), "Linear has no tokenizer beside it"),
        (AutoModel.from_pretrained(tmp_path), "has no tokenizer beside it"),
    ):
        with pytest.raises(LigError, match=f"{words}.*Give tokenizer="):
            tokenizer_of(model)

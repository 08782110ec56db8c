"""Libraries that quantise, where they are installed: right, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captum_lig import LigError
from tests.helpers.quantised_kinds import KINDS
from tests.helpers.quantised_libraries import calls, gap, in_full, save_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    save_models(found)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"ao4_opaque"}))
def test_library(name: str, folder: Path) -> None:
    kind = KINDS[name]
    pytest.importorskip(kind.module)
    few = kind.build("llama", folder, torch.float32)
    every = calls("llama")
    if kind.refused:
        for call in ("sets", "lengths", "target", "edges", "check", "inspect"):
            with pytest.raises(LigError, match="weights alone in few bits"):
                every[call](few)
        return
    full = in_full(few, "llama", folder, torch.float32)
    for call in ("sets", "lengths", "target", "edges", "check"):
        assert gap(every[call](few), every[call](full)) < 0.02
    every["inspect"](few)

"""The embedded models, or a reason to skip; `make test` installs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from captum_lig import LigError
from captum_lig.pretrained.minilm import embedded_model_path
from captum_lig.pretrained.smollm2 import smollm2_path


def minilm_folder() -> Path:
    """Where MiniLM is; the test is skipped if it is not on this machine."""
    return _found("MiniLM", embedded_model_path)


def need_smollm2() -> None:
    """Skip the test if SmolLM2 is not on this machine."""
    _found("SmolLM2", smollm2_path)


def _found(name: str, folder: Callable[[], Path]) -> Path:
    try:
        return folder()
    except LigError as error:
        if "is not installed" not in str(error):
            raise
        pytest.skip(f"{name} is not installed: see requirements-model.txt")

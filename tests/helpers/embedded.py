"""The embedded models, or a reason to skip."""

from __future__ import annotations

import pytest

from captum_lig import LigError
from captum_lig.pretrained.smollm2 import smollm2_path


def need_smollm2() -> None:
    """Skip the test if SmolLM2 is not on this machine; `make test` installs it."""
    try:
        smollm2_path()
    except LigError as error:
        if "is not installed" not in str(error):
            raise
        pytest.skip("SmolLM2 is not installed: see requirements-model.txt")

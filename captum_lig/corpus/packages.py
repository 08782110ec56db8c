"""Packages that only work on a corpus needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from captum_lig.errors import LigError

__all__ = ["need"]


def need(name: str) -> Any:
    """A module that only work on a corpus needs, or one sentence that says how to get it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise LigError(
            f"{name} is not installed, and work on a corpus needs it: "
            "pip install 'captum-lig[corpus]'."
        ) from error

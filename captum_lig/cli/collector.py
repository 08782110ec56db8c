"""Python's search for garbage waits until a command has imported and loaded what it needs.

Torch and transformers make a million objects, and all of them stay: looking for garbage among them
takes a seventh of the time of their import.
"""

from __future__ import annotations

import gc

__all__ = ["begin", "loaded"]


def begin() -> None:
    """At the start of the program."""
    gc.disable()


def loaded() -> None:
    """All that stays is there. Does nothing in a process that did not begin so."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()

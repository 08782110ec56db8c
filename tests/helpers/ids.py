"""Names of a test's parameters that are the same in every process."""

from __future__ import annotations

import re


def words(value: object) -> str:
    """What `str` says, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))

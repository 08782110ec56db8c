"""Digests of files: what is trusted is the hash."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

__all__ = ["installed_file", "sha256_of"]


def installed_file(package: str, *names: str) -> Path | None:
    """A file of an installed package, which is found and not imported; None if it is not there."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    files = (Path(location, *names) for location in locations or ())
    return next((file for file in files if file.is_file()), None)


def sha256_of(path: Path) -> str:
    """Hex digest of a file, worked out once a process, and again if the file has changed since."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Size and time of change are there to tell versions of a file apart."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            found.update(part)
    return found.hexdigest()

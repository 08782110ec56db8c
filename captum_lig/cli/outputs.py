"""What a command writes, looked at before the work and told after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from captum_lig.errors import LigError

__all__ = [
    "DATA_SUFFIXES",
    "PAGE_SUFFIX",
    "SUFFIXES",
    "check_folder",
    "check_outputs",
    "one_sentence",
    "tell",
]

DATA_SUFFIXES = (".json", ".safetensors")
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
PAGE_SUFFIX = ".html"
SUFFIXES = (*DATA_SUFFIXES, *PICTURE_SUFFIXES, PAGE_SUFFIX)


def check_outputs(paths: list[Path], suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Fail before the work rather than after it."""
    for path in paths:
        if path.suffix.lower() not in suffixes:
            use = "one of " * (len(suffixes) > 1) + ", ".join(suffixes)
            raise LigError(f"--out {str(path)!r} has no known suffix: use {use}.")
        new = not os.path.lexists(path)
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                typer.echo(f"made the folder {path.parent}")
            path.open("ab").close()
        except OSError as error:
            raise LigError(
                f"--out {str(path)!r} cannot be written ({error.strerror}): choose another path."
            ) from error
        if new:
            path.unlink()


def check_folder(folder: Path) -> bool:
    """Whether a folder for several files will be made; fail before the work rather than after it.

    Raises:
        LigError: if it cannot be written to, or the folder that it lies in is not there.
    """
    named = f"--out {str(folder)!r}"
    if folder.is_dir():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise LigError(f"{named} cannot be written to: choose another folder.")
        return False
    if os.path.lexists(folder):
        raise LigError(f"{named} is a file: give a folder.")
    if not folder.parent.is_dir():
        raise LigError(f"{named}: there is no folder {str(folder.parent)!r}: make it first.")
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise LigError(f"{named} cannot be made there: choose another folder.")
    return True


def tell(path: Path, was_there: bool, err: bool = False) -> None:
    """Say that a file was written, and whether over another."""
    typer.echo(f"{'wrote over' if was_there else 'wrote'} {path}", err=err)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Bad input is one sentence on stderr and exit code 2, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for tokens the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except (LigError, OSError) as error:
        typer.echo(f"captum-lig: {error}", err=True)
        raise typer.Exit(2) from error

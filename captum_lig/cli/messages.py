"""What a command says beside its results, on standard error."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from captum_lig.errors import LigError, out_of_memory

__all__ = ["in_utf8", "memory_in_words", "note", "one_sentence", "shown", "status"]


def note(message: str) -> None:
    """One line, or as many as the message has."""
    typer.echo("\n".join(map(shown, message.split("\n"))), err=True)


def shown(path: Path | str) -> str:
    """A path on one line: what steers a terminal, and what it cannot show, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Where memory runs out for a text inside, a LigError says so: other texts may go on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise LigError(
            f"memory ran out ({said[:200]}): give a shorter text or a smaller model."
        ) from error


@contextmanager
def one_sentence() -> Iterator[None]:
    """Bad input is one sentence and exit code 2, not a traceback; a warning is one sentence."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for tokens the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings(), memory_in_words():
            warnings.showwarning = lambda message, *_, **__: note(f"captum-lig: {message}")
            yield
    except BrokenPipeError as error:  # as with `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except (LigError, OSError) as error:
        note(f"captum-lig: {in_words(error)}")
        raise typer.Exit(2) from error


def in_words(error: Exception) -> str:
    """What an error says; of a file, its name and what the system says of it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{str(error.filename)!r}: {error.strerror[0].lower()}{error.strerror[1:]}."
    return str(error)


def in_utf8(stream: Any, encoding: str = "utf-8") -> None:
    """Data has one encoding, whatever that of the terminal is."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding=encoding)


@contextmanager
def status(what: str) -> Iterator[None]:
    """Show on a terminal what is going on; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield

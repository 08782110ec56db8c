"""Where a command writes to: looked at before the work, and told before and after it.

A path with a suffix is a file of that kind; one without is a folder, which is made if the one that
it lies in is there. Nothing else is made, and what is replaced is named first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captum_lig.cli.messages import note, shown
from captum_lig.errors import LigError

__all__ = ["LIST_SUFFIXES", "PAGE_SUFFIX", "PICTURE_SUFFIXES", "Outputs", "check_place", "planned"]

PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
PAGE_SUFFIX = ".html"
LIST_SUFFIXES = (".jsonl", ".csv", ".parquet")
"""Files that hold the results of any number of texts."""


@dataclass(frozen=True)
class Outputs:
    """The files that a command will write."""

    lists: list[Path]
    """Those that hold the results of all texts."""
    single: dict[int | None, list[Path]]
    """Those of one text alone, by its line; None for a text that was given alone."""

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [*self.lists, *(path for paths in self.single.values() for path in paths)]

    def announce(self) -> None:
        """Say what will be made and replaced, before the work."""
        files = self.files
        for folder in dict.fromkeys(file.parent for file in files):
            if not folder.is_dir():
                note(f"{shown(folder)} will be made.")
        old = [shown(file) for file in files if os.path.lexists(file)]
        if old:
            more = f" and {len(old) - 3} more" if len(old) > 3 else ""
            note(f"{', '.join(old[:3])}{more} will be replaced.")


def planned(
    given: Sequence[Path],
    suffixes: Sequence[str],
    in_folder: Sequence[str] = (),
    lines: Sequence[int | None] = (None,),
    source: Path | None = None,
) -> Outputs:
    """What will be written; fail before the work rather than after it.

    Args:
        given: what stands behind ``--out``.
        suffixes: of files that the command writes.
        in_folder: names of the files of one text that it writes to a folder; none if it takes none.
        lines: of the texts; ``name-3.html`` is of line 3.
        source: the file that the texts are read from.

    Raises:
        LigError: for an unknown suffix, a place that cannot be written to, the file of the texts,
            or a file of one text where there are more.
    """
    lists: list[Path] = []
    single: dict[int | None, list[Path]] = {line: [] for line in lines}
    for path in dict.fromkeys(given):
        suffix = path.suffix.lower()
        if suffix in suffixes:
            check_place(path)
            if source is not None and source.exists() and path.exists() and path.samefile(source):
                raise LigError(f"--out {str(path)!r} is what --file reads: choose another name.")
            if suffix in LIST_SUFFIXES:
                lists.append(path)
            elif lines[0] is not None:
                more = [one for one in suffixes if one in LIST_SUFFIXES]
                raise LigError(
                    f"--out {str(path)!r} is of one text, and --file is of many: use one of "
                    f"{', '.join(more)} for all of them, or a name without a suffix for a folder."
                )
            else:
                single[None].append(path)
        elif in_folder and (not path.suffix or path.is_dir()):
            _check_folder(path)
            for line, paths in single.items():
                number = "" if line is None else f"-{line}"
                paths += [path / f"{Path(n).stem}{number}{Path(n).suffix}" for n in in_folder]
        else:
            known = "one of " * (len(suffixes) > 1) + ", ".join(suffixes)
            folder = ", or a name without one for a folder" if in_folder else ""
            raise LigError(f"--out {str(path)!r} has no known suffix: use {known}{folder}.")
    return Outputs(lists, {line: list(dict.fromkeys(paths)) for line, paths in single.items()})


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise LigError(f"--out {str(folder)!r} cannot be written to: choose another folder.")
    elif os.path.lexists(folder):
        raise LigError(
            f"--out {str(folder)!r} is a file, and a name without a suffix is of a folder: choose "
            "another name."
        )
    else:
        check_place(folder)


def check_place(path: Path) -> None:
    """Whether a file or a folder can be made there.

    Raises:
        LigError: if it cannot.
    """
    what = f"--out {str(path)!r}"
    if path.is_dir():
        raise LigError(f"{what} cannot be written (it is a folder): choose another path.")
    if not path.parent.is_dir():
        raise LigError(f"{what}: there is no folder {str(path.parent)!r}: make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (
        path.exists() and not os.access(path, os.W_OK)
    ):
        raise LigError(f"{what} cannot be written (permission denied): choose another path.")

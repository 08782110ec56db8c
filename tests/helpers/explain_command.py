"""`captum-lig explain` in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from captum_lig.cli import app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def sentence(result: Result) -> str:
    """The one line on stderr of a run that failed as it should."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("captum-lig: ")
    return str(line)

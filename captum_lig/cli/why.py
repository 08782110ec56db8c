"""``captum-lig why``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from captum_lig.cli.options import option
from captum_lig.cli.outputs import check_folder, one_sentence, tell
from captum_lig.errors import LigError

__all__ = ["why"]

FORMATS = ("table", "json")
FOR = "SmolLM2, with --similar-to MiniLM"


def why(
    text: Annotated[
        str | None,
        typer.Argument(help="The text; - for standard input.", metavar="TEXT", show_default=False),
    ] = None,
    against: Annotated[
        str | None, option("TEXT2", "A text of as many tokens to compare with.", "padding")
    ] = None,
    target: Annotated[
        str | None,
        option("TOKEN", 'The next token to explain, such as " Paris".', "the most likely one"),
    ] = None,
    foil: Annotated[
        str | None,
        option("TOKEN", "The token to explain it against.", "the most likely one for TEXT2"),
    ] = None,
    label: Annotated[
        str | None, option("LABEL", "Of a classifier: the class to explain.", "the most likely one")
    ] = None,
    similar_to: Annotated[
        str | None, option("TEXT3", "Explain how alike TEXT is to this one.", False)
    ] = None,
    answer: Annotated[
        str | None, option("TEXT4", "Explain how likely TEXT goes on like this.", False)
    ] = None,
    generate: Annotated[
        int | None, option("N", "Explain N tokens that the model goes on with.", False)
    ] = None,
    position: Annotated[
        int | None, option("N", "Token after which to look, from 0.", "the last one")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="TEXT is said by a user, in the model's chat template.")
    ] = False,
    file: Annotated[
        Path | None, option("FILE", "Read TEXT from a file; - for standard input.", False)
    ] = None,
    model: Annotated[
        str | None, option("smollm2|minilm|NAME|FOLDER", "The model to ask.", FOR)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Patch the strongest parts, and show what happened.")
    ] = False,
    out: Annotated[
        Path | None,
        option("DIR", "Folder for the page, the picture and the numbers.", False),
    ] = None,
    tolerance: Annotated[
        float, option("X", "Largest error of the sums, relative to the change.")
    ] = 1e-2,
    format: Annotated[str, option("table|json", "What is printed.")] = "table",
    device: Annotated[str | None, option("NAME", "Where the model runs.", "cpu")] = None,
    dtype: Annotated[
        str | None, option("float32|float64", "Precision of the model.", "float32")
    ] = None,
) -> None:
    """Why does a model say what it says of TEXT, and not what it says of another?

    For example:

    [bold]captum-lig why "The capital of France is" --against "The capital of Italy is"[/bold]
    """
    with one_sentence():
        if format not in FORMATS:
            raise LigError(f"--format {format!r} is unknown: use one of {', '.join(FORMATS)}.")
        text = _text(text, file)
        made = out is not None and check_folder(out)

        from captum_lig.answers import why as ask

        found = ask(
            text,
            model,
            against,
            target=target,
            foil=foil,
            label=int(label) if label is not None and label.isdecimal() else label,
            similar_to=similar_to,
            answer=answer,
            generate=generate,
            position=position,
            chat=chat,
            dtype=dtype,
            device=device,
            tolerance=tolerance,
            show_progress=sys.stderr.isatty(),
        )
        if check:
            found.check(show_progress=sys.stderr.isatty())
        if format == "json":
            typer.echo(json.dumps(found.numbers(), ensure_ascii=False, indent=1))
        else:
            found.show()
        if out is not None:
            before = set(out.iterdir()) if out.is_dir() else set()
            paths = found.save(out)
            if made:
                typer.echo(f"made the folder {out}", err=format == "json")
            for path in paths:
                tell(path, path in before, err=format == "json")


def _text(text: str | None, file: Path | None) -> str:
    """The text, from wherever it comes; line breaks at its end do not count."""
    if (text is None) == (file is None):
        raise LigError("give either TEXT or --file, - for standard input.")
    if text == "-" or file == Path("-"):
        return sys.stdin.read().rstrip("\r\n")
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise LigError(
                f"--file {str(file)!r} is not UTF-8 (byte {error.start + 1}): give it in that "
                "encoding."
            ) from error
    assert text is not None
    return text

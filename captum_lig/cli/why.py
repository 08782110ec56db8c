"""``captum-lig why``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_lig.cli import collector
from captum_lig.cli.messages import memory_in_words, note, one_sentence, status
from captum_lig.cli.options import Device, Dtype, File, Format, option
from captum_lig.cli.outputs import LIST_SUFFIXES, PAGE_SUFFIX, PICTURE_SUFFIXES, planned
from captum_lig.cli.results import Results, check_format
from captum_lig.cli.texts import Line, read_lines
from captum_lig.errors import LigError

if TYPE_CHECKING:
    from captum_lig.answers.asker import Asker, Prepared

__all__ = ["why"]

FOR = "SmolLM2, with --similar-to MiniLM"
FILES = ("why.html", "why.png", "why.json")
SUFFIXES = (PAGE_SUFFIX, *PICTURE_SUFFIXES, ".json", *LIST_SUFFIXES)
OUT = f"A folder gets page, picture and numbers; a file is {', '.join(SUFFIXES)}."
KEYS: dict[str, type] = {
    "against": str,
    "target": str,
    "foil": str,
    "label": str,
    "similar_to": str,
}
KEYS |= {"answer": str, "generate": int, "position": str, "chat": bool}


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
        str | None,
        option("N|TOKEN", "After which token to look: its number from 0, or itself.", "the last"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="TEXT is said by a user, in the model's chat template.")
    ] = False,
    file: File = None,
    model: Annotated[
        str | None, option("smollm2|minilm|NAME|FOLDER", "The model to ask.", FOR)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Patch the strongest parts, and show what happened.")
    ] = False,
    out: Annotated[
        list[Path] | None,
        option("DIR|FILE", f"Folder or file to write; may be repeated. {OUT}", False),
    ] = None,
    tolerance: Annotated[
        float,
        option(
            "X",
            "Largest error of the sums, relative to the change, or to the parts' sizes where "
            "they cancel.",
        ),
    ] = 1e-2,
    format: Format = "table",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Why does a model say what it says of TEXT, and not what it says of another?

    For example:

    [bold]captum-lig why "The capital of France is" --against "The capital of Italy is"[/bold]
    """
    with one_sentence():
        asked: dict[str, Any] = {"against": against, "target": target, "foil": foil, "label": label}
        asked |= {"similar_to": similar_to, "answer": answer, "generate": generate}
        asked |= {"position": position, "chat": chat}
        outs = out or []
        check_format(format, outs)
        lines = read_lines(text, file, asked, KEYS)
        numbers = [line.number for line in lines]
        outputs = planned(outs, SUFFIXES, FILES, numbers, file)

        with status("Reading the texts"):
            from captum_lig._arguments import fraction
            from captum_lig.answers.asker import Asker
            from captum_lig.cli.forms import AnswerForms

            fraction("tolerance", tolerance)
            asker = Asker(model, dtype=dtype, device=device)
            questions = [_prepared(asker, line) for line in lines]
        outputs.announce()
        with status("Loading the model"):
            for question in questions:
                asker.load(question)
        collector.loaded()
        results = Results(format, outputs, file is not None, AnswerForms.columns)
        failed = 0
        for line, question in zip(lines, questions, strict=True):
            try:
                with memory_in_words():
                    found = asker.answer(question, tolerance, show_progress=sys.stderr.isatty())
                    if check:
                        found.check(show_progress=sys.stderr.isatty())
            except LigError as error:
                if line.number is None:
                    raise
                note(f"captum-lig: {line.named(error)}")
                failed += 1
            else:
                results.add(AnswerForms(found), line.number)
        results.close()
        if failed:
            raise LigError(f"{failed} of {len(lines)} texts could not be explained.")


def _prepared(asker: Asker, line: Line) -> Prepared:
    from captum_lig.answers.wanted import Wanted

    asked = dict(line.options)
    if isinstance(asked["position"], str) and re.fullmatch(r"-?[0-9]{1,9}", asked["position"]):
        asked["position"] = int(asked["position"])
    try:
        return asker.prepare(Wanted(**asked))
    except LigError as error:
        raise line.named(error) from error

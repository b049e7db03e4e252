"""Run notebooks with SmolLM2 and keep their outputs, or count their lines of code.

``python scripts/run_notebooks.py docs/notebooks/*.ipynb`` writes into the files themselves; with
``--count`` before their names it only counts.
"""

import argparse
import hashlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"


def code(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the sources of the cells of code."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    """Return the sha256 of the code that outputs belong to."""
    return hashlib.sha256("\n\n".join(code(notebook)).encode()).hexdigest()


def lines(notebook: nbformat.NotebookNode) -> int:
    """Return how many lines of code a notebook has, without blank ones and comments."""
    every = (line.strip() for source in code(notebook) for line in source.split("\n"))
    return sum(1 for line in every if line and not line.startswith("#"))


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells in an empty folder; return the notebook with its outputs."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=3600, resources={"metadata": {"path": folder}}, record_timing=False
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # progress is for those who wait
            cell.outputs = [
                each
                for each in cell.outputs
                if each.get("name") != "stderr" and WIDGET not in each.get("data", {})
            ]
    notebook.metadata.pop("widgets", None)
    return _without_paths(notebook)


def _without_paths(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook with the model's file by its name alone, wherever it lies."""
    from mlcalib.models.loading import find_smollm2

    folder = json.dumps(f"{find_smollm2().parent}/")[1:-1]
    return nbformat.reads(nbformat.writes(notebook).replace(folder, ""), as_version=4)


def stamp(notebook: nbformat.NotebookNode) -> None:
    """Say in the metadata what outputs belong to."""
    import mlcalib

    notebook.metadata["executed"] = {
        "code": fingerprint(notebook),
        "date": datetime.now(UTC).date().isoformat(),
        "mlcalib": mlcalib.__version__,
    }


def main() -> None:
    """Run or count what is named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--count", action="store_true", help="only print the lines of code")
    asked = parser.parse_args()
    for path in asked.notebooks:
        notebook = nbformat.read(path, as_version=4)
        if not asked.count:
            notebook = run(notebook)
            stamp(notebook)
            nbformat.write(notebook, path)
        print(f"{path}: {lines(notebook)} lines of code", flush=True)


if __name__ == "__main__":
    main()

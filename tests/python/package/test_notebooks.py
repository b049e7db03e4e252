"""Every notebook runs from top to bottom."""

import ast
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from small_models import tiny_llama

ROOT = Path(__file__).parents[3]
NOTEBOOKS = ROOT / "docs/notebooks"
RUN = runpy.run_path(str(ROOT / "scripts/run_notebooks.py"))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def execute(path, parameters=None):
    """Run a notebook; ``parameters`` take the place of its cell with that tag."""
    notebook = nbformat.read(path, as_version=4)
    if parameters is not None:
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
        assigned = {node.targets[0].id for node in ast.parse(cell.source).body}
        assert assigned == parameters.keys()
        cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(outputs, call, kind):
    """Return what the cell with the call shows, e.g. of the kind ``image/png``."""
    (found,) = (cell for source, cell in outputs.items() if call in source)
    return [each.data[kind] for each in found if kind in each.get("data", {})]


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(vocabulary=384, layers=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.model
def test_quickstart():
    execute(NOTEBOOKS / "01_quickstart.ipynb")


def test_quickstart_with_another_model(model):
    outputs = execute(NOTEBOOKS / "01_quickstart.ipynb", {"model": model})
    for call in ("plot_losses", "results.plot"):  # without %matplotlib
        assert len(shown(outputs, call, "image/png")) == 1
    for call, said in (
        ("mlcalib.calibration(", "256"),
        ("mlcalib.GPTQ(", "linears that lose most"),
        ("mlcalib.evaluate(", "bits_per_byte (lower is better)"),
        ("mlcalib.check(", "should load it"),
        ("results.pivot", "<th>yo</th>"),
    ):
        assert said in shown(outputs, call, "text/html")[-1]
    (text,) = shown(outputs, "gptq.generate", "text/plain")
    assert len(text) > 2


def test_languages(model):
    parameters = {
        "MODEL": model,
        "LANGUAGES": "multi10",
        "TOKENS": 640,
        "HELD_OUT": 96,
        "SEQ_LEN": 32,
    }
    outputs = execute(NOTEBOOKS / "02_languages.ipynb", parameters)
    for call in ("loss_heatmap(ten.losses)", "range_heatmap(", "reference=on_ten"):
        assert len(shown(outputs, call, "image/png")) == 1
    (table,) = shown(outputs, "rise.assign", "text/html")
    for code in ("en", "fr", "sw", "zh", "xh", "st", "zu", "yo", "ig", "ha", "worst"):
        assert f"<th>{code}</th>" in table
    assert "NaN" not in table


def test_studies(model, tmp_path):
    parameters = {
        "MODEL": model,
        "TOKENS": 640,
        "HELD_OUT": 96,
        "SEQ_LEN": 32,
        "OUT": str(tmp_path / "study"),
    }
    outputs = execute(NOTEBOOKS / "03_studies.ipynb", parameters)
    for figure in ("rises-gptq-w4-g64", "predicted", "layers-gptq-w4-g64", "outside"):
        (drawn,) = shown(outputs, f'figure("{figure}")', "text/html")
        assert drawn.startswith("<svg")
    (table,) = shown(outputs, "rises.pivot_table", "text/html")
    assert "NaN" not in table
    (table,) = shown(outputs, 'table("settings")', "text/html")
    assert "<td>half</td>" in table


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_outputs_are_those_of_the_code(path):
    """What the site shows was made by these cells; if it fails: make notebooks."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["executed"]["code"] == RUN["fingerprint"](notebook)
    shown = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert len(shown) > len(RUN["code"](notebook)) / 3

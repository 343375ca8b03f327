"""Every notebook equals its source and runs from top to bottom."""

import pathlib

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "colabs"
SOURCES = sorted(FOLDER.glob("*.py"))


def test_there_are_notebooks():
    assert SOURCES
    assert {p.stem for p in FOLDER.glob("*.ipynb")} == {p.stem for p in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_notebook_equals_its_source(source):
    cells = [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]
    stored = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert cells == [(cell.cell_type, cell.source) for cell in stored.cells], (
        f"{source.stem}: run `jupytext --sync colabs/{source.name}` and execute the notebook again"
    )


# Notebooks train: there the optimized code earns what it costs.
@pytest.fixture
def _optimized(monkeypatch):
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")


@pytest.mark.usefixtures("_optimized")
@pytest.mark.filterwarnings("default")  # the notebook machinery has warnings of its own
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_notebook_runs(source):
    notebook = jupytext.read(source)
    # The kernel is this environment's own, whatever kernels the machine has besides.
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER.parent)}}).execute()
    figures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert figures, "the notebook shows no figure"

"""The notebooks of the docs run from top to bottom, with a tiny model and one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from agentlightning_torch.testing import tiny_model

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
SMALL = {"MODEL": "'tiny'", "STEPS": "1", "TASKS_PER_STEP": "1", "EVAL_TASKS": "2", "TRAINED_LAYERS": "'full'"}
"""In place of a notebook's own parameters."""


def executed(name: str, folder: Path) -> Any:
    """The notebook after a run in a kernel of its own."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += "".join(f"\n{name} = {value}" for name, value in SMALL.items())
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def output(cell: Any, kind: str) -> str:
    return "".join(shown["data"].get(kind, "") for shown in cell.outputs if "data" in shown)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_model(tmp_path / "tiny", context=4096)
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    return tmp_path


@pytest.mark.parametrize("name", ["train-and-explore.ipynb", "langgraph.ipynb"])
def test_a_notebook_trains_and_shows_its_run_and_a_rollout(name: str, folder: Path) -> None:
    cells = {cell.source: cell for cell in executed(name, folder).cells}
    shown = {source: output(cell, "text/html") for source, cell in cells.items() if cell.cell_type == "code"}
    [run] = [html for source, html in shown.items() if source == "run" or source.endswith("\nrun")]
    assert "<svg" in run
    assert "1 step, " in run
    trees = [html for source, html in shown.items() if "run.rollout(" in source and html]
    assert trees
    for tree in trees:
        assert "model call 0" in tree
        assert "tools: " in tree
    assert any("<table" in html and "mean" in html for source, html in shown.items() if "groupby" in source)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []

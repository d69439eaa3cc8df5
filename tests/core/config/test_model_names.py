"""The names under which a model is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentlightning.config.models import find_model, model_path
from agentlightning.config.schema import load_config
from agentlightning.errors import ConfigError, RunError


def run_folder(root: Path, name: str, checkpoint: str | None) -> Path:
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("")
    if checkpoint is not None:
        (folder / checkpoint).mkdir(parents=True)
        (folder / checkpoint / "config.json").write_text("{}")
        (folder / "state.json").write_text("{}")
        (folder / "result.json").write_text(json.dumps({"checkpoint": checkpoint}))
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs with weights, and a later one without."""
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path, "20261101-000000-old", "checkpoints/step-00001")
    run_folder(tmp_path, "20261102-000000-new", "checkpoints/step-00002")
    run_folder(tmp_path, "20261103-000000-scored", None)
    return tmp_path


@pytest.mark.parametrize("name", ["latest", "20261102-000000-new", "runs/20261102-000000-new"])
def test_a_run_is_a_model_its_best_weights(runs: Path, name: str) -> None:
    best = runs / "runs/20261102-000000-new/checkpoints/step-00002"
    assert find_model(name).path == str(best)
    assert model_path(name, runs) == str(best)


def test_a_config_names_a_run_and_keeps_the_weights_that_it_meant(runs: Path) -> None:
    (runs / "tasks.jsonl").write_text('"a"\n')
    (runs / "c.toml").write_text('agent = "builtins:print"\ntasks = "tasks.jsonl"\nmodel = "latest"\n')
    assert load_config(runs / "c.toml").model == str(runs / "runs/20261102-000000-new/checkpoints/step-00002")


def test_a_run_without_weights_says_how_to_get_them(runs: Path) -> None:
    with pytest.raises(RunError, match=r"scored has no trained weights\. .*agl train --resume"):
        find_model("20261103-000000-scored")


def test_a_name_of_nothing_lists_the_forms_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"")
    for name, expected in (
        ("smollm2-135n", r"Did you mean 'smollm2-135m'\?.* a \.gguf file, a LoRA adapter, a run"),
        ("empty", r"has no config\.json"),
        ("weights.bin", r"is a file, but not a \.gguf file"),
        ("latest", r"\./runs has no training run"),
        ("missing/model.gguf", "Unknown model"),
    ):
        with pytest.raises(ConfigError, match=expected):
            find_model(name)

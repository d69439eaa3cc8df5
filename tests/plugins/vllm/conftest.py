"""Runs on the process that stands for vLLM, or on vLLM itself where AGL_TEST_VLLM names a Python that has it (`make test-vllm`)."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_world import World

from agentlightning.contracts.model import ModelFiles, Share
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.trainer import Settings as TrainerSettings
from agentlightning_torch.trainer import TorchTrainer
from agentlightning_vllm.engine import VllmEngine
from agentlightning_vllm.settings import VllmSettings

REAL = os.environ.get("AGL_TEST_VLLM")


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has vLLM, or what stands for it."""
    if REAL:
        return REAL
    return program(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="session")
def gpu_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What stands for a Python that has vLLM for GPUs."""
    folder = tmp_path_factory.mktemp("gpu")
    information = folder / "vllm-0.32.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    return program(folder, str(folder))


def program(folder: Path, *more: str) -> str:
    """A Python that finds what stands for vLLM."""
    found = folder / "python"
    path = os.pathsep.join([str(Path(__file__).parent / "fake"), *more])
    found.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" "$@"\n')
    found.chmod(found.stat().st_mode | stat.S_IXUSR)
    return str(found)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A tiny model whose heads vLLM can serve."""
    return tiny_model(tmp_path_factory.mktemp("tiny"), hidden=128)


@pytest.fixture
async def make(python: str, files: ModelFiles, tmp_path: Path) -> AsyncIterator[Any]:
    """Makes worlds, and ends them."""
    worlds: list[World] = []

    async def made(*, train: str = "full", trained_in: str = "float32", files: ModelFiles = files, **settings: Any) -> World:
        torch.set_num_threads(1)
        share: Share = {}
        trainer = await TorchTrainer.create(files, TrainerSettings(train=train, dtype=trained_in, device="cpu"), share)
        if "urls" not in settings:
            settings.setdefault("python", python)
        engine = await VllmEngine.create(files, VllmSettings(**settings), share)
        worlds.append(World(trainer, engine, tmp_path / f"weights-{len(worlds)}"))
        worlds[-1].folder.mkdir()
        return worlds[-1]

    yield made
    for world in worlds:
        await world.engine.close()
        await world.trainer.close()

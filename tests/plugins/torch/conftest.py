"""For the torch plugin: a tiny model, and one thread, so that numbers repeat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from agentlightning.contracts.model import ModelFiles
from agentlightning_torch.testing import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""For the tests of whole runs: a tiny model, and one thread, so that numbers repeat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from agentlightning_torch.testing import tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny").path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

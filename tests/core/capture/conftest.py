from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentlightning.capture.clients import clients
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.testing.world import World, open_world
from agentlightning.types import Sampling

ADAPTER = "agentlightning_test"


def reply(prompt: str, sampling: Sampling) -> str:
    """The model: it repeats the question."""
    return prompt.rsplit("<|im_start|>user\n", 1)[-1].partition("<|im_end|>")[0]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capture-tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture
async def world(tokenizer_folder: Path) -> AsyncIterator[World]:
    async with open_world(tokenizer_folder, reply) as world:
        yield world


@pytest.fixture
def no_adapter() -> None:
    """A test before, in this process, may have left an adapter installed."""
    for adapter in [*clients()._models]:
        clients().uninstall(adapter)


@pytest.fixture
def routed(no_adapter: None) -> Iterator[None]:
    """Every client routes the model `famous`, as an adapter with `models=["famous"]` makes it."""
    clients().install(ADAPTER, ["famous"])
    yield
    clients().uninstall(ADAPTER)

"""One folder of real runs for all tests of the page, and one browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_world import CHROMIUM, NO_CHROMIUM, fill, run_async, served, train

from agentlightning.stores.common import open_store
from agentlightning_torch.testing import tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("page-model") / "tiny").path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """A folder with `runs/`, which holds one finished run, and `agl.db`."""
    folder = tmp_path_factory.mktemp("page")
    train(tiny, folder / "runs")

    async def record() -> None:
        store = open_store(f"sqlite:{folder / 'agl.db'}")
        await fill(store, 3)
        await store.close()

    run_async(record())
    return folder


@pytest.fixture(scope="session")
def link(world: Path) -> Iterator[str]:
    with served(world) as printed:
        yield printed


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """For one module only: while Playwright is open, this thread has a running loop, and no async test can run in it."""
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page. An error in its scripts, and a breach of its content security policy, fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    problems = list[str]()
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    yield opened
    context.close()
    assert problems == []

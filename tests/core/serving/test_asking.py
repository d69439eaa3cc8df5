"""The playground's two gateways, on scripted engines: what they keep, and a base model that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.errors import ConfigError
from agentlightning.serving.playground import OpenBase, Playground, Side
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder, merges=[])
    return folder


def engine(tokenizer: Path, reply: str) -> ScriptedEngine:
    return ScriptedEngine(str(tokenizer), lambda prompt, sampling: reply, model="m")


async def ask(playground: Playground, side: Side) -> httpx.Response:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await playground.ask(side, scope, receive, send)

    asgi: ASGIApp = app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://page") as client:
        return await client.post("/view/api/ask", json=BODY)


def opened(base: ScriptedEngine) -> OpenBase:
    async def open_base() -> tuple[ScriptedEngine, RenderingSettings]:
        return base, RenderingSettings()

    return open_base


async def test_each_side_answers_with_its_own_engine_and_no_record_stays(tokenizer: Path) -> None:
    base = engine(tokenizer, "before")
    playground = Playground(engine(tokenizer, "after"), RenderingSettings(), opened(base))
    assert (playground.has_base, playground.base_is_loaded) == (True, False)
    replies = [(await ask(playground, side)).json()["choices"][0]["message"]["content"] for side in ("policy", "base", "base")]
    assert replies == ["after", "before", "before"]
    assert playground.base_is_loaded
    assert await playground._store.list() == ([], 0)
    await playground.close()


async def test_a_base_model_that_cannot_be_loaded_is_an_error_of_its_side_alone(tokenizer: Path) -> None:
    async def missing() -> tuple[ScriptedEngine, RenderingSettings]:
        raise ConfigError("The model folder 'gone' has no config.json. Name another.")

    playground = Playground(engine(tokenizer, "after"), RenderingSettings(), missing)
    answer = await ask(playground, "base")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == (
        "The model before training is not loaded. The model folder 'gone' has no config.json. Name another."
    )
    assert (await ask(playground, "policy")).json()["choices"][0]["message"]["content"] == "after"
    alone = Playground(engine(tokenizer, "after"), RenderingSettings(), None)
    assert "This server has no other model." in (await ask(alone, "base")).json()["error"]["message"]
    for each in (playground, alone):
        await each.close()

"""The scripted engine keeps the contract of engines, and the contract catches engines that break it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentlightning.contracts.engine import Chunk, EngineInfo
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.engine_contract import EngineContract
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import IntArray, Policy, Sampling, floats, ints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


def scripted(kind: type[ScriptedEngine], folder: Path) -> ScriptedEngine:
    return kind(folder, lambda prompt, sampling: "a reply of many tokens", context_length=64, delay=0.01)


class TestScriptedEngine(EngineContract):
    @pytest.fixture
    def engine(self, folder: Path) -> ScriptedEngine:
        return scripted(ScriptedEngine, folder)


class Edited(ScriptedEngine):
    """Changes each chunk of the replies."""

    def edit(self, chunk: Chunk, sampling: Sampling) -> Chunk:
        return chunk

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        async for chunk in super().generate(prompt_ids, sampling, rollout=rollout):
            yield self.edit(chunk, sampling)


class WithoutContext(ScriptedEngine):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.info = EngineInfo("scripted", self.info.path, 0)


class OldVersion(Edited):
    def edit(self, chunk: Chunk, sampling: Sampling) -> Chunk:
        return replace(chunk, version=chunk.version - 1)


class StopForLength(Edited):
    def edit(self, chunk: Chunk, sampling: Sampling) -> Chunk:
        return replace(chunk, finish="stop") if chunk.finish else chunk


class WithoutStopToken(Edited):
    def edit(self, chunk: Chunk, sampling: Sampling) -> Chunk:
        if chunk.finish != "stop":
            return chunk
        return replace(chunk, ids=chunk.ids[:-1], logprobs=chunk.logprobs[:-1])  # type: ignore[index]


class WithoutSeed(Edited):
    count = 0

    def edit(self, chunk: Chunk, sampling: Sampling) -> Chunk:
        self.count += 1
        return replace(chunk, ids=ints(chunk.ids + self.count))


class Drifting(Edited):
    count = 0

    def edit(self, chunk: Chunk, sampling: Sampling) -> Chunk:
        self.count += 1
        return replace(chunk, logprobs=floats([-0.1 * self.count] * len(chunk.ids)))


class AnyPrompt(ScriptedEngine):
    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        yield Chunk(ints([1]), floats([-1.0]), self.policy.version, "length")


class OneAtATime(ScriptedEngine):
    """Forgets a request that comes while another is in flight."""

    busy = False

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        if self.busy:
            await asyncio.Event().wait()
        self.busy = True
        async for chunk in super().generate(prompt_ids, sampling, rollout=rollout):
            yield chunk
        self.busy = False


class Lingering(ScriptedEngine):
    """Goes on with a reply whose caller has left."""

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        try:
            async for chunk in super().generate(prompt_ids, sampling, rollout=rollout):
                yield chunk
        except GeneratorExit:
            self.lingering = asyncio.create_task(self._finish())
            raise

    async def _finish(self) -> None:
        async with self._gate.reply():
            await asyncio.sleep(2)


class OneLoop(ScriptedEngine):
    loop: Any = None

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        self.loop = self.loop or asyncio.get_running_loop()
        assert self.loop is asyncio.get_running_loop()
        async for chunk in super().generate(prompt_ids, sampling, rollout=rollout):
            yield chunk


class HastyPause(ScriptedEngine):
    """Neither waits for what is in flight, nor holds what comes."""

    async def pause(self) -> None:
        return

    async def resume(self) -> None:
        return


class Stubborn(ScriptedEngine):
    async def load(self, policy: Policy) -> dict[str, float]:
        return {}


class Undead(ScriptedEngine):
    async def close(self) -> None:
        return


BROKEN = {
    "describes": WithoutContext,
    "every_token": OldVersion,
    "max_tokens": StopForLength,
    "stop_token": WithoutStopToken,
    "same_seed": WithoutSeed,
    "one_distribution": Drifting,
    "fill_the_context": AnyPrompt,
    "cannot_be": AnyPrompt,
    "concurrent": OneAtATime,
    "two_event_loops": OneLoop,
    "frees_its_place": Lingering,
    "pause_finishes": HastyPause,
    "during_a_pause": HastyPause,
    "loaded_policy": Stubborn,
    "closed_engine": Undead,
}
"""For each test of the contract an engine that it catches."""
TESTS = [name for name, _ in inspect.getmembers(EngineContract) if name.startswith("test_")]


def test_every_test_of_the_contract_has_an_engine_that_it_catches() -> None:
    assert [sum(part in name for part in BROKEN) for name in TESTS] == [1] * len(TESTS)
    assert len(TESTS) == len(BROKEN)


@pytest.mark.parametrize("part", BROKEN)
async def test_the_contract_catches_an_engine_that_breaks_it(part: str, folder: Path) -> None:
    class Impatient(EngineContract):
        patience = 1.0

    (name,) = [name for name in TESTS if part in name]
    with pytest.raises((AssertionError, TimeoutError)):
        await getattr(Impatient(), name)(scripted(BROKEN[part], folder))

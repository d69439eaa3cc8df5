"""The contract of `Engine` as tests that any implementation runs on itself.

    class TestMyEngine(EngineContract):
        @pytest.fixture
        async def engine(self, tmp_path):
            engine = await MyEngine.create(model_files, MySettings(), {})
            yield engine
            await engine.close()

The tests are coroutines: pytest-asyncio runs them in auto mode, or with a mark on the class (`pytestmark = pytest.mark.asyncio`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from msgspec import structs

from agentlightning.contracts.engine import Chunk, Engine
from agentlightning.errors import ContextOverflow, EngineError
from agentlightning.testing.store import refused
from agentlightning.types import FinishReason, Policy, Sampling, ints


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply whose chunks were checked and joined."""

    ids: list[int]
    logprobs: list[float] | None
    versions: list[int]
    finish: FinishReason


async def ask(engine: Engine, prompt: list[int], *, started: asyncio.Event | None = None, **sampling: Any) -> Reply:
    """Sample a reply and check its form (law 4). Sets `started` at the first chunk."""
    ids: list[int] = []
    logprobs: list[float] = []
    versions: list[int] = []
    finish: FinishReason | None = None
    complete = True
    async with aclosing(_stream(engine, prompt, **sampling)) as chunks:
        async for chunk in chunks:
            assert finish is None, "a chunk came after the one with `finish`"
            assert chunk.logprobs is None or len(chunk.logprobs) == len(chunk.ids), "a chunk has one log-probability for each token"
            complete = complete and chunk.logprobs is not None
            ids += chunk.ids.tolist()
            logprobs += [] if chunk.logprobs is None else chunk.logprobs.tolist()
            versions += [chunk.version] * len(chunk.ids)
            finish = chunk.finish
            if started is not None:
                started.set()
    assert finish is not None, "the last chunk of a reply has `finish`"
    return Reply(ids, logprobs if complete else None, versions, finish)


def _stream(engine: Engine, prompt: list[int], **sampling: Any) -> AsyncGenerator[Chunk]:
    """The reply as an iterator that can be closed: an async generator, as every engine makes one."""
    return cast("AsyncGenerator[Chunk]", engine.generate(ints(prompt), Sampling(**sampling)))


class EngineContract:
    """Subclass it and give it a fixture `engine`: an open one for each test, with a context of at least 32 tokens."""

    prompt: ClassVar[list[int]] = [5, 6, 7]
    """Token ids that the engine accepts."""
    patience: ClassVar[float] = 60.0
    """Seconds after which an engine counts as stuck."""
    long_reply: ClassVar[int] = 24
    """Tokens of a reply that is still in flight when a test does something to the engine."""
    abandoned_reply: ClassVar[int] = 400
    """Tokens of a reply whose caller leaves, as far as the context allows. The test tells more if they take several seconds."""
    tolerance: ClassVar[float] = 1e-2
    """Nats by which two log-probabilities of one token may differ."""

    async def next_policy(self, engine: Engine) -> Policy:
        """Return the policy of the next version. Override it where the engine needs real weights behind it."""
        return structs.replace(engine.policy, version=engine.policy.version + 1)

    # --- replies -------------------------------------------------------------------------------------------------------------------

    async def test_it_describes_what_it_serves(self, engine: Engine) -> None:
        assert engine.info.model
        assert engine.info.context_length >= 32
        assert engine.info.uris
        assert engine.policy.version >= 0

    async def test_every_token_has_a_log_probability_and_the_served_version(self, engine: Engine) -> None:
        reply = await ask(engine, self.prompt, max_tokens=8, seed=1)
        assert 1 <= len(reply.ids) <= 8
        assert set(reply.versions) == {engine.policy.version}
        if reply.logprobs is not None:
            assert all(math.isfinite(logprob) and logprob <= self.tolerance for logprob in reply.logprobs)

    async def test_a_reply_ends_at_max_tokens_and_says_so(self, engine: Engine) -> None:
        stop_ids = (await self._unseen(engine),)
        reply = await ask(engine, self.prompt, max_tokens=4, temperature=0.0, stop_ids=stop_ids)
        assert (len(reply.ids), reply.finish) == (4, "length")

    async def test_a_stop_token_ends_the_reply_and_is_part_of_it(self, engine: Engine) -> None:
        stop_ids = (await self._unseen(engine),)
        greedy = (await ask(engine, self.prompt, max_tokens=8, temperature=0.0, stop_ids=stop_ids)).ids
        stop = greedy[2]
        reply = await ask(engine, self.prompt, max_tokens=8, temperature=0.0, stop_ids=(stop,))
        assert (reply.ids, reply.finish) == (greedy[: greedy.index(stop) + 1], "stop")

    async def test_the_same_seed_gives_the_same_tokens(self, engine: Engine) -> None:
        first, again = [await ask(engine, self.prompt, max_tokens=8, seed=3) for _ in range(2)]
        assert first.ids == again.ids
        assert (first.logprobs is None) == (again.logprobs is None)
        np.testing.assert_allclose(first.logprobs or [], again.logprobs or [], atol=self.tolerance)

    async def test_log_probabilities_of_one_place_are_one_distribution(self, engine: Engine) -> None:
        logprob_of: dict[int, list[float]] = {}
        for seed in range(12):
            reply = await ask(engine, self.prompt, max_tokens=1, seed=seed)
            if reply.logprobs is not None:
                logprob_of.setdefault(reply.ids[0], []).append(reply.logprobs[0])
        assert all(max(logprobs) - min(logprobs) <= self.tolerance for logprobs in logprob_of.values())
        assert sum(math.exp(logprobs[0]) for logprobs in logprob_of.values()) <= 1 + self.tolerance

    # --- requests that cannot be -----------------------------------------------------------------------------------------------------

    async def test_a_prompt_may_fill_the_context_except_for_one_token(self, engine: Engine) -> None:
        longest = (self.prompt * engine.info.context_length)[: engine.info.context_length - 1]
        reply = await ask(engine, longest)
        assert len(reply.ids) == 1
        with refused(ContextOverflow):
            await ask(engine, [*longest, self.prompt[0]])

    async def test_a_request_that_cannot_be_is_refused_and_harms_nobody(self, engine: Engine) -> None:
        with refused(EngineError):
            await ask(engine, [])
        impossible: list[dict[str, Any]] = [{"temperature": -1.0}, {"top_p": 0.0}, {"max_tokens": 0}]
        for sampling in impossible:
            with refused(EngineError):
                await ask(engine, self.prompt, **sampling)
        with refused(EngineError):
            await ask(engine, [2**31 - 1])
        assert (await ask(engine, self.prompt, max_tokens=2)).ids

    # --- many requests -----------------------------------------------------------------------------------------------------------------

    async def test_concurrent_requests_are_all_answered(self, engine: Engine) -> None:
        async with asyncio.timeout(self.patience):
            replies = await asyncio.gather(*(ask(engine, self.prompt * (1 + n % 3), max_tokens=6, seed=n) for n in range(8)))
        assert all(reply.ids for reply in replies)

    async def test_it_is_called_from_two_event_loops(self, engine: Engine) -> None:
        def elsewhere() -> Reply:
            return asyncio.run(ask(engine, self.prompt, max_tokens=4, temperature=0.0))

        async with asyncio.timeout(self.patience):
            remote, local = await asyncio.gather(asyncio.to_thread(elsewhere), ask(engine, self.prompt, max_tokens=4, temperature=0.0))
        assert len(remote.ids) == len(local.ids) > 0

    async def test_closing_the_iterator_frees_its_place(self, engine: Engine) -> None:
        size = min(self.abandoned_reply, engine.info.context_length - len(self.prompt))
        async with asyncio.timeout(self.patience):
            started = time.monotonic()
            await ask(engine, self.prompt, max_tokens=size)
            complete = time.monotonic() - started
            for _ in range(3):
                async with aclosing(_stream(engine, self.prompt, max_tokens=size)) as chunks:
                    async for _chunk in chunks:
                        break
            started = time.monotonic()
            await engine.pause()
            waited = time.monotonic() - started
            assert waited < max(1.0, complete / 2), "a pause waited for replies whose callers have left"
            await engine.resume()
            assert (await ask(engine, self.prompt, max_tokens=2)).ids

    # --- weights -----------------------------------------------------------------------------------------------------------------------

    async def test_pause_finishes_what_is_in_flight(self, engine: Engine) -> None:
        started = asyncio.Event()
        reply = asyncio.ensure_future(ask(engine, self.prompt, max_tokens=self.long_reply, started=started))
        async with asyncio.timeout(self.patience):
            await started.wait()
            await engine.pause()
            await asyncio.sleep(0.02)  # the last chunk is on its way to this loop
            assert reply.done(), "pause returned while a reply was in flight"
            await engine.resume()
        assert reply.result().finish in ("stop", "length")

    async def test_requests_during_a_pause_wait_for_resume(self, engine: Engine) -> None:
        started = asyncio.Event()
        async with asyncio.timeout(self.patience):
            await engine.pause()
            reply = asyncio.ensure_future(ask(engine, self.prompt, max_tokens=2, started=started))
            await asyncio.sleep(0.3)
            assert not started.is_set(), "a request was answered during a pause"
            await engine.resume()
            assert (await reply).ids

    async def test_a_loaded_policy_is_served_and_stamped(self, engine: Engine) -> None:
        policy = await self.next_policy(engine)
        async with asyncio.timeout(self.patience):
            measured = await engine.load(policy)
            reply = await ask(engine, self.prompt, max_tokens=4)
        assert engine.policy.version == policy.version
        assert set(reply.versions) == {policy.version}
        assert all(isinstance(name, str) and math.isfinite(value) for name, value in measured.items())

    # --- the end -----------------------------------------------------------------------------------------------------------------------

    async def test_a_closed_engine_says_so(self, engine: Engine) -> None:
        async with asyncio.timeout(self.patience):
            await engine.close()
            await engine.close()
            with refused(EngineError):
                await ask(engine, self.prompt, max_tokens=2)

    async def _unseen(self, engine: Engine) -> int:
        """Return a token that the first tokens of the greedy reply do not contain, so that nothing ends it early."""
        greedy = (await ask(engine, self.prompt, max_tokens=8, temperature=0.0)).ids
        return next(token for token in range(len(greedy) + 1) if token not in greedy)

"""`agl.rollout`: record an agent outside a training run, in a script, a notebook, or a service in production."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager, closing
from types import TracebackType
from typing import Any

from agentlightning.capture.recorder import Recorder, checked_reward, reward, use
from agentlightning.config.tasks import load_tasks
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError
from agentlightning.runner.runner import keep_lease, worker_name
from agentlightning.runner.served_prompts import fetch_prompts
from agentlightning.runner.shared_stores import LoopThread, shared_store
from agentlightning.types import JSON, LLM, Mode, Reward, Rollout

DEFAULT_STORE = "sqlite:agl.db"


class rollout:  # noqa: N801  # used like a function: `with agl.rollout(task) as r:`
    """Record the block as one rollout of a task.

        with agl.rollout({"question": "2+3?"}) as r:      # or `async with`
            answer = my_agent.invoke(..., config={"callbacks": [LightningCallback()]})
            r.reward(score(answer))

    Spans, rewards and notes go into `store`, an address or a `LightningStore`. The default is `AGL_STORE`, then `./agl.db`.

    Model calls are recorded with their tokens if they go through a gateway of the same store (`agl serve`). Give its address as `gateway`
    or `AGL_GATEWAY`; a store address `http://...` is also its gateway's. Configure the agent's model with `r.llm`. Its `prompt` returns the
    texts that `agl serve RUN` serves.

    An exception in the block closes the attempt as `failed` and propagates. So does a record that could not be stored.

    The attempt renews its lease of `lease` seconds until the block ends. In an `async with`, do not block the event loop for longer.
    """

    def __init__(
        self,
        task: JSON,
        *,
        store: LightningStore | str | None = None,
        gateway: str | None = None,
        model: str = "main",
        mode: Mode = "production",
        lease: float = 300.0,
    ) -> None:
        self._rollout = Rollout(task=load_tasks([task])[0], mode=mode, max_attempts=1)
        self._store = _store_of(store)
        address = gateway or os.environ.get("AGL_GATEWAY") or _gateway_of(self._store)
        self._base_url = "" if address is None else address.rstrip("/").removesuffix("/v1") + "/v1"
        self._model, self._lease = model, lease
        self._thread: LoopThread | None = None
        self._recording = self._record()
        self._recorder: Recorder | None = None
        self._current: AbstractContextManager[Recorder] | None = None

    @property
    def id(self) -> str:
        """The rollout's id, for `agl show`."""
        return self._rollout.id

    @property
    def attempt_id(self) -> str:
        """The attempt's id, for `agl.reward_later`."""
        return self._open().attempt.id

    @property
    def llm(self) -> LLM:
        """Model, address and key for the agent's calls."""
        return self._open().llm

    def reward(self, value: float, *, name: str = "reward", source: str = "agent") -> Reward:
        """`agl.reward`, for this rollout."""
        with use(self._open()):
            return reward(value, name=name, source=source)

    def _open(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError("agl.rollout(...) has not started. Use it as `with agl.rollout(task) as r:`.")
        return self._recorder

    @asynccontextmanager
    async def _record(self) -> AsyncGenerator[Recorder]:
        """Begin the attempt, and finish it after the block."""
        async with shared_store(self._store) as store:
            attempt = await store.begin(self._rollout, worker_name(), lease=self._lease)
            prompts = await fetch_prompts(self._base_url, attempt.key) if self._base_url else {}
            recorder = Recorder(store, self._rollout, attempt, LLM(self._model, self._base_url, attempt.key, prompts=prompts))
            heartbeat = asyncio.create_task(keep_lease(store, attempt.id, self._lease))
            error: BaseException | None = None
            try:
                yield recorder
            except BaseException as raised:
                error = raised
                raise
            finally:
                try:
                    await _finish(recorder, error)
                finally:
                    heartbeat.cancel()

    def __enter__(self) -> rollout:
        self._thread = LoopThread.open()
        try:
            self._enter(self._thread.run(self._recording.__aenter__()))
        except BaseException:
            self._thread.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._thread is not None
        self._leave()
        try:
            self._thread.run(self._recording.__aexit__(kind, error, trace))
        finally:
            self._thread.close()

    async def __aenter__(self) -> rollout:
        self._enter(await self._recording.__aenter__())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()
        await self._recording.__aexit__(kind, error, trace)

    def _enter(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._current = use(recorder)
        self._current.__enter__()

    def _leave(self) -> None:
        if self._current is not None:
            self._current.__exit__(None, None, None)
            self._current = None


def reward_later(
    attempt_id: str, value: float, *, name: str = "reward", source: str = "agent", store: LightningStore | str | None = None
) -> Reward:
    """Reward an attempt after its end, from any process, even a week later.

        agl.reward_later(attempt_id, 1.0, source="customer")      # store `r.attempt_id` with the answer

    Returns when the store has the reward; `store` is as in `agl.rollout`. Raises `RewardError` for a value that is not a finite number, and
    `NotFound` for an attempt of another store.
    """
    record = Reward(attempt_id=attempt_id, value=checked_reward(value), name=name, source=source)

    async def write() -> None:
        async with shared_store(_store_of(store)) as opened:
            await opened.record([record])

    with closing(LoopThread.open()) as thread:
        thread.run(write())
    return record


async def _finish(recorder: Recorder, error: BaseException | None) -> None:
    """Close an attempt with the error of its block. Raises the error of a lost record, or adds it to the block's."""
    lost: Exception | None = None
    try:
        await recorder.close()
    except Exception as raised:
        lost = raised
    reason = "; ".join(f"{type(raised).__name__}: {raised}" for raised in (error, lost) if raised is not None)
    await recorder.store.finish(recorder.attempt.id, "failed" if reason else "succeeded", error=reason or None)
    if lost is not None:
        if error is None:
            raise lost
        error.add_note(str(lost))


def _store_of(store: Any) -> LightningStore | str:
    if not isinstance(store, str | LightningStore | None):
        raise ConfigError(f"store is {store!r:.80}. Use a store's address ('sqlite:agl.db', 'http://host:8000') or an open store.")
    return store or os.environ.get("AGL_STORE") or DEFAULT_STORE


def _gateway_of(store: LightningStore | str) -> str | None:
    """The gateway of a store behind `agl serve`: the same address."""
    if not isinstance(store, str) or not store.startswith(("http://", "https://")):
        return None
    scheme, _, rest = store.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

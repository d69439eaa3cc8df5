"""`agl.rollout`: record an agent outside a training run, in a script, a notebook, or a service in production."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

from agentlightning.capture.recorder import Recorder, checked_reward, reward, use
from agentlightning.config.tasks import load_tasks
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError, LeaseLost, StoreError
from agentlightning.runner.runner import worker_name
from agentlightning.stores.common import open_store
from agentlightning.types import JSON, LLM, Mode, Reward, Rollout

log = logging.getLogger(__name__)
T = TypeVar("T")
DEFAULT_STORE = "sqlite:agl.db"


class rollout:  # noqa: N801  # used like a function: `with agl.rollout(task) as r:`
    """Record the block as one rollout of a task.

        with agl.rollout({"question": "2+3?"}) as r:      # or `async with`
            answer = my_agent.invoke(..., config={"callbacks": [LightningCallback()]})
            r.reward(score(answer))

    Spans, rewards and notes go into `store`, an address or a `LightningStore`. The default is `AGL_STORE`, then `./agl.db`.

    Model calls are recorded with their tokens if they go through a gateway of the same store (`agl serve`). Give its address as `gateway`
    or `AGL_GATEWAY`; a store address `http://...` is also its gateway's. Configure the agent's model with `r.llm`.

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
        self._gateway = gateway or os.environ.get("AGL_GATEWAY") or _gateway_of(self._store)
        self._model, self._lease = model, lease
        self._thread: _LoopThread | None = None
        self._opened: LightningStore | None = None
        self._recorder: Recorder | None = None
        self._current: AbstractContextManager[Recorder] | None = None
        self._heartbeat: asyncio.Task[None] | None = None

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

    async def _begin(self) -> Recorder:
        if isinstance(self._store, str):
            self._opened = store = open_store(self._store)
        else:
            store = self._store
        attempt = await store.begin(self._rollout, worker_name(), lease=self._lease)
        base_url = "" if self._gateway is None else self._gateway.rstrip("/").removesuffix("/v1") + "/v1"
        self._recorder = Recorder(store, self._rollout, attempt, LLM(self._model, base_url, attempt.key))
        self._heartbeat = asyncio.create_task(self._hold(store, attempt.id))
        return self._recorder

    async def _hold(self, store: LightningStore, attempt_id: str) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            try:
                await store.heartbeat(attempt_id, lease=self._lease)
            except LeaseLost:
                return  # closing the attempt reports it
            except StoreError as error:
                log.warning("The lease of attempt %s could not be extended; trying again. %s", attempt_id, error)

    async def _end(self, error: BaseException | None) -> None:
        recorder = self._open()
        lost: Exception | None = None
        try:
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
        finally:
            if self._heartbeat is not None:
                self._heartbeat.cancel()
                await asyncio.gather(self._heartbeat, return_exceptions=True)
            if self._opened is not None:
                await self._opened.close()

    def __enter__(self) -> rollout:
        self._thread = _LoopThread()
        try:
            self._enter(self._thread.run(self._begin()))
        except BaseException:
            self._thread.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._thread is not None
        self._leave()
        try:
            self._thread.run(self._end(error))
        finally:
            self._thread.close()

    async def __aenter__(self) -> rollout:
        self._enter(await self._begin())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()
        await self._end(error)

    def _enter(self, recorder: Recorder) -> None:
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
        where = _store_of(store)
        opened = open_store(where) if isinstance(where, str) else where
        try:
            await opened.record([record])
        finally:
            if isinstance(where, str):
                await opened.close()

    thread = _LoopThread()
    try:
        thread.run(write())
    finally:
        thread.close()
    return record


def _store_of(store: Any) -> LightningStore | str:
    if not isinstance(store, str | LightningStore | None):
        raise ConfigError(f"store is {store!r:.80}. Use a store's address ('sqlite:agl.db', 'http://host:8000') or an open store.")
    return store or os.environ.get("AGL_STORE") or DEFAULT_STORE


class _LoopThread:
    """An event loop in a thread, for synchronous callers."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agentlightning-rollout", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _gateway_of(store: LightningStore | str) -> str | None:
    """The gateway of a store behind `agl serve`: the same address."""
    if not isinstance(store, str) or not store.startswith(("http://", "https://")):
        return None
    scheme, _, rest = store.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

"""Claims rollouts, runs the agent, reports. CPU work, on any machine that reaches the store and the gateway.

Every claimed attempt is closed with a status. If the agent raises, hangs, or returns no reward, the attempt fails, and the failure policy
decides about a retry. Nothing recorded is lost.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import logging
import os
import socket
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from agentlightning.capture.recorder import Recorder, checked_reward, use
from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import AgentError, AgentTimeout, ConfigError, LeaseLost, StoreError
from agentlightning.registry.registry import registry
from agentlightning.rl.trajectory.rollout_reward import rollout_reward
from agentlightning.types import JSON, LLM, Attempt, AttemptStatus, Reward, Rollout

log = logging.getLogger(__name__)
Agent = Callable[..., Any]
"""Called with the task's input, and with an `LLM` if it takes a second argument; sync or async. Returns the reward, or None."""


def worker_name() -> str:
    """Unique among the runners of a store."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Runner:
    """Keeps up to `concurrency` rollouts of a store running."""

    def __init__(
        self,
        store: LightningStore,
        agent: Agent,
        llm: Callable[[Attempt], LLM],
        settings: RunnerSettings,
        *,
        name: str | None = None,
    ) -> None:
        self.store, self.settings = store, settings
        self.name = name or worker_name()
        self.abandoned = 0
        """Threads of synchronous agents that run on after their timeout."""
        self._agent, self._takes_llm = agent, takes_llm(agent)
        self._llm = llm
        self._running: set[asyncio.Task[None]] = set()
        self._broken: list[BaseException] = []

    @property
    def running(self) -> int:
        """The number of running rollouts."""
        return len(self._running)

    async def run(self) -> None:
        """Claim and run until cancelled; then close the running attempts as `cancelled`."""
        try:
            cursor = 0
            while True:
                if self._broken:
                    raise self._broken[0]
                free = self.settings.concurrency - len(self._running)
                claimed = await self.store.claim(self.name, lease=self.settings.lease, limit=free) if free else []
                for rollout, attempt in claimed:
                    task = asyncio.create_task(self._attempt(rollout, attempt), name=f"attempt-{attempt.id}")
                    self._running.add(task)
                    task.add_done_callback(self._ended)
                if not claimed:
                    cursor = await self._something_new(cursor)
        finally:
            running = list(self._running)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken.append(error)  # the store refused to close an attempt, and nobody else reports it

    async def _something_new(self, cursor: int) -> int:
        """Wait until the store changed, one of our rollouts ended, or a lease may have expired."""
        change = asyncio.create_task(self.store.wait(cursor, timeout=self.settings.lease / 4))
        try:
            await asyncio.wait([change, *self._running], return_when=asyncio.FIRST_COMPLETED)
            return change.result() if change.done() else cursor
        finally:
            if not change.done():
                change.cancel()

    async def _attempt(self, rollout: Rollout, attempt: Attempt) -> None:
        recorder = Recorder(self.store, rollout, attempt, self._llm(attempt))
        registry().hook.rollout_started(rollout=rollout)
        status: AttemptStatus
        heartbeat = asyncio.create_task(self._heartbeat(attempt, asyncio.current_task()))
        error: str | None = None
        try:
            with use(recorder):
                # a copy: an agent may change its task, but not its group's
                result = await self._call(copy.deepcopy(rollout.task.input), recorder.llm)
            if result is not None:
                recorder.add(Reward(attempt_id=attempt.id, value=checked_reward(result), name="return"))
            await recorder.flush()
            rollout_reward(recorder.rewards, status="succeeded")  # raises if two rewards contradict each other
            status = "succeeded"
        except asyncio.CancelledError as raised:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                status, error = "cancelled", "the runner was stopped"
            else:  # the agent's framework raised it; nobody cancelled this task
                status, error = "failed", _explain(raised)
        except AgentTimeout as timeout:
            status, error = "timed_out", str(timeout)
        except AgentError as wrong:
            status, error = "failed", str(wrong)
        except (Exception, SystemExit) as raised:
            status, error = "failed", _explain(raised)
        finally:
            heartbeat.cancel()
        try:
            await self._close(rollout, attempt, recorder, status, error)
        except LeaseLost:
            return  # another runner has it now; the records of this attempt stay

    async def _close(self, rollout: Rollout, attempt: Attempt, recorder: Recorder, status: AttemptStatus, error: str | None) -> None:
        failed = status in ("failed", "timed_out")
        penalised = failed and self.settings.on_failure == "penalise" and not await self._infrastructure(attempt)
        try:
            if penalised:
                recorder.add(Reward(attempt_id=attempt.id, value=self.settings.penalty, name="penalty", source="runner"))
            await recorder.close()
        except Exception as raised:  # the store failed, whatever the agent did
            status, failed, penalised = "failed", True, False
            error = "; ".join(filter(None, (error, _explain(raised))))
        retry = status == "cancelled" or (failed and not penalised and self.settings.on_failure != "drop")
        state = await self.store.finish(attempt.id, status, error=error, retry=retry)
        registry().hook.rollout_finished(state=state)

    async def _infrastructure(self, attempt: Attempt) -> bool:
        """Whether a model call failed in the engine or the gateway: then the agent is not to blame."""
        records = await self.store.records(attempt.id)
        retried = {call.supersedes for call in records.calls}
        return any(call.status == "error" and call.id not in retried for call in records.calls)

    async def _heartbeat(self, attempt: Attempt, task: asyncio.Task[Any] | None) -> None:
        await keep_lease(self.store, attempt.id, self.settings.lease)
        if task is not None:
            task.cancel()

    async def _call(self, task_input: JSON, llm: LLM) -> Any:
        arguments = (task_input, llm) if self._takes_llm else (task_input,)
        if not is_async(self._agent):
            return await self._in_thread(functools.partial(self._agent, *arguments))
        limit = asyncio.timeout(self.settings.timeout)
        try:
            async with limit:
                return await self._agent(*arguments)
        except TimeoutError as error:
            if limit.expired():
                raise self._timeout(error.__cause__) from error
            raise

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Run a synchronous agent in its own thread: one that hangs must not block a pool."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # a timeout abandons the thread, and cannot cancel it
        context = contextvars.copy_context()

        def body() -> None:
            try:
                future.set_result(context.run(call))
            except (StopIteration, KeyboardInterrupt) as raised:  # a future cannot hold these
                future.set_exception(AgentError(f"{type(raised).__name__}: {raised}"))
            except BaseException as raised:
                future.set_exception(raised)

        threading.Thread(target=body, name="agentlightning-agent", daemon=True).start()
        result = asyncio.wrap_future(future)
        try:
            return await asyncio.wait_for(result, self.settings.timeout)
        except TimeoutError as error:
            if result.cancelled():
                self.abandoned += 1
                raise self._timeout() from error
            raise

    def _timeout(self, cancelled: BaseException | None = None) -> AgentTimeout:
        """The error of a timeout, with the notes of the agent's cancellation."""
        text = (
            f"The agent did not return within {self.settings.timeout:g} s. Raise runner.timeout, or find out with `agl show` why it hangs."
        )
        return AgentTimeout(" ".join([text, *getattr(cancelled, "__notes__", ())]))


async def keep_lease(store: LightningStore, attempt_id: str, lease: float) -> None:
    """Extend an attempt's lease of `lease` seconds again and again. Returns when the attempt is no longer running."""
    while True:
        await asyncio.sleep(lease / 3)
        try:
            await store.heartbeat(attempt_id, lease=lease)
        except LeaseLost:
            return
        except StoreError as error:
            log.warning("The lease of attempt %s could not be extended; trying again. %s", attempt_id, error)


def takes_llm(agent: Agent) -> bool:
    """Whether the agent takes `(task, llm)`, not `(task)`. Raises `ConfigError` if it takes neither."""
    try:
        signature = inspect.signature(agent)
    except (TypeError, ValueError):
        return True
    for arguments in ((0, 0), (0,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise ConfigError(f"The agent {getattr(agent, '__qualname__', agent)!r} takes {signature}. Expected (task, llm) or (task) alone.")


def is_async(agent: Agent) -> bool:
    """Whether calling the agent returns an awaitable."""
    while isinstance(agent, functools.partial):
        agent = agent.func
    return inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(getattr(agent, "__call__", None))  # noqa: B004


def _explain(error: BaseException) -> str:
    """The error and its line in the user's own code, for `agl show`."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    own = [frame for frame in frames if "site-packages" not in frame.filename and "agentlightning" not in frame.filename]
    if own and own[-1] is not frames[-1]:
        where = f" at {own[-1].filename}:{own[-1].lineno}{' (in ' + frames[-1].filename + ')'}"
    return f"{type(error).__name__}: {error}{where}"

"""Claims rollouts, runs the agent, reports. CPU work, on any machine that reaches the store and the gateway.

Every claimed attempt is closed with a status. If the agent raises, hangs, or returns no reward, the attempt fails, and the failure policy
decides about a retry. Nothing recorded is lost.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from agentlightning.capture.recorder import Recorder, checked_reward, use
from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import AgentError, AgentTimeout, LeaseLost, StoreError
from agentlightning.registry.registry import registry
from agentlightning.rl.trajectory.rollout_reward import rollout_reward
from agentlightning.runner.agent_call import Agent, AgentCall, Outcome, explain, message_of, takes_llm
from agentlightning.runner.isolation import STOPPED, Claims
from agentlightning.runner.retry import NOTE, Failure, why_not_again
from agentlightning.telemetry.logs import set_log_ids
from agentlightning.types import LLM, Attempt, AttemptStatus, Reward, Rollout

log = logging.getLogger(__name__)


NO_GATEWAY = "The gateway did not answer, so this attempt does not count."
"""Begins the error of an attempt that ended while the gateway was away."""


def worker_name() -> str:
    """Unique among the runners of a store."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Runner:
    """Keeps up to `concurrency` rollouts of a store running."""

    GRACE = 5.0
    """Seconds for a stopped agent to end. Then it is abandoned."""
    LOOK = 0.5
    """Seconds between two looks for cancelled rollouts."""
    START_TIME = 0.05
    """Seconds that the first instructions of an agent may take, such as building an SDK's client."""
    START_SHARE = 0.01
    """The part of an agent's timeout that the first instructions of others may use up."""

    def __init__(
        self,
        store: LightningStore,
        agent: Agent,
        llm: Callable[[Attempt], LLM],
        settings: RunnerSettings,
        *,
        name: str | None = None,
        recycled: bool = False,
        gateway_answers: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """`recycled`: `run` returns when an agent was abandoned and the other rollouts have ended, so that a new process can replace it.
        `gateway_answers`: for a gateway that may die while the runner lives."""
        self.store, self.settings = store, settings
        self.name = name or worker_name()
        self.abandoned = 0
        """Agents that run on after their timeout or cancellation, in a task or a thread."""
        self._recycled = recycled
        self._gateway_answers = gateway_answers
        self._gateway_lost = False
        self._starts = asyncio.Semaphore(max(1, int(self.START_SHARE * settings.timeout / self.START_TIME)))
        """Agents whose first instructions run in a row."""
        self._agent, self._takes_llm = agent, takes_llm(agent)
        self._llm = llm
        self._running: set[asyncio.Task[None]] = set()
        self._cursor = 0
        self._change: asyncio.Task[int] | None = None
        self._broken: list[BaseException] = []

    @property
    def running(self) -> int:
        """The number of running rollouts."""
        return len(self._running)

    async def run(self) -> None:
        """Claim and run until cancelled; then close the running attempts as `cancelled`."""
        watch = asyncio.create_task(self._stop_cancelled())
        claims = Claims(self.store, self.name, lease=self.settings.lease, concurrency=self.settings.concurrency)
        try:
            while True:
                if self._broken:
                    raise self._broken[0]
                if self._gateway_lost:
                    await self._find_gateway()
                retired = self._recycled and self.abandoned > 0
                if retired and not self._running:
                    return
                claimed = [] if retired else await claims.next(len(self._running))
                for rollout, attempt in claimed:
                    task = asyncio.create_task(self._attempt(rollout, attempt), name=f"attempt-{attempt.id}")
                    self._running.add(task)
                    task.add_done_callback(self._ended)
                if not claimed:
                    await self._something_new()
        finally:
            running: list[asyncio.Task[Any]] = [watch, *self._running, *([self._change] if self._change is not None else [])]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self._change = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken.append(error)  # the store refused to close an attempt, and nobody else reports it

    async def _something_new(self) -> None:
        """Wait until a rollout was queued, one of ours ended, or a lease may have expired. The wait for the store goes on meanwhile,
        because a poll over HTTP that is cancelled costs a connection."""
        if self._change is None:
            self._change = asyncio.create_task(self.store.wait(self._cursor, timeout=self.settings.lease / 4, status=["queued"]))
        await asyncio.wait([self._change, *self._running], return_when=asyncio.FIRST_COMPLETED)
        if self._change.done():
            change, self._change = self._change, None
            self._cursor = change.result()

    async def _attempt(self, rollout: Rollout, attempt: Attempt) -> None:
        set_log_ids(rollout_id=rollout.id, attempt_id=attempt.id)
        recorder = Recorder(self.store, rollout, attempt, self._llm(attempt))
        registry().hook.rollout_started(rollout=rollout)
        heartbeat = asyncio.create_task(self._heartbeat(attempt, asyncio.current_task()))
        try:
            end = await self._run_agent(recorder)
        except asyncio.CancelledError as cancelled:
            self.abandoned += sum(outcome.abandoned for outcome in cancelled.args if isinstance(outcome, Outcome))
            end = _End(status="cancelled", text=STOPPED)
        except (Exception, GeneratorExit) as raised:  # the runner's own, of a record or a reward
            end = _End(status="failed", text=str(raised) if isinstance(raised, AgentError) else explain(raised), error=raised)
        finally:
            heartbeat.cancel()
        try:
            await self._close(recorder, end)
        except LeaseLost:
            return  # another runner has it now; the records of this attempt stay

    async def _run_agent(self, recorder: Recorder) -> _End:
        """Run the agent to its end and judge it. Raises what the runner itself finds wrong."""
        task_input = copy.deepcopy(recorder.rollout.task.input)  # an agent may change its task, but not its group's
        await self._starts.acquire()  # its first instructions may build a client; those of many agents in a row use up its timeout
        try:
            with use(recorder):
                call = AgentCall(self._agent, (task_input, recorder.llm) if self._takes_llm else (task_input,))
        finally:
            asyncio.get_running_loop().call_soon(self._starts.release)  # after those instructions
        outcome = await call.wait(self.settings.timeout, self.GRACE)
        self.abandoned += outcome.abandoned
        if outcome.timed_out:
            return _End(status="timed_out", text=self._late(outcome.error), error=outcome.error)
        error = outcome.error
        if error is not None:
            text = message_of(error) if isinstance(error, AgentError) else explain(error)
            return _End(status="timed_out" if isinstance(error, AgentTimeout) else "failed", text=text, error=error)
        if outcome.value is not None:
            recorder.add(Reward(attempt_id=recorder.attempt.id, value=checked_reward(outcome.value), name="return"))
        await recorder.flush()
        rollout_reward(recorder.rewards, status="succeeded")  # raises if two rewards contradict each other
        return _End(status="succeeded")

    def _late(self, raised: BaseException | None) -> str:
        """The text of a timeout, with the notes of the agent's cancellation."""
        text = (
            f"The agent did not return within {self.settings.timeout:g} s. Raise runner.timeout, or find out with `agl show` why it hangs."
        )
        return " ".join([text, *getattr(raised, "__notes__", ())])

    async def _close(self, recorder: Recorder, end: _End) -> None:
        attempt, policy = recorder.attempt, self.settings.on_failure
        if end.status in ("failed", "timed_out") and not await self._has_gateway():
            self._gateway_lost = True
            end = _End(status="cancelled", text=f"{NO_GATEWAY} {end.text}")
        retry = end.status == "cancelled"
        try:
            if end.status in ("failed", "timed_out"):
                failure = await self._failure(attempt, end)
                if policy == "penalise" and not failure.infrastructure:
                    recorder.add(Reward(attempt_id=attempt.id, value=self.settings.penalty, name="penalty", source="runner"))
                elif policy != "drop":
                    reason = why_not_again(failure)
                    retry = reason is None
                    end = replace(end, text=f"{end.text}{NOTE}{reason}." if reason else end.text)
            await recorder.close()
        except Exception as raised:  # the store failed, whatever the agent did
            end = _End(status="failed", text="; ".join(filter(None, (end.text, explain(raised)))))
            retry = policy != "drop"
        state = await self.store.finish(attempt.id, end.status, error=end.text, retry=retry)
        log.info("Attempt %d ended as %s%s", attempt.number, end.status, f": {end.text}" if end.text else ".")
        registry().hook.rollout_finished(state=state)

    async def _find_gateway(self) -> None:
        """Wait until the gateway answers. Rollouts that start meanwhile would fail."""
        log.warning("The gateway does not answer. New rollouts wait until it does.")
        while self._gateway_lost:
            await asyncio.sleep(self.LOOK)
            self._gateway_lost = not await self._has_gateway()
        log.warning("The gateway answers again.")

    async def _has_gateway(self) -> bool:
        return self._gateway_answers is None or await self._gateway_answers()

    async def _failure(self, attempt: Attempt, end: _End) -> Failure:
        """What `why_not_again` wants to know of a failed attempt."""
        calls = (await self.store.records(attempt.id)).calls
        earlier: tuple[Attempt, ...] = ()
        if attempt.number > 1:
            state, _ = await self.store.read(attempt.rollout_id)
            earlier = tuple(other for other in state.attempts if other.number < attempt.number)
        return Failure(status=end.status, text=end.text, error=end.error, calls=calls, earlier=earlier)

    async def _heartbeat(self, attempt: Attempt, task: asyncio.Task[Any] | None) -> None:
        await keep_lease(self.store, attempt.id, self.settings.lease)
        if task is not None:
            task.cancel()

    async def _stop_cancelled(self) -> None:
        """Stop the agents of rollouts that somebody cancelled in the store."""
        last = await self.store.wait(0, timeout=0)
        while True:
            try:
                seq = await self.store.wait(last, timeout=self.settings.lease, status=["cancelled"])
                states, last = await self.store.list(after=last, limit=1000, status=["cancelled"], order="changed")
                last = last if len(states) == 1000 else max(last, seq)
            except StoreError as error:
                log.debug("The cancelled rollouts cannot be read; trying again. %s", error)
                states = []
            names = {f"attempt-{attempt.id}" for state in states for attempt in state.attempts}
            for task in self._running:
                if task.get_name() in names:
                    task.cancel()
            await asyncio.sleep(self.LOOK)


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How an attempt ended."""

    status: AttemptStatus
    text: str | None = None
    error: BaseException | None = None


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

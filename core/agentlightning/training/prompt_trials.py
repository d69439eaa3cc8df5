"""Rollouts with other prompts, and questions to the model that reflects on them, for an algorithm that optimises prompts.

A reflection is a rollout of the store, in mode `production`, so that `agl show` has its question and its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from agentlightning.algorithms.base import PromptTrials, Reflection, Trial
from agentlightning.config.endpoint import ReflectionSettings
from agentlightning.config.samplers import Sampler
from agentlightning.errors import EngineError
from agentlightning.runner.runner import keep_lease
from agentlightning.training.endpoint import Endpoint, Failed, Reply, check_status, reply_of
from agentlightning.training.services import Services
from agentlightning.training.step_checks import StepChecks
from agentlightning.types import Rollout, Span, Task, Trajectory

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before another request after a failed one."""
LEASE = 60.0
"""Seconds of a reflection's lease."""


class RunTrials(PromptTrials):
    """The trials of a run."""

    def __init__(self, services: Services, sampler: Sampler, tasks: Sequence[Task], tasks_per_step: int, checks: StepChecks) -> None:
        self._services, self._sampler, self.tasks, self.tasks_per_step, self._checks = services, sampler, tasks, tasks_per_step, checks
        self.seed, self.prompts = services.rollouts.seed, services.rollouts.prompts

    def next_tasks(self) -> list[Task]:
        return self._sampler.next(self.tasks_per_step)

    async def try_prompts(self, step: int, name: str, tasks: Sequence[Task], prompts: dict[str, str], group_size: int) -> list[Trial]:
        await self._services.clear_cache()
        settings = self._services.rollouts.with_prompts(prompts)
        rollouts = [
            settings.rollout(task, "train", f"{name}-{step}-{place}", index, step)
            for place, task in enumerate(tasks)
            for index in range(group_size)
        ]
        self._services.controls.progress.phase("rollouts")
        trajectories = await self._services.collector.run(rollouts)
        if step == 0 and prompts == self.prompts:  # an agent that fails with a proposal only shows that the proposal is bad
            self._checks.first(trajectories)
        return [await self._trial(trajectory) for trajectory in trajectories]

    async def _trial(self, trajectory: Trajectory) -> Trial:
        state, attempts = await self._services.store.read(trajectory.rollout_id)
        return Trial(trajectory, state, next((records for records in attempts if records.attempt.id == trajectory.attempt_id), None))

    async def reflect(self, step: int, prompt: str, settings: ReflectionSettings | None, max_tokens: int) -> Reflection:
        self._services.controls.progress.phase("reflecting")
        store = self._services.store
        rollout = Rollout(task=Task(f"reflection-{step + 1}", {"reflection": prompt}), mode="production", max_attempts=1)
        attempt = await store.begin(rollout, "reflection", lease=LEASE)
        heartbeat = asyncio.create_task(keep_lease(store, attempt.id, LEASE))
        error: str | None = "stopped"
        try:
            if settings is None:  # the gateway records the call
                llm = self._services.llm(attempt)
                own = ReflectionSettings(base_url=llm.base_url, model=llm.model, timeout=3600.0, retries=2)
                reply = await _ask(own, llm.api_key, self._body(step, prompt, max_tokens))
            else:
                reply = await _ask(settings, settings.key(), self._body(step, prompt, max_tokens))
                answer: dict[str, Any] = {"input": prompt, "output": reply.text}
                await store.record([Span(attempt_id=attempt.id, kind="note", name=f"reflection by {settings.model}", attributes=answer)])
            error = None
        except Exception as raised:
            error = str(raised)
            raise
        finally:
            heartbeat.cancel()
            await store.finish(attempt.id, "failed" if error else "succeeded", error=error)
        return Reflection(reply.text, reply.tokens or 0)

    def _body(self, step: int, prompt: str, max_tokens: int) -> dict[str, Any]:
        seed = (self.seed * 1_000_003 + step) % 2**31
        return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "seed": seed}


async def _ask(settings: ReflectionSettings, key: str | None, body: dict[str, Any]) -> Reply:
    """Ask until the endpoint answers. Raises `EngineError` if it fails again and again, or refuses the request."""
    pause, failure = FIRST_PAUSE, ""
    async with AsyncExitStack() as exits:
        endpoint = Endpoint(settings, key)
        exits.push_async_callback(endpoint.close)
        for attempt in range(settings.retries + 1):
            try:
                answer = await endpoint.post(body)
                check_status(answer)
                if not answer.is_success:
                    raise EngineError(
                        f"The reflection model at {settings.base_url} refused the request with HTTP {answer.status_code}: "
                        f"{endpoint.public(answer.text)[:200]}. Check algorithm.reflection, and lower algorithm.trace_characters if the "
                        "request is too long for the model."
                    )
                return reply_of(answer)
            except Failed as error:
                failure = endpoint.public(str(error))
                if attempt < settings.retries:
                    await asyncio.sleep(min(error.pause or pause, LONGEST_PAUSE))
                    pause *= 2
    raise EngineError(
        f"The reflection model at {settings.base_url} does not answer after {settings.retries + 1} requests: {failure}. Start it, or check "
        "algorithm.reflection; then resume the run."
    )

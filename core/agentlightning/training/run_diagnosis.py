"""The diagnosis of a run under way: what it measures of each step, and what it tells the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np

from agentlightning.contracts.store import LightningStore
from agentlightning.gateway.conversation import text_of
from agentlightning.training.diagnose import ANNOUNCED, REPLY_CAUSES, diagnose
from agentlightning.training.progress import Progress
from agentlightning.training.rollouts import mean_reward
from agentlightning.training.run_state import RunState
from agentlightning.training.step_history import Facts
from agentlightning.types import Completion, Trajectory

REPLIES = 2
REPLY_CHARACTERS = 80
"""Of the start of a reply. The format of an answer shows in it, and two of them stay readable."""


class RunDiagnosis:
    """Diagnoses a run after each step."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        facts: Callable[[RunState], Facts],
        agents: Sequence[str] | None,
        store: LightningStore,
        progress: Progress,
    ) -> None:
        """`rows`: of the steps before, for a resumed run. `agents`: names or patterns of the agents in training; None: all."""
        self._rows, self._facts, self._agents = list(rows), facts, agents
        self._store, self._progress = store, progress
        self._trajectories: Sequence[Trajectory] = ()

    def measure(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Keep the trajectories of a step, and return its metrics that only a diagnosis needs."""
        self._trajectories = trajectories
        return learning_metrics(trajectories, self._agents)

    async def after(self, state: RunState, row: dict[str, Any]) -> RunState:
        """Return the state of the run with its diagnosis after a step, and name the cause in `row`. Tell the user if it is another one."""
        if state.search is not None:  # the causes are those of training
            return state
        self._rows.append(row)
        diagnosis = diagnose(self._rows, self._facts(state))
        if diagnosis is not None:
            row["diagnosis"] = diagnosis.cause
            if diagnosis.cause in REPLY_CAUSES:
                diagnosis = replace(diagnosis, evidence=diagnosis.evidence + await self._replies())
        before = None if state.diagnosis is None else state.diagnosis.cause
        changed = diagnosis is not None and diagnosis.cause not in (before, *ANNOUNCED)
        self._progress.diagnosis(None if diagnosis is None else diagnosis.text, changed=changed)
        return replace(state, diagnosis=diagnosis)

    async def _replies(self) -> str:
        """A sentence with the starts of the last replies of two rollouts."""
        starts = list[str]()
        for trajectory in self._trajectories:
            if trajectory.transitions and len(starts) < REPLIES:
                _, attempts = await self._store.read(trajectory.rollout_id)
                last = trajectory.transitions[-1].completion_id
                completions = [completion for attempt in attempts for completion in attempt.completions if completion.id == last]
                starts += [repr(_text(completion)[:REPLY_CHARACTERS]) for completion in completions]
        return f" Replies begin with {' and '.join(starts)}." if starts else ""


def _text(completion: Completion) -> str:
    """The text of a reply, or its tool calls."""
    message = cast("dict[str, Any] | None", completion.message) or {}
    calls = [f"{call['function']['name']}({call['function'].get('arguments')})" for call in message.get("tool_calls") or ()]
    return " ".join([text_of(message.get("content")), *calls]).strip()


def learning_metrics(trajectories: Sequence[Trajectory], agents: Sequence[str] | None) -> dict[str, float]:
    """Return the metrics of a step that show why it taught nothing. Demonstrations do not count. `agents`: as in the config."""
    replies = [reply for trajectory in trajectories for reply in trajectory.transitions if not reply.demonstrated]
    row: dict[str, float] = _rewards(trajectories)
    if replies:
        row["truncated_fraction"] = sum(reply.truncated for reply in replies) / len(replies)
    cut = [trajectory for trajectory in trajectories if any(reply.truncated and not reply.demonstrated for reply in trajectory.transitions)]
    if (reward := mean_reward(cut)) is not None:
        row["truncated_reward"] = reward
    tokens = sum(len(reply.response_ids) for reply in replies)
    if agents is not None and tokens:
        own = [reply for reply in replies if reply.agent is not None and any(fnmatchcase(reply.agent, name) for name in agents)]
        row["agent_fraction"] = sum(len(reply.response_ids) for reply in own) / tokens
    offers = sum(trajectory.tool_offers for trajectory in trajectories)
    if offers:
        row |= {"tool_offers": offers, "tool_uses": sum(trajectory.tool_uses for trajectory in trajectories)}
    return row


def _rewards(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The lowest and the highest reward, and the mean reward of the groups whose rewards are all equal."""
    groups: dict[str, list[float]] = {}
    for trajectory in trajectories:
        if trajectory.reward is not None and not any(reply.demonstrated for reply in trajectory.transitions):
            groups.setdefault(trajectory.group, []).append(trajectory.reward)
    rewards = [reward for group in groups.values() for reward in group]
    equal = [float(np.mean(group)) for group in groups.values() if len(group) > 1 and max(group) == min(group)]
    row = {"reward_min": min(rewards), "reward_max": max(rewards)} if rewards else {}
    return row | ({"zero_variance_reward": float(np.mean(equal))} if equal else {})

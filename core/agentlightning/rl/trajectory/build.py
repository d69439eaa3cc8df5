"""What one attempt's records say to the learner. Pure: the same records give the same trajectory, and nothing is changed (law 1).

Every request ends as transitions, one for each choice, or is counted under its status (`Trajectory.calls`; the sum is the number of
requests). Every sampled token is in a trained transition, in one whose `reason` says why not, or in a diagnostic (law 2).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, cast

import numpy as np
from msgspec.structs import replace

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import ConfigError, JoinError, LightningError, NotFound
from agentlightning.registry.registry import unknown
from agentlightning.rl.trajectory.joins import NEVER_ARRIVED, Tree, join
from agentlightning.rl.trajectory.reward_targets import RewardTargets
from agentlightning.rl.trajectory.rollout_reward import check_finite, rollout_reward
from agentlightning.rl.trajectory.step_rewards import StepReward
from agentlightning.types import AttemptStatus, Call, Completion, Reward, Trajectory, Transition, is_greedy

log = logging.getLogger(__name__)

UNJOINED = "not joined: no span says which agent made this call"
"""Reason of a transition whose agent is unknown while agents are selected."""


def trajectory(
    state: RolloutState,
    records: Sequence[AttemptRecords],
    *,
    agents: Sequence[str] | None = None,
    reward_weights: Mapping[str, float] | None = None,
    step_rewards: Sequence[StepReward] = (),
) -> Trajectory:
    """Build the trajectory of the rollout's winning attempt. Of the other attempts, only the requests are counted.

    `agents`: names or patterns (`fnmatch`) of the agents to train; None: all. `reward_weights`: see `rollout_reward`. `step_rewards`: the
    step signals to look for, and what each earns.

    Raises `LightningError` while the rollout has not ended, `NotFound` if the winning attempt's records are missing, and `RewardError` for
    rewards that are not finite or contradict each other, and for a step signal that fails.
    """
    winner = state.winner
    if winner is None and state.status not in ("failed", "cancelled"):
        raise LightningError(f"Rollout {state.rollout.id} is {state.status}. Wait until it has ended to read its trajectory.")
    if winner is None or winner.status == "lost":  # cancelled before it was claimed, or no attempt came back
        status: AttemptStatus = winner.status if winner else "cancelled" if state.status == "cancelled" else "failed"
        bare = _bare(state, winner.id if winner else "", status, f"not scored: no attempt was completed ({status})")
        return replace(bare, other_calls=sum(len(attempt.calls) for attempt in records))
    won = next((attempt for attempt in records if attempt.attempt.id == winner.id), None)
    if won is None:
        raise NotFound(f"Rollout {state.rollout.id} has no records of its winning attempt {winner.id}. Pass the records of all attempts.")
    check_finite(won.rewards)
    of_rollout = tuple(r for r in won.rewards if r.span_id is None and r.call_id is None)
    reward, notes = rollout_reward(of_rollout, status=winner.status, weights=reward_weights)
    reading = _Reading(won, agents)
    transitions = reading.transitions(step_rewards)
    if reward is None and len(of_rollout) < len(won.rewards):
        notes.append("the rewards of its spans alone score it only with the credit `per_step` and rollout_weight = 0")
    return replace(
        _bare(state, winner.id, winner.status, *notes, *reading.diagnostics),
        reward=reward,
        rewards=of_rollout,
        transitions=transitions,
        calls=reading.counts(),
        other_calls=sum(len(attempt.calls) for attempt in records if attempt is not won),
        contexts=reading.contexts(),
        broken_calls=reading.broken_calls(transitions),
        tool_offers=len(reading.offering_calls()),
        tool_uses=sum(reading.used_tool(call) for call in reading.offering_calls()),
    )


def leave_out(trajectory: Trajectory, why: Callable[[Transition], str | None]) -> Trajectory:
    """Return the trajectory without training the transitions to which `why` gives a reason. Older reasons stay."""
    reasons = [why(transition) if transition.trained else None for transition in trajectory.transitions]
    if not any(reasons):
        return trajectory
    marked = tuple(
        transition if reason is None else replace(transition, trained=False, reason=reason)
        for transition, reason in zip(trajectory.transitions, reasons, strict=True)
    )
    return replace(trajectory, transitions=marked)


def check_joins(trajectories: Iterable[Trajectory], agents: Sequence[str] | None, *, full_step: bool = False) -> None:
    """Stop a run whose first step shows that calls and spans do not meet.

    Raises `JoinError` if agents are selected and the agent of some call is unknown, or if the framework recorded model calls and none
    of them reached the gateway. Raises `ConfigError` if a pattern of `agents` matches nobody in a full training step. In fewer rollouts
    (`full_step` is False) one match of any pattern is enough, and the others are warnings.
    """
    trajectories = list(trajectories)
    transitions = [t for trajectory in trajectories for t in trajectory.transitions]
    astray = [note for trajectory in trajectories for note in trajectory.diagnostics if NEVER_ARRIVED in note]
    if astray and not any(sum(trajectory.calls.values()) for trajectory in trajectories):
        raise JoinError(
            f"The framework made {len(astray)} model calls in the first step, and none reached the gateway: {astray[0]}. "
            "Give the agent's model the base_url and api_key of `llm`."
        )
    if agents is None or not transitions:
        return
    unjoined = sum(t.reason == UNJOINED for t in transitions)
    seen = sorted({t.agent for t in transitions if t.agent is not None})
    if unjoined or not seen:
        raise JoinError(
            f"agents = {list(agents)} selects agents, but {unjoined or len(transitions)} of {len(transitions)} model calls name no "
            "agent. Activate the framework's adapter: pass its callback or call `install()`. For a command, switch on its OpenTelemetry. "
            "`agl show` lists the calls."
        )
    unmatched = [pattern for pattern in agents if not any(fnmatchcase(name, pattern) for name in seen)]
    if len(unmatched) == len(agents):
        raise ConfigError("agents: " + unknown("agent", unmatched[0], seen))
    if unmatched and full_step:
        way_out = "If it acts only later, use a pattern that matches an agent of this step too."
        raise ConfigError(f"agents: {unknown('agent', unmatched[0], seen)} {way_out}")
    for pattern in unmatched:
        log.warning("agents: %s A run stops after its first step if nobody matches.", unknown("agent", pattern, seen))


def _bare(state: RolloutState, attempt_id: str, status: AttemptStatus, *diagnostics: str) -> Trajectory:
    """The trajectory without rewards and transitions."""
    rollout, winner = state.rollout, state.winner
    return Trajectory(
        task=rollout.task,
        rollout_id=rollout.id,
        attempt_id=attempt_id,
        group=rollout.group or rollout.id,
        index=rollout.index,
        mode=rollout.mode,
        status=status,
        error=winner.error if winner else None,
        reward=None,
        diagnostics=diagnostics,
    )


class _Reading:
    """One reading of the records of one attempt."""

    def __init__(self, records: AttemptRecords, agents: Sequence[str] | None) -> None:
        self.records, self.agents = records, agents
        self.calls = sorted(records.calls, key=lambda call: call.index)
        self.tree = Tree(records.spans)
        self.joins = join(self.calls, records.spans)
        self.completions: dict[str, list[Completion]] = defaultdict(list)  # by call, in order of choice
        for completion in sorted(records.completions, key=lambda completion: completion.choice):
            self.completions[completion.call_id].append(completion)
        self.diagnostics = list(self.joins.diagnostics)

    def counts(self) -> dict[str, int]:
        """The number of requests by status."""
        return dict(Counter("superseded" if call.id in self.joins.alias else call.status for call in self.calls))

    def contexts(self) -> dict[str, int]:
        """The number of completed requests by the origin of their prompts."""
        return dict(Counter(call.context for call in self._completed() if call.context is not None))

    def offering_calls(self) -> list[Call]:
        """The completed requests that offered tools."""
        return [call for call in self._completed() if call.tools]

    def used_tool(self, call: Call) -> bool:
        """Whether a reply to a request calls a tool."""
        messages = (cast("dict[str, Any] | None", completion.message) or {} for completion in self.completions[call.id])
        return any(message.get("tool_calls") for message in messages)

    def broken_calls(self, transitions: Iterable[Transition]) -> int:
        """The number of these replies with a tool call that cannot be read."""
        problems = {completion.id for completion in self.records.completions if completion.problem is not None}
        return sum(transition.completion_id in problems for transition in transitions)

    def transitions(self, step_rewards: Sequence[StepReward]) -> tuple[Transition, ...]:
        """In order: by arrival of the call, then choice."""
        rewards = self._targets(step_rewards)
        turns: Counter[str | None] = Counter()
        index_of: dict[str, int] = {}
        transitions: list[Transition] = []
        for call in self.calls:
            sampled = self.completions[call.id]
            if call.choices != len(sampled):
                self.diagnostics.append(f"call {call.id} says {call.choices} choices and {len(sampled)} completions are recorded")
            agent = self._agent(call.id)
            choices = [completion for completion in sampled if self._keep(call, completion)]
            for completion in choices:
                reason = self._reason(call.id, agent, completion)
                transitions.append(
                    Transition(
                        completion_id=completion.id,
                        call_id=call.id,
                        prompt_ids=completion.prompt_ids,
                        response_ids=completion.response_ids,
                        logprobs=completion.logprobs,
                        versions=completion.versions,
                        temperature=completion.sampling.temperature,
                        agent=agent,
                        index=len(transitions),
                        turn=turns[agent],
                        rewards=tuple(reward for reward, target in rewards if target in (call.id, completion.id)),
                        continues=self._continues(completion, transitions, index_of),
                        demonstrated=completion.demonstrated,
                        truncated=completion.finish_reason == "length",
                        policy=completion.policy,
                        trained=reason is None,
                        reason=reason,
                    )
                )
            index_of.update({t.completion_id: t.index for t in transitions[len(transitions) - len(choices) :]})
            turns[agent] += bool(choices)
        self._note_losses(transitions, rewards)
        return tuple(transitions)

    def _completed(self) -> list[Call]:
        return [call for call in self.calls if call.status == "completed" and call.id not in self.joins.alias]

    def _targets(self, step_rewards: Sequence[StepReward]) -> list[tuple[Reward, str]]:
        """The rewards of spans and calls, each with the id of the call, or of the one completion, that earned it."""
        rules = RewardTargets(self.calls, self.completions, self.tree, self.joins)
        calls = {call.id for call in self.calls}
        observed = [pair for step_reward in step_rewards for pair in step_reward.observed(self.records)]
        targets = [(reward, completion_id) for reward, completion_id in observed if completion_id is not None]
        for reward in (*self.records.rewards, *(reward for reward, completion_id in observed if completion_id is None)):
            target: str | None = None
            if reward.call_id is not None:
                target = self.joins.call(reward.call_id)
                target = target if target in calls else None
            elif reward.span_id is None:
                continue  # a reward of the rollout
            elif reward.span_id in self.tree.spans:
                target = rules.target(self.tree.spans[reward.span_id])
            if target is None:
                subject = f"call {reward.call_id}" if reward.call_id else f"span {reward.span_id}"
                self.diagnostics.append(f"reward {reward.name!r} ({reward.value:g}) of {subject} reaches no model call and is not counted")
            else:
                targets.append((reward, target))
        return targets

    def _keep(self, call: Call, completion: Completion) -> bool:
        """Whether a completion becomes a transition; a diagnostic says why not."""
        tokens = len(completion.response_ids)
        if call.id in self.joins.alias:
            why = f"its call was superseded by {self.joins.alias[call.id]}"
        elif call.status != "completed":
            why = f"its call ended as {call.status!r}" + (f": {call.detail}" if call.detail else "")
        elif not tokens and completion.missing is None:
            why = "nothing was sampled"
        else:
            return True
        self.diagnostics.append(f"no transition for completion {completion.id} ({tokens} tokens): {why}")
        return False

    def _agent(self, call_id: str) -> str | None:
        """The first agent's name in the spans of a call."""
        return next((name for span in self.joins.spans.get(call_id, ()) if (name := self.tree.agent(span)) is not None), None)

    def _reason(self, call_id: str, agent: str | None, completion: Completion) -> str | None:
        """Why a transition is not trained; None: it is."""
        if completion.finish_reason in ("cancelled", "error"):
            return f"its sampling ended as {completion.finish_reason!r}"
        if not completion.demonstrated:  # a demonstration needs nothing that a ratio needs
            if completion.logprobs is None:
                return completion.missing or "no logprobs were recorded"
            missing = int(np.count_nonzero(~np.isfinite(completion.logprobs)))
            if missing:
                return f"{missing} of its {len(completion.logprobs)} logprobs are missing"
            if completion.sampling.truncated:
                return "sampled with top_p or top_k, so its logprobs are not those of the sampling distribution"
            if is_greedy(completion.sampling.temperature):
                return "sampled greedily"
        if self.agents is None:
            return None
        if agent is None:
            return "its span names no agent, and agents are selected" if call_id in self.joins.spans else UNJOINED
        return None if any(fnmatchcase(agent, pattern) for pattern in self.agents) else f"agent {agent!r} is not selected"

    def _continues(self, completion: Completion, transitions: Sequence[Transition], index_of: Mapping[str, int]) -> int | None:
        """Index of the transition whose tokens start the prompt. It is checked, because the batch relies on it."""
        index = index_of.get(completion.continues) if completion.continues is not None else None
        if index is None:
            return None
        prompt, response = transitions[index].prompt_ids, transitions[index].response_ids
        middle, end = len(prompt), len(prompt) + len(response)
        if np.array_equal(completion.prompt_ids[:middle], prompt) and np.array_equal(completion.prompt_ids[middle:end], response):
            return index
        self.diagnostics.append(f"completion {completion.id} says that it continues {completion.continues}, but its prompt differs")
        return None

    def _note_losses(self, transitions: Sequence[Transition], rewards: Sequence[tuple[Reward, str]]) -> None:
        """Diagnostics of everything that reached no transition or is not trained."""
        calls = {call.id for call in self.calls}
        for completion in self.records.completions:
            if completion.call_id not in calls:
                self.diagnostics.append(
                    f"no transition for completion {completion.id} ({len(completion.response_ids)} tokens): "
                    f"its call {completion.call_id} is not recorded"
                )
        reached = {r.id for t in transitions for r in t.rewards}
        for reward, target in rewards:
            if reward.id not in reached:
                self.diagnostics.append(
                    f"reward {reward.name!r} ({reward.value:g}) belongs to call {target}, which left no transition, and is not counted"
                )
        for first, second in pairwise(self.calls):
            if first.index == second.index:
                self.diagnostics.append(
                    f"calls {first.id} and {second.id} have the same number {first.index}; their order is that of the store"
                )
        reasons: dict[str, list[str]] = defaultdict(list)
        for t in transitions:
            if t.reason is not None:
                reasons[t.reason].append(str(t.index))
        self.diagnostics.extend(f"not trained, {reason}: transition {', '.join(indices)}" for reason, indices in reasons.items())

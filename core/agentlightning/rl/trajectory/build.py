"""What one attempt's records say to the learner. Pure: the same records give the same trajectory, and nothing is changed (law 1).

Every request ends as transitions, one for each choice, or is counted under what became of it (`Trajectory.calls`; the sum is the number
of requests). Every sampled token is in a trained transition, in one whose `reason` says why not, or in a diagnostic (law 2).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

import numpy as np
from msgspec.structs import replace

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import ConfigError, JoinError, LightningError, NotFound
from agentlightning.registry.registry import unknown
from agentlightning.rl.trajectory.joins import NEVER_ARRIVED, TOOL_CALL_ID, Joins, Tree, asked_tools, join
from agentlightning.rl.trajectory.rollout_reward import check_finite, rollout_reward
from agentlightning.rl.trajectory.step_rewards import StepReward
from agentlightning.types import AttemptStatus, Call, Completion, Reward, Span, Trajectory, Transition

log = logging.getLogger(__name__)

UNJOINED = "not joined: no span says which agent made this call"
"""Reason of a transition whose agent is not known while agents are selected."""


def trajectory(
    state: RolloutState,
    records: Sequence[AttemptRecords],
    *,
    agents: Sequence[str] | None = None,
    reward_weights: Mapping[str, float] | None = None,
    step_rewards: Sequence[StepReward] = (),
) -> Trajectory:
    """The trajectory of the rollout's winning attempt; other attempts are never looked at.

    `agents`: names or patterns (`fnmatch`) of the agents to train; None: all. `reward_weights`: see `rl.status.status`.
    `step_rewards`: what is observed in the records, and what it earns (`rl.facts`). Raises `LightningError` while the rollout has not
    ended, `NotFound` when the winning attempt's records are not given, and `RewardError` for rewards that are not finite or contradict
    each other, and for a signal that cannot be told.
    """
    winner = state.winner
    if winner is None and state.status not in ("failed", "cancelled"):
        raise LightningError(f"rollout {state.rollout.id} is {state.status}; a trajectory is made when it has ended")
    if winner is None or winner.status == "lost":  # cancelled before it was claimed, or no attempt came back
        status: AttemptStatus = winner.status if winner else "cancelled" if state.status == "cancelled" else "failed"
        return _made(state, winner.id if winner else "", status, diagnostics=(f"not scored: no attempt was completed ({status})",))
    found = next((each for each in records if each.attempt.id == winner.id), None)
    if found is None:
        raise NotFound(f"rollout {state.rollout.id}: the records of its winning attempt {winner.id} were not given")
    check_finite(found.rewards)
    whole = tuple(r for r in found.rewards if r.span_id is None and r.call_id is None)
    reward, said = rollout_reward(whole, status=winner.status, weights=reward_weights)
    reader = _Reader(found, agents, step_rewards)
    if reward is None and len(whole) < len(found.rewards):
        said.append("the rewards of its spans alone are an outcome only for the credit `per_step` with rollout_weight = 0")
    return _made(
        state,
        winner.id,
        winner.status,
        reward=reward,
        rewards=whole,
        transitions=reader.transitions(),
        calls=reader.counts(),
        diagnostics=(*said, *reader.diagnostics),
    )


def leave_out(trajectory: Trajectory, why: Callable[[Transition], str | None]) -> Trajectory:
    """The trajectory, in which those transitions are not trained for which `why` has a reason; what was left out already keeps its own."""
    reasons = [why(each) if each.trained else None for each in trajectory.transitions]
    if not any(reasons):
        return trajectory
    marked = tuple(
        each if reason is None else replace(each, trained=False, reason=reason)
        for each, reason in zip(trajectory.transitions, reasons, strict=True)
    )
    return replace(trajectory, transitions=marked)


def check_joins(trajectories: Iterable[Trajectory], agents: Sequence[str] | None) -> None:
    """Stop a run whose first step shows that calls and spans do not meet.

    Raises `JoinError` when agents are selected and some call cannot be told whose it is, or when spans tell of model calls and not one
    of them reached the gateway; `ConfigError` when no pattern of `agents` fits an agent that was seen. One of several that fits none is a
    warning: a branch of a graph may not have been taken yet.
    """
    trajectories = list(trajectories)
    transitions = [t for each in trajectories for t in each.transitions]
    astray = [said for each in trajectories for said in each.diagnostics if NEVER_ARRIVED in said]
    if astray and not any(sum(each.calls.values()) for each in trajectories):
        raise JoinError(
            f"no model call reached the gateway in the first step, and {len(astray)} were seen in the framework: {astray[0]}. "
            "Give the agent's model the base_url and api_key of `llm`"
        )
    if agents is None or not transitions:
        return
    lost = sum(t.reason == UNJOINED for t in transitions)
    seen = sorted({t.agent for t in transitions if t.agent is not None})
    if lost or not seen:
        raise JoinError(
            f"agents = {list(agents)} selects who is trained, but {lost or len(transitions)} of {len(transitions)} model calls name no "
            "agent. Is the framework's adapter active (its callback passed, or `install()` called)? `agl show` tells which calls"
        )
    unmet = [pattern for pattern in agents if not any(fnmatchcase(name, pattern) for name in seen)]
    if len(unmet) == len(agents):
        raise ConfigError("agents: " + unknown("agent", unmet[0], seen))
    for pattern in unmet:
        log.warning("agents: %s; nothing of it is trained unless it acts later", unknown("agent", pattern, seen))


def _made(
    state: RolloutState,
    attempt_id: str,
    status: AttemptStatus,
    *,
    reward: float | None = None,
    rewards: tuple[Reward, ...] = (),
    transitions: tuple[Transition, ...] = (),
    calls: dict[str, int] | None = None,
    diagnostics: tuple[str, ...] = (),
) -> Trajectory:
    rollout = state.rollout
    return Trajectory(
        task=rollout.task,
        rollout_id=rollout.id,
        attempt_id=attempt_id,
        group=rollout.group or rollout.id,
        index=rollout.index,
        mode=rollout.mode,
        status=status,
        error=winner.error if (winner := state.winner) else None,
        reward=reward,
        rewards=rewards,
        transitions=transitions,
        calls=calls or {},
        diagnostics=diagnostics,
    )


class _Reader:
    """One reading of one attempt's records."""

    def __init__(self, records: AttemptRecords, agents: Sequence[str] | None, step_rewards: Sequence[StepReward]) -> None:
        self.records, self.agents = records, agents
        self.calls = sorted(records.calls, key=lambda call: call.index)
        self.tree = Tree(records.spans)
        self.joins: Joins = join(self.calls, records.spans)
        self.call_of = {span.id: call_id for call_id, spans in self.joins.spans.items() for span in spans}
        self.completions = self._completions()
        self.diagnostics = list(self.joins.diagnostics)
        self.observed = [each for signal in step_rewards for each in signal.observed(records)]

    def counts(self) -> dict[str, int]:
        """How many requests ended as what."""
        return dict(Counter("superseded" if call.id in self.joins.alias else call.status for call in self.calls))

    def transitions(self) -> tuple[Transition, ...]:
        """In order: by arrival of the call, then choice."""
        rewards = self._credited()
        turns: Counter[str | None] = Counter()
        index_of: dict[str, int] = {}
        made: list[Transition] = []
        for call in self.calls:
            completions = self.completions[call.id]
            self._check_call(call, completions)
            completions = [each for each in completions if self._kept(call, each)]
            agent = self._agent(call.id)
            for each in completions:
                reason = self._reason(call.id, agent, each)
                made.append(
                    Transition(
                        completion_id=each.id,
                        call_id=call.id,
                        prompt_ids=each.prompt_ids,
                        response_ids=each.response_ids,
                        logprobs=each.logprobs,
                        versions=each.versions,
                        temperature=each.sampling.temperature,
                        agent=agent,
                        index=len(made),
                        turn=turns[agent],
                        rewards=tuple(r for r, to in rewards if to in (call.id, each.id)),
                        continues=self._continues(each, made, index_of),
                        demonstrated=each.demonstrated,
                        truncated=each.finish_reason == "length",
                        trained=reason is None,
                        reason=reason,
                    )
                )
            index_of.update({t.completion_id: t.index for t in made[len(made) - len(completions) :]})
            turns[agent] += bool(completions)
        self._say_what_got_lost(made, rewards)
        return tuple(made)

    def _completions(self) -> dict[str, list[Completion]]:
        """By call, in order of choice."""
        by_call: dict[str, list[Completion]] = defaultdict(list)
        for each in self.records.completions:
            by_call[each.call_id].append(each)
        for each in by_call.values():
            each.sort(key=lambda completion: completion.choice)
        return by_call

    def _check_call(self, call: Call, completions: list[Completion]) -> None:
        if call.choices != len(completions):
            self.diagnostics.append(f"call {call.id} says {call.choices} choices and {len(completions)} completions are recorded")

    def _kept(self, call: Call, completion: Completion) -> bool:
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
        """The first name that the spans of a call give."""
        return next((name for span in self.joins.spans.get(call_id, ()) if (name := self.tree.agent(span)) is not None), None)

    def _reason(self, call_id: str, agent: str | None, completion: Completion) -> str | None:
        """Why a transition is not trained; None: it is."""
        if completion.finish_reason in ("cancelled", "error"):
            return f"its sampling ended as {completion.finish_reason!r}"
        if completion.demonstrated:  # what a ratio needs is not asked of it
            return self._unselected(call_id, agent)
        if completion.logprobs is None:
            return completion.missing or "no logprobs were recorded"
        missing = int(np.count_nonzero(~np.isfinite(completion.logprobs)))
        if missing:
            return f"{missing} of its {len(completion.logprobs)} logprobs are missing"
        if completion.sampling.truncated:
            return "sampled with top_p or top_k, so its logprobs are not those of what it was sampled from"
        if not completion.sampling.temperature > 0:
            return "sampled greedily"
        return self._unselected(call_id, agent)

    def _unselected(self, call_id: str, agent: str | None) -> str | None:
        """Why a call is none of the agents that are trained; None: it is, or all are."""
        if self.agents is None:
            return None
        if agent is None:
            return "its span names no agent, and agents are selected" if call_id in self.joins.spans else UNJOINED
        return None if any(fnmatchcase(agent, pattern) for pattern in self.agents) else f"agent {agent!r} is not selected"

    def _continues(self, completion: Completion, made: list[Transition], index_of: Mapping[str, int]) -> int | None:
        """Index of the transition whose tokens the prompt starts with; checked, for the batch relies on it."""
        index = index_of.get(completion.continues) if completion.continues is not None else None
        if index is None:
            return None
        prompt, response = made[index].prompt_ids, made[index].response_ids
        middle, end = len(prompt), len(prompt) + len(response)
        if np.array_equal(completion.prompt_ids[:middle], prompt) and np.array_equal(completion.prompt_ids[middle:end], response):
            return index
        self.diagnostics.append(f"completion {completion.id} says that it continues {completion.continues}, but its prompt differs")
        return None

    def _credited(self) -> list[tuple[Reward, str]]:
        """The rewards of spans and calls, each with the id of the call that it reaches, or of the one completion."""
        known = {call.id for call in self.calls}
        credited = [(reward, alone) for reward, alone in self.observed if alone is not None]
        for reward in (*self.records.rewards, *(reward for reward, alone in self.observed if alone is None)):
            target: str | None = None
            if reward.call_id is not None:
                target = self.joins.call(reward.call_id)
                target = target if target in known else None
            elif reward.span_id is not None and reward.span_id in self.tree.spans:
                target = self._asked_by(self.tree.spans[reward.span_id])
            elif reward.span_id is None:
                continue
            if target is None:
                about = f"call {reward.call_id}" if reward.call_id else f"span {reward.span_id}"
                self.diagnostics.append(f"reward {reward.name!r} ({reward.value:g}) of {about} reaches no model call and is not counted")
            else:
                credited.append((reward, target))
        return credited

    def _asked_by(self, span: Span) -> str | None:
        """The call (or the one completion of it) that asked for what a span did."""
        if span.kind == "llm":
            return self.call_of.get(span.id)
        for each in (span, *self.tree.above(span)):
            tool_id = each.attributes.get(TOOL_CALL_ID)
            asking = [
                c.id for call in self.calls for c in self.completions[call.id] if each.kind == "tool" and tool_id in asked_tools(c.message)
            ]
            if asking:
                return asking[-1]
            if each.kind == "tool":
                return self._called_before(each)
        return self._last_inside(span) if span.kind == "agent" else self._called_before(span)

    def _called_before(self, span: Span) -> str | None:
        """The nearest earlier call of the agent that a span belongs to."""
        before = [each for each in self.records.spans if each.id in self.call_of and each.started <= span.started]
        before.sort(key=lambda each: each.started)
        for above in self.tree.above(span):
            inside = [each for each in before if self._within(each, above)]
            if inside and above.kind == "agent":
                return self.call_of[inside[-1].id]
        agent = self.tree.agent(span)
        same = [each for each in before if self.tree.agent(each) == agent]
        return self.call_of[same[-1].id] if same else None

    def _within(self, span: Span, above: Span) -> bool:
        return any(each.id == above.id for each in self.tree.above(span))

    def _last_inside(self, span: Span) -> str | None:
        """The last call that an agent made itself or through others: nobody asked for the agent, so its work is what is rewarded."""
        inside = {self.call_of[e.id] for e in self.records.spans if e.id in self.call_of and self._within(e, span)}
        order = [call.id for call in self.calls if call.id in inside]
        return order[-1] if order else None

    def _say_what_got_lost(self, made: list[Transition], rewards: list[tuple[Reward, str]]) -> None:
        known = {call.id for call in self.calls}
        for completion in self.records.completions:
            if completion.call_id not in known:
                self.diagnostics.append(
                    f"no transition for completion {completion.id} ({len(completion.response_ids)} tokens): "
                    f"its call {completion.call_id} is not recorded"
                )
        reached = {r.id for t in made for r in t.rewards}
        for reward, target in rewards:
            if reward.id not in reached:
                self.diagnostics.append(
                    f"reward {reward.name!r} ({reward.value:g}) belongs to call {target}, which left no transition, and is not counted"
                )
        for one, two in pairwise(self.calls):
            if one.index == two.index:
                self.diagnostics.append(f"calls {one.id} and {two.id} have the same number {one.index}; their order is that of the store")
        reasons: dict[str, list[str]] = defaultdict(list)
        for t in made:
            if t.reason is not None:
                reasons[t.reason].append(str(t.index))
        self.diagnostics.extend(f"not trained, {reason}: transition {', '.join(which)}" for reason, which in reasons.items())

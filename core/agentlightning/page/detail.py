"""One rollout: its tree, and what each node holds. Conversations and tokens are read one call at a time."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from msgspec import to_builtins

from agentlightning.contracts.store import AttemptRecords
from agentlightning.errors import NotFound
from agentlightning.page.library import Decode, Source
from agentlightning.page.rows import advantage_of, row
from agentlightning.records.shown import Shown
from agentlightning.rl.trajectory.joins import Joins, join
from agentlightning.stores.messages import RecordedMessages, new_messages
from agentlightning.training.run_state import Learned
from agentlightning.types import JSON, Call, Completion, FloatArray, Reward, Span, Transition

NO_MESSAGES = "The messages of this call were not recorded. Its exact tokens were."
UNFINISHED = "�"
"""What a decoder gives for a part of a character."""
PIECES = 8
"""Tokens of one character, at most."""


def detail(source: Source, shown: Shown) -> dict[str, JSON]:
    """Everything about a rollout except conversations and tokens."""
    rollout = shown.state.rollout
    notes = [*source.records.notes, *([shown.problem] if shown.problem else [])]
    notes += [note for note in (shown.trajectory.diagnostics if shown.trajectory else ()) if not note.startswith("not trained")]
    return {
        "row": row(shown),
        "input": rollout.task.input,
        "policy": rollout.policy,
        "settings": None if rollout.sampling is None else to_builtins(rollout.sampling),
        "attempts": [Attempt(shown, records).view() for records in shown.attempts],
        "winner": None if shown.trajectory is None else shown.trajectory.attempt_id,
        "notes": notes,
        "text": source.decode is not None,
    }


class Attempt:
    """Builds the tree of one attempt."""

    def __init__(self, shown: Shown, records: AttemptRecords) -> None:
        self._records, self._learned = records, shown.learned
        self._joins: Joins = join(records.calls, records.spans)
        self._calls = {call.id: call for call in records.calls}
        self._call_of = {span.id: call_id for call_id, spans in self._joins.spans.items() for span in spans}
        self._completions: dict[str, list[Completion]] = defaultdict(list)
        for completion in sorted(records.completions, key=lambda completion: completion.choice):
            self._completions[completion.call_id].append(completion)
        trajectory = shown.trajectory
        counts = trajectory is not None and trajectory.attempt_id == records.attempt.id
        self._transitions: dict[str, Transition] = {}
        if trajectory is not None and counts:
            self._transitions = {transition.completion_id: transition for transition in trajectory.transitions}
        self._rewards: dict[str | None, list[Reward]] = defaultdict(list)
        of_steps = (reward for transition in self._transitions.values() for reward in transition.rewards)  # not in the store
        for reward in {reward.id: reward for reward in (*records.rewards, *of_steps)}.values():
            self._rewards[reward.span_id or reward.call_id].append(reward)
        self._children: dict[str | None, list[Span]] = defaultdict(list)
        ids = {span.id for span in records.spans}
        for span in sorted(records.spans, key=lambda span: span.started):
            self._children[span.parent_id if span.parent_id in ids else None].append(span)

    def view(self) -> dict[str, JSON]:
        """The attempt, its nodes as a tree, and its calls in order."""
        attempt, shown_calls = self._records.attempt, set[str]()
        nodes = [self._node(span, shown_calls, frozenset()) for span in self._children[None]]
        alone = [call for call in self._records.calls if call.id not in shown_calls]
        nodes += [self._call(call, None) for call in sorted(alone, key=lambda call: call.index)]
        return {
            "id": attempt.id,
            "number": attempt.number,
            "status": attempt.status,
            "worker": attempt.worker,
            "error": attempt.error,
            "started": attempt.started,
            "finished": attempt.finished,
            "rewards": self._rewards_of(None),
            "nodes": nodes,
            "has_spans": bool(self._records.spans),
        }

    def _node(self, span: Span, shown_calls: set[str], above: frozenset[str]) -> dict[str, JSON]:
        call_id = self._call_of.get(span.id)
        if call_id is not None and call_id in self._calls:
            shown_calls |= {call_id, *(old for old, new in self._joins.alias.items() if new == call_id)}
            node = self._call(self._calls[call_id], span)
        else:
            node = {
                "id": span.id,
                "kind": span.kind,
                "name": span.name,
                "agent": span.agent,
                "started": span.started,
                "ended": span.ended,
                "attributes": span.attributes,
                "rewards": self._rewards_of(span.id),
            }
        deeper = above | {span.id}  # clients choose ids, so a cycle is possible: it is shown once
        children = [self._node(child, shown_calls, deeper) for child in self._children[span.id] if child.id not in deeper]
        return {**node, "children": children}

    def _call(self, call: Call, span: Span | None) -> dict[str, JSON]:
        completions = self._completions[call.id]
        agent = span.agent if span is not None else None
        agent = agent or next((t.agent for t in self._transitions.values() if t.call_id == call.id), None)
        rewards = [reward for key in {call.id, span.id if span is not None else call.id} for reward in self._rewards_of(key)]
        return {
            "id": call.id,
            "kind": "call",
            "name": agent or (span.name if span is not None else "model"),
            "agent": agent,
            "index": call.index,
            "status": call.status,
            "detail": call.detail,
            "context": call.context,
            "tools": call.tools,
            "started": call.started,
            "ended": call.ended,
            "retried": self._joins.alias.get(call.id),
            "rewards": rewards,
            "replayable": _is_replayable(call),
            "replies": [self._reply(completion) for completion in completions],
            "children": [],
        }

    def _reply(self, completion: Completion) -> dict[str, JSON]:
        transition, learned = self._transitions.get(completion.id), self._learned
        advantage = None if transition is None else advantage_of(learned, transition)
        credit = None
        if transition is not None and learned is not None and transition.index < len(learned.returns):
            credit = learned.returns[transition.index]
        versions = completion.versions.tolist()
        logprobs = completion.logprobs
        return {
            "id": completion.id,
            "choice": completion.choice,
            "prompt": len(completion.prompt_ids),
            "sampled": len(completion.response_ids),
            "finish": completion.finish_reason,
            "versions": sorted(set(versions)),
            "logprob": float(logprobs.mean()) if logprobs is not None and len(logprobs) else None,
            "temperature": completion.sampling.temperature,
            "return": credit,
            "advantage": advantage,
            "trained": advantage is not None,
            "reason": None if advantage is not None else _reason(transition, learned),
            "problem": completion.problem,
            "missing": completion.missing,
            "demonstrated": completion.demonstrated,
            "policy": completion.policy,
            "renderer": completion.renderer,
        }

    def _rewards_of(self, key: str | None) -> list[JSON]:
        return [{"name": reward.name, "value": reward.value, "source": reward.source} for reward in self._rewards.get(key, ())]


def _reason(transition: Transition | None, learned: Learned | None) -> str | None:
    """Why a reply was not trained; None: no finished step took it."""
    if transition is None:
        return "not part of the trajectory"
    if not transition.trained:
        return transition.reason
    return max(learned.excluded, key=lambda reason: learned.excluded[reason], default=None) if learned is not None else None


def _is_replayable(call: Call) -> bool:
    """Whether the playground can ask this again: its messages are recorded, and it sent messages, not a text to continue."""
    messages = new_messages(call)
    return messages is not None and not any(message.get("role") == "prompt" for message in messages)


def conversation(shown: Shown, call_id: str) -> dict[str, JSON]:
    """The messages and tools that a call sent, and its replies."""
    records, call = next(((records, call) for records in shown.attempts for call in records.calls if call.id == call_id), (None, None))
    if records is None or call is None:
        raise NotFound(f"Rollout {shown.state.rollout.id} has no call {call_id!r}. Open the rollout again.")
    recorded = RecordedMessages(records)
    messages = recorded.of(call_id)
    completions = sorted((it for it in records.completions if it.call_id == call_id), key=lambda completion: completion.choice)
    return {
        "messages": messages,
        "missing": None if messages is not None else NO_MESSAGES,
        "tools": recorded.tools(call_id),
        "offered": bool(call.tools),
        "sampling": to_builtins(completions[0].sampling) if completions else None,
        "replies": [
            {
                "id": completion.id,
                "message": completion.message,
                "finish": completion.finish_reason,
                "prompt": len(completion.prompt_ids),
                "sampled": len(completion.response_ids),
            }
            for completion in completions
        ],
    }


def tokens(source: Source, shown: Shown, completion_id: str) -> dict[str, JSON]:
    """The exact tokens of one reply and of its prompt, with their numbers."""
    completion = next((it for records in shown.attempts for it in records.completions if it.id == completion_id), None)
    if completion is None:
        raise NotFound(f"Rollout {shown.state.rollout.id} has no reply {completion_id!r}. Open the rollout again.")
    trainer = source.contributions.trainer_logprobs(shown.state.rollout, completion_id)
    return {
        "prompt": {"ids": completion.prompt_ids.tolist(), "texts": texts(source.decode, completion.prompt_ids.tolist())},
        "response": {"ids": completion.response_ids.tolist(), "texts": texts(source.decode, completion.response_ids.tolist())},
        "logprobs": None if completion.logprobs is None else _finite_list(completion.logprobs),
        "versions": completion.versions.tolist(),
        "trainer": None if trainer is None else {"logprobs": _finite_list(trainer.logprobs), "version": trainer.version},
        "decoded": source.decode is not None,
    }


def texts(decode: Decode | None, ids: list[int]) -> list[str]:
    """The text of each token. Tokens of one character show it at the first of them, and are empty after it."""
    if decode is None:
        return [""] * len(ids)
    result: list[str] = []
    while len(result) < len(ids):
        start = len(result)
        text, size = decode(ids[start : start + 1]), 1
        while UNFINISHED in text and size < PIECES and start + size < len(ids):
            size += 1
            text = decode(ids[start : start + size])
        if UNFINISHED in text:  # no character at all
            text, size = decode(ids[start : start + 1]), 1
        result += [text, *[""] * (size - 1)]
    return result


def _finite_list(values: FloatArray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]

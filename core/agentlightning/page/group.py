"""The rollouts of one task side by side: what each replied, where they part, and what that earned."""

from __future__ import annotations

from collections.abc import Sequence

from agentlightning.errors import NotFound
from agentlightning.page.library import Source
from agentlightning.page.rows import build, fields_of, row, tool_calls
from agentlightning.records.shown import Shown
from agentlightning.types import JSON, Completion

MOST = 64
"""Rollouts of a group that are shown."""


async def group(source: Source, name: str) -> dict[str, JSON]:
    """The rollouts of a group in order, each with its replies, and the number of characters that all replies have in common at first."""
    ids = await source.of_group(name, MOST)
    if not ids:
        raise NotFound(f"There is no group {name!r} in this store. The list of rollouts shows the groups.")
    shown = [build(source, *await source.read(rollout_id)) for rollout_id in ids]
    shown.sort(key=lambda rollout: rollout.state.rollout.index)
    replies = [replies_of(rollout) for rollout in shown]
    texts = ["".join(reply["text"] for reply in rollout) for rollout in replies]
    return {
        "group": name,
        "task": shown[0].state.rollout.task.id,
        "input": shown[0].state.rollout.task.input,
        "common": common(texts) if len(texts) > 1 else None,
        "rollouts": [{"row": row(rollout), "replies": texts} for rollout, texts in zip(shown, replies, strict=True)],
        "more": len(ids) == MOST,
    }


def common(texts: Sequence[str]) -> int:
    """The number of characters with which all texts begin."""
    first, last = min(texts), max(texts)
    return next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))


def replies_of(shown: Shown) -> list[dict[str, str]]:
    """The replies of the attempt that counts, in order, as text."""
    winner = shown.state.winner
    records = next((records for records in shown.attempts if winner is not None and records.attempt.id == winner.id), None)
    if records is None:
        return []
    index = {call.id: call.index for call in records.calls}
    completions = sorted(records.completions, key=lambda completion: (index.get(completion.call_id, 0), completion.choice))
    return [{"call": completion.call_id, "text": reply_text(completion)} for completion in completions]


def reply_text(completion: Completion) -> str:
    """A reply as a person reads it: its reasoning, its text, then its tool calls."""
    if isinstance(completion.message, str):
        return completion.message
    message = fields_of(completion.message)
    lines = [str(message[key]) for key in ("reasoning_content", "content") if message.get(key)]
    for call in tool_calls(completion):
        function = call.get("function", call)
        lines.append(f"→ {function.get('name')}({function.get('arguments', '')})")
    return "\n".join(lines)
